"""Masks of objects as COCO's run lengths: from polygons or run lengths, and back to pixels."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from halonet.detection.geometry import Box, clip_corners, turn_pixels
from halonet.detection.values import are_numbers, as_whole


def encode_mask(segmentation: object, height: int, width: int) -> bytes:
    """Compressed run lengths of polygons, of numbers or of text, over an image.

    Raises:
        ValueError: it is none of these, or doesn't fit the image.
    """
    from faster_coco_eval import mask as masks

    if isinstance(segmentation, dict):
        lengths = _read_run_lengths(segmentation, height, width)
        encoded: Any = masks.frPyObjects(
            {"size": [height, width], "counts": lengths}, height, width
        )
        return _as_bytes(encoded["counts"])
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError("it has no mask: segmentation must be polygons or run lengths")
    for polygon in segmentation:
        if not are_numbers(polygon) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(
                "its polygon is degenerate: it must have three points or more, as x, y, x, y, ..."
            )
        try:
            clip_corners(find_bounds(polygon), width, height)
        except ValueError as error:
            raise ValueError(f"its polygon {error}") from None
    parts: Any = masks.frPyObjects(segmentation, height, width)  # drawn as far as the image goes
    return _as_bytes(masks.merge(parts)["counts"])


def find_bounds(polygon: Sequence[float]) -> Box:
    """Left, top, right and bottom of a polygon's points x, y, x, y, ..."""
    across, down = polygon[0::2], polygon[1::2]
    return min(across), min(down), max(across), max(down)


def decode_masks(counts: Sequence[bytes], height: int, width: int) -> np.ndarray:
    """Masks [height, width, number of masks] of 0 and 1, as bytes."""
    from faster_coco_eval import mask as masks

    if not counts:
        return np.zeros((height, width, 0), np.uint8)
    size = [height, width]
    return masks.decode([{"size": size, "counts": one} for one in counts])


def turn_mask(counts: bytes, height: int, width: int, orientation: int) -> bytes:
    """The mask of a stored image as one of the upright image; see `turn_box`."""
    from faster_coco_eval import mask as masks

    upright = turn_pixels(decode_masks([counts], height, width), orientation)
    return _as_bytes(masks.encode(np.asfortranarray(upright))[0]["counts"])


def find_box(counts: bytes, height: int, width: int) -> Box:
    """Left, top, width and height in pixels of what a mask covers."""
    from faster_coco_eval import mask as masks

    found = masks.toBbox({"size": [height, width], "counts": counts}).tolist()
    return found[0], found[1], found[2], found[3]


def measure_area(counts: bytes, height: int, width: int) -> float:
    """Pixels that a mask covers."""
    from faster_coco_eval import mask as masks

    return float(masks.area({"size": [height, width], "counts": counts}))


def _read_run_lengths(segmentation: dict[str, Any], height: int, width: int) -> list[int]:
    """Lengths of runs of 0 and 1 in turn, by columns; checked before compiled code sees them."""
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        raise ValueError(f"its mask has size {size}, the image [{height}, {width}]")
    if isinstance(counts, str):
        counts = _unpack(counts)
    if not isinstance(counts, list):
        counts = [None]
    lengths = [one for one in map(as_whole, counts) if one is not None and one >= 0]
    if len(lengths) < len(counts):
        raise ValueError("its run lengths must be text, or numbers of 0 or more")
    if sum(lengths) != height * width:
        raise ValueError(
            f"its run lengths cover {sum(lengths)} pixels, the image has {height * width}"
        )
    return lengths


def _unpack(text: str) -> list[int]:
    """COCO's compressed run lengths: five bits a character from "0" on, differences from the
    fourth length on, each to the second before it."""
    lengths: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"its run lengths have the character {character!r}")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("its run lengths end within a number")
    return lengths


def _as_bytes(counts: str | bytes) -> bytes:
    return counts.encode() if isinstance(counts, str) else counts
