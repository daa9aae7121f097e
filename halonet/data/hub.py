"""Hugging Face data sets, by name or folder."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from halonet.data.splits import (
    VALIDATION_NAMES,
    LabelledImages,
    Split,
    hold_out,
    list_some,
    make_strata,
)


@dataclass(frozen=True)
class HubImage:
    """An image of a data set of the package datasets."""

    dataset: Any
    column: str
    index: int

    def read_bytes(self) -> bytes:
        """The image as it was stored."""
        stored = self.dataset[self.index][self.column]
        if stored is None:
            raise ValueError("there is none")
        return stored["bytes"] or Path(stored["path"]).read_bytes()

    def __str__(self) -> str:
        return f"image {self.index} of {self.dataset.info.dataset_name or 'the data set'}"


class HubImages(Sequence):
    """The images in a column of a data set."""

    def __init__(self, dataset: Any, column: str) -> None:
        self.dataset = dataset
        self.column = column

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        return HubImage(self.dataset, self.column, range(len(self))[index])


def load_hub_data(
    name: str, *, task: str = "multiclass", validation_share: float
) -> LabelledImages:
    """Find a Hugging Face data set's images and class labels by the types of its columns.

    Args:
        name: a data set's name on the Hub, also with its configuration as `NAME:CONFIGURATION`; or
            a folder that the package datasets reads or has saved.
        task: multiclass takes a column of class labels, multilabel one of lists of them.
        validation_share: part held out where there is no validation or test split.

    Raises:
        ModuleNotFoundError: the package isn't installed.
        FileNotFoundError: there is no such data set, or it can't be downloaded.
        ValueError: it has no training split, no image or no class label, or more than one.
    """
    try:
        import datasets
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "data hf:NAME needs the package datasets: pip install 'halonet[data]'"
        ) from None
    try:
        parts = _load_parts(name)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(f"data hf:{name} can't be loaded: {error}") from error
    roles = _choose_parts(name, [*parts], whole=validation_share == 1)
    features = parts[roles["train"]].features
    image = _find_column(name, features, datasets.Image, "Image", ("image",))
    several = task == "multilabel"
    labels: dict[str, Any] = {
        column: feature.feature if several else feature
        for column, feature in features.items()
        if not several or hasattr(feature, "feature")
    }
    kind = "list of ClassLabel" if several else "ClassLabel"
    label = _find_column(name, labels, datasets.ClassLabel, kind, ("label", "labels"))
    class_names = tuple(labels[label].names)
    left_out = []
    splits = {}
    for role, part in roles.items():
        if image not in parts[part].features or parts[part].features.get(label) != features[label]:
            raise ValueError(f"hf:{name}: split {part} must have {image} and {label} as train has")
        if part == "test" and role != "train" and _is_unlabelled(parts[part], label, several):
            left_out.append(f"{len(parts[part])} images of the split test, which have no class")
            continue
        where = f"split {part} of hf:{name}"
        splits[role] = _make_split(where, parts[part], image, label, len(class_names), several)
    training, validation = splits["train"], splits.get("val")
    if validation is None:
        training, validation = hold_out(training, make_strata(training.labels), validation_share)
    left_out += [
        f"{len(part)} images of the split {one}"
        for one, part in parts.items()
        if one not in roles.values()
    ]
    unused = [column for column in features if column not in (image, label)]
    if unused:
        left_out.append(
            f"{len(unused)} {'columns' if len(unused) > 1 else 'column'} ({list_some(unused)})"
        )
    return LabelledImages(
        f"hf:{name}",
        class_names,
        training,
        validation,
        test=splits.get("test"),
        left_out=tuple(left_out),
    )


def _choose_parts(name: str, parts: Sequence[str], *, whole: bool) -> dict[str, str]:
    """The data set's names for train, val and test, as far as there are such parts."""
    held_out = [part for part in VALIDATION_NAMES if part in parts]
    if "train" not in parts and not whole:
        raise ValueError(f"hf:{name} must have a split train, has {', '.join(parts)}")
    if "train" not in parts:
        return {"train": [*held_out, *parts][0]}
    roles = {"train": "train"}
    if held_out:
        roles["val"] = held_out[0]
    if "test" in held_out[1:]:
        roles["test"] = "test"
    return roles


def _load_parts(name: str) -> Any:
    """The splits by name."""
    import datasets

    folder = Path(name)
    if (folder / "state.json").is_file():
        return {"train": datasets.load_from_disk(name)}
    if (folder / "dataset_dict.json").is_file():
        return datasets.load_from_disk(name)
    if folder.exists():
        return datasets.load_dataset(name)
    dataset, _, configuration = name.partition(":")
    return datasets.load_dataset(dataset, configuration or None)


def _find_column(
    name: str, features: Any, kind: type, kind_name: str, preferred: Sequence[str]
) -> str:
    """The one column of a type, or the one of several that has a usual name."""
    found = [column for column, feature in features.items() if isinstance(feature, kind)]
    usual = [column for column in preferred if column in found]
    if len(found) != 1 and not usual:
        raise ValueError(
            f"hf:{name} must have one column of type {kind_name}, has "
            f"{', '.join(found) or f'none among {list_some(_describe(features))}'}"
        )
    return (usual or found)[0]


def _describe(features: Any) -> list[str]:
    """Columns with their types, as label (Value)."""
    return [f"{name} ({type(feature).__name__})" for name, feature in features.items()]


def _is_unlabelled(part: Any, label: str, several: bool) -> bool:
    """Whether a part has images and no labels, as those of competitions."""
    labels = part.select_columns([label]).with_format("arrow")[:].column(label).to_pylist()
    return bool(labels) and not any(one if several else one not in (None, -1) for one in labels)


def _make_split(
    name: str, part: Any, image: str, label: str, num_classes: int, several: bool
) -> Split:
    from datasets import Image

    column = part.select_columns([label]).with_format("arrow")[:].column(label)
    if several:
        labels = np.zeros((len(part), num_classes), dtype=np.int8)
        for row, own in zip(labels, column.to_pylist(), strict=True):
            row[own or []] = 1
    else:
        found = column.fill_null(-1).to_numpy().astype(np.intc)
        if (found < 0).any():
            place = int(np.flatnonzero(found < 0)[0])
            raise ValueError(f"{name} has no class for image {place}")
        labels = array("i", found.tobytes())
    stored = part.select_columns([image]).cast_column(image, Image(decode=False))
    return Split(HubImages(stored, image), labels)
