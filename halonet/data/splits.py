"""Images and labels of a data set, and its training and held-out parts."""

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
    """Images and their labels; a source gives bytes, as a path does, or is called for the image.

    Both sequences may make their items on access.
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
        """Accuracy of always predicting the held-out part's most frequent class."""
        counts = Counter(self.validation.labels)
        return max(counts.values()) / len(self.validation.labels)


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
