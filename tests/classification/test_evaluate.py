"""Scores: by hand, in parts, and with images that can't be read."""

import math

import pytest
import torch
from torch import nn

from halonet.classification.evaluate import collect_predictions, evaluate, score
from halonet.data.loader import InOrder, make_loader
from tests.pictures import make_grey_dataset

CPU = torch.device("cpu")


class Brightness(nn.Module):
    """Predicts class 0 for dark images, 1 for grey ones, 2 for bright ones."""

    def __init__(self, classes=3):
        super().__init__()
        self.classes = classes

    def forward(self, images):
        level = images.mean((1, 2, 3))[:, None]
        return -10 * (level - torch.linspace(0, 1, self.classes)).square()


def test_scores_by_hand(tmp_path):
    dataset = make_grey_dataset(tmp_path, [0, 128, 255, 255, 0], [0, 1, 2, 0, 0])
    found = evaluate(Brightness(), make_loader(dataset, InOrder(5), 2, 0), 3, CPU)
    assert found.accuracy == 0.8
    assert found.top5_accuracy is None
    assert (found.images, found.broken) == (5, 0)
    assert found.predictions.tolist() == [0, 1, 2, 2, 0]
    assert found.confusion == [[2, 0, 1], [0, 1, 0], [0, 0, 1]]
    assert found.class_images.tolist() == [3, 1, 1]
    assert found.class_correct.tolist() == [2, 1, 1]
    confidence = 1 / (1 + math.exp(-2.5) + math.exp(-10))
    torch.testing.assert_close(found.confidences[[0, 2, 3, 4]], torch.full((4,), confidence))
    grey = -math.log(found.confidences[1])
    expected = (-3 * math.log(confidence) - math.log(confidence * math.exp(-10)) + grey) / 5
    assert found.loss == pytest.approx(expected, rel=1e-5)


def test_five_most_probable(tmp_path):
    dataset = make_grey_dataset(tmp_path, [0, 0, 255], [4, 5, 6])
    found = evaluate(Brightness(7), make_loader(dataset, InOrder(3), 3, 0), 7, CPU)
    assert found.top5_accuracy == pytest.approx(2 / 3)
    assert found.accuracy == pytest.approx(1 / 3)


def test_many_classes_have_no_confusion_matrix(tmp_path):
    dataset = make_grey_dataset(tmp_path, [0, 255], [0, 21840])
    found = evaluate(Brightness(21841), make_loader(dataset, InOrder(2), 2, 0), 21841, CPU)
    assert found.confusion is None
    assert found.accuracy == 1
    assert found.class_correct.nonzero().flatten().tolist() == [0, 21840]


def test_parts_make_the_whole(tmp_path):
    levels, labels = [0, 128, None, 255, 0, 90, 200], [0, 1, 1, 0, 2, 1, 2]
    dataset = make_grey_dataset(tmp_path, levels, labels, broken_share=0.2)
    model = Brightness()
    whole = evaluate(model, make_loader(dataset, InOrder(7), 7, 0), 3, CPU)
    parts = [
        collect_predictions(model, make_loader(dataset, InOrder(7, index, 3), 2, 0), CPU)
        for index in range(3)
    ]
    # Processes that must take as many steps as the others repeat an image.
    together = score([*reversed(parts), parts[0]], 3)
    for name, value in vars(whole).items():
        other = getattr(together, name)
        if name == "loss":
            assert other == pytest.approx(value, rel=1e-6)
        elif isinstance(value, torch.Tensor):
            torch.testing.assert_close(other, value)
        else:
            assert other == value, name


def test_process_without_images_takes_part(tmp_path):
    dataset = make_grey_dataset(tmp_path, [0, 255], [0, 0])
    parts = [
        collect_predictions(Brightness(2), make_loader(dataset, InOrder(2, index, 3), 2, 0), CPU)
        for index in range(3)
    ]
    assert [len(part.indices) for part in parts] == [1, 1, 0]
    assert score(parts, 2).predictions.tolist() == [0, 1]


def test_unreadable_images_are_left_out(tmp_path):
    levels, labels = [0, None, 255, None], [0, 1, 1, 1]
    dataset = make_grey_dataset(tmp_path, levels, labels, broken_share=0.5)
    loader = make_loader(dataset, InOrder(4), 2, 0)
    found = evaluate(Brightness(2), loader, 2, CPU)
    assert (found.images, found.broken, found.accuracy) == (2, 2, 1.0)
    assert found.broken_indices == [1, 3]
    assert found.predictions.tolist() == [0, -1, 1, -1]
    assert math.isfinite(found.loss)
    dataset.allowed_broken = 1
    with pytest.raises(ValueError, match=r"2 images can't be read .*1\.png is not .*3\.png is not"):
        evaluate(Brightness(2), loader, 2, CPU)
