"""The configuration of a training run: its fields, and what they may hold."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from halonet.models.halonet import SMALLEST_IMAGE

LARGEST_MAGNITUDE = 31  # of RandAugment, as the paper's H7 has it


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
        randaugment: magnitude of RandAugment on TensorFlow's scale, up to 31; 0 for none.
        randaugment_layers: changes that RandAugment makes, one after the other.
    """

    crop_share: tuple[float, float] = (0.35, 1.0)
    horizontal_flip: bool = True
    vertical_flip: bool = False
    quarter_turns: bool = False
    color_jitter: float = 0.0
    randaugment: int = 0
    randaugment_layers: int = 2


@dataclass(frozen=True)
class RunConfig:
    """What decides a training run, whatever it trains.

    Attributes:
        recipe: the recipe that the run started from.
        model_options: changes to the model, as {"block_size": 4, "halo_size": 1}.
        backend: of the attention, as sdpa; None takes the fastest.
        init: a checkpoint or a run folder to start from; the classifier of other classes starts
            from zero.
        broken_share: largest share of training images that can't be read; they are replaced by
            their neighbours, more stop the run.
        epochs: passes over the training images.
        batch_size: images of a step, over all processes and accumulated batches.
        accumulation_steps: batches, one after the other, that make up a step.
        optimizer: a name that timm's create_optimizer_v2 knows, as sgd (Nesterov's), nadamw, muon.
        learning_rate: at its peak.
        schedule: cosine, or steps: a tenth from each of `decay_shares` on.
        warmup_share: share of the steps in which the learning rate rises linearly.
        warmup_start_share: share of the peak at which it starts to rise.
        final_learning_rate_share: share of the peak at which the cosine ends.
        decay_shares: shares of the steps, rising, for the schedule of steps.
        weight_decay: of the weights.
        decay_everything: weight decay of norms, biases and relative tables too.
        averaging_decay: of the averaged weights, which are evaluated and saved; 0 for none.
        clip_norm: largest norm of the gradient; 0 for no limit.
        batch_norm: local, each process by its own images; synchronized, over processes, on GPUs
            only; or frozen, with the statistics that it started from.
        evaluate_epochs: epochs between evaluations on the held-out images.
        checkpoint_steps: steps between checkpoints within an epoch; 0 for one each epoch.
        mixed_precision: no, bf16 or fp16.
        compile: run the model through torch.compile.
        shard_weights: split weights, gradients and optimizer over the processes (FSDP).
        tensorboard: write logs for TensorBoard.
        workers: processes that read images, for each process that trains; 0 reads in that one.
        seed: of weights, order and random changes.
    """

    recipe: str = "small"
    model_options: dict[str, int | float | str | bool | list] = field(default_factory=dict)
    backend: str | None = None
    init: str | None = None
    broken_share: float = 0.0
    epochs: int = 30
    batch_size: int = 32
    accumulation_steps: int = 1
    optimizer: str = "nadamw"
    learning_rate: float = 2e-3
    schedule: str = "cosine"
    warmup_share: float = 0.1
    warmup_start_share: float = 0.0
    final_learning_rate_share: float = 0.01
    decay_shares: tuple[float, ...] = ()
    weight_decay: float = 0.05
    decay_everything: bool = False
    averaging_decay: float = 0.99
    clip_norm: float = 1.0
    batch_norm: str = "local"
    evaluate_epochs: int = 1
    checkpoint_steps: int = 0
    mixed_precision: str = "no"
    compile: bool = False
    shard_weights: bool = False
    tensorboard: bool = True
    workers: int = 0
    seed: int = 0


Config = TypeVar("Config", bound=RunConfig)


@dataclass(frozen=True)
class TrainingConfig(RunConfig):
    """All that decides the training of a classifier; the rest is in `RunConfig`.

    Attributes:
        data: elpv, folder:PATH, shards:PATH, hf:NAME, cifar10, flowers102 or oxford_pets.
        data_root: where downloaded data sets and shards lie.
        validation_share: share held out of data that has no held-out part.
        validation_data: held-out tar files as shards:TAR_FILES, where `data` is of tar files too.
        model: one of `halonet models`.
        in_channels: 3 for colour images, 1 for grey ones.
        image_size: pixels on a side of the images.
        central_crop_share: share of an image's short side that the central crop keeps, where
            images aren't changed at random.
        augmentation: random changes of training images.
        mixup: alpha of mixup, 0 for none.
        cutmix: alpha of CutMix, 0 for none; with both, each batch takes one of them.
        label_smoothing: share of each label spread over all classes.
    """

    data: str = "elpv"
    data_root: str = "data"
    validation_share: float = 0.2
    validation_data: str | None = None
    model: str = "halonet_tiny"
    in_channels: int = 3
    image_size: int = 96
    central_crop_share: float = 0.95
    augmentation: Augmentation = field(default_factory=Augmentation)
    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.1


@dataclass(frozen=True)
class Recipe(Generic[Config]):
    """A configuration to start from, and what it is for.

    Attributes:
        config: the values; its `recipe` is the recipe's name.
        reproduces: the result that it is for.
        expected: the figure that its source states.
        data: what it trains on.
        hardware: what it was run on.
        command: that runs it.
        ours: values that decide the result, that its source doesn't state, and that we chose.
    """

    config: Config
    reproduces: str
    expected: str
    data: str
    hardware: str
    command: str
    ours: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As the command line calls it."""
        return self.config.recipe


def flatten_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration's plain values by the names of the command line's options.

    Those of a field's own fields stand in its place, as augmentation.crop_share.
    """
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, Mapping):
            inner = flatten_fields(value)
            flat |= {f"{name}.{own}": value for own, value in inner.items()}
        else:
            flat[name] = value
    return flat


def make_config(fields: Mapping[str, Any]) -> TrainingConfig:
    """A configuration from plain values, as JSON or the command line has them.

    Raises:
        KeyError, TypeError, ValueError: a field is missing or unknown, or it is a detector's.
    """
    if "detector" in fields:
        raise ValueError("it is a detector's")
    values = dict(fields)
    augmentation = dict(values["augmentation"])
    augmentation["crop_share"] = tuple(augmentation["crop_share"])
    values["augmentation"] = Augmentation(**augmentation)
    values["decay_shares"] = tuple(values["decay_shares"])
    return TrainingConfig(**values)


def check_run_config(config: RunConfig) -> None:
    """Raise ValueError for a value that no run can have; the message names the field."""
    require_positive(
        config,
        *("epochs", "batch_size", "accumulation_steps", "learning_rate", "evaluate_epochs"),
    )
    require_not_negative(config, "weight_decay", "clip_norm", "checkpoint_steps", "workers")
    require_shares(
        config,
        *("broken_share", "warmup_share", "warmup_start_share", "final_learning_rate_share"),
        "averaging_decay",
    )
    require_one_of(config, "schedule", "cosine", "steps")
    require_one_of(config, "batch_norm", "local", "synchronized", "frozen")
    require_one_of(config, "mixed_precision", "no", "bf16", "fp16")
    if config.batch_size % config.accumulation_steps:
        raise ValueError(
            f"batch_size must be a multiple of accumulation_steps {config.accumulation_steps}, "
            f"got {config.batch_size}"
        )
    shares = (config.warmup_share, *config.decay_shares, 1.0)
    if any(one >= other for one, other in itertools.pairwise(shares)):
        raise ValueError(
            "decay_shares must rise between warmup_share and 1, got "
            f"{list(config.decay_shares)} with a warmup_share of {config.warmup_share}"
        )
    if (config.schedule == "steps") != bool(config.decay_shares):
        raise ValueError(
            "decay_shares are for schedule steps, and it needs them; got "
            f"{list(config.decay_shares)} with {config.schedule}"
        )


def check_config(config: TrainingConfig) -> None:
    """Raise ValueError for a value that no classifier's run can have; it names the field."""
    check_run_config(config)
    require_not_negative(config, "mixup", "cutmix")
    require_shares(config, "label_smoothing")
    if config.image_size < SMALLEST_IMAGE:
        raise ValueError(f"image_size must be {SMALLEST_IMAGE} or more, got {config.image_size}")
    if not 0 < config.central_crop_share <= 1:
        raise ValueError(
            f"central_crop_share must be above 0, at most 1, got {config.central_crop_share}"
        )
    if config.in_channels not in (1, 3):
        raise ValueError(f"in_channels must be 1 or 3, got {config.in_channels}")
    augmentation = config.augmentation
    low, high = augmentation.crop_share
    if not 0 < low <= high <= 1:
        raise ValueError(
            f"crop_share must be two shares up to 1, the smaller first, got {[low, high]}"
        )
    if not 0 <= augmentation.color_jitter <= 1:
        raise ValueError(f"color_jitter must be from 0 to 1, got {augmentation.color_jitter}")
    if not 0 <= augmentation.randaugment <= LARGEST_MAGNITUDE:
        raise ValueError(
            f"randaugment must be from 0 to {LARGEST_MAGNITUDE}, got {augmentation.randaugment}"
        )
    require_positive(augmentation, "randaugment_layers")


def require_positive(config: object, *names: str) -> None:
    """Raise ValueError unless each of the fields is positive, nan excluded."""
    for name in names:
        if not 0 < getattr(config, name) < math.inf:
            raise ValueError(f"{name} must be positive, got {getattr(config, name)}")


def require_not_negative(config: object, *names: str) -> None:
    """Raise ValueError unless each of the fields is 0 or more."""
    for name in names:
        if not 0 <= getattr(config, name) < math.inf:
            raise ValueError(f"{name} must be 0 or more, got {getattr(config, name)}")


def require_shares(config: object, *names: str) -> None:
    """Raise ValueError unless each of the fields is from 0 to below 1."""
    for name in names:
        if not 0 <= getattr(config, name) < 1:
            raise ValueError(f"{name} must be from 0 to below 1, got {getattr(config, name)}")


def require_one_of(config: object, name: str, *allowed: str) -> None:
    """Raise ValueError unless the field holds one of the words."""
    if getattr(config, name) not in allowed:
        raise ValueError(
            f"{name} must be one of {', '.join(allowed)}, got {getattr(config, name)!r}"
        )
