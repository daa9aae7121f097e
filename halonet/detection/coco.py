"""COCO's format: one JSON file for the objects of all images of a part."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from halonet.data.splits import VALIDATION_NAMES
from halonet.detection.annotations import has_mask
from halonet.detection.check import Content
from halonet.detection.data import Category
from halonet.detection.geometry import TOLERANCE
from halonet.detection.layouts import (
    LAYOUTS,
    TEST_NAME,
    TRAINING_NAMES,
    find_annotations,
    find_image_folder,
    find_only_annotations,
    list_annotations,
    note_test,
)
from halonet.detection.values import are_numbers, as_whole
from halonet.files import read_text


def find_coco(place: Path) -> tuple[Content, Content | None]:
    """Read the parts of a data set in COCO's format; None for a held-out part that there isn't.

    Args:
        place: an annotation file without a held-out part; or a folder. The folder has
            annotations/instances_train2017.json with the images in train2017 or
            images/train2017; or train.json with train; or train/_annotations.coco.json beside its
            images; and the same for val, valid or test. Or it has one annotation file of another
            name, without a held-out part.

    Raises:
        FileNotFoundError: there is no annotation file.
        ValueError: there are several for a part, or one isn't COCO's format.
    """
    if place.is_file():
        return read_coco(place), None
    training = find_annotations(place, TRAINING_NAMES)
    validation = find_annotations(place, VALIDATION_NAMES)
    if training is None and validation is None:
        training = find_only_annotations(place)
    if training is None:
        raise FileNotFoundError(f"{place} has no annotation file for train; looked for {LAYOUTS}")
    test = next(iter(list_annotations(place, TEST_NAME)), None)
    content = read_coco(training)
    content = replace(content, notes=(*content.notes, *note_test(test, validation)))
    return content, None if validation is None else read_coco(validation)


def read_coco(annotations: Path, images: Path | None = None) -> Content:
    """Read an annotation file.

    Args:
        annotations: the file.
        images: the folder of the images; None looks for them where COCO and others have them.

    Raises:
        FileNotFoundError: there are no images where they are looked for.
        ValueError: it isn't COCO's format.
    """
    lists = _read_json(annotations)
    _refuse_other_boxes(annotations, lists)
    folder = find_image_folder(annotations, lists["images"]) if images is None else images
    categories = _read_categories(annotations, lists["categories"])
    categories, notes = tell_apart(categories)
    return Content(
        annotations,
        folder,
        categories,
        lists["images"],
        lists["annotations"],
        notes=tuple(f"{annotations}: {note}" for note in notes),
    )


def tell_apart(categories: Sequence[Category]) -> tuple[tuple[Category, ...], list[str]]:
    """Categories of one name by names with their ids, and what was done in words."""
    counts = Counter(category.name for category in categories)
    renamed = tuple(
        Category(one.id, f"{one.name} ({one.id})" if counts[one.name] > 1 else one.name)
        for one in categories
    )
    notes = []
    for name, times in counts.items():
        if times > 1:
            one = next(one for one in categories if one.name == name)
            notes.append(
                f"{times} categories are called {name!r}, told apart by their ids: "
                f"'{name} ({one.id})', ..."
            )
    return renamed, notes


def _read_json(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The lists of an annotation file: images, annotations and categories, with whole ids."""
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    lists = {}
    for part in ("images", "annotations", "categories"):
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
            raise ValueError(f"{path} is not in COCO's format: it has no list of {part}")
        for entry in entries:
            number = as_whole(entry.get("id"))
            if number is None:
                raise ValueError(
                    f"{path}: the id of each of {part} must be a whole number, "
                    f"got {entry.get('id')!r}"
                )
            entry["id"] = number
        numbers = Counter(entry["id"] for entry in entries)
        number, times = max(numbers.items(), key=lambda pair: pair[1], default=(0, 0))
        if times > 1:
            raise ValueError(f"{path}: {part} has the id {number} {times} times")
        if not entries and part != "annotations":
            raise ValueError(f"{path} has no {part}")
        lists[part] = entries
    return lists


def _read_categories(path: Path, entries: Sequence[dict[str, Any]]) -> tuple[Category, ...]:
    categories = []
    for entry in entries:
        number, name = entry["id"], entry.get("name")
        if not isinstance(name, str | int | float | None):
            raise ValueError(f"{path}: the name of category {number} must be text, got {name!r}")
        categories.append(Category(number, str(number if name is None else name)))
    return tuple(sorted(categories, key=lambda category: category.id))


def _refuse_other_boxes(path: Path, lists: dict[str, list[dict[str, Any]]]) -> None:
    """Raise ValueError where boxes without masks must be corners, or shares of the image.

    They are corners where as sizes some don't fit, and shares where all lie within a pixel.
    """
    sizes: dict[int | None, tuple[int | None, int | None]] = {
        one["id"]: (as_whole(one.get("width")), as_whole(one.get("height")))
        for one in lists["images"]
    }
    boxes = []
    for entry in lists["annotations"]:
        width, height = sizes.get(as_whole(entry.get("image_id")), (None, None))
        if not has_mask(entry) and are_numbers(entry.get("bbox"), 4) and width and height:
            boxes.append((*entry["bbox"], width + TOLERANCE, height + TOLERANCE))
    if boxes and all(box[0] + box[2] <= 1 and box[1] + box[3] <= 1 for box in boxes):
        raise ValueError(
            f"{path}: all {len(boxes)} boxes lie within the first pixel; COCO's format has pixels, "
            "these must be shares of the image"
        )
    outside = [box for box in boxes if box[0] + box[2] > box[4] or box[1] + box[3] > box[5]]
    fit = all(
        left < right <= width and top < bottom <= height
        for left, top, right, bottom, width, height in boxes
    )
    if fit and 10 * len(outside) >= len(boxes) > 0:
        raise ValueError(
            f"{path}: {len(outside)} of {len(boxes)} boxes reach outside their images, and all fit "
            "if they are left, top, right, bottom; COCO's format has left, top, width, height"
        )
