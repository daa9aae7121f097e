"""Scores where an image has any number of labels."""

from dataclasses import dataclass

import torch
from torch import Tensor

THRESHOLD = 0.5  # probability from which on a label is predicted


@dataclass(frozen=True)
class MultilabelEvaluation:
    """Scores of a model on images with any number of labels; what can't be read isn't scored.

    Attributes:
        mean_average_precision: mean over the classes that any image has, 0 to 1; nan if none.
        f1: mean over the same classes of F1 at a threshold of 0.5, 0 to 1.
        loss: mean binary cross-entropy over images and classes.
        images: number of images that were scored.
        broken: number of images that can't be read.
        labels: 0 and 1 [images, classes], in the split's order; -1 where an image can't be read.
        probabilities: [images, classes]; nan where an image can't be read.
        class_images: scored images of each class [classes].
        class_predicted: images with a probability of 0.5 or more of each class [classes].
        class_correct: those of them that have it [classes].
        average_precisions: of each class [classes]; nan where no image has it.
    """

    mean_average_precision: float
    f1: float
    loss: float
    images: int
    broken: int
    labels: Tensor
    probabilities: Tensor
    class_images: Tensor
    class_predicted: Tensor
    class_correct: Tensor
    average_precisions: Tensor

    @property
    def broken_indices(self) -> list[int]:
        """Places of the images that can't be read."""
        return (self.labels[:, 0] < 0).nonzero().flatten().tolist()

    @property
    def figures(self) -> dict[str, float]:
        """The scores by name, for logs."""
        return {
            "loss": self.loss,
            "mean_average_precision": self.mean_average_precision,
            "f1": self.f1,
        }


def score_multilabel(labels: Tensor, probabilities: Tensor, losses: Tensor) -> MultilabelEvaluation:
    """Score predictions of all images of a split.

    Args:
        labels: 0 and 1 [images, classes]; -1 where an image can't be read.
        probabilities: [images, classes].
        losses: [images].
    """
    from sklearn.metrics import average_precision_score, f1_score

    readable = labels[:, 0] >= 0
    truth, scored = labels[readable].numpy(), probabilities[readable].numpy()
    predicted = scored >= THRESHOLD
    has = truth.any(0)
    averages = torch.full((labels.shape[1],), torch.nan, dtype=torch.double)
    f1 = torch.nan
    if has.any():
        found = average_precision_score(truth[:, has], scored[:, has], average=None)
        averages[torch.from_numpy(has)] = torch.as_tensor(found, dtype=torch.double)
        f1 = float(f1_score(truth[:, has], predicted[:, has], average="macro", zero_division=0))
    return MultilabelEvaluation(
        mean_average_precision=averages.nanmean().item(),
        f1=f1,
        loss=losses[readable].double().mean().item(),
        images=len(truth),
        broken=len(labels) - len(truth),
        labels=labels,
        probabilities=probabilities.where(readable[:, None], torch.nan),
        class_images=torch.from_numpy((truth == 1).sum(0)),
        class_predicted=torch.from_numpy(predicted.sum(0)),
        class_correct=torch.from_numpy((predicted & (truth == 1)).sum(0)),
        average_precisions=averages,
    )
