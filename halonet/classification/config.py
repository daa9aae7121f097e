"""The configuration of a classifier's training: its fields, and what they may hold."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from halonet.data.augmentation import LARGEST_MAGNITUDE, Augmentation
from halonet.models.classifier import PARTS, SMALLEST_IMAGE, LabelTask
from halonet.training.config import (
    RunConfig,
    check_run_config,
    require_not_negative,
    require_positive,
    require_shares,
)

if TYPE_CHECKING:
    from halonet.data.splits import LabelledImages


@dataclass(frozen=True)
class TrainingConfig(RunConfig):
    """The configuration of a classifier's training, with the fields of `RunConfig`.

    Attributes:
        task: multiclass, with one label for each image, or multilabel, with any number.
        data: elpv, folder:PATH, csv:FILE, shards:PATH, hf:NAME, cifar10, flowers102 or oxford_pets.
        data_root: where downloaded data sets and shards lie.
        validation_share: share held out of data that has no held-out part.
        fold: in place of a share, the fold to hold out, as 2/5; the five part the images.
        fold_seed: of the folds; the same one for each of them.
        group: a column of a CSV file, as the patient, whose values are never parted between
            training and held-out images.
        validation_data: held-out tar files as shards:TAR_FILES, where `data` is of tar files too.
        model: one of `halonet models`.
        in_channels: 3 for colour images, 1 for grey ones.
        image_size: pixels on a side of the images; None takes the model's own.
        central_crop_share: share of an image's short side that the central crop of held-out images
            keeps; None takes the model's own.
        augmentation: of training images.
        mixup: alpha of mixup, 0 for none.
        cutmix: alpha of CutMix, 0 for none; with mixup too, each batch takes one of them.
        label_smoothing: share of each label spread over all classes.
        class_weights: of the loss; balanced weighs each class by the inverse of its number of
            training images.
        focal_loss: gamma of the focal loss, where easy images count less; 0 for none, 2 is usual.
        freeze: parts that stay as they are, batch norm's statistics too, as stem,stage1; all trains
            the classifier alone, a linear probe.
        layer_decay: learning rate of each layer relative to the next one's, above 0 and at most 1.
        classifier_rate: learning rate of the classifier relative to that of the last layer before.
    """

    task: LabelTask = "multiclass"
    data: str = "elpv"
    data_root: str = "data"
    validation_share: float = 0.2
    fold: str | None = None
    fold_seed: int = 0
    group: str | None = None
    validation_data: str | None = None
    model: str = "halonet_tiny"
    in_channels: Literal[1, 3] = 3
    image_size: int | None = None
    central_crop_share: float | None = None
    augmentation: Augmentation = field(default_factory=Augmentation)
    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.1
    class_weights: Literal["none", "balanced"] = "none"
    focal_loss: float = 0.0
    freeze: str | None = None
    layer_decay: float = 1.0
    classifier_rate: float = 1.0

    def load_data(self, task: LabelTask, *, show_progress: bool = True) -> "LabelledImages":
        """Find the images; see `halonet.data.sources.load_data`.

        Args:
            task: of the labels; a checkpoint's may be another than the configuration's.
            show_progress: of a download.
        """
        from halonet.data.sources import load_data

        return load_data(
            self.data,
            task=task,
            data_root=self.data_root,
            validation_share=self.validation_share,
            validation_data=self.validation_data,
            fold=self.fold,
            fold_seed=self.fold_seed,
            group=self.group,
            show_progress=show_progress,
        )


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


def list_frozen(freeze: str | None) -> tuple[str, ...]:
    """The parts that `freeze` names, among those of `Classifier.parts`.

    Raises:
        ValueError: an unknown part.
    """
    if freeze is None:
        return ()
    if freeze == "all":
        return PARTS
    names = [name.strip() for name in freeze.split(",")]
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise ValueError(f"freeze must be all or some of {', '.join(PARTS)}, got {unknown[0]!r}")
    return tuple(names)


def check_config(config: TrainingConfig) -> None:
    """Raise ValueError for a value that no classifier's run can have; it names the field."""
    check_run_config(config)
    require_not_negative(config, "mixup", "cutmix", "focal_loss", "fold_seed")
    require_shares(config, "label_smoothing")
    require_positive(config, "layer_decay", "classifier_rate")
    if config.layer_decay > 1:
        raise ValueError(f"layer_decay must be at most 1, got {config.layer_decay}")
    list_frozen(config.freeze)
    if not 0 < config.validation_share < 1:
        raise ValueError(f"validation_share must be between 0 and 1, got {config.validation_share}")
    if config.fold is not None:
        from halonet.data.splits import parse_fold  # with Pillow, which --help does without

        parse_fold(config.fold)
    if config.image_size is not None and config.image_size < SMALLEST_IMAGE:
        raise ValueError(f"image_size must be {SMALLEST_IMAGE} or more, got {config.image_size}")
    if config.central_crop_share is not None and not 0 < config.central_crop_share <= 1:
        raise ValueError(
            f"central_crop_share must be above 0, at most 1, got {config.central_crop_share}"
        )
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
