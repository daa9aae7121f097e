"""Folders of images: layouts, names of parts, links, and what is left out and said."""

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from halonet.data.folders import find_role, load_folder
from halonet.data.image_files import find_images, image_suffixes
from tests.pictures import draw_folder


def count(data):
    return len(data.training.labels), len(data.validation.labels)


def copies(folder, *names, images=3, classes=2):
    """Parts, each with the drawn class folders."""
    for name in names:
        draw_folder(folder / name, images=images, classes=classes)
    return folder


@pytest.mark.parametrize(
    ("name", "role"),
    [
        *((name, "train") for name in ("train", "Training", "TRAIN", "train_images", "trainset")),
        *((name, "train") for name in ("images_train", "train2017", "Train-Set", "trainval")),
        *((name, "val") for name in ("val", "valid", "Validation", "dataset-val", "val_256")),
        *((name, "test") for name in ("test", "Testing", "test images", "TestSet")),
        *((name, None) for name in ("trains", "trainer", "train_masks", "invalid", "contest")),
        *((name, None) for name in ("train station", "testudo", "values", "images", "cat")),
    ],
)
def test_part_names(name, role):
    assert find_role(name) == role


@pytest.mark.parametrize(
    ("names", "held_out"),
    [
        (("Training", "Testing"), "Testing"),
        (("train_images", "val_images"), "val_images"),
        (("TRAIN", "Valid", "test"), "Valid"),
        (("train", "val", "docs"), "val"),
    ],
)
def test_parts(tmp_path, names, held_out):
    data = load_folder(copies(tmp_path, *names), 0.2)
    assert data.class_names == ("green", "red")
    assert {path.parts[-3] for path in data.training.sources} == {names[0]}
    assert {path.parts[-3] for path in data.validation.sources} == {held_out}
    assert count(data) == (6, 6)
    assert (data.test is not None) == ("test" in names)
    if data.test is not None:
        assert {path.parts[-3] for path in data.test.sources} == {"test"}
    assert data.left_out == (("1 unused folder (docs)",) if "docs" in names else ())


def test_training_part_alone_and_test_images_without_labels(tmp_path):
    copies(tmp_path, "train", images=5)
    assert count(load_folder(tmp_path, 0.2)) == (8, 2)
    shutil.copytree(tmp_path / "train" / "red", tmp_path / "test")
    data = load_folder(tmp_path, 0.2)
    assert count(data) == (8, 2)
    assert data.left_out == ("1 unused folder (test)",)


def test_class_called_train(tmp_path):
    for name in ("bus", "car", "train", "test"):
        shutil.copytree(draw_folder(tmp_path / "drawn" / name, classes=1), tmp_path / "flat" / name)
        shutil.copytree(tmp_path / "drawn" / name / "red", tmp_path / "photos" / name)
    assert load_folder(tmp_path / "photos", 0.2).class_names == ("bus", "car", "test", "train")
    shutil.rmtree(tmp_path / "photos" / "test")
    for kind in ("steam", "diesel"):
        shutil.move(tmp_path / "flat" / "train" / "red", tmp_path / "photos" / "train" / kind)
        shutil.copytree(tmp_path / "photos" / "bus", tmp_path / "flat" / "train" / "red")
    assert load_folder(tmp_path / "photos", 0.2).class_names == ("bus", "car", "train")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("Train", "training", "val"), "one folder for the part train, has Train and training"),
        (("val", "test"), "has test, val, but no training part with a folder for each class"),
        (("first", "second"), "first, second all hold green, red: these look like the classes"),
        (("val",), r"two or more classes, has \['val'\]; folder:.*val has more"),
        (("train",), "train must"),
    ],
)
def test_parts_that_cannot_be_told(tmp_path, names, said):
    copies(tmp_path, *names)
    if names == ("train",):
        (tmp_path / "train" / "red").rename(tmp_path / "train" / "val")
        shutil.move(tmp_path / "train" / "green", tmp_path / "val")
        said = r"train must have a folder for each of two or more classes, has \['val'\]"
    with pytest.raises(ValueError, match=said):
        load_folder(tmp_path, 0.2)


def test_classes_hold_parts(tmp_path):
    copies(tmp_path, "cat", "dog")
    for part in tmp_path.glob("*/red"):
        part.rename(part.with_name("train"))
    with pytest.raises(ValueError, match="cat, dog all hold green, train"):
        load_folder(tmp_path, 0.2)


def test_one_inner_folder_is_no_part(tmp_path):
    copies(tmp_path, "cat", "dog", classes=1)
    assert load_folder(tmp_path, 0.4).class_names == ("cat", "dog")


def test_all_that_pillow_decodes_is_read(tmp_path):
    folder = draw_folder(tmp_path / "images", images=2)
    suffixes = (".jfif", ".jpe", ".avif", ".jp2", ".pgm", ".ppm", ".TIF", ".tga", ".mpo", ".webp")
    for suffix in suffixes:
        Image.new("L" if suffix == ".pgm" else "RGB", (8, 8)).save(folder / "red" / f"a{suffix}")
    for name in ("b.eps", "b.h5", "b.mpg", "b.pdf", "b.heic", "b.heic"):
        (folder / "red" / name).write_bytes(b"something")
    data = load_folder(folder, 0.5)
    assert sum(count(data)) == 4 + len(suffixes)
    assert sorted(data.left_out[0].split(", ")) == [
        *("1 .eps", "1 .h5", "1 .heic", "1 .mpg", "1 .pdf"),
    ]
    assert ".svg" not in image_suffixes()


def test_links_are_followed_once(tmp_path):
    folder = draw_folder(tmp_path / "images", images=4)
    elsewhere = draw_folder(tmp_path / "elsewhere", images=3)
    shutil.move(folder / "green", tmp_path / "moved")
    (folder / "green").symlink_to(tmp_path / "moved")
    red = folder / "red"
    (red / "more").symlink_to(elsewhere / "red")
    (red / "more again").symlink_to(elsewhere / "red")
    (red / "up").symlink_to(folder)
    (red / "root").symlink_to("/")
    (red / "other").symlink_to(tmp_path / "moved")
    (red / "itself.png").symlink_to(red / "itself.png")
    (red / "gone.png").symlink_to(red / "absent.png")
    (elsewhere / "red" / "back").symlink_to(red)
    (red / "linked.png").symlink_to(elsewhere / "green" / "0.png")
    data = load_folder(folder, 0.25)
    found = [*data.training.sources, *data.validation.sources]
    assert len(found) == 4 + 4 + 3 + 1
    assert len({path.resolve() for path in found}) == len(found)
    assert "5 repeated links" in data.left_out[0]
    assert "2 dangling links (red/" in data.left_out[0]


def test_class_that_is_a_link_to_another_is_refused(tmp_path):
    folder = draw_folder(tmp_path / "images")
    (folder / "scarlet").symlink_to(folder / "red")
    with pytest.raises(ValueError, match=r"class folder .*scarlet is a link to another one"):
        load_folder(folder, 0.2)


def test_what_is_left_out_is_counted(tmp_path, monkeypatch):
    folder = draw_folder(tmp_path / "images", images=4)
    (folder / "red" / ".hidden.png").write_bytes(b"x")
    (folder / "__MACOSX").mkdir()
    (folder / "notes.txt").write_text("notes")
    (folder / "red" / "README").write_text("notes")
    (folder / "green" / "locked").mkdir()
    Image.new("L", (4, 4)).save(folder / "stray.png")
    os.mkfifo(folder / "green" / "pipe.png")
    original = os.scandir

    def refuse(place):
        if Path(place).name == "locked":
            raise PermissionError
        return original(place)

    monkeypatch.setattr(os, "scandir", refuse)
    data = load_folder(folder, 0.25)
    assert count(data) == (6, 2)
    kinds = dict(reversed(one.split(" ", 1)) for one in data.left_out[0].split(", "))
    assert kinds == {
        ".txt": "1",
        "hidden files (__MACOSX)": "2",
        "special file (green/pipe.png)": "1",
        "unclassified image (stray.png)": "1",
        "unreadable folder (green/locked)": "1",
        "untyped file (red/README)": "1",
    }


def test_many_kinds_stay_one_line(tmp_path):
    for index in range(30):
        (tmp_path / f"a.x{index}").write_text("")
        (tmp_path / "b.txt").write_text("")
    found, left_out = find_images(tmp_path)
    assert found == []
    assert str(left_out).endswith(", 23 of other kinds")
    assert left_out.counts.total() == 31


def tiny_imagenet(folder):
    """The layout of the original archive."""
    drawn = draw_folder(folder / "drawn", images=4)
    for color, wnid in (("red", "n01443537"), ("green", "n01629819")):
        shutil.copytree(drawn / color, folder / "train" / wnid / "images")
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
    (folder / "val" / "images").mkdir(parents=True)
    lines = []
    for index, (color, wnid) in enumerate([("red", "n01443537"), ("green", "n01629819")] * 2):
        shutil.copy(drawn / color / f"{index}.png", folder / "val" / "images" / f"val_{index}.png")
        lines.append(f"val_{index}.png\t{wnid}\t0\t32\t44\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    shutil.copytree(drawn / "red", folder / "test" / "images")
    (folder / "wnids.txt").write_text("n01443537\nn01629819\n")
    shutil.rmtree(drawn)
    return folder


def test_tiny_imagenet(tmp_path):
    folder = tiny_imagenet(tmp_path)
    data = load_folder(folder, 0.2)
    assert data.class_names == ("n01443537", "n01629819")
    assert count(data) == (8, 4)
    assert data.validation.labels == [0, 1, 0, 1]
    assert [path.name for path in data.validation.sources][:2] == ["val_0.png", "val_1.png"]
    assert "4 .txt, 1 unused folder (test)" in data.left_out[0]


def test_tiny_imagenet_with_wrong_labels(tmp_path):
    annotations = tiny_imagenet(tmp_path) / "val" / "val_annotations.txt"
    lines = annotations.read_text().splitlines()
    annotations.write_text("\n".join(lines[:3]))
    data = load_folder(tmp_path, 0.2)
    assert len(data.validation.labels) == 3
    assert "1 unlabelled image (val/images/val_3.png)" in data.left_out[0]
    annotations.write_text("\n".join([*lines, "val_9.png\tn01443537", "val_8.png\tn01443537"]))
    with pytest.raises(
        ValueError, match=r"names 2 images that aren't there: val_8\.png, val_9\.png"
    ):
        load_folder(tmp_path, 0.2)
    annotations.write_text("\ufeff" + "\n".join(lines))
    assert len(load_folder(tmp_path, 0.2).validation.labels) == 4
    annotations.write_bytes(b"val_\xff.png\tn01443537")
    with pytest.raises(ValueError, match=r"val_annotations\.txt is not text in UTF-8"):
        load_folder(tmp_path, 0.2)
    annotations.write_text("val_0.png\tn99")
    with pytest.raises(ValueError, match="line 1 must have an image and a class of the training"):
        load_folder(tmp_path, 0.2)


def test_accents_in_two_spellings(tmp_path):
    copies(tmp_path, "train", "val")
    for part, spelling in (("train", "Caf\u00e9"), ("val", "Cafe\u0301")):
        (tmp_path / part / "red").rename(tmp_path / part / spelling)
        (tmp_path / part / "green").rename(tmp_path / part / "Caff")
    data = load_folder(tmp_path, 0.2)
    assert data.class_names == ("Caff", "Caf\u00e9")
    for split in (data.training, data.validation):
        classes = [data.class_names[label] for label in split.labels]
        assert [name == "Caff" for name in classes] == [
            path.parent.name == "Caff" for path in split.sources
        ]
    shutil.copytree(tmp_path / "val" / "Caff", tmp_path / "train" / "Cafe\u0301")
    with pytest.raises(ValueError, match="differ only in how Unicode spells them"):
        load_folder(tmp_path, 0.2)
