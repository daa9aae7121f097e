"""YOLO's format: a text file for the objects of each image, and a YAML file for the classes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import yaml

from halonet.data.image_files import find_images, locate
from halonet.data.splits import VALIDATION_NAMES, list_some
from halonet.detection.annotations import Problem
from halonet.detection.check import Content, read_size
from halonet.detection.coco import tell_apart
from halonet.detection.data import Category
from halonet.detection.layouts import TEST_NAME, TRAINING_NAMES, note_test
from halonet.files import read_text

EMPTY = ("", "~", "null")  # how YAML spells nothing
LIMIT = 2.0  # a coordinate beyond it is in pixels, not a share of the image


def find_yolo(place: Path) -> tuple[Content, Content | None]:
    """Read the parts of a data set in YOLO's format; None for a held-out part that there isn't.

    Args:
        place: data.yaml, or a folder with it, or with classes.txt. The file has the names of the
            classes, as a list or by number, and the parts train and val: folders of images, or
            lists of their paths. Without them, the parts are images/train and images/val, or
            train/images and valid/images; images alone has no held-out part. The objects of
            images/a.jpg are in labels/a.txt.

    Raises:
        FileNotFoundError: no such files, or no images.
        ValueError: one can't be read, or isn't as it must be.
    """
    file = _find_classes(place) if place.is_dir() else place
    fields = _read_fields(file)
    categories, notes = tell_apart(_read_categories(file, fields.get("names")))
    count = fields.get("nc", len(categories))
    if str(count) != str(len(categories)):
        raise ValueError(f"{file} has {len(categories)} names, and an nc of {count}")
    if "kpt_shape" in fields:
        raise ValueError(f"{file} has kpt_shape: keypoints can't be learned, boxes can")
    parts = []
    for names in (TRAINING_NAMES, VALIDATION_NAMES):
        sources = _find_part(file, fields, names)
        images = _list_images(sources)
        parts.append((sources, images) if images else None)
    if parts[0] is None:
        raise FileNotFoundError(f"{file} has no images to train on; looked for train and images")
    training, validation = (
        part and _read_part(*part, categories, [f"{file}: {note}" for note in notes])
        for part in parts
    )
    assert training is not None
    beside = note_test(_find_test(file, fields), parts[1] and parts[1][0][0])
    return replace(training, notes=(*training.notes, *beside)), validation


def _find_classes(folder: Path) -> Path:
    named = [folder / "data.yaml", folder / "data.yml", folder / "classes.txt"]
    found = [path for path in named if path.is_file()] or sorted(folder.glob("*.y*ml"))
    if not found:
        raise FileNotFoundError(f"{folder} has no data.yaml and no classes.txt")
    return found[0]


def _read_fields(file: Path) -> dict[str, Any]:
    try:
        text = read_text(file)
        if file.suffix == ".txt":
            return {"names": [line.strip() for line in text.splitlines() if line.strip()]}
        # Everything as text: a class called yes, no or 1.0 keeps its name.
        fields = yaml.load(text, yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{file} must have names, and paths of the parts")
    return {name: value for name, value in fields.items() if value not in EMPTY}


def _read_categories(file: Path, names: object) -> list[Category]:
    given = dict(enumerate(names)) if isinstance(names, list) else names
    good = isinstance(given, dict) and all(
        str(number).isdecimal() and isinstance(name, str) and name not in EMPTY
        for number, name in given.items()
    )
    if not (good and given):
        raise ValueError(
            f"{file} must have names of the classes, as a list or by number, got {names!r}"
        )
    categories = [Category(int(number), str(name)) for number, name in given.items()]
    return sorted(categories, key=lambda category: category.id)


def _find_part(file: Path, fields: dict[str, Any], names: Sequence[str]) -> list[Path]:
    """The folders or lists of a part; none where there is no such part."""
    near = file.parent
    roots = [near / str(fields.get("path") or ""), near]
    given = next((fields[name] for name in names if fields.get(name)), None)
    if given is None:
        if any(fields.get(name) for name in TRAINING_NAMES):
            return []
        usual = [near / place for name in names for place in (f"images/{name}", f"{name}/images")]
        usual += [near / "images"] if names is TRAINING_NAMES else []
        return next(([place] for place in usual if place.is_dir()), [])
    found = []
    for entry in given if isinstance(given, list) else [given]:
        # Exports of Roboflow say ../train/images, from a folder that isn't there.
        inner = str(entry).removeprefix("../")
        places = [root / str(entry) for root in roots] + [near / inner]
        existing = [place for place in places if place.exists()]
        if not existing:
            raise FileNotFoundError(f"{file}: no {names[0]} part at {places[0]}")
        found.append(existing[0])
    return found


def _find_test(file: Path, fields: dict[str, Any]) -> Path | None:
    """The test part, if there is one; exports name some that aren't there."""
    try:
        return next(iter(_find_part(file, fields, [TEST_NAME])), None)
    except FileNotFoundError:
        return None


def _list_images(places: Sequence[Path]) -> list[Path]:
    images: list[Path] = []
    for place in places:
        if place.is_dir():
            images += find_images(place)[0]
            continue
        lines = read_text(place).splitlines()
        images += [locate(place.parent, line.strip()) for line in lines if line.strip()]
    return [*dict.fromkeys(images)]


def _find_labels(image: Path) -> Path:
    """labels/a.txt for images/a.jpg: the last folder called images counts."""
    parts = [*image.parts]
    for index in reversed(range(len(parts) - 1)):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _read_part(
    sources: Sequence[Path],
    paths: Sequence[Path],
    categories: tuple[Category, ...],
    notes: Sequence[str],
) -> Content:
    source = sources[0]
    images, annotations, places = [], [], {}
    problems: list[Problem] = []
    bare = []
    for number, path in enumerate(paths, start=1):
        labels = _find_labels(path)
        places[-number] = _show(path)
        try:
            width, height = read_size(path)
            lines = read_text(labels).splitlines() if labels.is_file() else []
        except (ValueError, FileNotFoundError) as error:
            problems.append(Problem(number, None, str(error), places[-number]))
            continue
        bare += [] if labels.is_file() else [places[-number]]
        images.append({"id": number, "file_name": str(path), "width": width, "height": height})
        for place, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            annotation = len(places) + 1
            places[annotation] = f"{_show(labels)}, line {place}"
            try:
                entry = _read_line(line, width, height, categories)
            except ValueError as error:
                problems.append(Problem(number, annotation, str(error), places[annotation]))
                continue
            annotations.append(entry | {"id": annotation, "image_id": number})
    said = [*notes]
    if images and len(bare) == len(images):
        raise FileNotFoundError(
            f"{source}: no image has a file of labels; looked for {_find_labels(paths[0])}"
        )
    if source.is_dir():  # a list may be of some of a folder's images
        orphans = _find_orphans(paths)
        if orphans:
            said.append(
                f"{source}: files of labels without an image: {len(orphans)}, "
                f"the first is {_show(orphans[0])}"
            )
    if bare:
        said.append(
            f"{source}: images without a file of labels, taken as without objects: {len(bare)}, "
            f"the first is {bare[0]}"
        )
    return Content(
        source, Path(), categories, images, annotations, tuple(problems), tuple(said), places
    )


def _find_orphans(images: Sequence[Path]) -> list[Path]:
    """The files of labels that lie beside those of the images, and are of none."""
    labels = {_find_labels(path) for path in images}
    folders = {path.parent for path in labels} - {path.parent for path in images}
    return [
        path
        for folder in sorted(folders)
        for path in sorted(folder.glob("*.txt"))
        if path not in labels and path.name != "classes.txt"
    ]


def _read_line(
    line: str, width: int, height: int, categories: Sequence[Category]
) -> dict[str, Any]:
    """An object: a class and a box (its centre and size), or a class and a polygon's points."""
    try:
        number, *values = map(float, line.split())
    except ValueError:
        raise ValueError(f"it must be numbers, got {line.strip()!r}") from None
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise ValueError(
            f"it must be a class and 4 numbers of a box, or 6 and more of a polygon, "
            f"got {len(values)} after the class"
        )
    known = [category.id for category in categories]
    if number not in known:
        raise ValueError(
            f"class {number:g} is unknown: classes are {list_some([*map(str, known)])}"
        )
    if not all(abs(value) <= LIMIT for value in values):
        raise ValueError(f"its numbers must be shares of the image, from 0 to 1, got {values}")
    entry: dict[str, Any] = {"category_id": int(number)}
    if len(values) > 4:
        sides = (width, height) * (len(values) // 2)
        polygon = [value * side for value, side in zip(values, sides, strict=True)]
        return entry | {"segmentation": [polygon]}
    across, down = values[0] * width, values[1] * height
    box_width, box_height = values[2] * width, values[3] * height
    return entry | {"bbox": [across - box_width / 2, down - box_height / 2, box_width, box_height]}


def _show(path: PurePath) -> str:
    """A file by its folder and its name."""
    return "/".join(path.parts[-2:])
