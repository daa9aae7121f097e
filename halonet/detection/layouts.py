"""Where a data set in COCO's format has its annotation files and its images."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from halonet.data.image_files import locate
from halonet.files import read_text

TRAINING_NAMES = ("train",)
TEST_NAME = "test"
_PATTERNS = (
    "annotations/instances_{part}*.json",
    "annotations/{part}*.json",
    "instances_{part}*.json",
    "{part}*.json",
    "{part}/_annotations.coco.json",
)
LAYOUTS = (
    "annotations/instances_train2017.json with train2017 or images/train2017, or train.json with "
    "train; and the same for val"
)


def find_annotations(folder: Path, names: Sequence[str]) -> Path | None:
    """The annotation file of a part, called by the first of `names` that there is; None for none.

    Raises:
        ValueError: there are several.
    """
    for name in names:
        found = list_annotations(folder, name)
        if len(found) > 1:
            raise ValueError(
                f"{folder} has several annotation files for {name}: "
                f"{', '.join(path.name for path in found)}; leave one of them there"
            )
        if found:
            return found[0]
    return None


def list_annotations(folder: Path, name: str) -> list[Path]:
    """The annotation files that a part of this name may have, in the first usual place."""
    for pattern in _PATTERNS:
        found = sorted(folder.glob(pattern.format(part=name)))
        if found:
            return found
    return []


def note_test(test: Path | None, validation: Path | None) -> tuple[str, ...]:
    """What is said where there is a test part beside the held-out one; nothing without."""
    if test is None or validation is None or test == validation:
        return ()
    return (f"left out: the part test ({test}), as there is another held-out part",)


def find_only_annotations(folder: Path) -> Path | None:
    """The one JSON file with annotations, in a folder or its `annotations`; None without one.

    Raises:
        ValueError: there are several.
    """
    for place in (folder / "annotations", folder):
        found = [path for path in sorted(place.glob("*.json")) if _has_annotations(path)]
        if len(found) > 1:
            raise ValueError(
                f"{folder} has several annotation files: "
                f"{', '.join(path.name for path in found)}; name one of them"
            )
        if found:
            return found[0]
    return None


def _has_annotations(path: Path) -> bool:
    """Whether a JSON file is in COCO's format; exporters add other files, as of notes."""
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and "annotations" in content


def find_image_folder(annotations: Path, entries: Sequence[dict[str, Any]]) -> Path:
    """The folder that the images of an annotation file lie in.

    Raises:
        FileNotFoundError: none of the first images is in any of the usual places.
    """
    stem = annotations.stem.removeprefix("instances_")
    part = re.match("[a-z]*", stem)
    names = dict.fromkeys((stem, part[0] if part else stem))
    near = annotations.parent
    roots = (near.parent, near) if near.name == "annotations" else (near,)
    places = [root / "images" / name for root in roots for name in names]
    places += [root / name for root in roots for name in names]
    places += [root / "images" for root in roots] + list(roots)
    for place in places:
        # One missing image must not hide the folder.
        if any(
            os.path.isfile(locate(place, str(entry.get("file_name")))) for entry in entries[:20]
        ):
            return place
    raise FileNotFoundError(
        f"the images of {annotations}, the first of them {entries[0].get('file_name')!r}, lie in "
        f"none of {', '.join(map(str, places))}"
    )
