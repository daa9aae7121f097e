"""Training images of a detector and their objects, changed at random."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional

from halonet.data.pixels import read_image
from halonet.data.randomness import mix_seed
from halonet.detection.annotations import Annotation
from halonet.detection.data import AnnotatedImage, AnnotatedImages
from halonet.detection.masks import decode_masks, find_box
from halonet.models.classifier import Preprocessing


class DetectionDataset(Dataset):
    """Images with their objects on square canvases, changed at random as in the paper.

    An image is scaled so that its longer side is `image_size` times a random factor, cut at a
    random place where it is larger than the canvas, padded below and to the right with the mean
    colour where it is smaller, and mirrored or not. Crowds and objects of which nothing remains (of
    a box without a mask, less than a pixel) are left out. torchvision's v2 transforms have no such
    crop, and would resize each mask as a whole image; here only the part of it that its box holds
    is gathered.

    An item is asked for by (epoch, index), and depends on these and the seed alone: an image
    [3, image_size, image_size] from 0 to 1, and a dict of
        "boxes": [n, 4], left, top, right, bottom in pixels; n may be 0.
        "labels": [n], from 1 on, in the order of the data's categories.
        "masks": [n, image_size, image_size], 0 or 1; only where the data has masks.
        "image_id": the image's id in the file.
        "seed": for what the detector draws at random.

    Args:
        data: images and objects.
        image_size: pixels on a side of the canvas.
        scale_jitter: smallest and largest factor; the paper's are 4/5 and 5/4.
        horizontal_flip: mirror half of the images.
        preprocessing: of the backbone; its mean fills the canvas.
        seed: of the random changes.

    Raises:
        ValueError: a value that doesn't fit; the message names it.
    """

    def __init__(
        self,
        data: AnnotatedImages,
        image_size: int,
        *,
        scale_jitter: tuple[float, float] = (0.8, 1.25),
        horizontal_flip: bool = True,
        preprocessing: Preprocessing | None = None,
        seed: int = 0,
    ) -> None:
        if not 0 < scale_jitter[0] <= scale_jitter[1]:
            raise ValueError(
                f"scale_jitter must be two positive factors, the smaller first, "
                f"got {list(scale_jitter)}"
            )
        if image_size < 1:
            raise ValueError(f"image_size must be positive, got {image_size}")
        self.data = data
        self.image_size = image_size
        self.scale_jitter = scale_jitter
        self.horizontal_flip = horizontal_flip
        self.fill = (preprocessing or Preprocessing(image_size)).mean
        self.seed = seed
        self.labels = {one.id: place for place, one in enumerate(data.categories, start=1)}

    def __len__(self) -> int:
        return len(self.data.images)

    def __getitem__(self, index: tuple[int, int]) -> tuple[Tensor, dict[str, Tensor]]:
        epoch, place = index
        seed = mix_seed(self.seed, epoch, place)
        generator = torch.Generator().manual_seed(seed)
        stretch, shift, flip = torch.rand(3, generator=generator).tolist()
        entry = self.data.images[place]

        low, high = self.scale_jitter
        side = self.image_size * (low + (high - low) * stretch)
        scale = side / max(entry.width, entry.height)
        width, height = (max(1, round(scale * one)) for one in (entry.width, entry.height))
        left, top = (round(shift * max(0, one - self.image_size)) for one in (width, height))
        mirrored = self.horizontal_flip and flip < 0.5

        image = read_image(entry.path).resize((width, height), Image.Resampling.BILINEAR)
        image = image.crop(
            (left, top, min(width, left + self.image_size), min(height, top + self.image_size))
        )
        canvas = torch.tensor(self.fill)[:, None, None].repeat(1, self.image_size, self.image_size)
        pixels = functional.to_dtype(functional.pil_to_tensor(image), scale=True)
        canvas[:, : image.height, : image.width] = pixels.flip(2) if mirrored else pixels

        objects = [one for one in entry.annotations if not one.crowd]
        if self.data.masks:
            rows = _sources(entry.height, height, top, image.height)
            columns = _sources(entry.width, width, left, image.width)
            found = [_move_mask(one, entry, rows, columns, mirrored) for one in objects]
        else:
            factors = (width / entry.width, height / entry.height)
            found = [_move_box(one, factors, (left, top), image.size, mirrored) for one in objects]
        seen = [(one, moved) for one, moved in zip(objects, found, strict=True) if moved]
        labels = [self.labels[one.category_id] for one, _ in seen]
        boxes = torch.tensor([moved.box for _, moved in seen], dtype=torch.float32)
        target = {
            "boxes": boxes.reshape(-1, 4),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "image_id": torch.tensor(entry.id),
            "seed": torch.tensor(seed),
        }
        if self.data.masks:
            masks = torch.zeros(len(seen), self.image_size, self.image_size, dtype=torch.uint8)
            for mask, (_, moved) in zip(masks, seen, strict=True):
                x, y, right, bottom = map(int, moved.box)
                mask[y:bottom, x:right] = torch.from_numpy(moved.patch)
            target["masks"] = masks
        return canvas, target


def collate(
    items: Sequence[tuple[Tensor, dict[str, Tensor]]],
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """A batch as the detector takes it: a list of images and one of targets."""
    return [image for image, _ in items], [target for _, target in items]


def _sources(size: int, scaled: int, start: int, count: int) -> np.ndarray:
    """The source pixel, along an axis, of each of `count` scaled pixels from `start` on."""
    places = (np.arange(start, start + count) + 0.5) * size / scaled
    return places.astype(np.int64).clip(max=size - 1)


@dataclass(frozen=True)
class _Moved:
    """An object after scaling, cropping and mirroring.

    Attributes:
        box: left, top, right, bottom in pixels.
        patch: its mask within the box, where it has one.
    """

    box: tuple[float, float, float, float]
    patch: np.ndarray | None = None


def _move_box(
    one: Annotation,
    factors: tuple[float, float],
    start: tuple[int, int],
    size: tuple[int, int],
    mirrored: bool,
) -> _Moved | None:
    """An object by its box alone; None if less than a pixel of it is left.

    Args:
        one: the object.
        factors: of scaling, across and down.
        start: left and top of the cut in the scaled image.
        size: width and height of what was cut out.
        mirrored: whether the result is flipped left to right.
    """
    edges = []
    for place, length, factor, first, limit in zip(
        one.box[:2], one.box[2:], factors, start, size, strict=True
    ):
        low, high = (factor * (place + more) - first for more in (0, length))
        edges.append((min(max(low, 0.0), limit), min(max(high, 0.0), limit)))
    (left, right), (top, bottom) = edges
    if min(right - left, bottom - top) < 1:
        return None
    if mirrored:
        left, right = size[0] - right, size[0] - left
    return _Moved((left, top, right, bottom))


def _move_mask(
    one: Annotation, image: AnnotatedImage, rows: np.ndarray, columns: np.ndarray, mirrored: bool
) -> _Moved | None:
    """An object by its mask, which the box is around; None if nothing of it is left.

    Args:
        one: the object.
        image: what it is in.
        rows, columns: the source pixels of the result's rows and columns, rising.
        mirrored: whether the result is flipped left to right.
    """
    assert one.counts is not None
    mask = decode_masks([one.counts], image.height, image.width)[:, :, 0]
    # The rest of the image is empty: only what the box holds is gathered.
    x, y, width, height = (int(value) for value in find_box(one.counts, image.height, image.width))
    first_row, last_row = np.searchsorted(rows, (y, y + height))
    first_column, last_column = np.searchsorted(columns, (x, x + width))
    patch = mask[rows[first_row:last_row]][:, columns[first_column:last_column]]
    covered_rows = np.flatnonzero(np.max(patch, axis=1, initial=0))
    covered_columns = np.flatnonzero(np.max(patch, axis=0, initial=0))
    if not covered_rows.size:
        return None
    top, bottom = covered_rows[0], covered_rows[-1] + 1
    left, right = covered_columns[0], covered_columns[-1] + 1
    patch = patch[top:bottom, left:right]
    top, left = int(first_row + top), int(first_column + left)
    if mirrored:
        left, patch = len(columns) - left - patch.shape[1], patch[:, ::-1]
    return _Moved((left, top, left + patch.shape[1], top + patch.shape[0]), patch.copy())
