"""Where images come from: data sets, folders, and their training and held-out parts."""

from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
TORCHVISION_NAMES = ("cifar10", "flowers102", "oxford_pets")
PART_NAMES = {"test", "train", "training", "val", "valid", "validation"}


class StoredImage(Protocol):
    """An image's bytes, wherever they are; a path is one."""

    def read_bytes(self) -> bytes:
        """The image as it is stored, encoded."""
        ...


Source = StoredImage | Callable[[], Image.Image]


@dataclass(frozen=True)
class Split:
    """Images and their labels; a source gives bytes, as a path does, or is called for the image.

    Both may be sequences that make their items when asked.
    """

    sources: Sequence[Source]
    labels: Sequence[int]


@dataclass(frozen=True)
class LabelledImages:
    """A data set with its training and its held-out part."""

    name: str
    class_names: tuple[str, ...]
    training: Split
    validation: Split
    note: str = ""  # licence and published results, for the report

    @property
    def majority_share(self) -> float:
        """Accuracy of always answering the held-out part's most frequent class."""
        counts = Counter(self.validation.labels)
        return max(counts.values()) / len(self.validation.labels)


def load_data(
    name: str,
    *,
    data_root: str = "data",
    validation_share: float = 0.2,
    validation_data: str | None = None,
    show_progress: bool = True,
) -> LabelledImages:
    """Find the images called `name`.

    Args:
        name: `elpv`, `folder:PATH`, `shards:PATH_OR_URL`, `hf:NAME`, `cifar10`, `flowers102` or
            `oxford_pets`. A folder has a folder of images for each class, either itself or in both
            `train` and `val`. Shards are a folder that `halonet.training.shard_writer` wrote, or
            tar files of others, as `shards:/data/train-{000..146}.tar`. `hf:` takes a Hugging Face
            data set by its name, as `hf:NAME` or `hf:NAME:CONFIGURATION`, or its folder.
        data_root: where torchvision's data sets and shards at URLs are downloaded to.
        validation_share: part that is held out of data without a held-out part, in each class; the
            same images every time.
        validation_data: held-out tar files, as `shards:/data/val-{00..12}.tar`, where `name` is of
            tar files too.
        show_progress: show bars on a terminal where something takes long.

    Raises:
        FileNotFoundError, ValueError, ModuleNotFoundError: a missing folder, a class without
            images, an unknown name, a package that isn't installed.
    """
    kind, _, place = name.partition(":")
    if validation_data is not None and not (
        kind == "shards" and validation_data.startswith("shards:")
    ):
        raise ValueError(
            "validation_data must be shards:TAR_FILES, and data too; got "
            f"{validation_data!r} for {name!r}"
        )
    if name == "elpv":
        return _load_elpv()
    if kind == "folder":
        return _load_folder(Path(place), validation_share)
    if kind == "shards":
        from halonet.training.shards import load_shards

        return load_shards(
            place,
            data_root=data_root,
            validation_share=validation_share,
            validation_location=validation_data and validation_data.removeprefix("shards:"),
            show_progress=show_progress,
        )
    if kind == "hf":
        from halonet.training.hub_data import load_hub_data

        return load_hub_data(place, validation_share=validation_share)
    if name in TORCHVISION_NAMES:
        return _load_torchvision(name, data_root)
    raise ValueError(
        "data must be elpv, folder:PATH, shards:PATH, hf:NAME, "
        f"{', '.join(TORCHVISION_NAMES)}; got {name!r}"
    )


def _load_elpv() -> LabelledImages:
    """Solar cells (elpv-dataset, CC BY-NC-SA 4.0): is the cell defective?

    Defective means a probability of at least 0.5. One fixed split, 75 / 25, stratified by
    probability and cell type.
    """
    try:
        import elpv_dataset
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "data elpv needs the package elpv-dataset: pip install 'halonet[train]'"
        ) from None
    folder = Path(elpv_dataset.__path__[0]) / "data"
    with open(folder / "labels.csv", newline="") as file:
        rows = [line.split() for line in file]
    paths = [folder / row[0] for row in rows]
    labels = [int(float(row[1]) >= 0.5) for row in rows]
    strata = [f"{row[1]} {row[2]}" for row in rows]
    training, validation = hold_out(Split(paths, labels), strata, 0.25)
    return LabelledImages(
        "elpv",
        ("intact", "defective"),
        training,
        validation,
        note=(
            "Solar cells in electroluminescence, elpv-dataset (CC BY-NC-SA 4.0: not for commercial "
            "use). Published: 88.42 % (Deitsch et al. 2019), by a VGG-19 pretrained on ImageNet, "
            "on 300 x 300 px, with another split and weights by the raters' confidence; ours "
            "starts from nothing."
        ),
    )


def _load_folder(folder: Path, validation_share: float) -> LabelledImages:
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder at {folder}")
    if (folder / "train").is_dir() and (folder / "val").is_dir():
        class_names = _class_folders(folder / "train")
        held_out = _class_folders(folder / "val")
        if held_out != class_names:
            different = sorted(set(held_out) ^ set(class_names))
            raise ValueError(
                f"{folder}: train and val must have the same classes, only one has {different[0]!r}"
            )
        training = _read_class_folders(folder / "train", class_names)
        return LabelledImages(
            f"folder:{folder}",
            class_names,
            training,
            _read_class_folders(folder / "val", class_names),
        )
    class_names = _class_folders(folder)
    if set(class_names) <= PART_NAMES:
        raise ValueError(
            f"{folder} has {', '.join(class_names)}: call the training part train, "
            "the held-out part val"
        )
    everything = _read_class_folders(folder, class_names)
    strata = [class_names[label] for label in everything.labels]
    training, validation = hold_out(everything, strata, validation_share)
    return LabelledImages(f"folder:{folder}", class_names, training, validation)


def _class_folders(folder: Path) -> tuple[str, ...]:
    names = sorted(
        path.name
        for path in folder.iterdir()
        if _visible(path.relative_to(folder)) and path.is_dir()
    )
    if len(names) < 2:
        raise ValueError(
            f"{folder} must have a folder for each of two or more classes, has {names}"
        )
    return tuple(names)


def _read_class_folders(folder: Path, class_names: Sequence[str]) -> Split:
    paths, labels = [], []
    for label, name in enumerate(class_names):
        found = find_images(folder / name)
        if not found:
            raise ValueError(f"class folder {folder / name} holds no images")
        paths += found
        labels += [label] * len(found)
    return Split(paths, labels)


def find_images(folder: Path) -> list[Path]:
    """The image files in a folder and those below it, sorted; hidden ones are left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES
        and _visible(path.relative_to(folder))
        and path.is_file()
    )


def _visible(path: Path) -> bool:
    return not any(part.startswith(".") for part in path.parts)


def hold_out(
    split: Split, strata: Sequence[str] | np.ndarray, validation_share: float
) -> tuple[Split, Split]:
    """Hold out a share of each stratum, at least one image; the same ones every time.

    Raises:
        ValueError: a share that isn't between 0 and 1, or a stratum of one image.
    """
    if not 0 < validation_share < 1:
        raise ValueError(f"validation_share must be between 0 and 1, got {validation_share}")
    names, members, counts = np.unique(np.asarray(strata), return_inverse=True, return_counts=True)
    held_out = []
    generator = torch.Generator().manual_seed(0)
    groups = np.split(np.argsort(members, kind="stable"), np.cumsum(counts)[:-1])
    for name, indices in zip(names, groups, strict=True):
        if len(indices) < 2:
            raise ValueError(f"class {str(name)!r} has one image; it takes two to hold one out")
        count = min(max(1, round(len(indices) * validation_share)), len(indices) - 1)
        order = torch.randperm(len(indices), generator=generator).numpy()
        held_out.append(indices[order[:count]])
    chosen = np.zeros(len(strata), dtype=bool)
    chosen[np.concatenate(held_out)] = True
    return _choose(split, np.flatnonzero(~chosen)), _choose(split, np.flatnonzero(chosen))


def _choose(split: Split, indices: np.ndarray) -> Split:
    if isinstance(split.sources, list):
        labels = [split.labels[index] for index in indices]
        return Split([split.sources[index] for index in indices], labels)
    labels = np.asarray(split.labels, dtype=np.intc)[indices]
    return Split(ChosenSources(split.sources, indices), array("i", labels.tobytes()))


class ChosenSources(Sequence):
    """Some sources of a sequence that makes them when asked."""

    def __init__(self, sources: Sequence[Source], indices: np.ndarray) -> None:
        self.sources = sources
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return ChosenSources(self.sources, self.indices[index])
        return self.sources[int(self.indices[index])]


def _load_torchvision(name: str, data_root: str) -> LabelledImages:
    from torchvision import datasets

    try:
        if name == "cifar10":
            parts = [datasets.CIFAR10(data_root, train, download=True) for train in (True, False)]
            names, labels = parts[0].classes, [part.targets for part in parts]
        elif name == "flowers102":
            parts = [
                datasets.Flowers102(data_root, part, download=True) for part in ("train", "test")
            ]
            names, labels = parts[0].classes, [part._labels for part in parts]
        else:
            parts = [
                datasets.OxfordIIITPet(data_root, part, download=True)
                for part in ("trainval", "test")
            ]
            names, labels = parts[0].classes, [part._labels for part in parts]
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"data {name} is neither in {data_root} nor could it be downloaded: {error}"
        ) from None
    training, validation = (
        Split([_Item(name, part, index) for index in range(len(part))], part_labels)
        for part, part_labels in zip(parts, labels, strict=True)
    )
    return LabelledImages(name, tuple(names), training, validation)


@dataclass(frozen=True)
class _Item:
    """An image of a torchvision data set, read when called."""

    name: str
    dataset: Dataset
    index: int

    def __str__(self) -> str:
        return f"image {self.index} of {self.name}"

    def __call__(self) -> Image.Image:
        return self.dataset[self.index][0]
