"""Annotations that can be understood are mended, counted and said; the others are refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from halonet import cli
from halonet.detection.annotations import Annotation
from halonet.detection.check import check_content
from halonet.detection.coco import read_coco
from halonet.detection.data import AnnotatedImage, AnnotatedImages, turn_upright
from halonet.detection.evaluate import score
from halonet.detection.masks import decode_masks, encode_mask
from tests.detection.pictures import (
    draw_coco,
    draw_mask,
    load_shared_data,
    needs_shared_data,
    rectangle,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return draw_coco(tmp_path / "shapes")


def change(
    folder: Path, edit: Any = lambda content: None, *, part: str = "train2017", masks: bool = True
) -> AnnotatedImages:
    """The data after its annotations were rewritten."""
    path = folder / "annotations" / f"instances_{part}.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    return check_content(read_coco(path), masks=masks)


def first(content: dict[str, Any]) -> dict[str, Any]:
    return content["annotations"][0]


def said(data: AnnotatedImages) -> list[str]:
    """Notes without the name of the file."""
    assert data.problems == ()
    return [note.removeprefix(f"{data.source}: ") for note in data.notes]


def test_whole_floats_are_whole(folder: Path) -> None:
    before = change(folder)

    def edit(content: dict[str, Any]) -> None:
        for entry in (one for part in content.values() for one in part):
            for name in ("id", "image_id", "category_id", "width", "height", "iscrowd"):
                if name in entry:
                    entry[name] = float(entry[name])

    data = change(folder, edit)
    assert data == before
    assert all(type(image.width) is type(image.id) is int for image in data.images)
    assert said(data) == []


def test_a_polygon_some_pixels_outside_is_clipped(folder: Path) -> None:
    outside = [-3.0, 8.0, 26.0, 8.0, 26.0, 24.0, -3.0, 24.0]
    data = change(
        folder, lambda content: first(content).update(segmentation=[outside], bbox=[-3, 8, 29, 16])
    )
    assert said(data) == [
        "objects that reach outside their image, clipped: 1, the first is image 10, annotation 0"
    ]
    one = data.images[0].annotations[0]
    assert one.box == (0, 8, 26, 16)
    assert decode_masks([one.counts or b""], 44, 60)[:, :, 0].sum() == 26 * 16


def test_a_box_without_a_mask_is_clipped(folder: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        for entry in content["annotations"]:
            entry["segmentation"] = []
        first(content)["bbox"] = [50, 30, 14, 10]

    data = change(folder, edit, masks=False)
    assert data.images[0].annotations[0].box == (50, 30, 10, 10)
    assert said(data) == [
        "objects that reach outside their image, clipped: 1, the first is image 10, annotation 0"
    ]


def test_corners_are_told_by_the_masks(folder: Path) -> None:
    before = change(folder)

    def edit(content: dict[str, Any]) -> None:
        for entry in content["annotations"]:
            left, top, width, height = entry["bbox"]
            entry["bbox"] = [left, top, left + width, top + height]

    data = change(folder, edit)
    assert said(data) == [
        "boxes given as left, top, right, bottom, as their masks tell, taken so: 7, "
        "the first is image 10, annotation 0"
    ]
    assert data.images == before.images


def test_corners_are_told_without_masks_too(folder: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        for entry in content["annotations"]:
            left, top, width, height = entry["bbox"]
            entry.update(bbox=[left, top, left + width, top + height], segmentation=[])

    with pytest.raises(ValueError, match="3 of 7 boxes reach outside their images, and all fit if"):
        change(folder, edit, masks=False)


def test_boxes_apart_from_their_masks_are_said(folder: Path) -> None:
    data = change(folder, lambda content: first(content).update(bbox=[18, 16, 16, 16]))
    assert said(data) == [
        "boxes that lie apart from their masks, kept as they are: 1, "
        "the first is image 10, annotation 0"
    ]
    assert data.images[0].annotations[0].box == (18, 16, 16, 16)


@pytest.mark.parametrize("masks", [True, False])
def test_an_area_of_nothing_is_measured(folder: Path, masks: bool) -> None:
    def edit(content: dict[str, Any]) -> None:
        for entry in content["annotations"]:
            entry["area"] = 0

    data = change(folder, edit, masks=masks)
    assert said(data) == [
        "objects with an area of 0, measured instead: 7, the first is image 10, annotation 0"
    ]
    assert [one.area for one in data.images[0].annotations] == [256, 180]
    assert score(data, truth(data)).box.all == 1
    assert score(data, truth(data)).box.small == 1


def truth(data: AnnotatedImages) -> list[dict[str, Any]]:
    """The objects as results."""
    return [
        {"image_id": image.id, "category_id": one.category_id, "bbox": list(one.box), "score": 1.0}
        for image in data.images
        for one in image.annotations
        if not one.crowd
    ]


def test_categories_of_one_name_are_told_apart(folder: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        for entry in content["categories"]:
            entry["name"] = "cell"

    data = change(folder, edit)
    assert [category.name for category in data.categories] == ["cell (3)", "cell (7)"]
    assert said(data) == [
        "2 categories are called 'cell', told apart by their ids: 'cell (3)', ..."
    ]
    results = [one for one in truth(data) if one["category_id"] == 3]
    assert score(data, results).box.categories == {"cell (3)": 1.0, "cell (7)": 0.0}


def test_ids_of_another_type_leave_nothing_to_train_on(folder: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        for entry in content["annotations"]:
            entry["image_id"] = str(entry["image_id"])

    message = "no object that can be used: annotation 0: its image_id must be .*, got '10'"
    with pytest.raises(ValueError, match=message):
        change(folder, edit)


@pytest.mark.parametrize("part", ["train2017", "val2017"])
def test_a_part_without_objects_is_refused(
    folder: Path, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "annotations" / f"instances_{part}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"annotations": []}))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["detect", "train", "--data", f"coco:{folder}", "--output", str(folder / "run")])
    assert stopped.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"halonet: {path} has no object that can be used"
    assert not (folder / "run").exists()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_objects_are_turned_as_pillow_turns_pixels(orientation: int) -> None:
    stored = np.zeros((20, 30), np.uint8)
    stored[4:9, 3:14] = 1
    image = Image.fromarray(stored)
    image.getexif()[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(image))
    counts = encode_mask(draw_mask((20, 30), 3, 4, 11, 5), 20, 30)
    one = Annotation(1, 1, (3.0, 4.0, 11.0, 5.0), 55.0, False, counts)
    turned = turn_upright(AnnotatedImage(1, Path("a.jpg"), 30, 20, (one,)), orientation)
    assert (turned.height, turned.width) == upright.shape
    mask = decode_masks([turned.annotations[0].counts or b""], *upright.shape)[:, :, 0]
    assert np.array_equal(mask, upright)
    rows, columns = np.nonzero(upright)
    left, top, width, height = turned.annotations[0].box
    assert (left, top) == (columns.min(), rows.min())
    assert (left + width, top + height) == (columns.max() + 1, rows.max() + 1)


def rotate(path: Path, orientation: int) -> None:
    """Say in EXIF that a photo is turned; its pixels and its annotations stay."""
    with Image.open(path) as image:
        exif = image.getexif()
        exif[0x0112] = orientation
        image.save(path, exif=exif)


def test_photos_turned_by_exif_keep_their_annotations(folder: Path) -> None:
    # The third has the same size upside down; the others tell what its annotations are of.
    for name, orientation in (("10", 6), ("11", 8), ("12", 3)):
        rotate(folder / "train2017" / f"{name}.png", orientation)
    data = change(folder)
    assert said(data) == [
        "photos turned upright (EXIF) whose annotations are of the pixels as stored, turned too: "
        "3, the first is image 10"
    ]
    assert [(image.width, image.height) for image in data.images[:2]] == [(44, 60), (70, 50)]
    for image in data.images[:3]:
        with Image.open(image.path) as stored:
            pixels = np.asarray(ImageOps.exif_transpose(stored))
        counts = [one.counts or b"" for one in image.annotations[:2]]
        masks = decode_masks(counts, *pixels.shape[:2])
        assert (pixels[masks[:, :, 0] == 1] == (250, 0, 0)).all()
        assert (pixels[masks[:, :, 1] == 1] == (0, 250, 0)).all()


def test_photos_annotated_upright_stay(folder: Path) -> None:
    rotate(folder / "train2017" / "10.png", 6)
    rotate(folder / "train2017" / "12.png", 3)

    def edit(content: dict[str, Any]) -> None:
        content["images"][0].update(width=44, height=60)
        first(content).update(segmentation=[rectangle(1, 2, 16, 16)], bbox=[1, 2, 16, 16])
        content["annotations"][1].update(segmentation=[rectangle(1, 30, 6, 20)], bbox=None)

    data = change(folder, edit)
    assert said(data) == []
    assert data.images[0].annotations[0].box == (1, 2, 16, 16)
    assert data.images[2].annotations[0].box == (10, 8, 16, 16)


def test_what_is_left_out_is_said_before_training(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change(folder, lambda content: first(content).update(category_id=99))

    def stop(*arguments: Any, **options: Any) -> None:
        raise ValueError("here training starts")

    monkeypatch.setattr("halonet.training.loop.Trainer.go", stop)
    with pytest.raises(SystemExit):
        cli.main(["detect", "train", "--data", f"coco:{folder}", "--output", str(folder / "run")])
    assert capsys.readouterr().err.splitlines() == [
        "halonet: left out: image 10, annotation 0: category 99 is unknown",
        "halonet: here training starts",
    ]


@needs_shared_data
@pytest.mark.parametrize("name", ["tiny_coco", "nuclei"])
def test_nothing_is_mended_in_good_annotations(name: str) -> None:
    data = load_shared_data(name)
    assert data.describe() == []
