"""COCO's format: layouts, kinds of masks, and everything that may be wrong in a file."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate.utils
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as official

from halonet.detection import check
from halonet.detection.annotations import BadAnnotations
from halonet.detection.check import check_content
from halonet.detection.coco import read_coco
from halonet.detection.data import AnnotatedImages, Category
from halonet.detection.masks import decode_masks, encode_mask
from halonet.detection.sources import load_detection_data
from tests.detection.pictures import (
    describe_images,
    draw_coco,
    draw_mask,
    load_shared_data,
    needs_shared_data,
    rectangle,
)

# pycocotools' own, under numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return draw_coco(tmp_path / "shapes")


def read(path: Path, **options: Any) -> AnnotatedImages:
    return check_content(read_coco(path), **({"masks": True} | options))


def change(folder: Path, edit: Any) -> Path:
    """Rewrite the training annotations."""
    path = folder / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    return path


def test_reads_cocos_own_layout(folder: Path) -> None:
    data = load_detection_data(f"coco:{folder}")
    assert data.categories == (Category(3, "bar"), Category(7, "square"))
    assert [image.id for image in data.training.images] == [10, 11, 12, 13]
    assert [len(image.annotations) for image in data.training.images] == [2, 2, 3, 0]
    assert [one.crowd for one in data.training.images[2].annotations] == [False, False, True]
    assert data.training.problems == ()


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("annotations/instances_{part}2017.json", "images/{part}2017"),
        ("annotations/instances_{part}.json", "{part}"),
        ("{part}.json", "{part}"),
        ("annotations/{part}.json", "images"),
        ("{part}/_annotations.coco.json", "{part}"),
    ],
)
def test_finds_other_layouts(tmp_path: Path, annotations: str, images: str) -> None:
    for part in ("train", "valid" if "coco" in annotations else "val"):
        place = tmp_path / images.format(part=part)
        place.mkdir(parents=True, exist_ok=True)
        path = tmp_path / annotations.format(part=part)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(describe_images(place)))
    data = load_detection_data(f"coco:{tmp_path}")
    assert len(data.training.images) == len(data.validation.images) == 4


def test_a_file_alone_and_its_folder(folder: Path) -> None:
    path = folder / "annotations" / "instances_val2017.json"
    assert len(read(path).images) == 4
    assert read_coco(path, folder / "train2017").folder == folder / "train2017"


@pytest.mark.parametrize(
    "segmentation",
    [
        [rectangle(3, 2, 11, 7)],
        [rectangle(3, 2, 4, 5), [10.5, 3.25, 18.75, 9.5, 12.0, 13.5]],
        draw_mask((20, 30), 4, 5, 6, 7),
        {"size": [20, 30], "counts": [0, 3, 590, 7]},
        {"size": [20, 30], "counts": [45, 2, 18, 2, 533]},
    ],
    ids=["polygon", "two polygons", "text", "numbers from a corner", "numbers"],
)
def test_masks_are_pycocotools(segmentation: Any) -> None:
    height, width = 20, 30
    expected = segmentation
    if isinstance(segmentation, list):
        expected = official.merge(official.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        expected = official.frPyObjects(segmentation, height, width)
    counts = encode_mask(segmentation, height, width)
    found = official.decode({"size": [height, width], "counts": counts})
    assert np.array_equal(found, official.decode(expected))


@needs_shared_data
@pytest.mark.parametrize("name", ["tiny_coco", "nuclei"])
def test_real_masks_are_pycocotools(name: str) -> None:
    data = load_shared_data(name).validation
    content = json.loads(data.source.read_text())
    segmentations = {entry["id"]: entry["segmentation"] for entry in content["annotations"]}
    assert sum(len(image.annotations) for image in data.images) == len(segmentations)
    for image in data.images[:20]:
        masks = decode_masks([one.counts for one in image.annotations], image.height, image.width)
        for place, one in enumerate(image.annotations):
            expected = segmentations[one.id]
            if isinstance(expected, list):
                expected = official.merge(official.frPyObjects(expected, image.height, image.width))
            elif isinstance(expected["counts"], list):
                expected = official.frPyObjects(expected, image.height, image.width)
            assert np.array_equal(masks[:, :, place], official.decode(expected))


WRONG_TYPES: list[Any] = ["7", [7], {"id": 7}, 7.5, True, 10**400]

BAD = {
    "category": ({"category_id": 5}, "category 5 is unknown"),
    **{
        f"{name} {value if value != 10**400 else 'huge'!r}": ({name: value}, f"its {reason} must")
        for name, reason, wrong in [
            ("category_id", "category_id", [*WRONG_TYPES, None]),
            ("bbox", "box", WRONG_TYPES),
            ("bbox", "box", [[10, 8, 16, value] for value in [*WRONG_TYPES[:3], None, 10**400]]),
            ("area", "area", [*WRONG_TYPES[:3], True, 10**400]),
            ("iscrowd", "iscrowd", [*WRONG_TYPES[:4], 2, "1"]),
        ]
        for value in wrong
    },
    "mask of text": ({"segmentation": "polygon"}, "it has no mask"),
    "mask of a number": ({"segmentation": 7}, "it has no mask"),
    "polygon of numbers": ({"segmentation": [1, 2, 3, 4, 5, 6]}, "its polygon is degenerate"),
    "polygon of dicts": ({"segmentation": [{"x": 1}]}, "its polygon is degenerate"),
    "polygon of lists": ({"segmentation": [[[1, 2], [3, 4], [5, 6]]]}, "polygon is degenerate"),
    "huge polygon": ({"segmentation": [[1, 2, 3, 4, 5, 10**400]]}, "polygon is degenerate"),
    "no run lengths": ({"segmentation": {"size": [44, 60], "counts": 7}}, "must be text, or"),
    "odd run lengths": ({"segmentation": {"size": [44, 60], "counts": ["1"]}}, "must be text, or"),
    "true run": ({"segmentation": {"size": [44, 60], "counts": [True, 2639]}}, "must be text, or"),
    "size of text": ({"segmentation": {"size": "44", "counts": [2640]}}, "its mask has size 44"),
    "no mask": ({"segmentation": []}, "it has no mask"),
    "no mask at all": ({"segmentation": None}, "it has no mask"),
    "two points": ({"segmentation": [[1.0, 1.0, 5.0, 5.0]]}, "its polygon is degenerate"),
    "odd": ({"segmentation": [[1.0] * 7]}, "its polygon is degenerate"),
    "not numbers": ({"segmentation": [[1, 2, 3, "4", 5, 6]]}, "its polygon is degenerate"),
    "empty polygon": ({"segmentation": [[]]}, "it has no mask"),
    "half a mask": ({"segmentation": [[], [1, 2, 3, 4, 5, 9]]}, "its polygon is degenerate"),
    "a line": ({"segmentation": [[2.0, 2.0, 9.0, 2.0, 2.0, 2.0]]}, "its mask covers no pixel"),
    "far polygon": ({"segmentation": [rectangle(10, 8, 1_000_000, 5)]}, "its polygon reaches"),
    "no pixel": ({"segmentation": {"size": [44, 60], "counts": [44 * 60]}}, "covers no pixel"),
    "other size": ({"segmentation": draw_mask((60, 44), 1, 1, 9, 9)}, "its mask has size"),
    "too long": ({"segmentation": {"size": [44, 60], "counts": [44, 600_000]}}, "cover 600044"),
    "negative": ({"segmentation": {"size": [44, 60], "counts": [-1, 2641]}}, "0 or more"),
    "short text": ({"segmentation": {"size": [44, 60], "counts": "0"}}, "cover 0 pixels"),
    "cut text": ({"segmentation": {"size": [44, 60], "counts": "P"}}, "end within a number"),
    "strange text": ({"segmentation": {"size": [44, 60], "counts": " "}}, "have the character"),
    "outside": ({"bbox": [70, 8, 16, 16]}, "reaches outside the image of 60 x 44 pixels"),
    "beyond": ({"bbox": [10, 8, 16, 80]}, "reaches outside"),
    "no width": ({"bbox": [10, 8, 0, 16]}, "its box has no area"),
    "three numbers": ({"bbox": [10, 8, 16]}, "its box must be four numbers"),
    "not a number": ({"bbox": [10, 8, float("nan"), 16]}, "its box must be four numbers"),
    "area": ({"area": -1}, "its area must be a number of 0 or more, got -1"),
}


@pytest.mark.parametrize(("fields", "reason"), BAD.values(), ids=BAD)
def test_a_bad_annotation_is_listed_and_left_out(
    folder: Path, fields: dict[str, Any], reason: str
) -> None:
    path = change(folder, lambda content: content["annotations"][0].update(fields))
    data = read(path)
    (problem,) = data.problems
    assert (problem.image_id, problem.annotation_id) == (10, 0)
    assert reason in problem.reason
    assert str(problem).startswith("image 10, annotation 0: ")
    assert [one.id for one in data.images[0].annotations] == [1]


@pytest.mark.parametrize("image_id", [*WRONG_TYPES, None])
def test_an_annotation_of_no_image_is_named_by_its_own_id(folder: Path, image_id: Any) -> None:
    path = change(folder, lambda content: content["annotations"][0].update(image_id=image_id))
    (problem,) = read(path).problems
    assert (problem.image_id, problem.annotation_id) == (None, 0)
    assert str(problem) == f"annotation 0: its image_id must be a whole number, got {image_id!r}"


@pytest.mark.parametrize("value", [*WRONG_TYPES, None, 0, 2**32])
@pytest.mark.parametrize("name", ["width", "height"])
def test_an_image_of_no_size_is_named(folder: Path, name: str, value: Any) -> None:
    path = change(folder, lambda content: content["images"][0].update({name: value}))
    data = read(path)
    assert [image.id for image in data.images] == [11, 12, 13]
    assert "image 10: its width and height must be positive" in str(data.problems[0])


@pytest.mark.parametrize("value", [7, [7], {"name": "10.png"}, None, True])
def test_an_image_without_a_file_name_is_named(folder: Path, value: Any) -> None:
    path = change(folder, lambda content: content["images"][0].update(file_name=value))
    data = read(path)
    assert [image.id for image in data.images] == [11, 12, 13]
    assert str(data.problems[0]) == f"image 10: its file_name must be text, got {value!r}"


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "\ud800", "", "."])
def test_a_file_that_cannot_be_is_not_there(folder: Path, name: str) -> None:
    path = change(folder, lambda content: content["images"][0].update(file_name=name))
    (problem,) = read(path).problems
    assert str(problem).startswith("image 10: no image at")


def test_null_is_as_none(folder: Path) -> None:
    nothing = {"bbox": None, "area": None, "iscrowd": None}
    path = change(folder, lambda content: content["annotations"][0].update(nothing))
    data, before = read(path), read(folder / "annotations" / "instances_val2017.json")
    assert data.problems == ()
    assert data.images[0].annotations == before.images[0].annotations


def test_bad_annotations_are_refused_if_asked(folder: Path) -> None:
    def spoil(content: dict) -> None:
        for entry in content["annotations"][:6]:
            entry["category_id"] = 9

    path = change(folder, spoil)
    with pytest.raises(BadAnnotations, match=r"6 bad annotations: image 10, .* and 1 more") as all_:
        read(path, bad_annotations="refuse")
    assert len(all_.value.problems) == 6
    with pytest.raises(ValueError, match="must be skip or refuse, got 'stop'"):
        read(path, bad_annotations="stop")
    with pytest.raises(ValueError, match="no object that can be used: image 10, annotation 0"):
        read(path)  # a crowd is left
    path = change(folder, lambda content: content["annotations"][4].update(category_id=7))
    data = read(path)
    assert [image.id for image in data.images] == [12, 13]  # the others have nothing good left
    with pytest.raises(BadAnnotations):
        load_detection_data(f"coco:{folder}", bad_annotations="refuse")


def test_bad_images_are_listed_and_left_out(folder: Path) -> None:
    images = folder / "train2017"
    (images / "10.png").unlink()
    (images / "11.png").write_bytes((images / "11.png").read_bytes()[:80])
    Image.new("RGB", (30, 30)).save(images / "13.png")

    def spoil(content: dict) -> None:
        content["images"].append({"id": 14, "file_name": "12.png", "width": 0, "height": 3})
        stray = content["annotations"][0] | {"id": 99, "image_id": 55}
        content["annotations"].append(stray)

    data = read(change(folder, spoil))
    reasons = {problem.image_id: problem.reason for problem in data.problems}
    assert [image.id for image in data.images] == [12]
    assert "no image at" in reasons[10]
    assert "can't be read" in reasons[11]
    assert "has 30 x 30 pixels, the annotations say 40 x 40" in reasons[13]
    assert "width and height must be positive" in reasons[14]
    assert "the image is unknown" in reasons[55]
    found = read(data.source, read_images=False)
    assert [image.id for image in found.images] == [11, 12, 13]


def test_images_too_thin_for_the_detector_are_left_out(folder: Path) -> None:
    change(folder, lambda content: content["images"][0].update(width=3000, height=3))
    loaded = load_detection_data(f"coco:{folder}", image_size=64, read_images=False)
    assert [image.id for image in loaded.training.images] == [11, 12, 13]
    (problem,) = loaded.training.problems
    assert str(problem).startswith("image 10: it is too thin: of 3000 x 3 pixels")


def test_processes_share_the_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = folder / "train2017"
    (images / "10.png").unlink()
    (images / "11.png").write_bytes(b"no image")
    (images / "13.png").write_bytes(b"no image")
    path = folder / "annotations" / "instances_train2017.json"
    alone = read(path)
    assert [problem.image_id for problem in alone.problems] == [10, 11, 13]

    seen: list[str] = []
    original = check.read_image
    monkeypatch.setattr(check, "read_image", lambda path: seen.append(path.name) or original(path))
    shares: dict[int, list] = {}

    def share(index: int, others: list) -> AnnotatedImages:
        """What process `index` of two returns, where the other one finds `others`."""

        def gather(mine: list) -> list:
            shares[index] = mine
            return [*mine, *others] if index == 0 else [*others, *mine]

        monkeypatch.setattr(accelerate.utils, "gather_object", gather)
        processes: Any = SimpleNamespace(process_index=index, num_processes=2)
        return read(path, accelerator=processes)

    share(1, [])
    assert sorted(seen) == ["11.png", "13.png"]
    seen.clear()
    assert share(0, shares[1]) == alone
    assert seen == ["12.png"]  # and 10.png isn't there
    assert share(1, shares[0]) == alone


def test_boxes_and_areas_may_be_left_to_the_mask(folder: Path) -> None:
    def strip(content: dict) -> None:
        for entry in content["annotations"]:
            del entry["bbox"], entry["area"], entry["iscrowd"]

    before = read(folder / "annotations" / "instances_val2017.json")
    after = read(change(folder, strip))
    for one, other in zip(before.images[0].annotations, after.images[0].annotations, strict=True):
        assert (one.box, one.area) == (other.box, other.area)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda content: content.pop("images"), "it has no list of images"),
        (lambda content: content.update(images=[]), "has no images"),
        (lambda content: content.update(categories=[]), "has no categories"),
        (lambda content: content["images"][0].update(id="a"), "must be a whole number, got 'a'"),
        (lambda content: content["images"][0].update(id=10.5), "must be a whole number, got 10.5"),
        (lambda content: content["images"][0].update(id=2**63), "must be a whole number, got 9"),
        (lambda content: content["annotations"][0].update(id=[0]), r"number, got \[0\]"),
        (lambda content: content["annotations"][0].update(id=True), "number, got True"),
        (lambda content: content["categories"][0].update(id={}), "number, got {}"),
        (lambda content: content["categories"][0].update(name=["x"]), "name of category 7 must be"),
        (lambda content: content["images"].append(7), "it has no list of images"),
        (lambda content: content["images"][0].update(id=11), "images has the id 11 2 times"),
        (lambda content: content["categories"][0].update(name="x"), "the same categories"),
    ],
)
def test_what_is_no_cocos_format_is_refused(folder: Path, edit: Any, message: str) -> None:
    change(folder, edit)
    with pytest.raises(ValueError, match=message):
        load_detection_data(f"coco:{folder}")


def test_what_is_not_there_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data must be coco:PATH, .* got 'folder:x'"):
        load_detection_data("folder:x")
    with pytest.raises(FileNotFoundError, match="no folder at"):
        load_detection_data(f"coco:{tmp_path / 'none'}")
    with pytest.raises(FileNotFoundError, match="has no annotation file for train"):
        load_detection_data(f"coco:{folder / 'train2017'}")
    change(folder, lambda content: [one.update(file_name="x") for one in content["images"]])
    with pytest.raises(FileNotFoundError, match="the first of them 'x', lie in none of"):
        load_detection_data(f"coco:{folder}")
    twice = folder / "annotations" / "instances_train2014.json"
    twice.write_text("{}")
    with pytest.raises(ValueError, match="several annotation files for train"):
        load_detection_data(f"coco:{folder}")
    twice.unlink()
    path = folder / "annotations" / "instances_train2017.json"
    path.write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load_detection_data(f"coco:{folder}")


def test_what_windows_writes_is_read(folder: Path) -> None:
    expected = load_detection_data(f"coco:{folder}")
    change(
        folder,
        lambda content: [
            one.update(file_name=f"train2017\\{one['file_name']}") for one in content["images"]
        ],
    )
    path = folder / "annotations" / "instances_train2017.json"
    path.write_text("\ufeff" + path.read_text(), encoding="utf-8")
    data = load_detection_data(f"coco:{folder}")
    assert [one.path for one in data.training.images] == [
        one.path for one in expected.training.images
    ]


def test_boxes_as_shares_of_the_image_are_refused(folder: Path) -> None:
    change(
        folder,
        lambda content: [
            one.update(bbox=[0.1, 0.1, 0.4, 0.5], segmentation=[]) for one in content["annotations"]
        ],
    )
    with pytest.raises(ValueError, match="lie within the first pixel; COCO's format has pixels"):
        load_detection_data(f"coco:{folder}", masks="ignore")
