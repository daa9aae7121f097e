"""Annotations in COCO's terms: what each holds, and what may be wrong with it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from halonet.detection.geometry import Box, clip_corners, largest_distance
from halonet.detection.masks import encode_mask, find_bounds, find_box, measure_area
from halonet.detection.values import are_numbers, as_whole

NEAR = 2.0  # pixels between a box and the box of its mask that are the same

# What is mended, with the places that it is counted by.
CLIPPED = "objects that reach outside their image, clipped"
CORNERS = "boxes given as left, top, right, bottom, as their masks tell, taken so"
APART = "boxes that lie apart from their masks, kept as they are"
NO_AREA = "objects with an area of 0, measured instead"


@dataclass(frozen=True, slots=True)
class Annotation:
    """One object.

    Attributes:
        id, category_id: as in the file.
        box: left, top, width and height in pixels.
        area: in pixels; small, medium and large are told apart by it.
        crowd: a region of many objects: left out of training, ignored in evaluation.
        counts: its mask as COCO's compressed run lengths, over the whole image; None without one.
    """

    id: int
    category_id: int
    box: Box
    area: float
    crowd: bool
    counts: bytes | None


@dataclass(frozen=True)
class Problem:
    """What is wrong with an image, or with one annotation.

    Attributes:
        image_id: the image's id in the file, or None where the annotation doesn't tell.
        annotation_id: the annotation's id, or None where the image itself is wrong.
        reason: in words.
        place: where it is, in words, where the format has no ids.
    """

    image_id: int | None
    annotation_id: int | None
    reason: str
    place: str | None = None

    @property
    def where(self) -> str:
        """The place in words."""
        numbers = {"image": self.image_id, "annotation": self.annotation_id}
        named = [f"{kind} {number}" for kind, number in numbers.items() if number is not None]
        return self.place or ", ".join(named)

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class BadAnnotations(ValueError):
    """Bad annotations, where they are to be refused; `problems` has all of them."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        first = "; ".join(map(str, problems[:5]))
        super().__init__(f"{source} has {len(problems)} bad annotations: {first}{more}")
        self.problems = tuple(problems)


def has_mask(entry: dict[str, Any]) -> bool:
    """Whether an annotation of COCO's format has a mask at all, good or bad."""
    return entry.get("segmentation") not in (None, [], {}, "", [[]])


def read_annotation(
    entry: dict[str, Any], height: int, width: int, category_ids: set[int], *, masks: bool
) -> tuple[Annotation, list[str]]:
    """Check an annotation of COCO's format, and convert its mask to run lengths.

    Args:
        entry: as in the file; its mask is of polygons, or of run lengths as numbers or as text.
            A bbox, area or iscrowd of null is as none.
        height, width: of its image, in pixels.
        category_ids: of the file's categories.
        masks: it must have a mask; otherwise a mask is only looked at for the box.

    Returns:
        The annotation, and what was mended: of `CLIPPED`, `CORNERS`, `APART` and `NO_AREA`.

    Raises:
        ValueError: what is wrong with it, in words.
    """
    category_id = as_whole(entry.get("category_id"))
    if category_id is None:
        raise ValueError(
            f"its category_id must be a whole number, got {entry.get('category_id')!r}"
        )
    if category_id not in category_ids:
        raise ValueError(f"category {category_id} is unknown")
    crowd = entry.get("iscrowd")
    if crowd not in (None, 0, 1):
        raise ValueError(f"its iscrowd must be 0 or 1, got {crowd!r}")
    counts = _read_mask(entry, height, width, needed=masks)
    box, mended = _read_box(entry, counts, height, width)
    area = entry.get("area")
    if area is not None and not (are_numbers([area]) and area >= 0):
        raise ValueError(f"its area must be a number of 0 or more, got {area!r}")
    if not area:
        mended += [NO_AREA] if area == 0 else []
        area = box[2] * box[3] if counts is None else measure_area(counts, height, width)
    kept = counts if masks else None
    return Annotation(entry["id"], category_id, box, float(area), bool(crowd), kept), mended


def _read_mask(entry: dict[str, Any], height: int, width: int, *, needed: bool) -> bytes | None:
    """A mask's run lengths; None where there is none that is good, unless it is needed."""
    if not has_mask(entry):
        if needed:
            raise ValueError("it has no mask: segmentation must be polygons or run lengths")
        return None
    try:
        counts = encode_mask(entry.get("segmentation"), height, width)
        if measure_area(counts, height, width) == 0:
            raise ValueError("its mask covers no pixel")
    except ValueError:
        if needed or entry.get("bbox") is None:
            raise
        return None
    return counts


def _read_box(
    entry: dict[str, Any], counts: bytes | None, height: int, width: int
) -> tuple[Box, list[str]]:
    """Left, top, width and height, and what was mended."""
    segmentation, given = entry.get("segmentation"), entry.get("bbox")
    mended = []
    around = None
    if counts is not None:
        around = _to_corners(find_box(counts, height, width))
        polygons = segmentation if isinstance(segmentation, list) else []
        bounds = [find_bounds(polygon) for polygon in polygons]
        if any(clip_corners(one, width, height) != one for one in bounds):
            mended.append(CLIPPED)
    if given is None:
        if around is None:
            raise ValueError("it has neither a box nor a mask")
        return _to_sizes(around), mended
    if not are_numbers(given, 4):
        raise ValueError(f"its box must be four numbers, got {given!r}")
    left, top, third, fourth = map(float, given)
    corners = (left, top, left + third, top + fourth)
    if around is not None and largest_distance(corners, around) > NEAR:
        if largest_distance((left, top, third, fourth), around) <= NEAR:
            corners = (left, top, third, fourth)
            mended.append(CORNERS)
        elif CLIPPED not in mended and not _overlap(corners, around):
            mended.append(APART)
    if corners[2] <= corners[0] or corners[3] <= corners[1]:
        raise ValueError(f"its box has no area: {given}")
    try:
        clipped = clip_corners(corners, width, height)
    except ValueError as error:
        raise ValueError(f"its box {given} {error}") from None
    if clipped != corners:
        return _to_sizes(clipped), [*dict.fromkeys([*mended, CLIPPED])]
    return _to_sizes(corners) if CORNERS in mended else (left, top, third, fourth), mended


def _to_corners(box: Box) -> Box:
    return box[0], box[1], box[0] + box[2], box[1] + box[3]


def _to_sizes(corners: Box) -> Box:
    return corners[0], corners[1], corners[2] - corners[0], corners[3] - corners[1]


def _overlap(one: Box, other: Box) -> bool:
    """Whether two boxes share half of the larger one."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    larger = max((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return across > 0 and down > 0 and across * down >= 0.5 * larger
