"""Boxes against their image and their masks: clipped, compared, turned."""

import numpy as np

Box = tuple[float, float, float, float]

TOLERANCE = 1.0  # pixels that a box or polygon may reach beyond the image: COCO's own do


def clip_corners(corners: Box, width: int, height: int) -> Box:
    """Left, top, right and bottom within an image; as given if at most a pixel is outside.

    Raises:
        ValueError: less than half of it lies in the image.
    """
    left, top, right, bottom = corners
    if min(left, top, width - right, height - bottom) >= -TOLERANCE:
        return corners
    clipped = (max(left, 0.0), max(top, 0.0), min(right, width), min(bottom, height))
    inside = max(0.0, clipped[2] - clipped[0]) * max(0.0, clipped[3] - clipped[1])
    if inside == 0 or inside < 0.5 * (right - left) * (bottom - top):
        raise ValueError(f"reaches outside the image of {width} x {height} pixels")
    return clipped


def largest_distance(one: Box, other: Box) -> float:
    """Pixels between two boxes' edges, where they are farthest apart."""
    return max(abs(mine - theirs) for mine, theirs in zip(one, other, strict=True))


def turn_box(box: Box, width: int, height: int, orientation: int) -> Box:
    """Left, top, width and height in the upright image.

    Args:
        box: in the stored image.
        width, height: of the stored image, in pixels.
        orientation: EXIF's, from 1 to 8; from 5 on the sides are swapped.
    """
    left, top, box_width, box_height = box
    if orientation >= 5:
        left, top, box_width, box_height = top, left, box_height, box_width
        width, height = height, width
    if orientation in _MIRRORED:
        left = width - left - box_width
    if orientation in _UPSIDE_DOWN:
        top = height - top - box_height
    return left, top, box_width, box_height


def turn_pixels(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """A stored image [height, width, ...] upright; as `turn_box`."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in _MIRRORED:
        pixels = pixels[:, ::-1]
    return pixels[::-1] if orientation in _UPSIDE_DOWN else pixels


_MIRRORED = (2, 3, 6, 7)  # after the sides are swapped
_UPSIDE_DOWN = (3, 4, 7, 8)
