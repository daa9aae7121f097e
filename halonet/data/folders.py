"""Folders of images: one for each class, in parts or not; and Tiny ImageNet's layout."""

import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from halonet.data.image_files import (
    OUTPUT,
    ImageSearch,
    LeftOut,
    classify,
    find_images,
    image_suffixes,
    is_output,
)
from halonet.data.splits import LabelledImages, Split, hold_out, list_some
from halonet.files import read_text

# What a part of a data set may be called: with these words around it, any case, digits and signs.
PART = re.compile(
    r"(?:{0})*(?:(train(?:ing|val)?)|(val(?:id(?:ation)?)?)|(tests?|testing))(?:{0})*".format(
        "data(?:set)?|set|split|part|folder|images?|imgs?|photos?|pictures?"
    )
)
ROLES = ("train", "val", "test")
ANNOTATIONS = "val_annotations.txt"  # of Tiny ImageNet: name, class and a box in each line


def load_folder(folder: Path, validation_share: float) -> LabelledImages:
    """Find the images in a folder for each class, or in such folders in parts.

    Parts are a training folder and a held-out one, by usual names: train, Training, train_images,
    ...; val, valid, validation, or without one of these test, testing; beside one, a test part is
    kept for the end. A held-out part may be Tiny ImageNet's, whose labels are in a file.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: fewer than two classes, a class without images, parts of different classes, or
            folders that look like parts rather than classes.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder at {folder}")
    left_out = LeftOut(folder)
    parts = find_parts(folder)
    if parts:
        for path in _list_folders(folder, left_out):
            if path not in parts.values():
                left_out.add("unused folder", path)
    training_folder = parts.pop("train", folder)
    training, class_names = _read_classes(training_folder, left_out)
    if not parts:
        strata = [class_names[label] for label in training.labels]
        training, validation = hold_out(training, strata, validation_share)
        test = None
    else:
        held_out = {
            role: _read_held_out(path, training_folder, class_names, left_out)
            for role, path in parts.items()
        }
        validation = held_out.get("val") or held_out["test"]
        test = held_out.get("test") if "val" in held_out else None
    return LabelledImages(
        f"folder:{folder}",
        class_names,
        training,
        validation,
        test=test,
        left_out=(str(left_out),) if left_out.counts else (),
    )


def find_parts(folder: Path) -> dict[str, Path]:
    """The folders of the parts, by `ROLES`; none where a folder's folders are classes.

    A class may be called train too, beside bus and car: parts hold folders for classes, and a
    training part alone has no folder of images beside it. A test part without labels, as
    competitions have, is none.

    Raises:
        ValueError: two folders for one part, no training part, or one without classes.
    """
    found: dict[str, list[Path]] = {}
    others = []
    for path in _list_folders(folder):
        role = find_role(path.name)
        if role is None:
            others.append(path)
        else:
            found.setdefault(role, []).append(path)
    whole = {role for role, paths in found.items() if any(map(_list_folders, paths))}
    if "train" not in whole and (others or len(found) < 2):
        return {}
    if others and len(found) == 1 and any(find_images(path)[0] for path in others):
        return {}
    for role, paths in found.items():
        if len(paths) > 1:
            names = " and ".join(path.name for path in paths)
            raise ValueError(f"{folder} must have one folder for the part {role}, has {names}")
    parts = {role: paths[0] for role, paths in found.items()}
    if "train" not in whole:
        names = ", ".join(path.name for path in parts.values())
        raise ValueError(f"{folder} has {names}, but no training part with a folder for each class")
    if "test" in parts and len(_list_folders(parts["test"])) < 2:
        del parts["test"]
    return parts


def find_role(name: str) -> str | None:
    """Which of `ROLES` a folder's name stands for: train for Train_Images, test for testing."""
    match = PART.fullmatch(re.sub(r"[^a-z]", "", name.casefold()))
    return match and next(role for role, word in zip(ROLES, match.groups(), strict=True) if word)


def _read_classes(folder: Path, left_out: LeftOut) -> tuple[Split, tuple[str, ...]]:
    """The images of a part, and the names of its classes."""
    search = ImageSearch(folder, left_out)
    candidates = _list_folders(folder, left_out)
    _require_classes(folder, candidates)
    for path in candidates:
        if not search.enter(path):
            raise ValueError(f"class folder {path} is a link to another one, or upwards")
    paths, labels, names = [], [], []
    for path in candidates:
        outputs = left_out.counts[OUTPUT]
        found = search.find(path)
        if not found and left_out.counts[OUTPUT] > outputs:
            continue  # as runs, where someone trained beside the class folders
        if not found:
            raise ValueError(f"class folder {path} holds no images")
        paths += found
        labels += [len(names)] * len(found)
        names.append(as_class_name(path.name))
    if len(names) < 2:
        _refuse_few(folder, names)
    return Split(paths, labels), tuple(names)


def _list_folders(folder: Path, left_out: LeftOut | None = None) -> list[Path]:
    """The folders in a folder, sorted, without our own output; what lies beside them is counted."""
    left_out = LeftOut(folder) if left_out is None else left_out
    suffixes = image_suffixes()
    found = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            kind = classify(entry, suffixes)
            if kind == "folder" and is_output(Path(entry.path)):
                left_out.add(OUTPUT, entry.path)
            elif kind == "folder":
                found.append(Path(entry.path))
            else:
                left_out.add("unclassified image" if kind == "image" else kind, entry.path)
    return sorted(found)


def _require_classes(folder: Path, candidates: Sequence[Path]) -> None:
    """Raise ValueError where folders are too few, or look like parts rather than classes."""
    if len(candidates) < 2:
        _refuse_few(folder, [path.name for path in candidates])
    spellings: dict[str, str] = {}
    for path in candidates:
        other = spellings.setdefault(_normalize(path.name), path.name)
        if other != path.name:
            raise ValueError(
                f"{folder} has two folders for the class {other}, whose names differ only in how "
                "Unicode spells them; merge them"
            )
    inner = _list_inner(candidates[0])
    if len(inner) > 1 and all(_list_inner(path) == inner for path in candidates):
        raise ValueError(
            f"{folder}: {list_some([path.name for path in candidates])} all hold "
            f"{list_some(inner)}: these look like the classes; call the folders of the parts "
            "train and val, above those of the classes, or list images and labels in a csv:"
        )


def _list_inner(folder: Path) -> list[str]:
    """The names of a folder's folders; none where images lie beside them."""
    beside = LeftOut(folder)
    names = [path.name for path in _list_folders(folder, beside)]
    return [] if beside.counts["unclassified image"] else names


def _refuse_few(folder: Path, names: Sequence[str]) -> None:
    hint = ""
    if len(names) == 1 and len(_list_folders(folder / names[0])) > 1:
        hint = f"; folder:{folder / names[0]} has more"
    raise ValueError(
        f"{folder} must have a folder for each of two or more classes, has {list(names)}{hint}"
    )


def _read_held_out(
    folder: Path, training: Path, class_names: Sequence[str], left_out: LeftOut
) -> Split:
    """A part of the training part's classes, and with their labels."""
    if (folder / ANNOTATIONS).is_file():
        return _read_annotated(folder, class_names, left_out)
    split, names = _read_classes(folder, left_out)
    places = {_normalize(name): place for place, name in enumerate(class_names)}
    different = sorted(places.keys() ^ {_normalize(name) for name in names})
    if different:
        where = training if different[0] in places else folder
        raise ValueError(
            f"{training} and {folder} must have the same classes; only {where.name} has "
            f"{list_some(different)}"
        )
    return Split(split.sources, [places[_normalize(names[label])] for label in split.labels])


def _read_annotated(folder: Path, class_names: Sequence[str], left_out: LeftOut) -> Split:
    """Tiny ImageNet's held-out part: images in one folder, and a file with their classes."""
    labels = {name: label for label, name in enumerate(class_names)}
    annotated: dict[str, int] = {}
    lines = read_text(folder / ANNOTATIONS).splitlines()
    for number, line in enumerate(lines, start=1):
        words = line.split("\t")
        if len(words) < 2 or words[1] not in labels:
            raise ValueError(
                f"{folder / ANNOTATIONS}: line {number} must have an image and a class of the "
                f"training part, separated by a tab, got {line!r}"
            )
        annotated[words[0]] = labels[words[1]]
    paths = ImageSearch(folder, left_out).find(folder)
    for path in paths:
        if path.name not in annotated:
            left_out.add("unlabelled image", path)
    found = [path for path in paths if path.name in annotated]
    missing = annotated.keys() - {path.name for path in found}
    if missing:
        raise ValueError(
            f"{folder / ANNOTATIONS} names {len(missing)} images that aren't there: "
            f"{list_some(sorted(missing))}"
        )
    if not found:
        raise ValueError(f"{folder / ANNOTATIONS} names no images")
    return Split(found, [annotated[path.name] for path in found])


def as_class_name(folder: str) -> str:
    r"""The name of a class's folder; bytes that aren't UTF-8, as in old archives, as \xe9."""
    return os.fsencode(folder).decode("utf-8", "backslashreplace")


def _normalize(name: str) -> str:
    """macOS spells accents as characters of their own."""
    return unicodedata.normalize("NFC", as_class_name(name))
