"""What a data set consists of, in short, so that a later change is noticed and can be named."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from halonet.data.shards import ShardedImages
from halonet.data.splits import ChosenSources, LabelledImages, Split

NAMED = 200_000  # images up to which each is listed; of more, each folder of them
CHUNK = 1000  # files that a thread looks at, at a time


class Entry(NamedTuple):
    """An image of a part, or several: their name, and what else may change about them."""

    part: str
    name: str
    detail: str


@dataclass(frozen=True)
class Listing:
    """A data set's classes and entries, of `unit`: images, folders, shards or parts."""

    class_names: tuple[str, ...]
    unit: str
    entries: tuple[Entry, ...]


def list_images(data: LabelledImages) -> Listing:
    """The training and held-out images by name, size and class; or else by digests of these."""
    parts = {"training": data.training, "held-out": data.validation}
    files = [
        (part, path, _describe_label(label, data.class_names))
        for part, split in parts.items()
        if isinstance(split.sources, list)
        for path, label in zip(split.sources, split.labels, strict=True)
        if isinstance(path, Path)
    ]
    if len(files) == len(data.training) + len(data.validation):
        return list_files(data.class_names, files)
    sources = [_unwrap(split)[0] for split in parts.values()]
    sharded = all(isinstance(one, ShardedImages) for one in sources)
    list_part = _list_shards if sharded else _list_part
    entries = [entry for part, split in parts.items() for entry in list_part(part, split)]
    return Listing(data.class_names, "shards" if sharded else "parts", tuple(entries))


def list_files(class_names: Sequence[str], files: Sequence[tuple[str, Path, str]]) -> Listing:
    """A data set of image files.

    Args:
        class_names: in the order of the labels.
        files: part, path and labels of each image.
    """
    chunks = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
    with ThreadPoolExecutor(16) as pool:  # files may lie on a network
        sizes = [size for chunk in pool.map(_read_sizes, chunks) for size in chunk]
    names = _strip_common([str(path) for _, path, _ in files])
    entries = [
        Entry(part, name, f"{size} bytes, {detail}")
        for (part, _, detail), name, size in zip(files, names, sizes, strict=True)
    ]
    if len(entries) <= NAMED:
        return Listing(tuple(class_names), "images", tuple(entries))
    folders: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        folders.setdefault((entry.part, os.path.dirname(entry.name)), []).append(entry)
    grouped = [
        Entry(part, folder, f"{len(inner)} images {_digest(repr(inner).encode())}")
        for (part, folder), inner in folders.items()
    ]
    return Listing(tuple(class_names), "folders", tuple(grouped))


def _read_sizes(files: Sequence[tuple[str, Path, str]]) -> list[int]:
    sizes = []
    for _, path, _ in files:
        try:
            sizes.append(os.stat(path).st_size)
        except OSError:  # it is said where it is read
            sizes.append(-1)
    return sizes


def _list_shards(part: str, split: Split) -> list[Entry]:
    sources, places = _unwrap(split)
    shards = np.searchsorted(sources.ends, places, side="right")
    names = _strip_common([str(path) for path in sources.shards])
    order = np.argsort(shards, kind="stable")
    columns = (sources.offsets[places], sources.sizes[places], np.asarray(split.labels))
    entries = []
    for rows in np.split(order, np.flatnonzero(np.diff(shards[order])) + 1):
        content = b"".join(np.ascontiguousarray(column[rows]).tobytes() for column in columns)
        name = names[shards[rows[0]]]
        entries.append(Entry(part, name, f"{len(rows)} images {_digest(content)}"))
    return entries


def _list_part(part: str, split: Split) -> list[Entry]:
    """Of data that are no files: their number, their labels, and their size where it is known."""
    sources, places = _unwrap(split)
    size = getattr(getattr(getattr(sources, "dataset", None), "data", None), "nbytes", 0)
    content = np.asarray(split.labels).tobytes() + np.asarray(places).tobytes()
    return [Entry(part, "all", f"{len(split)} images {_digest(content)}, {size} bytes")]


def _unwrap(split: Split) -> tuple[Any, np.ndarray]:
    """The sources that a part was chosen from, and the places of its own among them."""
    sources: Any = split.sources
    if isinstance(sources, ChosenSources):
        return sources.sources, np.asarray(sources.indices)
    return sources, np.arange(len(sources))


def _describe_label(label: Any, class_names: Sequence[str]) -> str:
    if isinstance(label, np.ndarray):
        return ", ".join(class_names[place] for place in np.flatnonzero(label).tolist())
    return class_names[label]


def _strip_common(paths: Sequence[str]) -> list[str]:
    """Paths below the folder that holds them all: a data set may be moved as a whole."""
    root = os.path.commonpath({os.path.dirname(path) for path in paths}) if paths else ""
    return [path[len(root) :].lstrip(os.sep) for path in paths]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
