"""Data sets: labels, fixed splits, and what is said where they are missing."""

from collections import Counter

import pytest
from PIL import Image
from torchvision import datasets

from halonet.data.pixels import read_image
from halonet.data.sources import load_data
from tests.pictures import draw_folder

FIRST_HELD_OUT = ["cell0006.png", "cell0007.png", "cell0015.png", "cell0028.png"]


def test_elpv_is_split_once_for_all():
    data, again = load_data("elpv"), load_data("elpv")
    assert data == again
    training, validation = set(data.training.sources), set(data.validation.sources)
    assert not training & validation
    assert len(training | validation) == 2624
    assert (len(training), len(validation)) == (1970, 654)
    # The first of the fixed split; another would make published figures of ours incomparable.
    assert [path.name for path in data.validation.sources[:4]] == FIRST_HELD_OUT


def test_elpv_is_stratified():
    data = load_data("elpv")
    assert data.class_names == ("intact", "defective")
    assert Counter([*data.training.labels, *data.validation.labels]) == {0: 1803, 1: 821}
    for part in (data.training, data.validation):
        assert sum(part.labels) / len(part.labels) == pytest.approx(821 / 2624, abs=0.003)
    assert data.majority_share == pytest.approx(450 / 654)
    assert "CC BY-NC-SA 4.0" in data.note
    assert "88.42" in data.note


def test_folder_with_a_share_held_out(tmp_path):
    folder = draw_folder(tmp_path / "images", classes=3, images=8)
    data = load_data(f"folder:{folder}", validation_share=0.25)
    assert data.class_names == ("blue", "green", "red")
    assert Counter(data.validation.labels) == {0: 2, 1: 2, 2: 2}
    assert Counter(data.training.labels) == {0: 6, 1: 6, 2: 6}
    assert not set(data.training.sources) & set(data.validation.sources)
    for path, label in zip(data.training.sources, data.training.labels, strict=True):
        assert path.parent.name == data.class_names[label]
    assert load_data(f"folder:{folder}", validation_share=0.25) == data


def test_folder_with_train_and_val(tmp_path):
    draw_folder(tmp_path / "train", images=3)
    draw_folder(tmp_path / "val", images=2)
    data = load_data(f"folder:{tmp_path}")
    assert (len(data.training.labels), len(data.validation.labels)) == (6, 4)
    assert {path.parts[-3] for path in data.validation.sources} == {"val"}


def test_train_and_val_of_other_classes(tmp_path):
    draw_folder(tmp_path / "train", classes=3)
    draw_folder(tmp_path / "val", classes=2)
    with pytest.raises(ValueError, match="only train has blue"):
        load_data(f"folder:{tmp_path}")


def test_hidden_files_and_folders_are_left_out(tmp_path):
    folder = draw_folder(tmp_path / "images", images=4)
    (folder / "red" / "._0.png").write_bytes(b"metadata")
    (folder / "red" / ".thumbnails").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "red" / ".thumbnails" / "0.png")
    (folder / ".checkpoints").mkdir()
    (folder / "red" / "notes.txt").write_text("not an image")
    (folder / "red" / "nested").mkdir()
    Image.new("RGB", (4, 4)).save(folder / "red" / "nested" / "deep.JPG", "JPEG")
    data = load_data(f"folder:{folder}")
    names = [path.name for path in [*data.training.sources, *data.validation.sources]]
    assert len(names) == 9
    assert "deep.JPG" in names


def test_class_folder_without_images(tmp_path):
    folder = draw_folder(tmp_path / "images")
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match=r"class folder .*empty holds no images"):
        load_data(f"folder:{folder}")


def test_one_class_only(tmp_path):
    folder = draw_folder(tmp_path / "images", classes=1)
    with pytest.raises(ValueError, match=r"two or more classes, has \['red'\]"):
        load_data(f"folder:{folder}")


def test_class_of_one_image(tmp_path):
    folder = draw_folder(tmp_path / "images", images=1)
    with pytest.raises(ValueError, match="class 'green' has one image"):
        load_data(f"folder:{folder}")


@pytest.mark.parametrize("share", [0.0, 1.1, -1.0, float("nan")])
def test_share_must_leave_two_parts(tmp_path, share):
    folder = draw_folder(tmp_path / "images")
    with pytest.raises(ValueError, match="validation_share must be between 0 and 1"):
        load_data(f"folder:{folder}", validation_share=share)


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder at .*absent"):
        load_data(f"folder:{tmp_path / 'absent'}")


def test_unknown_name():
    with pytest.raises(
        ValueError,
        match=r"data must be elpv, folder:PATH, csv:FILE, shards:PATH, hf:NAME, cifar10.* got 'cifar'",
    ):
        load_data("cifar")


def test_an_empty_name_is_not_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(draw_folder(tmp_path / "images"))
    for name in ("", " "):
        with pytest.raises(ValueError, match=f"data must be elpv, .* got '{name}'"):
            load_data(name)
    assert load_data(".").class_names == ("green", "red")


class FakeCifar:
    classes = ("cat", "dog")

    def __init__(self, root, train, download):
        assert download
        self.targets = [0, 1, 1] if train else [1, 0]

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return Image.new("L", (32, 32), index), self.targets[index]


def test_torchvision_data(monkeypatch):
    monkeypatch.setattr(datasets, "CIFAR10", FakeCifar)
    data = load_data("cifar10")
    assert data.class_names == ("cat", "dog")
    assert (data.training.labels, data.validation.labels) == ([0, 1, 1], [1, 0])
    assert read_image(data.training.sources[2]).getpixel((0, 0)) == (2, 2, 2)
    assert str(data.training.sources[2]) == "image 2 of cifar10"


@pytest.mark.parametrize("error", [OSError("no\nnetwork"), RuntimeError("no network")])
def test_torchvision_data_without_a_network(monkeypatch, tmp_path, error):
    def refuse(*arguments, **options):
        raise error

    monkeypatch.setattr(datasets, "CIFAR10", refuse)
    with pytest.raises(FileNotFoundError, match=r"cifar10 is neither in .* nor could it be"):
        load_data("cifar10", data_root=str(tmp_path))
