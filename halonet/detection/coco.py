"""COCO's format: one JSON file for the objects of all images of a part."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from halonet.detection.check import Content
from halonet.detection.data import Category
from halonet.detection.layouts import find_image_folder
from halonet.detection.values import as_whole


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
        content = json.loads(path.read_text(encoding="utf-8"))
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
