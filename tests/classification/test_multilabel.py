"""Scores of several labels an image, by hand and in parts."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from halonet.classification.evaluate import collect_predictions, evaluate, score
from halonet.classification.multilabel import score_multilabel
from halonet.data.loader import InOrder, make_loader
from tests.pictures import make_grey_dataset

CPU = torch.device("cpu")
# For four images and three classes; no image has the third.
LABELS = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]], dtype=torch.int8)
PROBABILITIES = torch.tensor([[0.9, 0.6, 0.1], [0.8, 0.3, 0.2], [0.7, 0.9, 0.6], [0.1, 0.2, 0.3]])


def test_scores_by_hand():
    found = score_multilabel(LABELS, PROBABILITIES, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    # The first class's ranks: right, wrong, right; the second's: right, wrong, right.
    assert found.average_precisions[:2].tolist() == pytest.approx([(1 + 2 / 3) / 2] * 2)
    assert math.isnan(found.average_precisions[2])
    assert found.mean_average_precision == pytest.approx(5 / 6)
    assert found.class_images.tolist() == [2, 2, 0]
    assert found.class_predicted.tolist() == [3, 2, 1]
    assert found.class_correct.tolist() == [2, 1, 0]
    assert found.f1 == pytest.approx((4 / 5 + 2 / 4) / 2)
    assert (found.loss, found.images, found.broken) == (2.5, 4, 0)


def test_nothing_to_score():
    found = score_multilabel(torch.zeros_like(LABELS), PROBABILITIES, torch.ones(4))
    assert math.isnan(found.mean_average_precision)
    assert math.isnan(found.f1)


class Bright(nn.Module):
    """Predicts both labels by brightness."""

    def forward(self, images):
        level = images.mean((1, 2, 3))[:, None]
        return torch.cat([level - 0.5, 0.2 - level], 1)


def test_parts_make_the_whole(tmp_path):
    levels, labels = [0, 255, None, 90, 200], [[0, 1], [1, 0], [1, 1], [0, 0], [1, 1]]
    labels = np.array(labels, dtype=np.int8)
    dataset = make_grey_dataset(tmp_path, levels, labels, broken_share=0.2)
    whole = evaluate(Bright(), make_loader(dataset, InOrder(5), 2, 0), 2, CPU)
    assert (whole.images, whole.broken, whole.broken_indices) == (4, 1, [2])
    assert whole.class_images.tolist() == [2, 2]
    parts = [
        collect_predictions(Bright(), make_loader(dataset, InOrder(5, index, 6), 2, 0), CPU)
        for index in range(6)
    ]
    together = score([*reversed(parts), parts[0]], 2)
    for name, value in vars(whole).items():
        torch.testing.assert_close(getattr(together, name), value, equal_nan=True)
    dataset.allowed_broken = 0
    with pytest.raises(ValueError, match="1 image can't be read"):
        evaluate(Bright(), make_loader(dataset, InOrder(5), 2, 0), 2, CPU)
