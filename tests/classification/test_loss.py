"""Losses for rare classes: by hand, and beside torch's and torchvision's."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy
from torchvision.ops import sigmoid_focal_loss

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


def test_multilabel_loss_is_torchvisions_focal_loss(logits):
    labels = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]] * 2, dtype=torch.int8)[:7]
    data = make_data(labels.numpy())
    for gamma in (0.0, 1.5):
        loss = make_loss(config(task="multilabel", focal_loss=gamma, label_smoothing=0.0), data)
        expected = sigmoid_focal_loss(logits, labels.double(), -1, gamma, "mean")
        torch.testing.assert_close(loss(logits, labels.double()), expected)


def test_multilabel_smoothing_is_timms(logits):
    labels = F.one_hot(LABELS, 3)
    loss = make_loss(config(task="multilabel", label_smoothing=0.1), make_data(labels.numpy()))
    expected = BinaryCrossEntropy(smoothing=0.1)(logits.float(), LABELS)
    torch.testing.assert_close(loss(logits.float(), labels), expected)


def test_multilabel_weights_by_hand():
    labels = np.array([[1, 0, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0]], dtype=np.int8)
    options = config(task="multilabel", class_weights="balanced", label_smoothing=0.0)
    torch.testing.assert_close(
        make_weights(options, make_data(labels)), torch.tensor([1 / 3, 3.0, 3.0])
    )
    loss = make_loss(options, make_data(labels))
    # At logits of 0 positives and negatives of a class weigh the same, together its images.
    logits = torch.zeros(4, 3, requires_grad=True)
    loss(logits, torch.from_numpy(labels)).backward()
    torch.testing.assert_close(logits.grad.sum(0), torch.zeros(3))
