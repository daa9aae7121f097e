"""Losses for rare classes: by hand, and beside torch's and torchvision's."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from halonet.classification.config import TrainingConfig
from halonet.classification.loss import make_loss, make_weights
from halonet.data.splits import LabelledImages, Split

NAMES = ("a", "b", "c")


def make_data(labels):
    split = Split(["x"] * len(labels), labels)
    return LabelledImages("drawn", NAMES, split, split)


def config(**changes):
    return dataclasses.replace(TrainingConfig(), **changes)


@pytest.fixture
def logits():
    return torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


LABELS = torch.tensor([0, 1, 2, 2, 2, 0, 1])


def test_balanced_weights_by_hand():
    data = make_data([0] * 6 + [1] * 3 + [2])
    weights = make_weights(config(class_weights="balanced"), data)
    torch.testing.assert_close(weights, torch.tensor([10 / 18, 10 / 9, 10 / 3]))
    with pytest.raises(ValueError, match="class_weights balanced: no training images of c"):
        make_weights(config(class_weights="balanced"), make_data([0, 1]))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_loss_is_torchs_divided_by_the_images(logits, smoothing):
    loss = make_loss(
        config(class_weights="balanced", label_smoothing=smoothing), make_data([0, 0, 0, 1, 1, 2])
    )
    weights = torch.tensor([2 / 3, 1.0, 2.0], dtype=torch.float64)
    expected = F.cross_entropy(logits, LABELS, weights, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(loss(logits, LABELS), expected.mean(), rtol=1e-6, atol=0)
    shares = F.one_hot(LABELS, 3).double()
    torch.testing.assert_close(loss(logits, shares), expected.mean(), rtol=1e-6, atol=0)


def test_focal_loss_by_hand(logits):
    loss = make_loss(config(focal_loss=2.0, label_smoothing=0.0), make_data([0, 1, 2]))
    right = logits.softmax(1)[range(7), LABELS]
    expected = -((1 - right) ** 2 * right.log()).mean()
    torch.testing.assert_close(loss(logits, LABELS), expected)


@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_focal_loss_of_a_sure_prediction_has_a_gradient(gamma):
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    make_loss(config(focal_loss=gamma), make_data([0, 1, 2]))(logits, LABELS[:1]).backward()
    assert logits.grad.isfinite().all()


def test_plain_loss_is_torchs():
    assert isinstance(make_loss(config(), make_data([0, 1, 2])), torch.nn.CrossEntropyLoss)
