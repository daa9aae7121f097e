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
from halonet.data.randomness import own_random_state
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


@pytest.mark.parametrize("size", [(44, 40), (300, 700)], ids=["small", "large"])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("changes", [ALL_CHANGES, None], ids=["training", "held-out"])
def test_memory_and_disk_give_the_same_item(tmp_path, size, suffix, changes):
    path = tmp_path / f"noise.{suffix}"
    Image.effect_noise(size, 60).save(path)
    dataset = ImageDataset(Split([path], [0]), Preprocessing(32), augmentation=changes)
    from_disk = [dataset[epoch, 0][0] for epoch in range(4)]
    dataset.prepare("images", show_progress=False)
    path.unlink()
    for epoch, expected in enumerate(from_disk):
        assert torch.equal(expected, dataset[epoch, 0][0])


@pytest.mark.parametrize("kept", [True, False], ids=["memory", "disk"])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_small_crops_keep_the_detail_of_the_whole_image(tmp_path, suffix, kept):
    # Fields of 8 pixels: grey where the image is shrunk to 34 first, black and white in a crop.
    fields = np.indices((200, 300)).sum(0) % 2 * 255
    path = tmp_path / f"fields.{suffix}"
    Image.fromarray(fields.astype(np.uint8).repeat(8, 0).repeat(8, 1)).save(path)
    dataset = ImageDataset(
        Split([path], [0]),
        Preprocessing(32, mean=(0.0,) * 3, std=(1.0,) * 3),
        augmentation=Augmentation(crop_share=(0.002, 0.002)),
    )
    if kept:
        dataset.prepare("images", show_progress=False)
    crops = torch.stack([dataset[epoch, 0][0] for epoch in range(8)])
    assert crops.flatten(1).std(1).min() > 0.3


@pytest.mark.parametrize(("suffix", "size"), [("png", 129), ("jpg", 225)])
def test_large_images_are_read_at_a_fraction_that_no_crop_outgrows(tmp_path, suffix, size):
    path = tmp_path / f"photo.{suffix}"
    Image.new("RGB", (900, 900)).save(path)
    dataset = ImageDataset(
        Split([path], [0]), Preprocessing(32), augmentation=Augmentation(crop_share=(0.1, 0.1))
    )
    pixels = dataset.read(0)
    assert pixels.shape == (3, size, size)
    crop, sides = dataset.transform.transforms[0], []
    with own_random_state():
        for seed in range(500):
            torch.manual_seed(seed)
            drawn = crop.make_params([pixels])
            sides += [drawn["height"], drawn["width"]]
    assert min(sides) >= 32


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
    with pytest.raises(ValueError, match=r"^1 image can't be read: .*1\.png"):
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
    with pytest.raises(ValueError, match=r"1 image can't be read: .*1\.png is not an image"):
        dataset.check_broken(broken[broken >= 0].tolist())


def test_large_sets_are_not_read_ahead(tmp_path, monkeypatch):
    split = draw_split(tmp_path, 3)
    many = Split(split.sources * 100, split.labels * 100)
    dataset = ImageDataset(many, Preprocessing(32), augmentation=ALL_CHANGES)
    monkeypatch.setattr(datasets, "CACHE_LIMIT_BYTES", 300 * 3 * 40 * 44)
    dataset.prepare("images", show_progress=False)
    assert len(dataset.cached) == 300
    dataset.cached = None
    monkeypatch.setattr(datasets, "CACHE_LIMIT_BYTES", 300 * 3 * 40 * 44 - 1)
    original, read = dataset.read, []
    monkeypatch.setattr(dataset, "read", lambda index: read.append(index) or original(index))
    dataset.prepare("images", show_progress=False)
    assert dataset.cached is None
    assert 30 < len(read) < 40


def test_images_that_outgrow_the_estimate_are_read_again(tmp_path, monkeypatch):
    split = draw_split(tmp_path, 2)
    Image.effect_noise((400, 40), 60).save(split.sources[1])
    many = Split(split.sources * 40, split.labels * 40)  # every second is looked at: the short ones
    dataset = ImageDataset(many, Preprocessing(32))
    monkeypatch.setattr(datasets, "CACHE_LIMIT_BYTES", 3 * 80 * 34 * 38)
    dataset.prepare("images", show_progress=False)
    assert dataset.cached is None
    assert dataset[0, 1][0].shape == (3, 32, 32)
    split.sources[1].write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="40 images can't be read"):
        dataset.prepare("images", show_progress=False)


def test_items_that_randaugment_changed_can_be_made_again(dataset):
    dataset.transform = make_augmentation(
        Augmentation((1.0, 1.0), False, randaugment=31), dataset.preprocessing
    )
    first = [dataset[epoch, 0][0] for epoch in range(8)]
    again = [dataset[epoch, 0][0] for epoch in reversed(range(8))]
    assert all(torch.equal(*pair) for pair in zip(first, reversed(again), strict=True))
    assert len({one.numpy().tobytes() for one in first}) > 4
