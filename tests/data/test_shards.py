"""Shards: written and read back, by us and by others; the same batches as the folder's."""

import functools
import io
import itertools
import json
import os
import pickle
import shutil
import tarfile

import pytest
import torch
from PIL import Image
from torchvision import datasets

from halonet.data import shards
from halonet.data.augmentation import Augmentation
from halonet.data.dataset import ImageDataset
from halonet.data.loader import InOrder, make_loader
from halonet.data.pixels import read_image
from halonet.data.shard_writer import write_shards
from halonet.data.sources import load_data
from halonet.models.halonet import Preprocessing
from tests.data.batches import assert_same_batches, batches
from tests.data.conftest import SHARD_BYTES
from tests.pictures import draw_folder

# webdataset closes files when it likes.
leaves_files_open = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


def write_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@functools.cache
def picture(color="red", kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), color).save(buffer, kind)
    return buffer.getvalue()


def test_folder_and_shards_give_the_same_batches(folder, written):
    original = load_data(f"folder:{folder}", validation_share=0.25)
    data = load_data(f"shards:{written}")
    assert data.class_names == original.class_names == ("blue", "green", "red")
    for part in ("training", "validation"):
        ours, theirs = getattr(data, part), getattr(original, part)
        assert list(ours.labels) == list(theirs.labels)
        assert [one.read_bytes() for one in ours.sources] == [
            one.read_bytes() for one in theirs.sources
        ]
    assert_same_batches(batches(data), batches(original))
    options = {"process_index": 1, "process_count": 2}
    assert_same_batches(batches(data, workers=1, **options), batches(original, **options))


def test_files_and_index(written):
    names = sorted(path.name for path in written.iterdir() if path.name[0] != ".")
    assert names[0] == "_info.json"
    assert {name.split("-")[0] for name in names[1:]} == {"train", "val"}
    assert len(names) > 5
    assert all((written / name).stat().st_size < SHARD_BYTES + 10240 for name in names[1:])
    info = json.loads((written / "_info.json").read_text())
    assert sum(split["num_samples"] for split in info["splits"].values()) == 24
    with tarfile.open(written / "train-000000.tar") as tar:
        first = tar.getmembers()[:2]
    assert [member.name for member in first] == ["00000000_1.cls", "00000000_1.png"]
    assert {member.mtime for member in first} == {0}


def test_same_images_give_the_same_bytes(folder, written, tmp_path):
    data = load_data(f"folder:{folder}", validation_share=0.25)
    write_shards(data, tmp_path / "written", shard_bytes=SHARD_BYTES)
    for path in (tmp_path / "written").iterdir():
        assert path.read_bytes() == (written / path.name).read_bytes()


@leaves_files_open
def test_webdataset_reads_ours(folder, written):
    webdataset = pytest.importorskip("webdataset")
    shard_paths = [str(path) for path in sorted(written.glob("train-*.tar"))]
    found = [
        (sample.get("jpg") or sample["png"], int(sample["cls"]))
        for sample in webdataset.WebDataset(shard_paths, shardshuffle=False)
    ]
    split = load_data(f"folder:{folder}", validation_share=0.25).training
    contents = [path.read_bytes() for path in split.sources]
    assert found == list(zip(contents, split.labels, strict=True))


@leaves_files_open
def test_timm_reads_ours(folder, written):
    pytest.importorskip("webdataset")
    from timm.data import create_dataset

    validation = load_data(f"folder:{folder}", validation_share=0.25).validation
    found = list(create_dataset("wds/", root=str(written), split="validation"))
    assert [label for _, label in found] == list(validation.labels)
    for (image, _), source in zip(found, validation.sources, strict=True):
        assert image.tobytes() == read_image(source).tobytes()
    reader = create_dataset(
        "wds/", root=str(written), split="train", is_training=True, batch_size=1
    )
    assert len(reader) == 18


def test_tar_files_of_others_by_pattern(tmp_path):
    for shard, color in enumerate(("red", "blue")):
        files = {}
        for index in range(3):
            key = f"./some.folder/{shard}{index}"
            files[f"{key}.json"] = b"{}"
            files[f"{key}.jpeg"] = picture(color, "JPEG")
            files[f"{key}.cls"] = f"{shard}\n".encode()
        write_tar(tmp_path / f"train-{shard:02}.tar", files)
    write_tar(tmp_path / "val.tar", {"a.cls": b"1", "a.webp": picture("blue", "WEBP")})
    held_out = f"shards:{tmp_path}/val.tar"
    data = load_data(f"shards:{tmp_path}/train-{{00..01}}.tar", validation_data=held_out)
    assert data.class_names == ("0", "1")
    assert list(data.training.labels) == [0, 0, 0, 1, 1, 1]
    assert list(data.validation.labels) == [1]
    assert read_image(data.training.sources[4]).getpixel((5, 5))[2] > 250
    assert str(data.training.sources[-2]).startswith("./some.folder/11.jpeg in ")
    assert [one.size for one in data.training.sources[1:3]] == [len(picture("red", "JPEG"))] * 2
    starred = load_data(f"shards:{tmp_path}/train-*.tar", validation_data=held_out)
    assert list(starred.training.sources) == list(data.training.sources)
    # Without a held-out part, a share is.
    data = load_data(f"shards:{tmp_path}/train-{{00,01}}.tar", validation_share=0.34)
    assert list(data.training.labels) == [0, 0, 1, 1]
    assert list(data.validation.labels) == [0, 1]
    everything = [*data.training.sources[:2], *data.validation.sources, *data.training.sources[2:]]
    assert len({(one.shard, one.offset) for one in everything}) == 6
    assert data.majority_share == 0.5


def test_workers_take_pickled_shards(written):
    data = load_data(f"shards:{written}")
    data.training.sources[0].read_bytes()
    again = pickle.loads(pickle.dumps(data))
    assert again.training.sources[3].read_bytes() == data.training.sources[3].read_bytes()
    assert again.training.labels == data.training.labels


def test_index_is_kept_and_made_again_where_the_shard_changed(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "train.tar", {"a.cls": b"0", "a.png": picture()})
    first = shards.read_index(path)
    kept = tmp_path / ".train.tar.index.npy"
    assert kept.is_file()
    with monkeypatch.context() as patch:
        patch.setattr(shards, "_scan", None)
        assert (shards.read_index(path) == first).all()
    kept.write_bytes(kept.read_bytes()[:-5])
    assert (shards.read_index(path) == first).all()
    write_tar(path, {"a.cls": b"7", "a.png": picture(), "b.cls": b"1", "b.png": picture()})
    assert shards.read_index(path)[:, 2].tolist() == [7, 1]


def test_index_that_cannot_be_kept_is_used(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "train.tar", {"a.cls": b"3", "a.png": picture()})

    def refuse(*arguments):
        raise PermissionError

    monkeypatch.setattr(shards, "write_atomically", refuse)
    assert shards.read_index(path)[:, 2].tolist() == [3]
    assert [one.name for one in tmp_path.iterdir()] == ["train.tar"]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"a.png": b"x"}, "sample a has no .cls"),
        ({"a.cls": b"0"}, "sample a has no image"),
        ({"a.cls": b"0", "b/c.png": b"x"}, "sample a has no image"),
        ({"a.cls": b"cat", "a.png": b"x"}, "sample a has b'cat' for a class index"),
        ({"a.cls": b"-1", "a.png": b"x"}, "sample a has b'-1' for a class index"),
        ({}, "hold no images"),
    ],
)
def test_samples_that_are_not_whole_are_named(tmp_path, files, reason):
    write_tar(tmp_path / "train.tar", files)
    with pytest.raises(ValueError, match=reason):
        load_data(f"shards:{tmp_path}/train.tar")


def test_class_index_out_of_range_is_named(written, tmp_path):
    copy = shutil.copytree(written, tmp_path / "copy")
    info = json.loads((copy / "_info.json").read_text())
    info["class_names"] = info["class_names"][:2]
    (copy / "_info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"png in .*train.*tar has the class index 2; there are 2"):
        load_data(f"shards:{copy}")


def test_key_twice_in_a_row_is_named(tmp_path):
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for name, content in [("b/a.png", picture()), ("b/a.cls", b"0")] * 2:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    with pytest.raises(ValueError, match=r"train\.tar: the key b/a has two files \.png"):
        load_data(f"shards:{tmp_path}/train.tar")


def test_labels_that_change_at_equal_size_and_time_are_read(tmp_path):
    path = write_tar(tmp_path / "train.tar", {"a.cls": b"0", "a.png": picture()})
    before = path.stat()
    assert shards.read_index(path)[:, 2].tolist() == [0]
    write_tar(path, {"a.cls": b"1", "a.png": picture()})
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert shards.read_index(path)[:, 2].tolist() == [1]
    # The same in another file of that name, with its index beside it.
    index = (tmp_path / ".train.tar.index.npy").read_bytes()
    path.rename(tmp_path / "old.tar")
    write_tar(path, {"a.cls": b"2", "a.png": picture()})
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    (tmp_path / ".train.tar.index.npy").write_bytes(index)
    assert shards.read_index(path)[:, 2].tolist() == [2]


@pytest.mark.parametrize("length", [100, 700, 1500, 2048, 3000])
def test_cut_tar_is_named(tmp_path, length):
    path = write_tar(
        tmp_path / "train.tar",
        {"a.cls": b"0", "a.png": picture(), "b.cls": b"1", "b.png": picture()},
    )
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"train\.tar is damaged"):
        shards.read_index(path)


def test_damaged_header_is_no_end(tmp_path):
    path = write_tar(
        tmp_path / "train.tar",
        {"a.cls": b"0", "a.png": picture(), "b.cls": b"1", "b.png": picture()},
    )
    content = bytearray(path.read_bytes())
    content[content.index(b"b.cls")] = 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"train\.tar is damaged or cut short at byte \d+"):
        shards.read_index(path)


def test_compressed_tar_is_refused(tmp_path):
    with tarfile.open(tmp_path / "train.tar.gz", "w:gz"):
        pass
    with pytest.raises(ValueError, match=r"train\.tar\.gz is compressed; unpack"):
        load_data(f"shards:{tmp_path}/train.tar.gz")


def test_shard_of_another_length_than_described(written, tmp_path):
    copy = shutil.copytree(written, tmp_path / "copy")
    info = json.loads((copy / "_info.json").read_text())
    info["splits"]["train"]["shard_lengths"][0] += 1
    (copy / "_info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"train-000000\.tar holds \d samples, \d were expected"):
        load_data(f"shards:{copy}")


def test_folder_without_description_and_missing_shards(written, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no _info\.json in .*name the shards as in"):
        load_data(f"shards:{tmp_path}")
    with pytest.raises(FileNotFoundError, match=r"no shard at .*train-1\.tar"):
        load_data(f"shards:{tmp_path}/train-{{1..2}}.tar")
    with pytest.raises(FileNotFoundError, match=r"no shards at .*\*\.tar"):
        load_data(f"shards:{tmp_path}/*.tar")
    with pytest.raises(ValueError, match=r"expected \{000\.\.146\} or \{a,b\} in braces"):
        load_data(f"shards:{tmp_path}/train-{{1-2}}.tar")
    with pytest.raises(ValueError, match="validation_data goes with tar files"):
        load_data(f"shards:{written}", validation_data=f"shards:{written}/val-000000.tar")
    with pytest.raises(ValueError, match="validation_data must be shards:TAR_FILES"):
        load_data("elpv", validation_data="folder:photos")
    tar = f"shards:{written}/train-000000.tar"
    with pytest.raises(ValueError, match=r"must have no shard in common: .*train-000000"):
        load_data(tar, validation_data=tar)


SPLIT = {"filenames": ["train.tar"]}


@pytest.mark.parametrize(
    ("info", "said"),
    [
        ([], "it must have splits by name"),
        ({"splits": {"train": {}}}, "split train must have filenames, a list of shards"),
        (
            {"splits": {"train": SPLIT, "validation": {"filenames": []}}},
            "split validation must have filenames",
        ),
        (
            {"splits": {"train": SPLIT | {"shard_lengths": 6}}},
            "shard_lengths of split train must be a number for each shard, got 6",
        ),
        (
            {"splits": {"train": SPLIT}, "class_names": [0, 1]},
            r"must be a list of text, got \[0, 1",
        ),
        (
            {"splits": {"train": SPLIT}, "class_names": ["a"]},
            "must have two or more classes to train on, has a",
        ),
    ],
)
def test_description_of_another_form_is_named(tmp_path, info, said):
    files = {"a.png": picture(), "a.cls": b"0", "b.png": picture(), "b.cls": b"0"}
    write_tar(tmp_path / "train.tar", files)
    (tmp_path / "_info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=said):
        load_data(f"shards:{tmp_path}")


def test_description_names_no_file_elsewhere(tmp_path):
    split = {"filenames": ["../secret.tar"], "shard_lengths": [1]}
    (tmp_path / "_info.json").write_text(json.dumps({"splits": {"train": split}}))
    with pytest.raises(ValueError, match=r"names a shard outside itself: \.\./secret\.tar"):
        load_data(f"shards:{tmp_path}")


def test_existing_output_is_refused(folder, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    data = load_data(f"folder:{folder}")
    with pytest.raises(FileExistsError, match="isn't an empty folder"):
        write_shards(data, tmp_path)
    with pytest.raises(ValueError, match="shard_bytes must be positive, got 0"):
        write_shards(data, tmp_path / "new", shard_bytes=0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_broken_images_are_left_out_or_stop(tmp_path):
    folder = draw_folder(tmp_path / "images", images=4)
    data = load_data(f"folder:{folder}", validation_share=0.25)
    data.training.sources[1].write_bytes(b"rubbish")
    name = data.training.sources[1].name
    with pytest.raises(ValueError, match=f"{name} is not an image"):
        write_shards(data, tmp_path / "shards")
    assert not (tmp_path / "shards").exists()
    result = write_shards(data, tmp_path / "shards", skip_broken=True)
    assert (result.images, result.shards, len(result.problems)) == (7, 2, 1)
    assert name in result.problems[0]
    assert len(load_data(f"shards:{tmp_path / 'shards'}").training.labels) == 5


def test_a_part_of_broken_images_is_refused(tmp_path):
    folder = draw_folder(tmp_path / "images", images=2)
    data = load_data(f"folder:{folder}", validation_share=0.5)
    for path in data.validation.sources:
        path.write_bytes(b"rubbish")
    with pytest.raises(
        ValueError, match=r"no image of the part val can be read: .* is not an image"
    ):
        write_shards(data, tmp_path / "shards", skip_broken=True)
    assert not (tmp_path / "shards").exists()


def test_the_test_part_comes_along(tmp_path):
    for part, images in (("train", 3), ("val", 1), ("test", 2)):
        draw_folder(tmp_path / "images" / part, images=images)
    data = load_data(f"folder:{tmp_path / 'images'}")
    assert write_shards(data, tmp_path / "shards").images == 12
    again = load_data(f"shards:{tmp_path / 'shards'}")
    for part in ("training", "validation", "test"):
        ours, theirs = getattr(again, part), getattr(data, part)
        assert [*ours.labels] == [*theirs.labels]
        assert [one.read_bytes() for one in ours.sources] == [
            one.read_bytes() for one in theirs.sources
        ]


def test_broken_image_in_a_shard_is_replaced(written, tmp_path):
    copy = shutil.copytree(written, tmp_path / "copy")
    data = load_data(f"shards:{copy}")
    spoiled = data.training.sources[0]
    with open(spoiled.shard, "r+b") as file:
        file.seek(spoiled.offset)
        file.write(bytes(spoiled.size))
    options = {"augmentation": Augmentation(), "broken_share": 0.1}
    dataset = ImageDataset(data.training, Preprocessing(32), **options)
    assert [dataset[0, index][2] for index in range(3)] == [0, -1, -1]
    dataset = ImageDataset(data.training, Preprocessing(32))
    with pytest.raises(ValueError, match=rf"{spoiled}".replace(".", r"\.") + " is not an image"):
        dataset.prepare("images", show_progress=False)


class FakeCifar:
    classes = ("cat", "dog")

    def __init__(self, root, train, download):
        self.targets = [0, 1]

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return Image.new("L", (32, 32), 100 * index), self.targets[index]


def test_images_without_files_are_stored_without_loss(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "CIFAR10", FakeCifar)
    original = load_data("cifar10")
    write_shards(original, tmp_path / "shards")
    data = load_data(f"shards:{tmp_path / 'shards'}")
    for one, other in zip(data.training.sources, original.training.sources, strict=True):
        assert read_image(one).tobytes() == read_image(other).tobytes()
    # And shards can be written again.
    write_shards(data, tmp_path / "again")
    assert (tmp_path / "again" / "train-000000.tar").read_bytes() == (
        tmp_path / "shards" / "train-000000.tar"
    ).read_bytes()


def test_held_out_shards_give_every_image_once(written):
    data = load_data(f"shards:{written}")
    dataset = ImageDataset(data.validation, Preprocessing(32))
    parts = [make_loader(dataset, InOrder(6, index, 2), 2, 0) for index in range(2)]
    pixels, labels, _ = zip(*itertools.chain(*parts), strict=True)
    assert sorted(torch.cat(labels).tolist()) == sorted(data.validation.labels)
    assert len({one.numpy().tobytes() for one in torch.cat(pixels)}) == 6
