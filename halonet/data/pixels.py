"""From an image file to a model's input."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from halonet.data.splits import Source
from halonet.models.halonet import Preprocessing


def read_image(
    source: Source | str, in_channels: int = 3, *, least_side: int | None = None
) -> Image.Image:
    """Read an image as a person sees it: upright, 8 bits, on white where it is transparent.

    Args:
        source: a path or other stored bytes, or a function that gives an image.
        in_channels: 3 for colour, 1 for grey.
        least_side: pixels that the shorter side needs. A larger image is read at a half, a third,
            ... of its size, never below that; None reads every pixel.

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
        if least_side is not None:
            image.draft(None, (least_side, least_side))  # only a JPEG: decoded in less time
        image = ImageOps.exif_transpose(image)
        image = _to_eight_bits(image).convert("RGB" if in_channels == 3 else "L")
        factor = 1 if least_side is None else min(image.size) // least_side
        return image.reduce(factor) if factor > 1 else image
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


def read_pixels(source: Source | str, preprocessing: Preprocessing, in_channels: int = 3) -> Tensor:
    """An image as bytes [channels, height, width], its short side a little over the crop.

    Raises:
        ValueError, FileNotFoundError: see `read_image`.
    """
    image = read_image(source, in_channels)
    return pil_to_tensor(resize_short_side(image, short_side(preprocessing)))


def short_side(preprocessing: Preprocessing) -> int:
    """Pixels of a resized image's short side, of which the central crop keeps `crop_share`."""
    return round(preprocessing.image_size / preprocessing.crop_share)


def prepare_image(
    source: Source | str, preprocessing: Preprocessing, in_channels: int = 3
) -> Tensor:
    """An image as a model takes it, without random changes: [channels, image_size, image_size].

    Raises:
        ValueError, FileNotFoundError: see `read_image`.
    """
    return finish_pixels(read_pixels(source, preprocessing, in_channels), preprocessing)


def finish_pixels(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """The central crop of what `read_pixels` gives, normalized."""
    return normalize(crop_center(pixels, preprocessing.image_size), preprocessing)


def crop_center(pixels: Tensor, size: int) -> Tensor:
    """The central square of an image [channels, height, width]."""
    top, left = (pixels.shape[1] - size) // 2, (pixels.shape[2] - size) // 2
    return pixels[:, top : top + size, left : left + size]


def normalize(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Bytes [.., channels, height, width] to the numbers that the model was trained on."""
    mean = 255 * torch.tensor(preprocessing.mean).view(-1, 1, 1)
    std = 255 * torch.tensor(preprocessing.std).view(-1, 1, 1)
    return (pixels - mean).div_(std)
