"""Folders of images: one for each class."""

from collections.abc import Sequence
from pathlib import Path

from halonet.data.splits import LabelledImages, Split, hold_out

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}

PART_NAMES = {"test", "train", "training", "val", "valid", "validation"}


def load_folder(folder: Path, validation_share: float) -> LabelledImages:
    """Find the images in a folder for each class, or in such folders in `train` and `val`.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: fewer than two classes, a class without images, or parts of different classes.
    """
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
