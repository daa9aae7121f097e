"""Images on their way to the model: read, prepared, and put into batches."""

import io
import os
import signal
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2
from tqdm import tqdm

from halonet.models.halonet import Preprocessing
from halonet.training.augmentation import make_augmentation, own_random_state, seed_everything
from halonet.training.config import Augmentation
from halonet.training.data import Source, Split

CACHE_LIMIT_BYTES = 2 * 2**30


def read_image(source: Source | str, in_channels: int = 3) -> Image.Image:
    """Read an image as a person sees it: upright, 8 bits, on white where it is transparent.

    Args:
        source: a path or other stored bytes, or a function that gives an image.
        in_channels: 3 for colour, 1 for grey.

    Raises:
        ValueError: the file is empty, broken or no image; the message names it.
        FileNotFoundError: there is no such file.
    """
    try:
        if callable(source):
            image = source()
        else:
            content = Path(source).read_bytes() if isinstance(source, str) else source.read_bytes()
            if not content:
                raise ValueError("it is empty")
            image = Image.open(io.BytesIO(content))
        image = ImageOps.exif_transpose(image)
        return _to_eight_bits(image).convert("RGB" if in_channels == 3 else "L")
    except FileNotFoundError:
        raise FileNotFoundError(f"no image at {source}") from None
    except UnidentifiedImageError:
        raise ValueError(f"{source} is not an image") from None
    except Exception as error:  # Pillow's decoders meet any bytes, and raise almost anything
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ValueError(f"{source} can't be read as an image: {reason}") from error


def _to_eight_bits(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        pixels = np.nan_to_num(np.asarray(image, dtype=np.float64))
        brightest = pixels.max(initial=0)
        if image.mode == "F" and brightest <= 1:
            pixels = pixels * 255
        elif image.mode.startswith("I;16") or brightest > 255:
            pixels = pixels / 257  # 65535 is white
        return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image)
    return image


def resize_short_side(image: Image.Image, short_side: int) -> Image.Image:
    """Scale an image so that its shorter side has `short_side` pixels."""
    factor = short_side / min(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    if min(size) != short_side:
        size = (max(size[0], short_side), max(size[1], short_side))
    if size == image.size:
        return image
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)


def crop_center(pixels: Tensor, size: int) -> Tensor:
    """The central square of an image [channels, height, width]."""
    top, left = (pixels.shape[1] - size) // 2, (pixels.shape[2] - size) // 2
    return pixels[:, top : top + size, left : left + size]


def normalize(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Bytes [.., channels, height, width] to the numbers that the model was trained on."""
    mean = 255 * torch.tensor(preprocessing.mean).view(-1, 1, 1)
    std = 255 * torch.tensor(preprocessing.std).view(-1, 1, 1)
    return (pixels - mean).div_(std)


class ImageDataset(Dataset):
    """Images of a split as model inputs, kept in memory where they fit.

    An item is asked for by (epoch, index) and is (pixels, label, broken). Its random changes depend
    on these two numbers and the seed alone, so that any item of any epoch can be made again, in
    any process.

    `broken` is -1, or the index asked for where that image can't be read. Whoever takes the items
    hands these indices to `check_broken`. A training image is replaced by the next that can be
    read; a held-out one is blank and has the label -1, as has any where none may be broken.

    Args:
        split: images and labels.
        preprocessing: size and normalization.
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
        preprocessing: Preprocessing,
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
        if augmentation is not None:
            self.transform = make_augmentation(augmentation, preprocessing)
        self.cached: list[Tensor | None] | None = None
        self.problems: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, index: tuple[int, int]) -> tuple[Tensor, int, int]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[tuple[int, int]]) -> list[tuple[Tensor, int, int]]:
        """The items of a batch; the global random state is put aside once for all of them."""
        if self.transform is None:
            return [self._make_item(epoch, place) for epoch, place in indices]
        with own_random_state():
            return [self._make_item(epoch, place) for epoch, place in indices]

    def _make_item(self, epoch: int, place: int) -> tuple[Tensor, int, int]:
        found, pixels = self._find_readable(place)
        if pixels is None:
            size = self.preprocessing.image_size
            return torch.zeros(self.in_channels, size, size), -1, place
        if self.transform is None:
            pixels = crop_center(pixels, self.preprocessing.image_size)
        else:
            seed_everything(mix_seed(self.seed, epoch, place))
            pixels = self.transform(pixels)
        broken = -1 if found == place else place
        return normalize(pixels, self.preprocessing), self.split.labels[found], broken

    def _find_readable(self, place: int) -> tuple[int, Tensor | None]:
        """The first readable image from `place` on, or None where it takes too many steps."""
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
        """The image as bytes [channels, height, width], its short side a little over the crop."""
        image = read_image(self.split.sources[index], self.in_channels)
        return v2.functional.pil_to_tensor(resize_short_side(image, self._short_side))

    @property
    def _short_side(self) -> int:
        return round(self.preprocessing.image_size / self.preprocessing.crop_share)

    def prepare(self, label: str, show_progress: bool = True) -> None:
        """Read every image into memory, or none where they would take more than 2 GiB.

        Where it reads them, broken ones are known before training starts.

        Raises:
            ValueError: more images can't be read than allowed; names the first ones.
        """
        if len(self) * self.in_channels * self._short_side**2 > CACHE_LIMIT_BYTES:
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
                if taken <= CACHE_LIMIT_BYTES:  # long images take more than was estimated
                    cached.append(pixels)
        self.check_broken(self.problems)
        self.cached = cached if taken <= CACHE_LIMIT_BYTES else None

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
        raise ValueError(
            f"{len(indices)} images can't be read{allowed}: {'; '.join(reasons)}{more}"
        )

    def _try_read(self, index: int) -> Tensor | str:
        try:
            return self.read(index)
        except (ValueError, FileNotFoundError) as error:
            return str(error)


class EpochSampler(Sampler[tuple[int, int]]):
    """Every index once an epoch, in an order that the seed and the epoch decide.

    The order is cut into global batches, each of which is cut into one slice for each process:
    all processes together see the batches that one process alone would see. Items that fill no
    whole batch are left out, except where all of them are fewer than one batch.

    `start(epoch, skip)` says which epoch comes next and how many of its items are done already.

    Args:
        length: number of items.
        seed: of the order.
        batch_size: items of a global batch, of all processes together.
        process_index: which slice of each batch this process takes.
        process_count: number of processes; it divides `batch_size`.

    Raises:
        ValueError: the processes can't share a batch evenly.
    """

    def __init__(
        self,
        length: int,
        seed: int,
        *,
        batch_size: int = 1,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        if batch_size % process_count:
            raise ValueError(
                f"batch_size must be a multiple of the number of processes, {process_count}; "
                f"got {batch_size}"
            )
        if length < batch_size and process_count > 1:
            raise ValueError(
                f"batch_size must be at most the number of images, {length}, where there is more "
                f"than one process; got {batch_size}"
            )
        self.length = length
        self.seed = seed
        self.batch_size = min(batch_size, length)
        self.process_index = process_index
        self.process_count = process_count
        self.epoch = 0
        self.skip = 0

    def start(self, epoch: int, skip: int = 0) -> None:
        """Begin with item `skip` of epoch `epoch`, a multiple of the batch size."""
        if skip % self.batch_size:
            raise ValueError(f"skip must be a multiple of {self.batch_size}, got {skip}")
        self.epoch, self.skip = epoch, skip

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(mix_seed(self.seed, self.epoch))
        order = torch.randperm(self.length, generator=generator)
        share = self.batch_size // self.process_count
        for batch in self._batches():
            first = batch + self.process_index * share
            for index in order[first : first + share].tolist():
                yield self.epoch, index

    def __len__(self) -> int:
        return len(self._batches()) * (self.batch_size // self.process_count)

    def _batches(self) -> range:
        """Where the whole batches start."""
        return range(self.skip, self.length - self.batch_size + 1, self.batch_size)


class InOrder(Sampler[tuple[int, int]]):
    """Every index once, in order, as `ImageDataset` asks for them; or each n-th of n processes."""

    def __init__(self, length: int, process_index: int = 0, process_count: int = 1) -> None:
        self.indices = range(process_index, length, process_count)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((0, index) for index in self.indices)

    def __len__(self) -> int:
        return len(self.indices)


def make_loader(
    dataset: Dataset,
    sampler: Sampler,
    batch_size: int,
    workers: int,
    collate: Callable[[list], Any] | None = None,
) -> DataLoader:
    """Batches (images [batch, channels, size, size], labels, broken [batch]), as sampled."""
    return DataLoader(
        dataset,
        batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        generator=torch.Generator().manual_seed(0),
        worker_init_fn=_ignore_interrupt,
    )


def _ignore_interrupt(worker: int) -> None:
    """Ctrl-C reaches workers too; they go on, since the main process finishes its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def mix_seed(*numbers: int) -> int:
    """One seed of 63 bits for several numbers, each of which changes all of it."""
    mixed = np.random.SeedSequence([number % 2**32 for number in numbers])
    return int(mixed.generate_state(1, np.uint64)[0] >> 1)
