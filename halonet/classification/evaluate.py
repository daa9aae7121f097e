"""Scores of a model on labelled images."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from halonet.data.dataset import ImageDataset
from halonet.data.loader import InOrder, make_loader
from halonet.data.splits import LabelledImages, Split
from halonet.models.halonet import HaloNet

LARGEST_CONFUSION = 200  # classes


@dataclass(frozen=True)
class Predictions:
    """A model's predictions for some images of a split: one process's part of an evaluation.

    All are on the CPU, [images].

    Attributes:
        indices: places of the images in the split.
        labels: true classes; -1 where an image can't be read.
        classes: the predicted classes.
        confidences: their probabilities.
        losses: cross-entropies.
        in_top5: whether the true class is among the five most probable.
    """

    indices: Tensor
    labels: Tensor
    classes: Tensor
    confidences: Tensor
    losses: Tensor
    in_top5: Tensor


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model on labelled images; those that can't be read aren't scored.

    Attributes:
        accuracy: top-1 accuracy, 0 to 1.
        top5_accuracy: 0 to 1; None for fewer than six classes.
        loss: mean cross-entropy.
        images: number of images that were scored.
        broken: number of images that can't be read.
        predictions: the predicted class of each image [images], in the split's order; -1 where it
            can't be read.
        confidences: probability of each prediction [images]; 0 where the image can't be read.
        class_images: scored images of each class [classes].
        class_correct: correctly classified images of each class [classes].
        confusion: images by true class (rows) and predicted class (columns); None for more than
            200 classes.
    """

    accuracy: float
    top5_accuracy: float | None
    loss: float
    images: int
    broken: int
    predictions: Tensor
    confidences: Tensor
    class_images: Tensor
    class_correct: Tensor
    confusion: list[list[int]] | None

    @property
    def broken_indices(self) -> list[int]:
        """Places of the images that can't be read."""
        return (self.predictions < 0).nonzero().flatten().tolist()

    @property
    def figures(self) -> dict[str, float]:
        """The scores by name, for logs."""
        figures = {"loss": self.loss, "accuracy": self.accuracy}
        if self.top5_accuracy is not None:
            figures["top5_accuracy"] = self.top5_accuracy
        return figures


def evaluate(
    model: nn.Module, loader: DataLoader, num_classes: int, device: torch.device
) -> Evaluation:
    """Score a model on a loader of all images of a split, see `make_loader`.

    Raises:
        ValueError: more images can't be read than the loader's data set allows.
    """
    evaluation = score([collect_predictions(model, loader, device)], num_classes)
    if isinstance(loader.dataset, ImageDataset):
        loader.dataset.check_broken(evaluation.broken_indices)
    return evaluation


def collect_predictions(model: nn.Module, loader: DataLoader, device: torch.device) -> Predictions:
    """Run a model over this process's part of a split.

    Args:
        model: left in evaluation mode.
        loader: its sampler is an `InOrder`, empty where there are more processes than images.
        device: that the model is on.
    """
    model.eval()
    # An empty batch first, for a process without images.
    batches = [_compare_with_labels(torch.empty(0, 1), torch.empty(0, dtype=torch.long))]
    for images, labels, _ in loader:
        images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
        with torch.inference_mode():
            logits = model(images).float().cpu()
        batches.append(_compare_with_labels(logits, labels))
    indices = torch.tensor([index for _, index in loader.sampler], dtype=torch.long)
    return Predictions(indices, *(torch.cat(parts) for parts in zip(*batches, strict=True)))


def _compare_with_labels(logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    classes, confidences = logits.argmax(1), logits.softmax(1).amax(1)
    losses = nn.functional.cross_entropy(logits, labels, ignore_index=-1, reduction="none")
    top5 = logits.topk(min(5, logits.shape[1])).indices
    return labels, classes, confidences, losses, (top5 == labels[:, None]).any(1)


def score(parts: Sequence[Predictions], num_classes: int) -> Evaluation:
    """Put the processes' parts together; an image may be in more than one of them."""
    indices = torch.cat([part.indices for part in parts])
    # Where each image of the split is found, from the first to the last.
    places = torch.full((int(indices.max()) + 1,), -1)
    places[indices] = torch.arange(len(indices))
    labels, classes, confidences, losses, in_top5 = (
        torch.cat([getattr(part, name) for part in parts])[places]
        for name in ("labels", "classes", "confidences", "losses", "in_top5")
    )
    readable = labels >= 0
    truth, predicted = labels[readable], classes[readable]
    confusion = None
    if num_classes <= LARGEST_CONFUSION:
        counts = torch.bincount(truth * num_classes + predicted, minlength=num_classes**2)
        confusion = counts.view(num_classes, num_classes).tolist()
    correct = predicted == truth
    return Evaluation(
        accuracy=correct.double().mean().item(),
        top5_accuracy=in_top5[readable].double().mean().item() if num_classes > 5 else None,
        loss=losses[readable].double().mean().item(),
        images=len(truth),
        broken=len(labels) - len(truth),
        predictions=classes.where(readable, -1),
        confidences=confidences.where(readable, 0.0),
        class_images=torch.bincount(truth, minlength=num_classes),
        class_correct=torch.bincount(truth[correct], minlength=num_classes),
        confusion=confusion,
    )


def evaluate_on(
    model: HaloNet,
    data: LabelledImages,
    *,
    batch_size: int = 64,
    workers: int = 0,
    broken_share: float = 0.0,
) -> Evaluation:
    """Score a model on the held-out part of a data set, on the device that it is on.

    Args:
        model: in training or evaluation mode; left in the latter.
        data: of the classes that the model was trained on.
        batch_size: images at a time.
        workers: processes that read images; 0 reads in this one.
        broken_share: largest share of images that can't be read.

    Raises:
        ValueError: the model's classes aren't the data's, or too many images can't be read.
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
    dataset = make_validation_dataset(model, data.validation, broken_share)
    dataset.prepare("held-out images")
    loader = make_loader(dataset, InOrder(len(dataset)), batch_size, workers)
    device = next(model.parameters()).device
    return evaluate(model, loader, len(data.class_names), device)


def make_validation_dataset(
    model: HaloNet, split: Split, broken_share: float = 0.0
) -> ImageDataset:
    """A split as the model wants to see it, without random changes."""
    return ImageDataset(
        split, model.preprocessing, in_channels=model.in_channels, broken_share=broken_share
    )
