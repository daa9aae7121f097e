"""From an image file to a model's input."""

import io
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import Resize
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor

from halonet.data.splits import Source
from halonet.models.classifier import Preprocessing

LONGEST_SHAPE = 8  # long to short side of what is enlarged; the central crop sees a square of it
NO_VALUE = 1e30  # from here on a float is infinite, or stands for "no value", as float32's largest
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
ORIENTATION = 0x0112  # of EXIF
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(
    source: Source | str, in_channels: int = 3, *, least_side: int | None = None
) -> Image.Image:
    """Read an image as a person sees it: upright, 8 bits, on white where it is transparent.

    Metadata that are damaged are ignored, the orientation among them.

    Args:
        source: a path or other stored bytes, or a function that gives an image.
        in_channels: 3 for colour, 1 for grey.
        least_side: pixels that the shorter side needs. A larger image is read at a half, a third,
            ... of its size, never below that; None reads every pixel.

    Raises:
        ValueError: the file is empty, broken or no image, or has more pixels than Pillow's limit
            (179 million); the message names it.
        FileNotFoundError: there is no such file.
    """
    try:
        if callable(source):
            image = source()
        else:
            content = Path(source).read_bytes() if isinstance(source, str) else source.read_bytes()
            if not content:
                raise ValueError("it is empty")
            image = open_image(content)
        if least_side is not None:
            image.draft(None, (least_side, least_side))  # only a JPEG: decoded in less time
        image.load()
        turn = TURNS.get(read_orientation(image))
        image = image if turn is None else image.transpose(turn)
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


def open_image(content: bytes) -> Image.Image:
    """Open encoded bytes. A PNG is decoded, without its metadata where they are damaged."""
    if not content.startswith(PNG_SIGNATURE):
        return Image.open(io.BytesIO(content))
    try:
        return _decode_png(content)
    except Exception:  # among them metadata after the pixels
        return _decode_png(_drop_metadata(content))


def _decode_png(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    _scale_clear_color(image)
    image.load()
    return image


def _drop_metadata(content: bytes) -> bytes:
    """A PNG's chunks that decide its pixels."""
    kept, place = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while place + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        end = place + length + 12
        if kind[:1].isupper() or kind == b"tRNS":
            kept.append(content[place:end])
        place = end
    return b"".join(kept)


def read_orientation(image: Image.Image) -> int:
    """EXIF's orientation, from 1 to 8; 1, upright, where none can be read."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # of any bytes, and it raises almost anything
        return 1
    return orientation if orientation in TURNS else 1


def _scale_clear_color(image: Image.Image) -> None:
    """Bring a PNG's transparent colour to 8 bits, as its pixels will be; Pillow leaves it as it is.

    Of 16 bits in colour, Pillow keeps the upper eight, by which the colour is compared then.
    """
    tiles, color = getattr(image, "tile", None), image.info.get("transparency")
    kind = tiles[0][3] if tiles else None
    if kind in ("L;2", "L;4"):
        image.info["transparency"] = color and color * {"L;2": 85, "L;4": 17}[kind]
    elif kind == "RGB;16B" and isinstance(color, tuple):
        image.info["transparency"] = tuple(one >> 8 for one in color)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_scale_to_bytes(np.asarray(image), image))
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image)
    return image


def _scale_to_bytes(pixels: np.ndarray, image: Image.Image) -> np.ndarray:
    """Grey values of 16 or 32 bits, or floats, as bytes."""
    if image.mode == "F":
        brightest = pixels[np.abs(pixels) < NO_VALUE].max(initial=0)
        scaled = pixels.astype(np.float64)
        if brightest <= 1:
            scaled *= 255
        elif brightest > 255:
            scaled /= 257  # 65535 is white
        return np.nan_to_num(scaled).round().clip(0, 255).astype(np.uint8)
    deep = image.mode.startswith("I;16") or pixels.max(initial=0) > 255
    scaled = (pixels.astype(np.int64) + 128) // 257 if deep else pixels
    scaled = scaled.clip(0, 255).astype(np.uint8)
    if isinstance(clear := image.info.get("transparency"), int):
        scaled[pixels == clear] = 255
    return scaled


def resize_short_side(image: Image.Image, short_side: int) -> Image.Image:
    """Scale an image so that its shorter side has `short_side` pixels, as torchvision and timm."""
    to_short_side: Any = Resize([short_side], InterpolationMode.BICUBIC)
    return to_short_side(image)


def find_crop(
    size: tuple[int, int], preprocessing: Preprocessing
) -> tuple[float, float, float, float]:
    """What a model sees of an image: left, top, right and bottom, in pixels of the image.

    Args:
        size: width and height of the image, upright.
        preprocessing: the model's.
    """
    kept = tuple(min(one, LONGEST_SHAPE * min(size)) for one in size)
    # Rounded down, as `resize_short_side` does it.
    scaled = [short_side(preprocessing) * one // min(kept) for one in kept]
    starts, ends = [], []
    for whole, strip, resized in zip(size, kept, scaled, strict=True):
        start = (whole - strip) // 2
        offset = round((resized - preprocessing.image_size) / 2)  # torchvision's
        starts.append(start + offset * strip / resized)
        ends.append(start + (offset + preprocessing.image_size) * strip / resized)
    return starts[0], starts[1], ends[0], ends[1]


def read_pixels(
    source: Source | str, preprocessing: Preprocessing | None, in_channels: int = 3
) -> Tensor:
    """An image as bytes [channels, height, width], its short side a little over the crop.

    Without preprocessing it has its own size.

    Of an image more than eight times as long as it is wide, the ends are left out.

    Raises:
        ValueError, FileNotFoundError: see `read_image`.
    """
    image = read_image(source, in_channels)
    if preprocessing is None:
        return pil_to_tensor(image)
    image = _crop_strip(image)
    return pil_to_tensor(resize_short_side(image, short_side(preprocessing)))


def _crop_strip(image: Image.Image) -> Image.Image:
    """The central part of an image that is very long: enlarged as a whole it would fill memory."""
    width, height = (min(one, LONGEST_SHAPE * min(image.size)) for one in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def short_side(preprocessing: Preprocessing) -> int:
    """Pixels of a resized image's short side, of which the central crop keeps `crop_share`."""
    return math.floor(preprocessing.image_size / preprocessing.crop_share)


def prepare_image(
    source: Source | str, preprocessing: Preprocessing | None, in_channels: int = 3
) -> Tensor:
    """An image as a model takes it, without random changes: [channels, image_size, image_size].

    Without preprocessing it is bytes in the image's own size, [channels, height, width].

    Raises:
        ValueError, FileNotFoundError: see `read_image`.
    """
    return finish_pixels(read_pixels(source, preprocessing, in_channels), preprocessing)


def finish_pixels(pixels: Tensor, preprocessing: Preprocessing | None) -> Tensor:
    """The central crop of what `read_pixels` gives, normalized; as it is without preprocessing."""
    if preprocessing is None:
        return pixels
    return normalize(center_crop(pixels, [preprocessing.image_size]), preprocessing)


def normalize(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Bytes [.., channels, height, width] to the numbers that the model was trained on."""
    mean = 255 * torch.tensor(preprocessing.mean).view(-1, 1, 1)
    std = 255 * torch.tensor(preprocessing.std).view(-1, 1, 1)
    return (pixels - mean).div_(std)
