"""Data sets by name."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch.utils.data import Dataset

from halonet.data.csv_labels import load_csv
from halonet.data.folders import load_folder
from halonet.data.splits import (
    LabelledImages,
    Split,
    hold_out,
    list_some,
    make_strata,
    parse_fold,
    take_fold,
)

TORCHVISION_NAMES = ("cifar10", "flowers102", "oxford_pets")
KINDS = ("folder", "csv", "shards", "hf")
TERMS = {"elpv": "CC BY-NC-SA 4.0: not for commercial use"}  # of data by name, as far as known


def load_data(
    name: str,
    *,
    data_root: str = "data",
    task: str = "multiclass",
    validation_share: float = 0.2,
    validation_data: str | None = None,
    fold: str | None = None,
    fold_seed: int = 0,
    group: str | None = None,
    show_progress: bool = True,
) -> LabelledImages:
    """Find the images called `name`.

    Args:
        name: `elpv`, `folder:PATH` or the path alone, `csv:FILE`, `shards:PATH_OR_URL`, `hf:NAME`,
            `cifar10`, `flowers102` or `oxford_pets`. A folder has a folder of images for each
            class, either itself or in both `train` and `val`. A CSV file is as `load_csv` takes
            it. Shards are a folder that `halonet.data.shard_writer` wrote, or tar files of others,
            as `shards:/data/train-{000..146}.tar`. `hf:` takes a Hugging Face data set by its
            name, as `hf:NAME` or `hf:NAME:CONFIGURATION`, or its folder.
        data_root: where torchvision's data sets and shards at URLs are downloaded to.
        task: multiclass, with one label for each image, or multilabel, with any number, of `csv:`
            and `hf:`.
        validation_share: part that is held out of data without a held-out part, in each class; the
            same images every time. With 1 all of it is.
        validation_data: held-out tar files, as `shards:/data/val-{00..12}.tar`, where `name` is of
            tar files too.
        fold: in place of a share, a fold to hold out, as 2/5: the second of five, which together
            hold out each image once.
        fold_seed: of the folds.
        group: a column of a CSV file, as the patient, whose values are never parted.
        show_progress: show progress bars on a terminal.

    Raises:
        FileNotFoundError, ValueError, ModuleNotFoundError: a missing folder, a class without
            images, an unknown name, a package that isn't installed.
    """
    chosen = None if fold is None else parse_fold(fold)
    data = _find_data(
        name,
        data_root=data_root,
        task=task,
        validation_share=validation_share if chosen is None else 1.0,
        validation_data=validation_data,
        group=group,
        show_progress=show_progress,
    )
    least = 2 if task == "multiclass" else 1
    if len(data.class_names) < least and (validation_share < 1 or chosen is not None):
        raise ValueError(
            f"{data.name} must have two or more classes to train on, has "
            f"{list_some(data.class_names)}"
        )
    if chosen is None:
        return data
    if len(data.training):
        raise ValueError(f"fold is for data without a held-out part; {name} has one")
    training, validation = take_fold(
        data.validation, make_strata(data.validation.labels), chosen, fold_seed
    )
    return dataclasses.replace(data, training=training, validation=validation)


def split_name(name: str) -> tuple[str, str]:
    """The kind and the place of data by name, as folder and /home/me/photos for folder:~/photos.

    A path alone is of a folder or of a CSV file; a data set's name has no place.

    Raises:
        ValueError: a kind without a place.
    """
    kind, colon, place = name.partition(":")
    if kind in KINDS and colon and not place.strip():
        raise ValueError(f"data {name!r} names no place; is a variable of the shell not set?")
    path = Path(name).expanduser()
    if kind not in KINDS and name not in ("elpv", *TORCHVISION_NAMES):
        if name.strip() and path.is_dir():
            return "folder", str(path)
        if path.is_file() and path.suffix.lower() == ".csv":
            return "csv", str(path)
    return kind, os.path.expanduser(place)


def is_same_data(one: str, other: str) -> bool:
    """Whether two names are of the same data; paths may be spelled in different ways."""
    (kind, place), (other_kind, other_place) = split_name(one), split_name(other)
    same_place = place == other_place or Path(place).resolve() == Path(other_place).resolve()
    return kind == other_kind and same_place


def _find_data(
    name: str,
    *,
    data_root: str,
    task: str,
    validation_share: float,
    validation_data: str | None,
    group: str | None,
    show_progress: bool,
) -> LabelledImages:
    kind, place = split_name(name)
    if validation_data is not None and not (
        kind == "shards" and validation_data.startswith("shards:")
    ):
        raise ValueError(
            "validation_data must be shards:TAR_FILES, and data too; got "
            f"{validation_data!r} for {name!r}"
        )
    if task == "multilabel" and kind not in ("csv", "hf"):
        raise ValueError(f"task multilabel takes data csv:FILE or hf:NAME, got {name!r}")
    if group is not None and kind != "csv":
        raise ValueError(f"group is a column of data csv:FILE, got {name!r}")
    if kind == "csv":
        return load_csv(Path(place), task=task, validation_share=validation_share, group=group)
    if name == "elpv":
        return _load_elpv(everything=validation_share == 1)
    if kind == "folder":
        return load_folder(Path(place), validation_share)
    if kind == "shards":
        from halonet.data.shards import load_shards

        return load_shards(
            place,
            data_root=data_root,
            validation_share=validation_share,
            validation_location=validation_data and split_name(validation_data)[1],
            show_progress=show_progress,
        )
    if kind == "hf":
        from halonet.data.hub import load_hub_data

        return load_hub_data(place, task=task, validation_share=validation_share)
    if name in TORCHVISION_NAMES:
        return _load_torchvision(name, data_root)
    raise ValueError(
        "data must be elpv, folder:PATH, csv:FILE, shards:PATH, hf:NAME, "
        f"{', '.join(TORCHVISION_NAMES)}; got {name!r}"
    )


def _load_elpv(*, everything: bool) -> LabelledImages:
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
    training, validation = hold_out(Split(paths, labels), strata, 1.0 if everything else 0.25)
    return LabelledImages(
        "elpv",
        ("intact", "defective"),
        training,
        validation,
        note=(
            f"Solar cells in electroluminescence, elpv-dataset ({TERMS['elpv']}). "
            "Published: 88.42 % (Deitsch et al. 2019), by a VGG-19 pretrained on ImageNet, "
            "on 300 x 300 px, with another split and weights by the raters' confidence."
        ),
    )


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
