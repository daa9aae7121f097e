"""Images and labels in the rows of a CSV file."""

import csv
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from halonet.data.image_files import locate
from halonet.data.splits import (
    LabelledImages,
    Split,
    choose,
    hold_out,
    list_some,
    make_strata,
)

PATH, LABEL, SPLIT = "path", "label", "split"
PARTS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
FLAGS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}


class Row(NamedTuple):
    """A row of the file, by its number there, the header's being 1."""

    number: int
    cells: dict[str, str]


def load_csv(
    path: Path, *, task: str = "multiclass", validation_share: float, group: str | None = None
) -> LabelledImages:
    """Find the images that a CSV file names, and their labels.

    Args:
        path: its columns are `path`, relative to the file's folder, and `label`, or one for each
            class with 0 or 1. A column `split` may say train, val or test. With `label`, any other
            column is left out. The separator is a comma, a semicolon or a tab, as in the header.
        task: multiclass takes one label for each row; multilabel any number, in `label` with a
            semicolon or a bar between them.
        validation_share: part held out where no column says what is.
        group: a column whose values are never parted between training and held-out images.

    Raises:
        FileNotFoundError: there is no such file, or an image isn't there.
        ValueError: columns, labels or parts that can't be used; names the row.
    """
    columns, rows = _read_rows(path)
    if group in (PATH, LABEL, SPLIT):
        raise ValueError(f"group must be a column other than path, label and split, got {group!r}")
    if group is not None and group not in columns:
        raise ValueError(f"{path} has no column {group!r} for groups, it has {', '.join(columns)}")
    if PATH not in columns:
        raise ValueError(f"{path} must have a column path, it has {', '.join(columns)}")
    sources = _find_images(path, rows)
    others = [name for name in columns if name not in (PATH, SPLIT, group, "")]
    left_out = ["1 column without a name"] if "" in columns else []
    if LABEL in others:
        class_names, labels = _read_names(path, rows, task)
        others.remove(LABEL)
        if others:
            left_out.append(f"{_count(len(others), 'column')} ({list_some(others)})")
    else:
        class_names, labels = _read_flags(path, rows, others, task)
    if not class_names:
        raise ValueError(f"{path} has no label in any row")
    groups = None if group is None else _read_groups(path, rows, group)
    everything = Split(sources, labels, groups)
    parts = {"train": everything}
    if SPLIT in columns:
        parts = _find_parts(path, rows, everything)
        if "train" not in parts:
            if validation_share < 1:
                raise ValueError(f"{path}: no row has the split train")
            parts = {"train": everything}
    training, test = parts["train"], parts.get("test")
    validation = parts.get("val", test)
    if validation is None:
        strata = make_strata(training.labels)
        if task == "multiclass":  # the names are for messages
            strata = np.asarray(class_names)[strata]
        training, validation = hold_out(training, strata, validation_share)
    return LabelledImages(
        f"csv:{path}",
        class_names,
        training,
        validation,
        test=None if test is validation else test,
        left_out=tuple(left_out),
    )


def _count(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"


def _read_rows(path: Path) -> tuple[list[str], list[Row]]:
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            header = file.readline()
            file.seek(0)
            separator = max(",;\t", key=header.count)
            reader = csv.reader(file, delimiter=separator, strict=True)
            names = [_clean_name(name) for name in next(reader, [])]
            rows = [
                Row(reader.line_num, _match_cells(names, cells, reader.line_num))
                for cells in reader
                if any(cell.strip() for cell in cells)
            ]
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text in UTF-8; save it as CSV UTF-8") from None
    except (csv.Error, ValueError) as error:
        raise ValueError(f"{path} is not a CSV file with a header: {error}") from None
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{path} has two columns {twice[0]!r}")
    if not rows:
        raise ValueError(f"{path} has no rows")
    return names, rows


def _clean_name(name: str) -> str:
    name = name.strip()
    usual = name.lower()
    if usual == "labels":
        return LABEL
    return usual if usual in (PATH, LABEL, SPLIT) else name


def _match_cells(names: Sequence[str], cells: Sequence[str], number: int) -> dict[str, str]:
    if len(cells) != len(names):
        raise ValueError(f"row {number} has {len(cells)} cells, the header has {len(names)}")
    return {name: cell.strip() for name, cell in zip(names, cells, strict=True)}


def _find_images(path: Path, rows: Sequence[Row]) -> list[Path]:
    """The images' paths, each of which is there and named once."""
    found: dict[str, int] = {}
    places, missing = [], []
    for number, cells in rows:
        place = locate(path.parent, cells[PATH])
        if not os.path.isfile(place):
            missing.append((number, place))
        spelled = os.path.normpath(place)
        if spelled in found:
            raise ValueError(
                f"{path}: rows {found[spelled]} and {number} name the same image {place}"
            )
        found[spelled] = number
        places.append(place)
    if missing:
        number, place = missing[0]
        more = f" (and {_count(len(missing) - 1, 'more row')})" if len(missing) > 1 else ""
        raise FileNotFoundError(f"{path}, row {number}: no image at {place}{more}")
    return places


def _read_names(
    path: Path, rows: Sequence[Row], task: str
) -> tuple[tuple[str, ...], list[int] | np.ndarray]:
    """Class names and labels of the column label."""
    if task == "multiclass":
        for number, cells in rows:
            if not cells[LABEL]:
                raise ValueError(f"{path}, row {number}: it has no label")
        names = sorted({cells[LABEL] for _, cells in rows}, key=_by_number)
        places = {name: place for place, name in enumerate(names)}
        return tuple(names), [places[cells[LABEL]] for _, cells in rows]
    given = [{name.strip() for name in re.split("[;|]", cells[LABEL])} - {""} for _, cells in rows]
    names = sorted(set().union(*given), key=_by_number)
    places = {name: place for place, name in enumerate(names)}
    labels = np.zeros((len(rows), len(names)), dtype=np.int8)
    for row, own in zip(labels, given, strict=True):
        row[[places[name] for name in own]] = 1
    return tuple(names), labels


def _by_number(name: str) -> tuple[int, str]:
    """Sorts numbers by their value, before other names."""
    return (int(name), "") if re.fullmatch("[0-9]{1,18}", name) else (10**18, name)


def _read_flags(
    path: Path, rows: Sequence[Row], names: Sequence[str], task: str
) -> tuple[tuple[str, ...], list[int] | np.ndarray]:
    """Class names and labels of a column for each class."""
    if not names:
        raise ValueError(f"{path} must have a column label, or one for each class; it has neither")
    labels = np.zeros((len(rows), len(names)), dtype=np.int8)
    for row, (number, cells) in zip(labels, rows, strict=True):
        for place, name in enumerate(names):
            flag = FLAGS.get(cells[name].lower())
            if flag is None:
                raise ValueError(
                    f"{path}, row {number}: column {name!r} must hold 0 or 1, as there is no "
                    f"column label; got {cells[name]!r}"
                )
            row[place] = flag
    if task == "multilabel":
        return tuple(names), labels
    for (number, _), row in zip(rows, labels, strict=True):
        if row.sum() != 1:
            has = list_some([name for name, flag in zip(names, row, strict=True) if flag]) or "none"
            raise ValueError(
                f"{path}, row {number}: it must have one class, has {has}; task multilabel takes "
                "any number"
            )
    return tuple(names), labels.argmax(1).tolist()


def _read_groups(path: Path, rows: Sequence[Row], group: str) -> list[str]:
    for number, cells in rows:
        if not cells[group]:
            raise ValueError(f"{path}, row {number}: column {group!r} is empty")
    return [cells[group] for _, cells in rows]


def _find_parts(path: Path, rows: Sequence[Row], everything: Split) -> dict[str, Split]:
    """The images of each part that the column split names."""
    names = []
    for number, cells in rows:
        name = PARTS.get(cells[SPLIT].lower())
        if name is None:
            raise ValueError(
                f"{path}, row {number}: split must be train, val or test, got {cells[SPLIT]!r}"
            )
        names.append(name)
    seen: dict[str, str] = {}
    for group, name in zip(everything.groups or (), names, strict=False):
        if seen.setdefault(group, name) != name:
            raise ValueError(f"{path}: group {group!r} is in {seen[group]} and in {name}")
    return {
        name: choose(everything, np.flatnonzero(np.asarray(names) == name))
        for name in dict.fromkeys(names)
    }
