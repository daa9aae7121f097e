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
class Answers:
    """What a model answers on some images of a split: one process's part of an evaluation.

    All are on the CPU, [images].

    Attributes:
        indices: places of the images in the split.
        labels: true classes; -1 where an image can't be read.
        answers: the model's classes.
        certainties: their probabilities.
        losses: cross-entropies.
        among_five: whether the true class is among the five most probable.
    """

    indices: Tensor
    labels: Tensor
    answers: Tensor
    certainties: Tensor
    losses: Tensor
    among_five: Tensor


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model on labelled images; those that can't be read aren't scored.

    Attributes:
        accuracy: share of right answers, 0 to 1.
        top5_accuracy: share of images whose class is among the five most probable; None for fewer
            than six classes.
        loss: mean cross-entropy.
        images: number of images that were scored.
        broken: number of images that can't be read.
        answers: the model's class for each image [images], in the split's order; -1 where it can't
            be read.
        certainties: probability of each answer [images]; 0 where the image can't be read.
        class_images: scored images of each class [classes].
        class_right: right answers for the images of each class [classes].
        confusion: images of each true class (rows) given each answer (columns); None for more than
            200 classes.
    """

    accuracy: float
    top5_accuracy: float | None
    loss: float
    images: int
    broken: int
    answers: Tensor
    certainties: Tensor
    class_images: Tensor
    class_right: Tensor
    confusion: list[list[int]] | None

    @property
    def broken_indices(self) -> list[int]:
        """Places of the images that can't be read."""
        return (self.answers < 0).nonzero().flatten().tolist()

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
    evaluation = score([find_answers(model, loader, device)], num_classes)
    if isinstance(loader.dataset, ImageDataset):
        loader.dataset.check_broken(evaluation.broken_indices)
    return evaluation


@torch.no_grad()
def find_answers(model: nn.Module, loader: DataLoader, device: torch.device) -> Answers:
    """Run a model over a loader whose sampler is an `InOrder`, this process's part of a split."""
    model.eval()
    found: list[tuple[Tensor, ...]] = []
    for images, labels, _ in loader:
        logits = model(images.to(device, memory_format=torch.channels_last)).float().cpu()
        answers = logits.argmax(1)
        certainties = logits.softmax(1).amax(1)
        losses = nn.functional.cross_entropy(logits, labels, ignore_index=-1, reduction="none")
        five = logits.topk(min(5, logits.shape[1])).indices
        among_five = (five == labels[:, None]).any(1)
        found.append((labels, answers, certainties, losses, among_five))
    indices = torch.tensor([index for _, index in loader.sampler])
    return Answers(indices, *(torch.cat(parts) for parts in zip(*found, strict=True)))


def score(parts: Sequence[Answers], num_classes: int) -> Evaluation:
    """Put the processes' parts together; an image may be in more than one of them."""
    indices = torch.cat([part.indices for part in parts])
    # Where each image of the split is found, from the first to the last.
    places = torch.full((int(indices.max()) + 1,), -1)
    places[indices] = torch.arange(len(indices))
    labels, answers, certainties, losses, among_five = (
        torch.cat([getattr(part, name) for part in parts])[places]
        for name in ("labels", "answers", "certainties", "losses", "among_five")
    )
    readable = labels >= 0
    seen, given = labels[readable], answers[readable]
    confusion = None
    if num_classes <= LARGEST_CONFUSION:
        counts = torch.bincount(seen * num_classes + given, minlength=num_classes**2)
        confusion = counts.view(num_classes, num_classes).tolist()
    right = given == seen
    return Evaluation(
        accuracy=right.double().mean().item(),
        top5_accuracy=among_five[readable].double().mean().item() if num_classes > 5 else None,
        loss=losses[readable].double().mean().item(),
        images=len(seen),
        broken=len(labels) - len(seen),
        answers=answers.where(readable, -1),
        certainties=certainties.where(readable, 0.0),
        class_images=torch.bincount(seen, minlength=num_classes),
        class_right=torch.bincount(seen[right], minlength=num_classes),
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
