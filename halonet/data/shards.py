"""WebDataset shards: images and labels in tar files, read in any order by their offsets.

A sample is an image and a text with its class index, under one name: `dog_1.jpg`, `dog_1.cls`.
A folder of shards lists them in `_info.json`, as timm does; `write_shards` adds the names of the
classes. The offsets in a tar file are found once, and kept beside it.
"""

import glob
import itertools
import json
import os
import re
import tarfile
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from halonet.data.download import download, is_url, local_copy
from halonet.data.image_files import image_suffixes
from halonet.data.splits import VALIDATION_NAMES, LabelledImages, Split, hold_out
from halonet.files import read_text, write_atomically

INFO_NAMES = ("_info.json", "info.json")
BLOCK_SIZE = tarfile.BLOCKSIZE
INDEX_VERSION = 2
METADATA = re.compile(r"__[^/]*__($|/)")  # what webdataset's readers skip


@dataclass(frozen=True)
class ShardedImage:
    """An image in a shard: `size` bytes from `offset` on."""

    shard: Path
    offset: int
    size: int

    def read_bytes(self) -> bytes:
        """The image as it was stored."""
        with open(self.shard, "rb", buffering=0) as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) < self.size:
            raise ValueError("the shard has become shorter")
        return content

    def __str__(self) -> str:
        try:
            with open(self.shard, "rb") as file:
                file.seek(self.offset - BLOCK_SIZE)
                header = file.read(BLOCK_SIZE)
            name = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").name
        except (OSError, tarfile.HeaderError):
            name = f"the image at byte {self.offset}"
        return f"{name} in {self.shard}"


class ShardedImages(Sequence):
    """The images of many shards, twelve bytes each.

    Args:
        shards: the tar files.
        indices: of each shard, as `read_index` gives them.
    """

    def __init__(self, shards: Sequence[Path], indices: Sequence[np.ndarray]) -> None:
        self.shards = [*shards]
        self.ends = np.cumsum([len(index) for index in indices])
        self.offsets = np.concatenate([index[:, 0] for index in indices])
        self.sizes = np.concatenate([index[:, 1].astype(np.uint32) for index in indices])

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        place = range(len(self))[index]
        shard = int(np.searchsorted(self.ends, place, side="right"))
        return ShardedImage(self.shards[shard], int(self.offsets[place]), int(self.sizes[place]))


def load_shards(
    location: str,
    *,
    data_root: str,
    validation_share: float,
    validation_location: str | None = None,
    show_progress: bool = True,
) -> LabelledImages:
    """Find the images in shards; those at URLs are downloaded once.

    Args:
        location: a folder with an `_info.json`, or tar files by name, as `train-{000..146}.tar` or
            `train-*.tar`; local, or a URL.
        data_root: where downloaded shards lie.
        validation_share: part that is held out where no shards are named for that.
        validation_location: tar files of the held-out images, where `location` is of tar files.
        show_progress: show bars on a terminal while shards are downloaded and indexed.

    Raises:
        FileNotFoundError: shards are missing, or can't be downloaded.
        ValueError: a shard is damaged, or isn't as it is described; the message names it.
    """
    info: Mapping[str, Any] = {}
    if _names_tars(location):
        parts = [_expand(location)]
        if validation_location is not None:
            parts.append(_expand(validation_location))
            shared = sorted({*parts[0]} & {*parts[1]})
            if shared:
                raise ValueError(
                    f"data and validation_data must have no shard in common: {shared[0]}"
                )
        lengths: list[Sequence[int] | None] = [None for _ in parts]
    else:
        if validation_location is not None:
            raise ValueError(
                f"validation_data goes with tar files; {location} is a folder and says in its "
                f"{INFO_NAMES[0]} what is held out"
            )
        info = _read_info(location, data_root)
        parts, lengths = _find_parts(location, info)
    splits = [
        _make_split(_fetch(files, data_root, show_progress), counts, show_progress)
        for files, counts in zip(parts, lengths, strict=True)
    ]
    names = info.get("class_names") or [str(index) for index in range(max(splits[0].labels) + 1)]
    for split in splits:
        _check_labels(split, len(names))
    if len(splits) == 1:
        splits = hold_out(splits[0], np.asarray(splits[0].labels), validation_share)
    return LabelledImages(
        f"shards:{location}",
        tuple(names),
        splits[0],
        splits[1],
        str(info.get("note", "")),
        test=splits[2] if len(splits) > 2 else None,
    )


def _names_tars(location: str) -> bool:
    if Path(location).is_dir():
        return False
    name = location.split("?")[0] if is_url(location) else location
    return name.endswith((".tar", ".tar.gz", ".tgz", "}"))


def _expand(pattern: str) -> list[str]:
    """The files that a pattern stands for: braces as in a shell, `*` and `?` in local names.

    What there is under its literal name is taken literally, folders too.
    """
    if is_url(pattern):
        return list(_expand_braces(pattern))
    folder, rest = Path(pattern), Path()
    while not folder.exists():
        folder, rest = folder.parent, folder.name / rest
    found: list[str] = []
    for name in _expand_braces(str(rest)):
        if re.search(r"[*?\[]", name) and not (folder / name).exists():
            found += sorted(glob.glob(os.path.join(glob.escape(str(folder)), name)))
        else:
            found.append(str(folder / name))
    if not found:
        raise FileNotFoundError(f"no shards at {pattern}")
    return found


def _expand_braces(pattern: str) -> Iterator[str]:
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if braces is None:
        yield pattern
        return
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", braces[1])
    if ends is None and "," not in braces[1]:
        raise ValueError(f"expected {{000..146}} or {{a,b}} in braces, got {{{braces[1]}}}")
    if ends is None:
        choices: Iterable[str] = braces[1].split(",")
    else:
        width = len(ends[1]) if ends[1].startswith("0") else 0
        choices = (f"{n:0{width}}" for n in range(int(ends[1]), int(ends[2]) + 1))
    for choice in choices:
        yield from _expand_braces(pattern[: braces.start()] + choice + pattern[braces.end() :])


def _read_info(folder: str, data_root: str) -> dict[str, Any]:
    """The `_info.json` of a folder of shards."""
    path = None
    for name in INFO_NAMES:
        if not is_url(folder):
            path = Path(folder) / name
        else:
            try:
                url = f"{folder.rstrip('/')}/{name}"
                path = download(url, local_copy(url, data_root), show_progress=False)
            except FileNotFoundError:
                if name == INFO_NAMES[-1]:
                    raise
                continue
        if path.is_file():
            break
    else:
        pattern = f"shards:{folder.rstrip('/')}/train-{{000000..000009}}.tar"
        raise FileNotFoundError(
            f"no {INFO_NAMES[0]} in {folder}; without it, name the shards as in {pattern}"
        )
    try:
        info = json.loads(read_text(path))
    except ValueError as error:
        raise ValueError(f"{path} doesn't describe shards: {error}") from None
    wrong = _find_fault(info)
    if wrong:
        raise ValueError(f"{path} doesn't describe shards: {wrong}")
    return info


def _find_fault(info: Any) -> str | None:
    """What a description of shards lacks, in words."""
    splits = info.get("splits") if isinstance(info, dict) else None
    if not isinstance(splits, dict):
        return "it must have splits by name"
    if not _is_list(info.get("class_names") or [], str):
        return f"class_names must be a list of text, got {info['class_names']!r}"
    for name, split in splits.items():
        files = split.get("filenames") if isinstance(split, dict) else None
        if not _is_list(files, str) or not files:
            return f"split {name} must have filenames, a list of shards"
        lengths = split.get("shard_lengths")
        if lengths is not None and not (_is_list(lengths, int) and len(lengths) == len(files)):
            return f"shard_lengths of split {name} must be a number for each shard, got {lengths!r}"
    return None


def _is_list(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(one, kind) for one in values)


def _find_parts(
    folder: str, info: Mapping[str, Any]
) -> tuple[list[list[str]], list[Sequence[int] | None]]:
    """Files and numbers of samples of the training part, of a held-out part, and of a test part."""
    splits = info["splits"]
    if "train" not in splits:
        raise ValueError(f"{folder} must have a split train, has {', '.join(splits)}")
    held_out = [name for name in VALIDATION_NAMES if name in splits]
    kept = [name for name in held_out[1:] if name == "test"]
    parts, lengths = [], []
    for name in ["train", *held_out[:1], *kept]:
        if splits[name].get("alt_label"):
            raise ValueError(f"{folder} has labels in JSON; only .cls files are read")
        files = splits[name]["filenames"]
        for file in files:
            if PurePosixPath(file).is_absolute() or ".." in PurePosixPath(file).parts:
                raise ValueError(f"{folder} names a shard outside itself: {file}")
        parts.append([f"{folder.rstrip('/')}/{file}" for file in files])
        lengths.append(splits[name].get("shard_lengths"))
    return parts, lengths


def _fetch(files: Sequence[str], data_root: str, show_progress: bool) -> list[Path]:
    return [
        download(file, local_copy(file, data_root), show_progress) if is_url(file) else Path(file)
        for file in files
    ]


def _make_split(
    shards: Sequence[Path], lengths: Sequence[int] | None, show_progress: bool
) -> Split:
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        indices = [
            *tqdm(
                pool.map(read_index, shards),
                "indexing shards",
                len(shards),
                leave=False,
                disable=None if show_progress else True,  # None: off where it is no terminal
            )
        ]
    for shard, index, length in zip(shards, indices, lengths or itertools.repeat(None)):  # noqa: B905
        if length is not None and len(index) != length:
            raise ValueError(f"{shard} holds {len(index)} samples, {length} were expected")
    if not sum(len(index) for index in indices):
        raise ValueError(f"{shards[0]} and the shards with it hold no images")
    labels = array("i")
    for index in indices:
        labels.frombytes(index[:, 2].astype(np.intc).tobytes())
    return Split(ShardedImages(shards, indices), labels)


def _check_labels(split: Split, num_classes: int) -> None:
    wrong = np.flatnonzero(np.asarray(split.labels) >= num_classes)
    if len(wrong):
        place = int(wrong[0])
        raise ValueError(
            f"{split.sources[place]} has the class index {split.labels[place]}; there are "
            f"{num_classes} classes"
        )


def read_index(shard: Path) -> np.ndarray:
    """Offset, size and class index of each image in a tar file: [samples, 3].

    Raises:
        FileNotFoundError, ValueError: see `load_shards`.
    """
    if not shard.is_file():
        raise FileNotFoundError(f"no shard at {shard}")
    state = shard.stat()
    # A file's own number and the time of its last change, which no program sets: labels may change
    # where size and time of writing stay. A copy is indexed again.
    stamp = np.array(
        [
            [state.st_size, state.st_mtime_ns, INDEX_VERSION],
            [state.st_ctime_ns, state.st_ino % 2**63, 0],
        ]
    )
    kept = shard.with_name(f".{shard.name}.index.npy")
    try:
        found = np.load(kept)
        if found.dtype == stamp.dtype and found.shape[1:] == (3,) and (found[:2] == stamp).all():
            return found[2:]
    except (OSError, ValueError, EOFError):
        pass
    index = np.array(list(_scan(shard)), dtype=stamp.dtype).reshape(-1, 3)
    with suppress(OSError):  # where nothing can be written, it is made each time
        write_atomically(kept, lambda path: np.save(path, np.concatenate([stamp, index])))
    return index


def _scan(shard: Path) -> Iterator[tuple[int, int, int]]:
    """Offset, size and class index of each sample, in the order of the tar file."""
    suffixes = image_suffixes()
    try:
        with tarfile.open(shard, "r:") as tar, open(shard, "rb") as file:
            for key, members in itertools.groupby(_members(tar, file), lambda one: one[0]):
                files: dict[str, tarfile.TarInfo] = {}
                for _, suffix, member in members:
                    if suffix in files:
                        raise ValueError(
                            f"{shard}: the key {key} has two files .{suffix}; the samples in a "
                            "row must have different keys"
                        )
                    files[suffix] = member
                images = [files[suffix] for suffix in files if f".{suffix}" in suffixes]
                for suffix, there in (("image", images), (".cls", "cls" in files)):
                    if not there:
                        raise ValueError(f"{shard}: sample {key} has no {suffix}")
                file.seek(files["cls"].offset_data)
                label = file.read(files["cls"].size).strip()
                if not label.isdigit() or len(label) > 6:
                    raise ValueError(f"{shard}: sample {key} has {label!r} for a class index")
                yield images[0].offset_data, images[0].size, int(label)
    except tarfile.ReadError as error:
        if _is_compressed(shard):
            raise ValueError(f"{shard} is compressed; unpack it to a plain tar file") from None
        raise ValueError(f"{shard} is damaged, cut short or no tar file: {error}") from None


def _members(tar: tarfile.TarFile, file: BinaryIO) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Sample name, suffix and header of each file, by webdataset's rules."""
    for member in tar:
        tar.members = []  # pyrefly: ignore[missing-attribute] - tarfile would keep them all
        folder, slash, name = member.name.rpartition("/")
        stem, _, suffix = name.partition(".")
        if member.isreg() and stem and suffix and not METADATA.match(member.name):
            yield folder + slash + stem, suffix.lower(), member
    # tarfile takes a damaged header for the end, which is a block of zeros.
    file.seek(tar.offset)
    if file.read(BLOCK_SIZE) != bytes(BLOCK_SIZE):
        raise ValueError(f"{file.name} is damaged or cut short at byte {tar.offset}")


def _is_compressed(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zX", b"\x28\xb5\x2f\xfd"))
