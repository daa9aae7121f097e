"""Annotations in COCO's format: what each holds, and what may be wrong with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

LARGEST = 2**32  # pixels that run lengths can count; a number that isn't finite isn't below it
TOLERANCE = 1.0  # pixels that a box or polygon may reach beyond the image: COCO's own do


@dataclass(frozen=True, slots=True)
class Annotation:
    """One object.

    Attributes:
        id, category_id: as in the file.
        box: left, top, width and height in pixels.
        area: in pixels; small, medium and large are told apart by it.
        crowd: a region of many objects: left out of training, ignored in evaluation.
        counts: its mask as COCO's compressed run lengths, over the whole image.
    """

    id: int
    category_id: int
    box: tuple[float, float, float, float]
    area: float
    crowd: bool
    counts: bytes


@dataclass(frozen=True)
class Problem:
    """What is wrong with an image, or with one annotation.

    Attributes:
        image_id: the image's id in the file, or None where the annotation doesn't tell.
        annotation_id: the annotation's id, or None where the image itself is wrong.
        reason: in words.
    """

    image_id: int | None
    annotation_id: int | None
    reason: str

    def __str__(self) -> str:
        places = {"image": self.image_id, "annotation": self.annotation_id}
        named = [f"{kind} {number}" for kind, number in places.items() if number is not None]
        return f"{', '.join(named)}: {self.reason}"


class BadAnnotations(ValueError):
    """Bad annotations, where they are to be refused; `problems` has all of them."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        first = "; ".join(map(str, problems[:5]))
        super().__init__(f"{source} has {len(problems)} bad annotations: {first}{more}")
        self.problems = tuple(problems)


def read_annotation(
    entry: dict[str, Any], height: int, width: int, category_ids: set[int]
) -> Annotation:
    """Check an annotation of COCO's format, and convert its mask to run lengths.

    Args:
        entry: as in the file; its mask is of polygons, or of run lengths as numbers or as text.
            A bbox, area or iscrowd of null is as none.
        height, width: of its image, in pixels.
        category_ids: of the file's categories.

    Raises:
        ValueError: what is wrong with it, in words.
    """
    from faster_coco_eval import mask as masks

    category_id = entry.get("category_id")
    if not is_whole(category_id):
        raise ValueError(f"its category_id must be a whole number, got {category_id!r}")
    if category_id not in category_ids:
        raise ValueError(f"category {category_id} is unknown")
    counts = encode_mask(entry.get("segmentation"), height, width)
    run_lengths = {"size": [height, width], "counts": counts}
    mask_area = float(masks.area(run_lengths))
    if mask_area == 0:
        raise ValueError("its mask covers no pixel")
    box = entry.get("bbox")
    if box is None:
        box = masks.toBbox(run_lengths).tolist()
    if not _are_numbers(box, 4):
        raise ValueError(f"its box must be four numbers, got {box!r}")
    left, top, box_width, box_height = map(float, box)
    if box_width <= 0 or box_height <= 0:
        raise ValueError(f"its box has no area: {box}")
    if not (_inside([left, left + box_width], width) and _inside([top, top + box_height], height)):
        raise ValueError(f"its box {box} reaches outside the image of {width} x {height} pixels")
    area = entry.get("area")
    if area is None:
        area = mask_area
    if not _are_numbers([area], 1) or area <= 0:
        raise ValueError(f"its area must be a positive number, got {area!r}")
    crowd = entry.get("iscrowd")
    if crowd not in (None, 0, 1):
        raise ValueError(f"its iscrowd must be 0 or 1, got {crowd!r}")
    return Annotation(
        entry["id"],
        category_id,
        (left, top, box_width, box_height),
        float(area),
        bool(crowd),
        counts,
    )


def is_whole(value: object) -> TypeGuard[int]:
    """Whether a value of JSON is a whole number of 64 bits; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


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
        if not _are_numbers(polygon, None) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError(
                "its polygon is degenerate: it must have three points or more, as x, y, x, y, ..."
            )
        if not (_inside(polygon[0::2], width) and _inside(polygon[1::2], height)):
            raise ValueError(f"its polygon reaches outside the image of {width} x {height} pixels")
    parts: Any = masks.frPyObjects(segmentation, height, width)
    return _as_bytes(masks.merge(parts)["counts"])


def decode_masks(annotations: Sequence[Annotation], height: int, width: int) -> np.ndarray:
    """Masks [height, width, annotations] of 0 and 1, as bytes."""
    from faster_coco_eval import mask as masks

    if not annotations:
        return np.zeros((height, width, 0), np.uint8)
    size = [height, width]
    return masks.decode([{"size": size, "counts": one.counts} for one in annotations])


def find_box(annotation: Annotation, height: int, width: int) -> tuple[float, ...]:
    """Left, top, width and height in pixels of what a mask covers."""
    from faster_coco_eval import mask as masks

    return tuple(masks.toBbox({"size": [height, width], "counts": annotation.counts}).tolist())


def _read_run_lengths(segmentation: dict[str, Any], height: int, width: int) -> list[int]:
    """Lengths of runs of 0 and 1 in turn, by columns; checked before compiled code sees them."""
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width]:
        raise ValueError(f"its mask has size {size}, the image [{height}, {width}]")
    if isinstance(counts, str):
        counts = _unpack(counts)
    if not isinstance(counts, list) or not all(is_whole(one) and one >= 0 for one in counts):
        raise ValueError("its run lengths must be text, or numbers of 0 or more")
    if sum(counts) != height * width:
        raise ValueError(
            f"its run lengths cover {sum(counts)} pixels, the image has {height * width}"
        )
    return counts


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


def _are_numbers(values: object, count: int | None) -> bool:
    return (
        isinstance(values, list)
        and (count is None or len(values) == count)
        and all(
            isinstance(one, float | int) and not isinstance(one, bool) and abs(one) < LARGEST
            for one in values
        )
    )


def _inside(places: Sequence[float], size: int) -> bool:
    return min(places) >= -TOLERANCE and max(places) <= size + TOLERANCE


def _as_bytes(counts: str | bytes) -> bytes:
    return counts.encode() if isinstance(counts, str) else counts
