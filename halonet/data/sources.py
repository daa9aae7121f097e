"""Data sets by name."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch.utils.data import Dataset

from halonet.data.folders import load_folder
from halonet.data.splits import LabelledImages, Split, hold_out

TORCHVISION_NAMES = ("cifar10", "flowers102", "oxford_pets")


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
            `train` and `val`. Shards are a folder that `halonet.data.shard_writer` wrote, or
            tar files of others, as `shards:/data/train-{000..146}.tar`. `hf:` takes a Hugging Face
            data set by its name, as `hf:NAME` or `hf:NAME:CONFIGURATION`, or its folder.
        data_root: where torchvision's data sets and shards at URLs are downloaded to.
        validation_share: part that is held out of data without a held-out part, in each class; the
            same images every time.
        validation_data: held-out tar files, as `shards:/data/val-{00..12}.tar`, where `name` is of
            tar files too.
        show_progress: show progress bars on a terminal.

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
        return load_folder(Path(place), validation_share)
    if kind == "shards":
        from halonet.data.shards import load_shards

        return load_shards(
            place,
            data_root=data_root,
            validation_share=validation_share,
            validation_location=validation_data and validation_data.removeprefix("shards:"),
            show_progress=show_progress,
        )
    if kind == "hf":
        from halonet.data.hub import load_hub_data

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
            "is trained from scratch."
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
