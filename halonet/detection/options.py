"""The options of a detector: plain values, without torchvision."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from halonet.models.classifier import STRIDES

STAGES = 5  # of a backbone: the stem and the four that give feature maps


@dataclass(frozen=True)
class DetectorOptions:
    """What a detector is made of, and which detections it keeps; saved with the weights.

    Attributes:
        image_size: pixels of an image's longer side as the network sees it.
        anchor_sizes: pixels on a side of the anchors, one for each level of the pyramid, from
            stride 4 to 64; small objects need small ones.
        aspect_ratios: height to width of the anchors.
        training_proposals: regions that go on to the second stage while training.
        proposals: the same outside of training; more than the objects of an image.
        detections: largest number of detections in an image.
        score_threshold: detections below it are dropped.
        overlap_threshold: of two detections of one class that overlap more (IoU), one is dropped.
        pyramid_channels: of each level of the pyramid.
        box_channels: of the two layers that classify a region.
        mask_channels: of the convolutions that draw a region's mask: most of a small detector's
            work; 0 for boxes alone (Faster R-CNN).
        training_regions: regions of an image that the second stage learns from, a quarter of them
            objects.
        trainable_stages: stages of the backbone that learn, from the last; the fifth is the stem.
        frozen_norms: the backbone's batch norms stay as they start.
    """

    image_size: int = 1024
    anchor_sizes: tuple[int, ...] = (32, 64, 128, 256, 512)
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    training_proposals: int = 2000
    proposals: int = 1000
    detections: int = 100
    score_threshold: float = 0.05
    overlap_threshold: float = 0.5
    pyramid_channels: int = 256
    box_channels: int = 1024
    mask_channels: int = 256
    training_regions: int = 512
    trainable_stages: int = STAGES
    frozen_norms: bool = False

    @property
    def has_masks(self) -> bool:
        """Whether the detector gives masks (Mask R-CNN), or boxes alone (Faster R-CNN)."""
        return self.mask_channels > 0


def find_thin(width: int, height: int, image_size: int) -> str | None:
    """Why an image can't be used: scaled to `image_size`, no pixel of its shorter side is left.

    Args:
        width, height: of the image, in pixels.
        image_size: of the detector, see `DetectorOptions`.
    """
    if min(width, height) * image_size > max(width, height):
        return None
    return (
        f"it is too thin: of {width} x {height} pixels, nothing is left at image_size {image_size}"
    )


def make_options(options: dict[str, Any]) -> DetectorOptions:
    """Options from plain values, lists for tuples; ValueError for what doesn't fit."""
    known = [one.name for one in dataclasses.fields(DetectorOptions)]
    for name in options:
        if name not in known:
            raise ValueError(f"options of a detector are {', '.join(known)}; got {name!r}")
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
    }
    chosen = DetectorOptions(**values)
    if len(chosen.anchor_sizes) != len(STRIDES) + 1:
        raise ValueError(
            f"anchor_sizes must have {len(STRIDES) + 1} entries, one for each level, "
            f"got {list(chosen.anchor_sizes)}"
        )
    positive = (
        *("training_proposals", "proposals", "detections", "pyramid_channels"),
        *("box_channels", "training_regions"),
    )
    for name in positive:
        if getattr(chosen, name) < 1:
            raise ValueError(f"{name} must be positive, got {getattr(chosen, name)}")
    if chosen.mask_channels < 0:
        raise ValueError(f"mask_channels must be 0 or more, got {chosen.mask_channels}")
    for name in ("anchor_sizes", "aspect_ratios"):
        if not getattr(chosen, name) or min(getattr(chosen, name)) <= 0:
            raise ValueError(f"{name} must be positive, got {list(getattr(chosen, name))}")
    if chosen.image_size < STRIDES[-1]:
        raise ValueError(f"image_size must be {STRIDES[-1]} or more, got {chosen.image_size}")
    for name in ("score_threshold", "overlap_threshold"):
        if not 0 <= getattr(chosen, name) <= 1:
            raise ValueError(f"{name} must be from 0 to 1, got {getattr(chosen, name)}")
    return chosen
