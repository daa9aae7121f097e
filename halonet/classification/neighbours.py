"""The accuracy of the nearest training images' classes, by the features before the classifier."""

from typing import Any

import numpy as np
import torch

from halonet.classification.predict import embed
from halonet.data.splits import LabelledImages, Split
from halonet.models.classifier import Classifier


def check_neighbours(model: Any, data: LabelledImages, count: int) -> None:
    """Raise ValueError unless `score_neighbours` can be computed."""
    if not isinstance(model, Classifier):
        raise ValueError("neighbours need a checkpoint: an exported model gives no features")
    if np.ndim(data.validation.labels) == 2:
        raise ValueError("neighbours need one label for each image")
    if not 1 <= count <= len(data.training):
        raise ValueError(
            f"neighbours must be from 1 to the {len(data.training)} training images of "
            f"{data.name}, got {count}"
        )


def score_neighbours(model: Classifier, data: LabelledImages, count: int) -> float:
    """The accuracy, 0 to 1, of a vote of the nearest training images on the held-out ones.

    Nearest by the cosine of the pooled features; nearer ones weigh more. It tells how far the
    features are from a task without training a classifier. Images that can't be read are left out.

    Args:
        model: a classifier, whose own classifier isn't used.
        data: one label for each image.
        count: neighbours that vote.
    """
    from sklearn.neighbors import KNeighborsClassifier

    print(f"features of {len(data.training)} training images for neighbours", flush=True)
    features, labels = _embed(model, data.training)
    nearest = KNeighborsClassifier(min(count, len(labels)), weights="distance", metric="cosine")
    return float(nearest.fit(features, labels).score(*_embed(model, data.validation)))


def _embed(model: Classifier, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Features [images, num_features] and labels [images] of those that can be read."""
    rows = [row for _, row in embed(model, split.sources)]
    there = [place for place, row in enumerate(rows) if not isinstance(row, str)]
    features = torch.stack([row for row in rows if not isinstance(row, str)])
    return features.numpy(), np.asarray(split.labels)[there]
