"""The configuration of a training run: its fields, and what they may hold."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from halonet.models.halonet import SMALLEST_IMAGE


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training image.

    Attributes:
        crop_share: least and largest share of the area that a random crop keeps; with 1 and 1
            nothing is resampled, and the central crop is taken.
        horizontal_flip: mirror half of the images, left to right.
        vertical_flip: mirror half of the images, top to bottom.
        quarter_turns: turn by 0, 90, 180 or 270 degrees, each as likely.
        color_jitter: largest relative change of brightness, contrast and saturation.
    """

    crop_share: tuple[float, float] = (0.35, 1.0)
    horizontal_flip: bool = True
    vertical_flip: bool = False
    quarter_turns: bool = False
    color_jitter: float = 0.0


@dataclass(frozen=True)
class TrainingConfig:
    """All that decides a training run.

    Attributes:
        recipe: the recipe that the run started from.
        data: elpv, folder:PATH, cifar10, flowers102 or oxford_pets.
        data_root: where torchvision's data sets lie or are downloaded to.
        validation_share: share held out of a folder that has no train and val.
        model: one of `halonet models`.
        model_options: changes to the model, as {"block_size": 4, "halo_size": 1}.
        in_channels: 3 for colour images, 1 for grey ones.
        backend: of the attention, as sdpa; None takes the fastest.
        init: a checkpoint or a run folder to start from; the classifier of other classes starts
            from zero.
        image_size: pixels on a side of the images.
        central_crop_share: share of an image's short side that the central crop keeps, where
            images aren't changed at random.
        augmentation: random changes of training images.
        mixup: alpha of mixup, 0 for none.
        cutmix: alpha of CutMix, 0 for none; with both, each batch takes one of them.
        epochs: passes over the training images.
        batch_size: images of a step.
        optimizer: a name that timm's create_optimizer_v2 knows, as sgd, nadamw or muon.
        learning_rate: at its peak.
        warmup_share: share of the steps in which the learning rate rises linearly.
        final_learning_rate_share: share of the peak at which the cosine ends.
        weight_decay: of all weights but norms, biases and relative tables.
        label_smoothing: share of each label spread over all classes.
        averaging_decay: of the averaged weights, which are evaluated and saved; 0 for none.
        clip_norm: largest norm of the gradient; 0 for no limit.
        evaluate_epochs: epochs between evaluations on the held-out images.
        checkpoint_steps: steps between checkpoints within an epoch; 0 for one each epoch.
        mixed_precision: no, bf16 or fp16.
        compile: run the model through torch.compile.
        workers: processes that read images; 0 reads in the main process.
        seed: of weights, order and random changes.
    """

    recipe: str = "small"
    data: str = "elpv"
    data_root: str = "data"
    validation_share: float = 0.2
    model: str = "halonet_tiny"
    model_options: dict[str, int | float | str | bool | list] = field(default_factory=dict)
    in_channels: int = 3
    backend: str | None = None
    init: str | None = None
    image_size: int = 96
    central_crop_share: float = 0.95
    augmentation: Augmentation = field(default_factory=Augmentation)
    mixup: float = 0.0
    cutmix: float = 0.0
    epochs: int = 30
    batch_size: int = 32
    optimizer: str = "nadamw"
    learning_rate: float = 2e-3
    warmup_share: float = 0.1
    final_learning_rate_share: float = 0.01
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    averaging_decay: float = 0.99
    clip_norm: float = 1.0
    evaluate_epochs: int = 1
    checkpoint_steps: int = 0
    mixed_precision: str = "no"
    compile: bool = False
    workers: int = 0
    seed: int = 0


def make_config(fields: Mapping[str, Any]) -> TrainingConfig:
    """A configuration from plain values, as JSON or the command line has them.

    Raises:
        KeyError, TypeError: a field is missing or unknown.
    """
    values = dict(fields)
    augmentation = dict(values["augmentation"])
    augmentation["crop_share"] = tuple(augmentation["crop_share"])
    values["augmentation"] = Augmentation(**augmentation)
    return TrainingConfig(**values)


def check_config(config: TrainingConfig) -> None:
    """Raise ValueError for a value that no run can have; the message names the field."""
    positive = ("epochs", "batch_size", "learning_rate", "evaluate_epochs")
    for name in positive:
        if not getattr(config, name) > 0:  # so that it refuses nan
            raise ValueError(f"{name} must be positive, got {getattr(config, name)}")
    if config.image_size < SMALLEST_IMAGE:
        raise ValueError(f"image_size must be {SMALLEST_IMAGE} or more, got {config.image_size}")
    not_negative = ("weight_decay", "clip_norm", "checkpoint_steps", "workers", "mixup", "cutmix")
    for name in not_negative:
        if not getattr(config, name) >= 0:
            raise ValueError(f"{name} must be 0 or more, got {getattr(config, name)}")
    shares = ("warmup_share", "final_learning_rate_share", "label_smoothing", "averaging_decay")
    for name in shares:
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name} must be from 0 to below 1, got {getattr(config, name)}")
    if not 0 < config.central_crop_share <= 1:
        raise ValueError(
            f"central_crop_share must be above 0, at most 1, got {config.central_crop_share}"
        )
    low, high = config.augmentation.crop_share
    if not 0 < low <= high <= 1:
        raise ValueError(
            f"crop_share must be two shares up to 1, the smaller first, got {[low, high]}"
        )
    if not 0 <= config.augmentation.color_jitter <= 1:
        raise ValueError(
            f"color_jitter must be from 0 to 1, got {config.augmentation.color_jitter}"
        )
    if config.in_channels not in (1, 3):
        raise ValueError(f"in_channels must be 1 or 3, got {config.in_channels}")
    if config.mixed_precision not in ("no", "bf16", "fp16"):
        raise ValueError(
            f"mixed_precision must be no, bf16 or fp16, got {config.mixed_precision!r}"
        )
