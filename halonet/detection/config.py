"""The configuration of a detector's training, and its recipes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from halonet.detection.coco import POLICIES
from halonet.detection.mask_rcnn import DetectorOptions, make_options
from halonet.training.config import RunConfig, check_run_config, require_one_of


@dataclass(frozen=True)
class DetectionConfig(RunConfig):
    """All that decides the training of a detector; the rest is in `RunConfig`.

    Attributes:
        data: coco:FOLDER.
        bad_annotations: skip what is wrong in the annotations, or refuse to train on them.
        model: of the backbone, one of `halonet models`.
        detector: what stands on the backbone.
        scale_jitter: smallest and largest random scale of a training image.
        horizontal_flip: mirror half of the images, left to right.
    """

    data: str = "coco:coco"
    bad_annotations: str = "skip"
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
    require_one_of(config, "bad_annotations", *POLICIES)
    low, high = config.scale_jitter
    if not 0 < low <= high:
        raise ValueError(
            f"scale_jitter must be two positive factors, the smaller first, got {[low, high]}"
        )


def coco() -> DetectionConfig:
    """The paper's detection: COCO at 1024 px (section 5).

    Reproduces: 45.2 box AP and 40.3 mask AP with the default backbone (table of section 5; its
    other rows by --model), given a backbone of the recipe for them (--init).
    Data: COCO 2017. Hardware: the paper trained for 15.8 hours on TPUv3; this was never run here.
    Command: halonet detect train --recipe coco --data coco:PATH --init BACKBONE
    Ours: what weight decay applies to, anchors and limits (torchvision's).
    """
    return DetectionConfig(
        recipe="coco",
        epochs=37,  # 67,500 steps of 64 images are 36.5
        batch_size=64,
        optimizer="momentum",
        learning_rate=0.1,
        schedule="steps",
        decay_shares=(60_000 / 67_500, 65_000 / 67_500),
        warmup_share=500 / 67_500,
        warmup_start_share=2 / 300,
        weight_decay=4e-5,
        averaging_decay=0.0,
        clip_norm=0.0,
        checkpoint_steps=500,
        workers=8,
    )


def small_detector() -> DetectionConfig:
    """Some hundred images, from scratch on a CPU. Ours, not the paper's.

    Expected: docs/results.md has it for the nuclei. Hardware: two CPU cores, half an hour.
    Command: halonet detect train --data coco:PATH
    """
    return DetectionConfig(
        recipe="small_detector",
        model="halonet_tiny",
        detector=DetectorOptions(
            image_size=256,
            anchor_sizes=(8, 16, 32, 64, 128),
            training_proposals=1000,
            proposals=1000,
            detections=300,
            pyramid_channels=64,
            box_channels=256,
            mask_channels=64,
            training_regions=128,
        ),
        epochs=8,
        batch_size=4,
        optimizer="nadamw",
        learning_rate=1e-3,
        weight_decay=0.05,
        averaging_decay=0.99,
        evaluate_epochs=4,
    )


RECIPES: dict[str, Callable[[], DetectionConfig]] = {"coco": coco, "small_detector": small_detector}


def get_detection_recipe(name: str) -> DetectionConfig:
    """The configuration of the recipe called `name`; ValueError for an unknown one."""
    if name not in RECIPES:
        raise ValueError(f"recipe must be one of {', '.join(RECIPES)}, got {name!r}")
    return RECIPES[name]()
