"""The configuration of a detector's training: its fields, and what they may hold."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from halonet.detection.options import DetectorOptions, make_options
from halonet.training.config import RunConfig, check_run_config

BadAnnotations = Literal["skip", "refuse"]
Masks = Literal["auto", "need", "ignore"]

POLICIES: tuple[str, ...] = get_args(BadAnnotations)


@dataclass(frozen=True)
class DetectionConfig(RunConfig):
    """All that decides the training of a detector; the rest is in `RunConfig`.

    Attributes:
        data: coco:PATH, voc:PATH or yolo:PATH, of a folder or of its annotation file; or the path
            alone, whose content tells the format.
        validation_share: share of the images that is held out where the data has no such part.
        bad_annotations: skip what is wrong in the annotations, or refuse to train on them.
        masks: need leaves out objects without a mask (Mask R-CNN), ignore takes the box of every
            object (Faster R-CNN); auto needs them where all objects have one, ignores them where
            none has one, and asks for one of the two where some have.
        model: of the backbone, one of `halonet models`.
        detector: what stands on the backbone.
        scale_jitter: smallest and largest random scale of a training image.
        horizontal_flip: mirror half of the images, left to right.
    """

    data: str = "coco:coco"
    validation_share: float = 0.2
    bad_annotations: BadAnnotations = "skip"
    masks: Masks = "auto"
    model: str = "resnet_50_se_halo8"
    detector: DetectorOptions = field(default_factory=DetectorOptions)
    scale_jitter: tuple[float, float] = (0.8, 1.25)
    horizontal_flip: bool = True


def make_detection_config(fields: Mapping[str, Any]) -> DetectionConfig:
    """A configuration from plain values, as JSON or the command line has them.

    Raises:
        KeyError, TypeError, ValueError: a field is missing, unknown or out of range.
    """
    if "detector" not in fields:
        raise ValueError("it is a classifier's")
    values = dict(fields)
    values["detector"] = make_options(values["detector"])
    for name in ("scale_jitter", "decay_shares"):
        values[name] = tuple(values[name])
    return DetectionConfig(**values)


def check_detection_config(config: DetectionConfig) -> None:
    """Raise ValueError for a value that no detector's run can have; it names the field."""
    check_run_config(config)
    if not 0 < config.validation_share < 1:
        raise ValueError(f"validation_share must be between 0 and 1, got {config.validation_share}")
    if config.masks == "need" and not config.detector.has_masks:
        raise ValueError("masks need a detector that has them, got a mask_channels of 0")
    low, high = config.scale_jitter
    if not 0 < low <= high:
        raise ValueError(
            f"scale_jitter must be two positive factors, the smaller first, got {[low, high]}"
        )
