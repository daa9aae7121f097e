"""What a model makes of images: scores on a split, and predictions on anything."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from halonet.models.halonet import HaloNet
from halonet.training.data import LabelledImages, Split
from halonet.training.images import (
    ImageDataset,
    InOrder,
    crop_center,
    make_loader,
    normalize,
    read_image,
    resize_short_side,
)


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model on labelled images.

    Attributes:
        accuracy: share of right answers, 0 to 1.
        loss: mean cross-entropy.
        confusion: images of each true class (rows) given each answer (columns).
        probabilities: [images, classes], in the split's order.
    """

    accuracy: float
    loss: float
    confusion: list[list[int]]
    probabilities: Tensor


@torch.no_grad()
def evaluate(
    model: nn.Module, loader: DataLoader, num_classes: int, device: torch.device
) -> Evaluation:
    """Run a model over a loader of images and labels, and score its answers."""
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    model.eval()
    logits, labels = [], []
    for images, targets in loader:
        logits.append(model(images.to(device, memory_format=torch.channels_last)).float().cpu())
        labels.append(targets)
    all_logits, all_labels = torch.cat(logits), torch.cat(labels)
    confusion = multiclass_confusion_matrix(all_logits.argmax(1), all_labels, num_classes)
    return Evaluation(
        accuracy=confusion.trace().item() / len(all_labels),
        loss=nn.functional.cross_entropy(all_logits, all_labels).item(),
        confusion=confusion.tolist(),
        probabilities=all_logits.softmax(1),
    )


def evaluate_on(model: HaloNet, data: LabelledImages, *, batch_size: int = 64) -> Evaluation:
    """Score a model on the held-out part of a data set, on the device that it is on.

    Raises:
        ValueError: the model's classes aren't the data's.
    """
    names = model.class_names
    if names is not None and names != data.class_names:
        raise ValueError(
            f"the model's classes {list(names[:5])} aren't those of {data.name} "
            f"{list(data.class_names[:5])}"
        )
    if model.num_classes != len(data.class_names):
        raise ValueError(
            f"the model has {model.num_classes} classes, {data.name} has {len(data.class_names)}"
        )
    dataset = make_validation_dataset(model, data.validation)
    dataset.prepare("held-out images")
    loader = make_loader(dataset, InOrder(len(dataset)), batch_size, 0)
    device = next(model.parameters()).device
    return evaluate(model, loader, len(data.class_names), device)


def make_validation_dataset(model: HaloNet, split: Split) -> ImageDataset:
    """A split as the model wants to see it, without random changes."""
    return ImageDataset(split, model.preprocessing, in_channels=model.in_channels)


@torch.no_grad()
def predict(
    model: HaloNet, paths: Sequence[Path], *, batch_size: int = 32
) -> Iterator[tuple[Path, Tensor | str]]:
    """Class probabilities [classes] of each image, or what is wrong with it, in order."""
    model.eval()
    device = next(model.parameters()).device
    for start in range(0, len(paths), batch_size):
        batch = paths[start : start + batch_size]
        pixels: list[Tensor] = []
        found: list[Tensor | str | None] = []
        for path in batch:
            try:
                pixels.append(prepare_image(model, path))
                found.append(None)
            except (ValueError, FileNotFoundError) as error:
                found.append(str(error))
        answers = iter(())
        if pixels:
            images = torch.stack(pixels).to(device, memory_format=torch.channels_last)
            answers = iter(model(images).float().softmax(1).cpu())
        for path, problem in zip(batch, found, strict=True):
            yield path, next(answers) if problem is None else problem


def prepare_image(model: HaloNet, path: Path) -> Tensor:
    """An image file as the model wants it, [channels, image_size, image_size]."""
    from torchvision.transforms.v2.functional import pil_to_tensor

    preprocessing = model.preprocessing
    image = read_image(path, model.in_channels)
    short_side = round(preprocessing.image_size / preprocessing.crop_share)
    pixels = pil_to_tensor(resize_short_side(image, short_side))
    return normalize(crop_center(pixels, preprocessing.image_size), preprocessing)
