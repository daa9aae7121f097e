"""Scores of a model on labelled images."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from halonet.classification.multilabel import MultilabelEvaluation, score_multilabel
from halonet.classification.predict import Mirrored, device_of, refuse_infinite
from halonet.data.dataset import ImageDataset
from halonet.data.loader import InOrder, make_loader
from halonet.data.splits import LabelledImages, Split
from halonet.models.classifier import Classifier

LARGEST_CONFUSION = 200  # classes


@dataclass(frozen=True)
class Predictions:
    """A model's predictions for some images of a split: one process's part of an evaluation.

    Attributes:
        indices: places of the images in the split [images].
        values: by name, each [images, ...], on the CPU; none where there are no images. labels are
            the true classes, -1 where an image can't be read, and losses cross-entropies. With one
            label for each image, classes are the predicted ones, confidences their probabilities,
            and in_top5 tells whether the true class is among the five most probable. With several
            labels, and else where they are kept, probabilities are those of all classes.
    """

    indices: Tensor
    values: dict[str, Tensor]


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
        probabilities: of all classes [images, classes], nan where the image can't be read; None
            where they weren't kept.
        class_images: scored images of each class [classes].
        class_predicted: images that were classified as each class [classes].
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
    probabilities: Tensor | None
    class_images: Tensor
    class_predicted: Tensor
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
    model: nn.Module,
    loader: DataLoader,
    num_classes: int,
    device: torch.device,
    *,
    keep_probabilities: bool = False,
) -> Evaluation | MultilabelEvaluation:
    """Score a model on a loader of all images of a split, see `make_loader`.

    Raises:
        ValueError: more images can't be read than the loader's data set allows.
    """
    predictions = collect_predictions(model, loader, device, keep_probabilities=keep_probabilities)
    evaluation = score([predictions], num_classes)
    if isinstance(loader.dataset, ImageDataset):
        loader.dataset.check_broken(evaluation.broken_indices)
    return evaluation


def collect_predictions(
    model: nn.Module, loader: DataLoader, device: torch.device, *, keep_probabilities: bool = False
) -> Predictions:
    """Run a model over this process's part of a split.

    Args:
        model: left in evaluation mode.
        loader: its sampler is an `InOrder`, empty where there are more processes than images.
        device: that the model is on.
        keep_probabilities: of all classes, also with one label for each image; four bytes each.

    Raises:
        ValueError: logits that are infinite or nan.
    """
    model.eval()
    batches = []
    for images, labels, _ in loader:
        images = images.to(device, memory_format=torch.channels_last, non_blocking=True)
        with torch.inference_mode():
            logits = refuse_infinite(model(images).float().cpu())
        batches.append(_compare_with_labels(logits, labels, keep_probabilities))
    indices = torch.tensor([index for _, index in loader.sampler], dtype=torch.long)
    names = batches[0] if batches else ()
    return Predictions(indices, {name: torch.cat([one[name] for one in batches]) for name in names})


def _compare_with_labels(
    logits: Tensor, labels: Tensor, keep_probabilities: bool
) -> dict[str, Tensor]:
    if labels.ndim == 2:
        losses = F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none")
        return {"labels": labels, "losses": losses.mean(1), "probabilities": logits.sigmoid()}
    probabilities = logits.softmax(1)
    top5 = logits.topk(min(5, logits.shape[1])).indices
    values = {
        "labels": labels,
        "losses": F.cross_entropy(logits, labels, ignore_index=-1, reduction="none"),
        "classes": logits.argmax(1),
        "confidences": probabilities.amax(1),
        "in_top5": (top5 == labels[:, None]).any(1),
    }
    return values | ({"probabilities": probabilities} if keep_probabilities else {})


def score(parts: Sequence[Predictions], num_classes: int) -> Evaluation | MultilabelEvaluation:
    """Put the processes' parts together; an image may be in more than one of them."""
    indices = torch.cat([part.indices for part in parts])
    # Where each image of the split is found, from the first to the last.
    places = torch.full((int(indices.max()) + 1,), -1)
    places[indices] = torch.arange(len(indices))
    there = [part.values for part in parts if part.values]
    values = {name: torch.cat([part[name] for part in there])[places] for name in there[0]}
    labels = values["labels"]
    if labels.ndim == 2:
        return score_multilabel(labels, values["probabilities"], values["losses"])
    readable = labels >= 0
    truth, predicted = labels[readable], values["classes"][readable]
    confusion = None
    if num_classes <= LARGEST_CONFUSION:
        counts = torch.bincount(truth * num_classes + predicted, minlength=num_classes**2)
        confusion = counts.view(num_classes, num_classes).tolist()
    correct = predicted == truth
    in_top5, probabilities = values["in_top5"][readable], values.get("probabilities")
    return Evaluation(
        accuracy=correct.double().mean().item(),
        top5_accuracy=in_top5.double().mean().item() if num_classes > 5 else None,
        loss=values["losses"][readable].double().mean().item(),
        images=len(truth),
        broken=len(labels) - len(truth),
        predictions=values["classes"].where(readable, -1),
        confidences=values["confidences"].where(readable, 0.0),
        probabilities=None
        if probabilities is None
        else probabilities.where(readable[:, None], torch.nan),
        class_images=torch.bincount(truth, minlength=num_classes),
        class_predicted=torch.bincount(predicted, minlength=num_classes),
        class_correct=torch.bincount(truth[correct], minlength=num_classes),
        confusion=confusion,
    )


def choose_images(data: LabelledImages, part: str | None) -> tuple[LabelledImages, str]:
    """Data whose held-out part is what to score, and what these images are called.

    Args:
        data: as loaded; it trains on nothing where all of it is held out.
        part: train, val, test or all; None is val, if there is more than that.

    Raises:
        ValueError: there are no images of this part.
    """
    part = part or ("val" if len(data.training) else "all")
    names = {"train": "training images", "val": "held-out images", "test": "test images"}
    return data.take(part), names.get(part, "images")


def evaluate_on(
    model: Classifier,
    data: LabelledImages,
    *,
    batch_size: int = 64,
    workers: int = 0,
    broken_share: float = 0.0,
    mirror: bool = False,
) -> Evaluation | MultilabelEvaluation:
    """Score a model on the held-out part of a data set, on the device that it is on.

    The probabilities of all classes are kept: four bytes for each image and class.

    Args:
        model: in training or evaluation mode; left in the latter.
        data: of the classes that the model was trained on.
        batch_size: images at a time; one, where the model takes photos of any size.
        workers: processes that read images; 0 reads in this one.
        broken_share: largest share of images that can't be read.
        mirror: score the mean logits of each image and its mirror image.

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
    batch_size = 1 if model.takes_photos else batch_size
    loader = make_loader(dataset, InOrder(len(dataset)), batch_size, workers)
    network = Mirrored(model) if mirror else model
    return evaluate(
        network, loader, len(data.class_names), device_of(model), keep_probabilities=True
    )


def make_validation_dataset(
    model: Classifier, split: Split, broken_share: float = 0.0
) -> ImageDataset:
    """A split as the model wants to see it, without random changes."""
    preprocessing = None if model.takes_photos else model.preprocessing
    return ImageDataset(
        split, preprocessing, in_channels=model.in_channels, broken_share=broken_share
    )
