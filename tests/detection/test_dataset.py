"""Items: objects stay on their pixels whatever is done to the image, and come again the same."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from halonet.detection.data import AnnotatedImages
from halonet.detection.dataset import DetectionDataset, collate
from halonet.detection.sources import load_detection_data
from tests.detection.pictures import draw_coco, load_shared_data, needs_shared_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> AnnotatedImages:
    folder = draw_coco(tmp_path_factory.mktemp("coco") / "shapes")
    return load_detection_data(f"coco:{folder}").training


def middle(mask: torch.Tensor) -> torch.Tensor:
    """The pixels of a mask whose neighbours are in it too: no colour of the outside is in them."""
    around = F.pad(mask[None].float(), (2, 2, 2, 2))
    return (-F.max_pool2d(-around, 5, 1))[0].bool()


@pytest.mark.parametrize("image_size", [37, 64, 96])
@pytest.mark.parametrize("jitter", [(1.0, 1.0), (0.8, 1.25), (1.5, 3.0)], ids=str)
def test_masks_lie_on_their_objects(
    data: AnnotatedImages, image_size: int, jitter: tuple[float, float]
) -> None:
    dataset = DetectionDataset(data, image_size, scale_jitter=jitter)
    seen = 0
    for epoch in range(6):
        for index in range(3):
            image, target = dataset[epoch, index]
            assert image.shape == (3, image_size, image_size)
            for mask, label in zip(target["masks"], target["labels"], strict=True):
                color = image[:, middle(mask)]
                channel = 1 if label == 1 else 0  # bars are green, squares red
                assert (color[channel] > 0.9).all()
                assert (color[1 - channel] < 0.1).all()
                seen += bool(color.numel())
    assert seen > 10


def test_boxes_are_around_masks(data: AnnotatedImages) -> None:
    dataset = DetectionDataset(data, 48, scale_jitter=(1.5, 3.0))
    counts = set()
    for epoch in range(10):
        _, target = dataset[epoch, 0]
        counts.add(len(target["boxes"]))
        for mask, box in zip(target["masks"], target["boxes"], strict=True):
            rows, columns = np.nonzero(mask.numpy())
            around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box.tolist() == around
    assert counts >= {1, 2}  # some are cut off whole


def test_as_it_is_without_changes(data: AnnotatedImages) -> None:
    dataset = DetectionDataset(data, 60, scale_jitter=(1.0, 1.0), horizontal_flip=False)
    image, target = dataset[0, 0]
    assert target["boxes"].tolist() == [[10, 8, 26, 24], [4, 30, 34, 36]]
    assert target["labels"].tolist() == [2, 1]
    assert target["masks"].flatten(1).sum(1).tolist() == [256, 180]
    assert target["image_id"] == 10
    assert (image[:, 44:] == torch.tensor(dataset.fill)[:, None, None]).all()
    assert target["masks"].dtype == torch.uint8


def test_crowds_and_empty_images(data: AnnotatedImages) -> None:
    dataset = DetectionDataset(data, 64)
    assert len(dataset[0, 2][1]["boxes"]) == 2
    _, empty = dataset[0, 3]
    assert empty["boxes"].shape == (0, 4)
    assert empty["masks"].shape == (0, 64, 64)
    assert empty["labels"].dtype == torch.int64


def test_items_come_again_the_same(data: AnnotatedImages) -> None:
    state = torch.get_rng_state()
    one, again = (DetectionDataset(data, 64, seed=5) for _ in range(2))
    other = DetectionDataset(data, 64, seed=6)
    for key in [(0, 0), (3, 1)]:
        (image, target), (same, same_target) = one[key], again[key]
        assert torch.equal(image, same)
        assert all(torch.equal(target[name], same_target[name]) for name in target)
        assert not torch.equal(image, other[key][0])
    assert one[0, 0][1]["seed"] != one[1, 0][1]["seed"]
    assert torch.equal(torch.get_rng_state(), state)


def test_goes_through_a_loader_with_workers(data: AnnotatedImages) -> None:
    dataset = DetectionDataset(data, 64)
    keys: Sequence = [[(0, 0), (0, 1)], [(0, 2), (0, 3)]]
    loader = torch.utils.data.DataLoader(
        dataset, batch_sampler=keys, collate_fn=collate, num_workers=1
    )
    batches = list(loader)
    assert [len(images) for images, _ in batches] == [2, 2]
    assert torch.equal(batches[1][0][0], dataset[0, 2][0])


def test_bad_values_are_named(data: AnnotatedImages) -> None:
    with pytest.raises(ValueError, match="scale_jitter must be two positive factors"):
        DetectionDataset(data, 64, scale_jitter=(1.25, 0.8))
    with pytest.raises(ValueError, match="image_size must be positive, got 0"):
        DetectionDataset(data, 0)


@needs_shared_data
def test_real_images_keep_their_objects() -> None:
    data = load_shared_data("nuclei").validation
    dataset = DetectionDataset(data, 640, scale_jitter=(1.0, 1.0), horizontal_flip=False)
    for index in range(5):
        _, target = dataset[0, index]
        entry = data.images[index]
        scale = 640 / max(entry.width, entry.height)
        assert len(target["boxes"]) == len(entry.annotations)
        for box, one in zip(target["boxes"], entry.annotations, strict=True):
            left, top, width, height = one.box
            expected = torch.tensor([left, top, left + width, top + height]) * scale
            assert (box - expected).abs().max() <= 1.5
