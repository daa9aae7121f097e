"""Images and labels of a data set, and its training and held-out parts."""

import dataclasses
import functools
import re
import warnings
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

# Names of held-out parts, the most usual first.
VALIDATION_NAMES = ("validation", "val", "valid", "test")


class StoredImage(Protocol):
    """An image's bytes, wherever they are; a path is one."""

    def read_bytes(self) -> bytes:
        """The image as it is stored, encoded."""
        ...


Source = StoredImage | Callable[[], Image.Image]


@dataclass(frozen=True)
class Split:
    """Images and their labels.

    Attributes:
        sources: each gives bytes, as a path does, or is called for the image; they may be made on
            access.
        labels: the class of each image; or where an image has any number of labels, a row of 0 and
            1 for each image [images, classes], int8.
        groups: of each image, as its patient; no group is parted.
    """

    sources: Sequence[Source]
    labels: Sequence[int] | np.ndarray
    groups: Sequence[str] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def count_classes(self, num_classes: int) -> np.ndarray:
        """The images of each class [classes]."""
        labels = np.asarray(self.labels, dtype=np.intp)
        if labels.ndim == 2:
            return labels.sum(0)
        return np.bincount(labels, minlength=num_classes)


@dataclass(frozen=True)
class LabelledImages:
    """A data set with its training and its held-out part.

    Attributes:
        name: as `--data` has it.
        class_names: in the order of the labels.
        training, validation: the parts.
        note: licence and published results, for the report.
        test: a part that is neither, kept for the end, if there is one.
        left_out: what was found and isn't used, each with its count.
    """

    name: str
    class_names: tuple[str, ...]
    training: Split
    validation: Split
    note: str = ""
    test: Split | None = None
    left_out: tuple[str, ...] = ()

    @property
    def majority_share(self) -> float:
        """Accuracy of always predicting the held-out part's most frequent class."""
        counts = Counter(self.validation.labels)
        return max(counts.values()) / len(self.validation)

    def take(self, part: str) -> "LabelledImages":
        """The same data with a part in place of its held-out one: train, val, test or all.

        Raises:
            ValueError: there is no such part, or it is empty.
        """
        parts = {"train": self.training, "val": self.validation, "test": self.test}
        there = [split for split in parts.values() if split is not None and len(split)]
        parts["all"] = functools.reduce(join, there)
        taken = parts[part]
        if taken is None or not len(taken):
            names = [name for name, split in parts.items() if split is not None and len(split)]
            raise ValueError(f"{self.name} has no part {part}, it has {', '.join(names)}")
        return dataclasses.replace(self, validation=taken)

    def with_classes(self, class_names: tuple[str, ...]) -> "LabelledImages":
        """The same data with a model's classes, where its own are among them."""
        if class_names == self.class_names or not {*self.class_names} <= {*class_names}:
            return self
        places = np.array([class_names.index(name) for name in self.class_names])

        def change(split: Split | None) -> Split | None:
            if split is None:
                return None
            labels = np.asarray(split.labels)
            if labels.ndim == 1:
                return dataclasses.replace(split, labels=places[labels].tolist())
            changed = np.zeros((len(labels), len(class_names)), dtype=np.int8)
            changed[:, places] = labels
            return dataclasses.replace(split, labels=changed)

        return dataclasses.replace(
            self,
            class_names=class_names,
            training=change(self.training),
            validation=change(self.validation),
            test=change(self.test),
        )

    def describe(self) -> str:
        """What was read and what was left out, in lines."""
        lines = [
            f"{self.name}: {len(self.training)} training images, {len(self.validation)} held out, "
            f"{len(self.class_names)} classes"
        ]
        alike = Counter(name.casefold() for name in self.class_names)
        twins = [name for name in self.class_names if alike[name.casefold()] > 1]
        if twins:
            lines.append(f"classes that differ in case only: {list_some(twins)}")
        for kind, part in (("training", self.training), ("held-out", self.validation)):
            counts = part.count_classes(len(self.class_names))
            absent = [
                name for name, count in zip(self.class_names, counts, strict=True) if not count
            ]
            if len(part) and absent:
                lines.append(f"no {kind} images of {list_some(absent)}")
        if self.test is not None:
            lines.append(
                f"kept for the end: {len(self.test)} images of the part test, for evaluate "
                "--split test"
            )
        return "\n".join([*lines, *(f"left out: {what}" for what in self.left_out)])


def list_some(names: Sequence[str], most: int = 5) -> str:
    """Names in a sentence; of many, the first ones and their number."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def hold_out(
    split: Split, strata: Sequence[str] | np.ndarray, validation_share: float
) -> tuple[Split, Split]:
    """Hold out a share of each stratum, at least one image; the same ones every time.

    With a share of 1 everything is held out. Where the split has groups, whole groups are held
    out, which make up about the share of each stratum.

    Raises:
        ValueError: a share that isn't above 0 and up to 1, a stratum of one image, or one group.
    """
    if not 0 < validation_share <= 1:
        raise ValueError(f"validation_share must be between 0 and 1, got {validation_share}")
    if validation_share == 1:
        return choose(split, np.arange(0)), split
    if split.groups is not None:
        count = round(1 / min(validation_share, 1 - validation_share))
        parts = take_fold(split, strata, (1, min(count, len(set(split.groups)))), seed=0)
        return parts if validation_share <= 0.5 else (parts[1], parts[0])
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
    return choose(split, np.flatnonzero(~chosen)), choose(split, np.flatnonzero(chosen))


def parse_fold(text: str) -> tuple[int, int]:
    """A fold and the number of folds, of text as 2/5.

    Raises:
        ValueError: it is no such text, or there is no such fold.
    """
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    fold, count = map(int, match.groups()) if match else (0, 0)
    if count < 2 or not 1 <= fold <= count:
        raise ValueError(f"fold must be as 1/5, ..., 5/5 for the five of five folds, got {text!r}")
    return fold, count


def take_fold(
    split: Split, strata: Sequence[str] | np.ndarray, fold: tuple[int, int], seed: int
) -> tuple[Split, Split]:
    """Hold out one of several folds, which part the images, about evenly in each stratum.

    Args:
        split: all images; where it has groups, each group is in one fold.
        strata: of each image.
        fold: which fold, from 1 on, and how many there are.
        seed: of all folds; the same for each of them.

    Raises:
        ValueError: more folds than images of any stratum, or than groups.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    place, count = fold
    largest = max(Counter(np.asarray(strata).tolist()).values())
    if count > largest:
        raise ValueError(f"{count} folds need a class of as many images, the largest has {largest}")
    if split.groups is None:
        folds = StratifiedKFold(count, shuffle=True, random_state=seed)
    else:
        groups = len(set(split.groups))
        if groups < max(2, count):
            raise ValueError(f"{max(2, count)} parts need as many groups, there are {groups}")
        folds = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # Of a class with fewer images than folds, which are in as many of them as can be.
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        parts = [*folds.split(np.zeros(len(split)), strata, split.groups)][place - 1]
    training, validation = (choose(split, indices) for indices in parts)
    if not len(validation):
        raise ValueError(f"fold {place}/{count} is empty: its groups are too large; take fewer")
    return training, validation


def make_strata(labels: Sequence[int] | np.ndarray) -> np.ndarray:
    """What to spread evenly over the parts, as a number for each image.

    It is the class; of several labels, what an image has together, where ten or more have the same,
    else the rarest of its labels. What would be of one image joins the largest stratum.
    """
    labels = np.asarray(labels)
    if labels.ndim == 1:
        return labels
    _, together, counts = np.unique(labels, axis=0, return_inverse=True, return_counts=True)
    rarest = labels[:, np.argsort(labels.sum(0), kind="stable")].argmax(1)
    strata = np.where(counts[together] >= 10, together + labels.shape[1], rarest)
    counts = np.bincount(strata)
    return np.where(counts[strata] > 1, strata, counts.argmax())


def choose(split: Split, indices: np.ndarray) -> Split:
    """Some of a split's images, in the order of their indices."""
    groups = None if split.groups is None else [split.groups[index] for index in indices]
    if isinstance(split.labels, np.ndarray):
        labels = split.labels[indices]
    elif isinstance(split.labels, list):
        labels = [split.labels[index] for index in indices]
    else:
        taken = np.asarray(split.labels, dtype=np.intc)[indices]
        labels = array("i", taken.tobytes())
    if isinstance(split.sources, list):
        return Split([split.sources[index] for index in indices], labels, groups)
    return Split(ChosenSources(split.sources, indices), labels, groups)


def join(one: Split, other: Split) -> Split:
    """The images of two parts, one after the other."""
    if isinstance(one.labels, np.ndarray):
        labels = np.concatenate([one.labels, other.labels])
    else:
        labels = [*one.labels, *other.labels]
    return Split([*one.sources, *other.sources], labels)


class ChosenSources(Sequence):
    """Some of the sources in a sequence that makes them on access."""

    def __init__(self, sources: Sequence[Source], indices: np.ndarray) -> None:
        self.sources = sources
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return ChosenSources(self.sources, self.indices[index])
        return self.sources[int(self.indices[index])]
