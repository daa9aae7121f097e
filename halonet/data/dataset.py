"""Images of a split as model inputs."""

import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import pil_to_tensor
from tqdm import tqdm

from halonet.data.augmentation import Augmentation
from halonet.data.pixels import finish_pixels, normalize, read_image, read_pixels
from halonet.data.randomness import mix_seed, own_random_state, seed_everything
from halonet.data.splits import Split
from halonet.data.transforms import least_side_for_crops, make_augmentation
from halonet.models.classifier import Preprocessing

CACHE_LIMIT_BYTES = 2 * 2**30
SAMPLE_SIZE = 32  # images by which the size of all is estimated


class ImageDataset(Dataset):
    """Images of a split as model inputs, from files or from memory: the same to the bit.

    An item is asked for by (epoch, index) and is (pixels, label, broken), where the label is a
    class, or a row of 0 and 1 [classes]. Its random changes depend
    on these two numbers and the seed alone, so that any item of any epoch can be made again, in
    any process.

    `broken` is -1, or the index asked for where that image can't be read. Whoever takes the items
    hands these indices to `check_broken`. A training image that can't be read is replaced by the
    next that can; a held-out one is blank with the label -1, and so is a training image where
    `broken_share` allows none.

    Args:
        split: images and labels.
        preprocessing: size and normalization; None leaves the bytes as they are, in each image's
            own size, without augmentation.
        in_channels: 3 for colour, 1 for grey.
        augmentation: random changes; None gives the centre crop, of held-out images.
        seed: of the random changes.
        broken_share: largest share of images that can't be read.

    Attributes:
        problems: what is wrong with the images that `prepare` couldn't read, by index.
    """

    def __init__(
        self,
        split: Split,
        preprocessing: Preprocessing | None,
        *,
        in_channels: int = 3,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        broken_share: float = 0.0,
    ) -> None:
        self.split = split
        self.preprocessing = preprocessing
        self.in_channels = in_channels
        self.seed = seed
        self.allowed_broken = int(broken_share * len(split.labels))
        self.transform = None
        self.least_side: int | None = None
        if augmentation is not None and preprocessing is not None:
            self.transform = make_augmentation(augmentation, preprocessing)
            self.least_side = least_side_for_crops(augmentation, preprocessing)
        self.cached: list[Tensor | None] | None = None
        self.problems: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, index: tuple[int, int]) -> tuple[Tensor, Any, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[tuple[int, int]]) -> list[tuple[Tensor, Any, int]]:
        """The items of a batch; the global random state is put aside once for all of them."""
        if self.transform is None:
            return [self._make_item(epoch, place) for epoch, place in indices]
        with own_random_state():
            return [self._make_item(epoch, place) for epoch, place in indices]

    def _make_item(self, epoch: int, place: int) -> tuple[Tensor, Any, int]:
        found, pixels = self._find_readable(place)
        if pixels is None:
            size = 1 if self.preprocessing is None else self.preprocessing.image_size
            label = self.split.labels[place]
            unknown = np.full_like(label, -1) if isinstance(label, np.ndarray) else -1
            return torch.zeros(self.in_channels, size, size), unknown, place
        if self.transform is None or self.preprocessing is None:
            prepared = finish_pixels(pixels, self.preprocessing)
        else:
            seed_everything(mix_seed(self.seed, epoch, place))
            prepared = normalize(self.transform(pixels), self.preprocessing)
        broken = -1 if found == place else place
        return prepared, self.split.labels[found], broken

    def _find_readable(self, place: int) -> tuple[int, Tensor | None]:
        """The first readable image from `place` on; None after as many as may be broken."""
        steps = self.allowed_broken if self.transform is not None else 0
        for step in range(steps + 1):
            found = (place + step) % len(self)
            pixels = self._try_read(found) if self.cached is None else self.cached[found]
            if isinstance(pixels, Tensor):
                return found, pixels
        if steps:
            self.check_broken({(place + step) % len(self) for step in range(steps + 1)})
        return place, None

    def read(self, index: int) -> Tensor:
        """An image as bytes [channels, height, width], before its random changes.

        With random crops it has its own size, or a fraction of it as long as no crop is enlarged;
        else it is as `read_pixels` gives it.
        """
        source = self.split.sources[index]
        if self.least_side is None:
            return read_pixels(source, self.preprocessing, self.in_channels)
        return pil_to_tensor(read_image(source, self.in_channels, least_side=self.least_side))

    def prepare(self, label: str, show_progress: bool = True) -> None:
        """Read every image into memory, or none where they would take more than 2 GiB.

        Where it reads them, broken ones are known before training starts.

        Raises:
            ValueError: more images can't be read than allowed; names the first ones.
        """
        if self._estimate_bytes() > CACHE_LIMIT_BYTES:
            return
        cached: list[Tensor | None] = []
        taken = 0
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            results = tqdm(
                pool.map(self._try_read, range(len(self))),
                f"reading {label}",
                len(self),
                leave=False,
                disable=None if show_progress else True,  # None: off where it is no terminal
            )
            for index, pixels in enumerate(results):
                if isinstance(pixels, str):
                    self.problems[index] = pixels
                    cached.append(None)
                    continue
                taken += pixels.numel()
                if taken <= CACHE_LIMIT_BYTES:  # they may take more than was estimated
                    cached.append(pixels)
        self.check_broken(self.problems)
        self.cached = cached if taken <= CACHE_LIMIT_BYTES else None

    def _estimate_bytes(self) -> float:
        """Bytes that all images take in memory, estimated from an evenly spaced sample."""
        places = range(0, len(self), max(1, len(self) // SAMPLE_SIZE))
        sample = [pixels for pixels in map(self._try_read, places) if isinstance(pixels, Tensor)]
        return len(self) * sum(one.numel() for one in sample) / max(1, len(sample))

    def check_broken(self, indices: Collection[int]) -> None:
        """Raise ValueError where more images can't be read than `broken_share` allows.

        Args:
            indices: of the broken images, each once; the error says what is wrong with the first.
        """
        if len(indices) <= self.allowed_broken:
            return
        first = sorted(indices)[:3]
        reasons = [self.problems.get(index) or str(self._try_read(index)) for index in first]
        more = f" and {len(indices) - 3} more" if len(indices) > 3 else ""
        allowed = f" (broken_share allows {self.allowed_broken})" if self.allowed_broken else ""
        count = "1 image" if len(indices) == 1 else f"{len(indices)} images"
        raise ValueError(f"{count} can't be read{allowed}: {'; '.join(reasons)}{more}")

    def _try_read(self, index: int) -> Tensor | str:
        try:
            return self.read(index)
        except (ValueError, FileNotFoundError) as error:
            return str(error)
