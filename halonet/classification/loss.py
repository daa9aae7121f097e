"""The loss of a classifier's training: (binary) cross-entropy, weighted or focal if asked for."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halonet.classification.config import TrainingConfig
from halonet.data.splits import LabelledImages, list_some


class FocalCrossEntropy(nn.Module):
    """Cross-entropy with weights of classes, and with the factor (1 - p)^gamma of the focal loss.

    The loss is the mean over the images: weights don't change what an image counts by the others
    of its batch. Focal loss: Lin et al. 2017, section 3, over all classes (softmax).

    Args:
        weights: of each class [classes].
        gamma: of the focal loss; 0 is cross-entropy.
        label_smoothing: share of each label that is spread over all classes.
    """

    weights: Tensor

    def __init__(self, weights: Tensor, *, gamma: float, label_smoothing: float) -> None:
        super().__init__()
        self.register_buffer("weights", weights)
        self.gamma = gamma
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean loss.

        Args:
            logits: [images, classes].
            labels: classes [images], or shares of them [images, classes].
        """
        classes = logits.shape[1]
        shares = F.one_hot(labels, classes) if labels.ndim == 1 else labels
        shares = shares * (1 - self.label_smoothing) + self.label_smoothing / classes
        logs = logits.log_softmax(1)
        # Above 0: a power below 1 has no derivative at 0.
        wrong = (-logs.expm1()).clamp_min(torch.finfo(logs.dtype).tiny)
        return -(self.weights * shares * wrong**self.gamma * logs).sum(1).mean()


class FocalBinaryCrossEntropy(nn.Module):
    """The mean of every class's binary cross-entropy, where images have any number of labels.

    Labels are smoothed as by timm's `BinaryCrossEntropy`: what is taken from a label is spread over
    all classes.

    Args:
        weights: of each class's positives [classes].
        gamma: of the focal loss (Lin et al. 2017, equation 4); 0 is binary cross-entropy.
        label_smoothing: share of each label that is spread over all classes.
    """

    weights: Tensor

    def __init__(self, weights: Tensor, *, gamma: float, label_smoothing: float) -> None:
        super().__init__()
        self.register_buffer("weights", weights)
        self.gamma = gamma
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean loss, of logits and labels (0, 1 or shares between) [images, classes]."""
        shares = labels * (1 - self.label_smoothing) + self.label_smoothing / logits.shape[1]
        losses = F.binary_cross_entropy_with_logits(
            logits, shares, pos_weight=self.weights, reduction="none"
        )
        if self.gamma:
            probabilities = logits.sigmoid()
            wrong = probabilities + shares - 2 * probabilities * shares
            losses = losses * wrong.clamp_min(torch.finfo(logits.dtype).tiny) ** self.gamma
        return losses.mean()


def make_loss(config: TrainingConfig, data: LabelledImages) -> nn.Module:
    """The loss that a configuration asks for.

    Raises:
        ValueError: balanced weights for a class without training images.
    """
    if config.task == "multiclass" and config.class_weights == "none" and not config.focal_loss:
        return nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    kind = FocalCrossEntropy if config.task == "multiclass" else FocalBinaryCrossEntropy
    return kind(
        make_weights(config, data),
        gamma=config.focal_loss,
        label_smoothing=config.label_smoothing,
    )


def make_weights(config: TrainingConfig, data: LabelledImages) -> Tensor:
    """The weights of the classes [classes].

    Balanced, those of all training images add up to their number; with several labels, they are of
    positives, and a class's positives weigh together what its negatives do.
    """
    counts = torch.from_numpy(data.training.count_classes(len(data.class_names)))
    if config.class_weights == "none":
        return torch.ones(len(counts))
    absent = [name for name, count in zip(data.class_names, counts, strict=True) if not count]
    if absent:
        raise ValueError(f"class_weights balanced: no training images of {list_some(absent)}")
    if config.task == "multiclass":
        return counts.sum() / (len(counts) * counts.float())
    return (len(data.training) - counts) / counts.float()
