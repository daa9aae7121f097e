"""Images as a person sees them, and random changes that can be made again."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image

from halonet.models.halonet import Preprocessing
from halonet.training import images
from halonet.training.augmentation import make_augmentation, own_random_state, seed_everything
from halonet.training.config import Augmentation
from halonet.training.data import Split
from halonet.training.images import (
    EpochSampler,
    ImageDataset,
    InOrder,
    make_loader,
    read_image,
    resize_short_side,
)

ROTATED_BY_90 = 6  # EXIF's orientation: the camera was turned


def pixel(path, place=(0, 0), in_channels=3):
    return read_image(path, in_channels).getpixel(place)


def test_grey_becomes_colour_and_colour_grey(tmp_path):
    path = tmp_path / "grey.png"
    Image.new("L", (3, 2), 77).save(path)
    assert pixel(path) == (77, 77, 77)
    assert pixel(path, in_channels=1) == 77


@pytest.mark.parametrize(("stored", "seen"), [(0, 0), (200, 1), (32896, 128), (65535, 255)])
def test_sixteen_bits_scale_to_eight(tmp_path, stored, seen):
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((2, 3), stored, np.uint16)).save(path)
    assert pixel(path) == (seen,) * 3


@pytest.mark.parametrize(
    ("values", "seen"),
    [([0.0, 1.0], [0, 255]), ([0.0, 200.0], [0, 200]), ([np.nan, 1.0], [0, 255])],
)
def test_float_tiff_keeps_its_scale(tmp_path, values, seen):
    path = tmp_path / "float.tiff"
    Image.fromarray(np.array([values], np.float32)).save(path)
    assert [pixel(path, (column, 0))[0] for column in range(2)] == seen


def test_palette(tmp_path):
    path = tmp_path / "palette.png"
    Image.new("RGB", (4, 4), (10, 200, 30)).quantize(4).save(path)
    with Image.open(path) as image:
        assert image.mode == "P"
    assert pixel(path) == (10, 200, 30)


def test_transparent_palette_lies_on_white(tmp_path):
    path = tmp_path / "palette.png"
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    image.save(path, transparency=0)
    assert [pixel(path, (column, 0)) for column in range(2)] == [(255, 255, 255), (0, 0, 255)]


@pytest.mark.parametrize(("mode", "color"), [("RGBA", (0, 0, 0, 0)), ("LA", (0, 0))])
def test_transparent_pixels_lie_on_white(tmp_path, mode, color):
    path = tmp_path / "clear.png"
    Image.new(mode, (2, 2), color).save(path)
    assert pixel(path) == (255, 255, 255)


def test_half_transparent_pixels_mix_with_white(tmp_path):
    path = tmp_path / "half.png"
    Image.new("RGBA", (2, 2), (0, 0, 0, 128)).save(path)
    assert pixel(path) == (127, 127, 127)


def test_exif_turns_the_image_upright(tmp_path):
    path = tmp_path / "turned.jpg"
    image = Image.new("RGB", (64, 32), "black")
    image.paste("white", (0, 0, 32, 32))
    exif = Image.Exif()
    exif[0x0112] = ROTATED_BY_90
    image.save(path, exif=exif, quality=95)
    upright = read_image(path)
    assert upright.size == (32, 64)
    assert upright.getpixel((16, 8)) == (255, 255, 255)
    assert upright.getpixel((16, 56)) == (0, 0, 0)


def test_cmyk_jpeg(tmp_path):
    path = tmp_path / "print.jpg"
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(path, quality=95)
    red, green, blue = pixel(path)
    assert red > 240
    assert max(green, blue) < 15


def test_one_bit(tmp_path):
    path = tmp_path / "fax.png"
    Image.new("1", (8, 8), 1).save(path)
    assert pixel(path) == (255, 255, 255)


def truncated() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "PNG")
    return buffer.getvalue()[:1000]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"no image at all", "not an image"), (truncated(), "can't be read")],
    ids=["empty", "text", "truncated"],
)
def test_unreadable_file_is_named(tmp_path, content, reason):
    path = tmp_path / "unreadable.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=reason) as raised:
        read_image(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_missing_file_and_folder_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no image at .*absent\.png"):
        read_image(tmp_path / "absent.png")
    with pytest.raises(ValueError, match="directory"):
        read_image(tmp_path)


@pytest.mark.parametrize("size", [(40, 100), (101, 33), (1, 300), (16, 16)])
def test_short_side_is_exact(size):
    assert min(resize_short_side(Image.new("RGB", size), 16).size) == 16


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
        monkeypatch.setattr(images, "CACHE_LIMIT_BYTES", 0)
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
    monkeypatch.setattr(images, "CACHE_LIMIT_BYTES", 0)
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
    monkeypatch.setattr(images, "CACHE_LIMIT_BYTES", 0)
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
    monkeypatch.setattr(images, "CACHE_LIMIT_BYTES", 3 * 3 * 34 * 37)
    dataset.prepare("images", show_progress=False)
    assert len(dataset.cached) == 3
    dataset.cached = None
    monkeypatch.setattr(images, "CACHE_LIMIT_BYTES", 3 * 3 * 34**2 - 1)
    monkeypatch.setattr(images, "read_image", None)
    dataset.prepare("images", show_progress=False)
    assert dataset.cached is None


def test_long_images_that_outgrow_memory_are_read_again(tmp_path, monkeypatch):
    split = draw_split(tmp_path, 2)
    Image.effect_noise((400, 40), 60).save(split.sources[1])
    dataset = ImageDataset(split, Preprocessing(32))
    monkeypatch.setattr(images, "CACHE_LIMIT_BYTES", 3 * 2 * 34**2 + 1000)
    dataset.prepare("images", show_progress=False)
    assert dataset.cached is None
    assert dataset[0, 1][0].shape == (3, 32, 32)


@pytest.mark.parametrize("magnitude", [1, 10, 31])
@pytest.mark.parametrize("mean", [(0.485, 0.456, 0.406), (0.45,)], ids=["colour", "grey"])
def test_randaugment_changes_bytes_to_bytes(mean, magnitude):
    change = make_augmentation(
        Augmentation((1.0, 1.0), False, randaugment=magnitude, randaugment_layers=1),
        Preprocessing(32, mean=mean),
    )
    pixels = torch.arange(32 * 32).remainder(256).byte().view(32, 32).expand(len(mean), 32, 32)
    with own_random_state():
        changed = []
        for seed in range(60):
            seed_everything(seed)
            changed.append(change(pixels))
    assert {one.dtype for one in changed} == {torch.uint8}
    assert {one.shape for one in changed} == {pixels.shape}
    assert len({one.numpy().tobytes() for one in changed}) > 10


def test_randaugment_goes_above_ten_and_fills_with_the_mean():
    change = make_augmentation(
        Augmentation((1.0, 1.0), False, randaugment=31, randaugment_layers=1), Preprocessing(32)
    )
    operations = {one.name: one for one in change.transforms[-1].change.ops}
    assert len(operations) == 15
    with own_random_state():
        seed_everything(0)
        moved = operations["TranslateXRel"](Image.new("RGB", (32, 32), "white"))
    assert set(moved.get_flattened_data()) == {(124, 116, 104)}  # out of the picture


def test_items_that_randaugment_changed_can_be_made_again(dataset):
    dataset.transform = make_augmentation(
        Augmentation((1.0, 1.0), False, randaugment=31), dataset.preprocessing
    )
    first = [dataset[epoch, 0][0] for epoch in range(8)]
    again = [dataset[epoch, 0][0] for epoch in reversed(range(8))]
    assert all(torch.equal(*pair) for pair in zip(first, reversed(again), strict=True))
    assert len({one.numpy().tobytes() for one in first}) > 4


def test_epoch_goes_on_where_it_was_left():
    sampler = EpochSampler(7, seed=3)
    sampler.start(2)
    whole = list(sampler)
    sampler.start(2, skip=3)
    assert sorted(index for _, index in whole) == list(range(7))
    assert list(sampler) == whole[3:]
    assert len(sampler) == 4
    sampler.start(3)
    assert [index for _, index in sampler] != [index for _, index in whole]


def take(length, **options):
    sampler = EpochSampler(length, seed=3, **options)
    sampler.start(2)
    found = [index for _, index in sampler]
    assert len(found) == len(sampler)
    return found


@pytest.mark.parametrize("process_count", [1, 2, 3])
def test_processes_share_the_batches_of_one(process_count):
    whole = take(29)
    parts = [
        take(29, batch_size=6, process_index=index, process_count=process_count)
        for index in range(process_count)
    ]
    share = 6 // process_count
    together = []
    for start in range(0, len(parts[0]), share):
        for part in parts:
            together += part[start : start + share]
    assert together == whole[:24]


def test_processes_go_on_where_they_were_left():
    sampler = EpochSampler(29, seed=3, batch_size=6, process_index=1, process_count=2)
    sampler.start(2)
    whole = list(sampler)
    sampler.start(2, skip=12)
    assert list(sampler) == whole[6:]
    assert len(sampler) == 6
    with pytest.raises(ValueError, match="skip must be a multiple of 6, got 7"):
        sampler.start(2, skip=7)


def test_fewer_items_than_a_batch_are_one_batch():
    assert take(5, batch_size=8) == take(5)
    with pytest.raises(ValueError, match=r"at most the number of images, 5, .* got 8"):
        EpochSampler(5, 0, batch_size=8, process_count=2)
    with pytest.raises(ValueError, match="multiple of the number of processes, 3; got 8"):
        EpochSampler(50, 0, batch_size=8, process_count=3)


def test_processes_share_what_is_held_out():
    parts = [list(InOrder(7, index, 3)) for index in range(3)]
    assert parts == [[(0, 0), (0, 3), (0, 6)], [(0, 1), (0, 4)], [(0, 2), (0, 5)]]
    assert len(InOrder(7, 0, 3)) == 3


def test_no_change_gives_the_centre(tmp_path):
    path = tmp_path / "wide.png"
    image = Image.new("L", (99, 33), 0)
    image.paste(255, (33, 0, 66, 33))
    image.save(path)
    dataset = ImageDataset(
        Split([path], [0]), Preprocessing(32, 1.0, (0.0,), (1.0,)), in_channels=1
    )
    pixels = dataset[next(iter(InOrder(1)))][0]
    assert pixels.shape == (1, 32, 32)
    assert pixels.mean() > 0.95


def test_quarter_turns_reach_all_four():
    turn = make_augmentation(
        Augmentation(crop_share=(1.0, 1.0), horizontal_flip=False, quarter_turns=True),
        Preprocessing(32),
    )
    pixels = torch.arange(3 * 32 * 32, dtype=torch.float32).reshape(3, 32, 32)
    expected = [torch.rot90(pixels, turns, (1, 2)) for turns in range(4)]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        found = [turn(pixels) for _ in range(30)]
    for one in expected:
        assert any(torch.equal(one, other) for other in found)
