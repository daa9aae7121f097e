"""Shards from any data set: images as they are stored, in few large files."""

import io
import json
import os
import re
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from halonet.data.pixels import open_image, read_image
from halonet.data.shards import INFO_NAMES
from halonet.data.splits import LabelledImages, Split
from halonet.files import require_empty, write_atomically, write_text

# timm looks for jpg, png and webp.
SUFFIXES = {
    "BMP": "bmp",
    "GIF": "gif",
    "JPEG": "jpg",
    "MPO": "jpg",
    "PNG": "png",
    "PPM": "ppm",
    "TIFF": "tif",
    "WEBP": "webp",
}
# Prefix of the files, and timm's name of the part.
SPLITS = {"train": "train", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class WrittenShards:
    """What `write_shards` wrote: images and files of all parts, and what it left out."""

    images: int
    shards: int
    problems: list[str]


@dataclass(frozen=True)
class _Sample:
    name: str
    suffix: str
    content: bytes
    label: bytes

    @property
    def size(self) -> int:
        """Bytes in a tar file: two headers, and contents in whole blocks."""
        block = tarfile.BLOCKSIZE
        return 2 * block + sum(
            -(-len(part) // block) * block for part in (self.content, self.label)
        )


def write_shards(
    data: LabelledImages,
    folder: Path,
    *,
    shard_bytes: int = 10**9,
    skip_broken: bool = False,
    show_progress: bool = True,
) -> WrittenShards:
    """Write the parts of a data set as WebDataset shards, for `data=shards:FOLDER`.

    `train-000000.tar`, ..., `val-000000.tar`, ... and, where there is a test part,
    `test-000000.tar`, ... hold the images in the order of `data`, so that the shards train as
    `data` does; readers that stream must shuffle. A file is stored as it is, any other image as
    PNG. The same images give the same bytes.

    Args:
        data: from `load_data`.
        folder: to be created, or empty.
        shard_bytes: largest size of a shard's samples; a sample that is larger is a shard alone.
        skip_broken: leave out images that can't be read; without it the first one is an error.
        show_progress: show bars on a terminal.

    Raises:
        FileExistsError: the folder holds something.
        ValueError: an image can't be read, has several labels, or nothing is left of a part; or
            `shard_bytes` isn't positive. Nothing is left then.
        OSError: a shard can't be written. Nothing is left then.
    """
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes must be positive, got {shard_bytes}")
    if not len(data.training):
        raise ValueError("validation_share must leave images to train on, got all held out")
    if isinstance(data.training.labels, np.ndarray):
        raise ValueError(f"shards hold one label for each image, {data.name} has several")
    require_empty(folder)
    created = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    problems: list[str] = []
    info: dict[str, Any] = {
        "name": folder.name,
        "note": data.note,
        "class_names": data.class_names,
        "splits": {},
    }
    try:
        parts = (data.training, data.validation, data.test)
        for prefix, split in zip(SPLITS, parts, strict=True):
            if split is None:
                continue
            samples = _read_samples(split, problems, skip_broken, f"{prefix} images", show_progress)
            lengths = _write_tars(samples, folder, prefix, shard_bytes)
            if not lengths:
                raise ValueError(f"no image of the part {prefix} can be read: {problems[-1]}")
            info["splits"][SPLITS[prefix]] = {
                "name": SPLITS[prefix],
                "filenames": [*lengths],
                "shard_lengths": [*lengths.values()],
                "num_samples": sum(lengths.values()),
            }
        write_text(folder / INFO_NAMES[0], json.dumps(info, indent=2, ensure_ascii=False) + "\n")
    except BaseException:
        for path in folder.iterdir():  # it was empty
            path.unlink()
        if created:
            folder.rmdir()
        raise
    splits = info["splits"].values()
    return WrittenShards(
        images=sum(split["num_samples"] for split in splits),
        shards=sum(len(split["filenames"]) for split in splits),
        problems=problems,
    )


def _write_tars(
    samples: Iterator[_Sample], folder: Path, prefix: str, shard_bytes: int
) -> dict[str, int]:
    """Write samples into as many files as needed; returns the number of samples by file name."""
    lengths: dict[str, int] = {}
    waiting = next(samples, None)
    while waiting is not None:
        name = f"{prefix}-{len(lengths):06d}.tar"

        def write(path: Path, name: str = name) -> None:
            nonlocal waiting
            taken = lengths[name] = 0
            with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
                while waiting and (not lengths[name] or taken + waiting.size <= shard_bytes):
                    _add(tar, f"{waiting.name}.cls", waiting.label)
                    _add(tar, f"{waiting.name}.{waiting.suffix}", waiting.content)
                    taken += waiting.size
                    lengths[name] += 1
                    waiting = next(samples, None)

        write_atomically(folder / name, write)
    return lengths


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # no owner and time 0: equal images give equal bytes
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _read_samples(
    split: Split, problems: list[str], skip_broken: bool, label: str, show_progress: bool
) -> Iterator[_Sample]:
    """The images in order, a few of them read at the same time."""
    count = len(split.labels)
    workers = os.cpu_count() or 1
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(
            desc=f"writing {label}",
            total=count,
            unit="img",
            disable=None if show_progress else True,  # None: off where it is no terminal
        ) as bar,
    ):
        for start in range(0, count, 16 * workers):
            indices = range(start, min(start + 16 * workers, count))
            for sample in pool.map(lambda index: _read_sample(split, index), indices):
                bar.update()
                if isinstance(sample, _Sample):
                    yield sample
                elif skip_broken:
                    problems.append(sample)
                else:
                    raise ValueError(sample)


def _read_sample(split: Split, index: int) -> _Sample | str:
    """An image that can be read, or what is wrong with it."""
    source = split.sources[index]
    try:
        image = read_image(source)
        content, kind = b"", "PNG"
        if not callable(source):
            content = source.read_bytes()
            with open_image(content) as stored:
                kind = stored.format
        if not content or kind not in SUFFIXES:
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            content, kind = buffer.getvalue(), "PNG"
    except (ValueError, OSError) as error:
        return str(error)
    name = f"{index:08d}"
    if isinstance(source, Path):
        name += "_" + re.sub(r"[^0-9A-Za-z_-]", "_", source.stem)[:60]
    return _Sample(name, SUFFIXES[kind], content, str(split.labels[index]).encode())
