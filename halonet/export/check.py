"""An exported file beside its model: the same images or photos through both."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from halonet.export.description import ExportDescription

# Height and width of the images that a file for any size is checked with, after the model's own.
CHECKED_SIZES = ((97, 131), (160, 64))
# Pixels of the model's own size there: larger takes long, and 32 isn't for every format.
SMALLEST_CHECKED, LARGEST_CHECKED = 33, 128
# The same of photos, as multiples of the model's size.
CHECKED_PHOTOS = ((1.25, 1.7), (2.2, 1.0), (3.1, 3.1))
CHECKED_BATCHES = (1, 2)


def compare_with_model(
    model: nn.Module,
    run: Callable[[Any], Any],
    description: ExportDescription,
    *,
    size: tuple[int, int] | None,
    batch: int | None,
    calibration: Tensor | None = None,
) -> dict[str, float]:
    """Run a file beside its model, on images or photos that are drawn, or the first of those given.

    Args:
        model: in float32 on the CPU, in evaluation mode.
        run: what the file makes of an array of images or photos, as an array.
        description: that was written with the model.
        size: as it was written.
        batch: as it was written.
        calibration: images that the file was quantized by: noise is out of their range.

    Returns:
        For each batch and size, as "2 x 97 x 131", the largest difference of the logits, relative
        to the largest logit; of photos relative to 1 where all logits are smaller.
    """
    numbers = torch.Generator().manual_seed(0)
    own = description.preprocessing.image_size
    if description.with_preprocessing:
        sizes = [(round(own * height), round(own * width)) for height, width in CHECKED_PHOTOS]
    elif calibration is not None:
        sizes = [(calibration.shape[2], calibration.shape[3])]
    elif size is not None:
        sizes = [size]
    else:
        own = min(max(own, SMALLEST_CHECKED), LARGEST_CHECKED)
        sizes = [(own, own), *CHECKED_SIZES]
    differences = {}
    for (height, width), count in itertools.product(sizes, [batch] if batch else CHECKED_BATCHES):
        if description.with_preprocessing:
            given, images = _draw_photos(count, height, width, description, numbers)
        else:
            images = torch.randn(count, description.in_channels, height, width, generator=numbers)
            if calibration is not None:
                images = calibration[:count]
            given = images.numpy()
        with torch.inference_mode():
            expected = model(images)
        found = torch.from_numpy(run(given))
        # A byte of a photo that is rounded otherwise decides nothing where all logits are near 0.
        least = 1.0 if description.with_preprocessing else torch.finfo(torch.float32).tiny
        differences[f"{count} x {height} x {width}"] = relative_difference(
            found, expected, least=least
        )
    return differences


def relative_difference(
    found: Tensor, expected: Tensor, *, least: float = torch.finfo(torch.float32).tiny
) -> float:
    """The largest difference, relative to the largest number expected, or to `least` where that is
    larger; nan or inf where one is."""
    largest = max(expected.abs().max().item(), least)
    return (found - expected).abs().max().item() / largest


def _draw_photos(
    count: int, height: int, width: int, description: ExportDescription, numbers: torch.Generator
) -> tuple[Any, Tensor]:
    """Smooth pictures as bytes [batch, height, width, channels], and as a model takes them."""
    from PIL import Image

    from halonet.data.pixels import prepare_image

    channels = description.in_channels
    photos, images = [], []
    for _ in range(count):
        pixels = draw_photo(channels, height, width, numbers)
        photo = Image.fromarray(pixels if channels == 3 else pixels[..., 0])
        photos.append(pixels)
        images.append(prepare_image(lambda photo=photo: photo, description.preprocessing, channels))
    return np.stack(photos), torch.stack(images)


def draw_photo(channels: int, height: int, width: int, numbers: torch.Generator) -> np.ndarray:
    """A smooth picture as bytes [height, width, channels]."""
    from PIL import Image

    coarse = torch.randint(0, 256, (channels, 6, 6), generator=numbers).byte().numpy()
    bands = [
        Image.fromarray(band).resize((width, height), Image.Resampling.BICUBIC) for band in coarse
    ]
    return np.stack([np.asarray(band) for band in bands], axis=2)
