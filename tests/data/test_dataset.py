"""Items: what they depend on, what is kept in memory, broken images."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from halonet.data import dataset as datasets
from halonet.data.augmentation import Augmentation
from halonet.data.dataset import ImageDataset
from halonet.data.loader import EpochSampler, InOrder, make_loader
from halonet.data.splits import Split
from halonet.data.transforms import make_augmentation
from halonet.models.halonet import Preprocessing

ALL_CHANGES = Augmentation(
    crop_share=(0.3, 0.9), vertical_flip=True, quarter_turns=True, color_jitter=0.4, randaugment=9
)


def draw_split(folder, count):
    paths = []
    for index in range(count):
        paths.append(folder / f"{index}.png")
        Image.effect_noise((40, 44), 60).save(paths[-1])
    return Split(paths, [index % 2 for index in range(count)])


@pytest.fixture
def dataset(tmp_path):
    return ImageDataset(
        draw_split(tmp_path, 3), Preprocessing(32), augmentation=ALL_CHANGES, seed=5
    )


def test_item_depends_on_seed_epoch_and_index_alone(dataset):
    torch.manual_seed(1)
    first, label, _ = dataset[3, 1]
    torch.manual_seed(2)
    dataset[0, 0]
    again = dataset[3, 1][0]
    assert label == 1
    assert torch.equal(first, again)
    other_epoch = dataset[4, 1][0]
    dataset.seed = 6
    assert not torch.equal(first, other_epoch)
    assert not torch.equal(first, dataset[3, 1][0])


def test_memory_and_disk_give_the_same_item(dataset):
    from_disk = dataset[2, 0][0]
    dataset.prepare("images", show_progress=False)
    assert torch.equal(from_disk, dataset[2, 0][0])


def test_global_random_state_is_untouched(dataset):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    dataset[0, 0]
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_workers_give_the_same_batches(dataset):
    sampler = EpochSampler(len(dataset), seed=0)
    sampler.start(1)
    here, there = (list(make_loader(dataset, sampler, 2, workers)) for workers in (0, 1))
    assert all(torch.equal(one[0], other[0]) for one, other in zip(here, there, strict=True))


def test_broken_images_are_counted_and_named(dataset, tmp_path):
    (tmp_path / "1.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1 images can't be read: .*1\.png"):
        dataset.prepare("images", show_progress=False)


@pytest.mark.parametrize("kept", [True, False], ids=["memory", "disk"])
def test_broken_images_are_replaced_by_the_next(tmp_path, monkeypatch, kept):
    split = draw_split(tmp_path, 5)
    for index in (1, 2):
        split.sources[index].write_bytes(b"rubbish")
    if not kept:
        monkeypatch.setattr(datasets, "CACHE_LIMIT_BYTES", 0)
    dataset = ImageDataset(
        split, Preprocessing(32), augmentation=ALL_CHANGES, seed=5, broken_share=0.4
    )
    dataset.prepare("images", show_progress=False)
    assert list(dataset.problems) == ([1, 2] if kept else [])
    items = [dataset[4, index] for index in range(5)]
    assert [item[1:] for item in items] == [(0, -1), (1, 1), (1, 2), (1, -1), (0, -1)]
    # Its own random changes, of another image.
    dataset.split.sources[1] = split.sources[3]
    dataset.cached = None
    assert torch.equal(dataset[4, 1][0], items[1][0])


def test_more_broken_images_than_allowed_stop(tmp_path, monkeypatch):
    split = draw_split(tmp_path, 5)
    for index in (1, 2):
        split.sources[index].write_bytes(b"rubbish")
    options = {"augmentation": ALL_CHANGES, "broken_share": 0.3}
    dataset = ImageDataset(split, Preprocessing(32), **options)
    expected = r"2 images can't be read \(broken_share allows 1\): .*1\.png is not .*; .*2\.png is"
    with pytest.raises(ValueError, match=expected):
        dataset.prepare("images", show_progress=False)
    monkeypatch.setattr(datasets, "CACHE_LIMIT_BYTES", 0)
    dataset = ImageDataset(split, Preprocessing(32), **options)
    dataset.prepare("images", show_progress=False)
    assert dataset[0, 2][1:] == (1, 2)
    dataset.check_broken({2})
    with pytest.raises(ValueError, match=expected):
        dataset.check_broken({1, 2})
    with pytest.raises(ValueError, match=expected):  # its next is broken too
        dataset[0, 1]


def test_one_broken_image_stops_where_none_may_be(tmp_path, monkeypatch):
    split = draw_split(tmp_path, 3)
    split.sources[1].write_bytes(b"rubbish")
    monkeypatch.setattr(datasets, "CACHE_LIMIT_BYTES", 0)
    dataset = ImageDataset(split, Preprocessing(32), augmentation=ALL_CHANGES)
    dataset.prepare("images", show_progress=False)
    # Told by the item: an error of a worker would come with the worker's traceback.
    pixels, labels, broken = next(iter(make_loader(dataset, InOrder(3), 3, 1)))
    assert labels.tolist() == [0, -1, 0]
    assert broken.tolist() == [-1, 1, -1]
    assert not pixels[1].any()
    with pytest.raises(ValueError, match=r"1 images can't be read: .*1\.png is not an image"):
        dataset.check_broken(broken[broken >= 0].tolist())


def test_large_sets_are_not_read_ahead(dataset, monkeypatch):
    monkeypatch.setattr(datasets, "CACHE_LIMIT_BYTES", 3 * 3 * 34 * 37)
    dataset.prepare("images", show_progress=False)
    assert len(dataset.cached) == 3
    dataset.cached = None
    monkeypatch.setattr(datasets, "CACHE_LIMIT_BYTES", 3 * 3 * 34**2 - 1)
    monkeypatch.setattr(datasets, "read_pixels", None)
    dataset.prepare("images", show_progress=False)
    assert dataset.cached is None


def test_long_images_that_outgrow_memory_are_read_again(tmp_path, monkeypatch):
    split = draw_split(tmp_path, 2)
    Image.effect_noise((400, 40), 60).save(split.sources[1])
    dataset = ImageDataset(split, Preprocessing(32))
    monkeypatch.setattr(datasets, "CACHE_LIMIT_BYTES", 3 * 2 * 34**2 + 1000)
    dataset.prepare("images", show_progress=False)
    assert dataset.cached is None
    assert dataset[0, 1][0].shape == (3, 32, 32)


def test_items_that_randaugment_changed_can_be_made_again(dataset):
    dataset.transform = make_augmentation(
        Augmentation((1.0, 1.0), False, randaugment=31), dataset.preprocessing
    )
    first = [dataset[epoch, 0][0] for epoch in range(8)]
    again = [dataset[epoch, 0][0] for epoch in reversed(range(8))]
    assert all(torch.equal(*pair) for pair in zip(first, reversed(again), strict=True))
    assert len({one.numpy().tobytes() for one in first}) > 4
