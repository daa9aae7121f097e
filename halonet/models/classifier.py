"""What every classifier has, the family's and timm's: preprocessing, classes, stages to take."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

STRIDES = (4, 8, 16, 32)
SMALLEST_IMAGE = 32
PARTS = ("stem", *(f"stage{number + 1}" for number in range(len(STRIDES))), "final")

# One label for each image, or any number.
LabelTask = Literal["multiclass", "multilabel"]


@dataclass(frozen=True)
class Preprocessing:
    """What an image goes through before it reaches the model."""

    image_size: int  # pixels of the square crop
    crop_share: float = 0.95  # of the resized image's short side that the crop keeps
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # by channel, of values from 0 to 1
    std: tuple[float, ...] = (0.229, 0.224, 0.225)


class Classifier(nn.Module):
    """A stem, four stages and a classifier, as `HaloNet` and `TimmHaloNet` have them.

    Takes images [batch, in_channels, height, width], and returns logits [batch, num_classes].

    Attributes:
        classifier_name: name of the last linear layer among the modules.
        final_name: name of what stands between the stages and the pooling.
        variant: the architecture, a `Variant` or a `TimmVariant`.
        num_classes: width of the classifier; 0 for none.
        in_channels: channels of the images.
        num_features: channels of `forward_features`.
        feature_channels: channels of the map at each stride, {4: .., 8: .., 16: .., 32: ..}.
        preprocessing: what its images go through; saved with the weights.
        takes_photos: it prepares its images itself, bytes of any size, as some exported files do.
        class_names: names of the classes in order, or None; saved with the weights.
        task: multiclass, of one class for each image (softmax), or multilabel, of any number
            (sigmoid); saved with the weights.
    """

    classifier_name: ClassVar[str]
    final_name: ClassVar[str]
    takes_photos: ClassVar[bool] = False
    variant: Any  # a Variant or TimmVariant; each kind of model says which
    num_classes: int
    in_channels: int
    num_features: int
    feature_channels: dict[int, int]
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None
    task: LabelTask
    stem: Any
    stages: nn.Sequential

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The modules before the classifier by the names in `PARTS`, in order."""
        modules = (self.stem, *self.stages, self.get_submodule(self.final_name))
        return dict(zip(PARTS, modules, strict=True))

    @property
    def only_size(self) -> tuple[int, int] | None:
        """Height and width of the images, in pixels, where it takes no others."""
        return None

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """The preprocessing by timm's names, as `timm.data.resolve_model_data_config` reads it."""
        size = self.preprocessing.image_size
        return {
            "num_classes": self.num_classes,
            "input_size": (self.in_channels, size, size),
            "interpolation": "bicubic",
            "crop_pct": self.preprocessing.crop_share,
            "mean": self.preprocessing.mean,
            "std": self.preprocessing.std,
        }

    def forward_features(self, images: Tensor, /) -> Tensor:
        """The last map, [batch, num_features, ceil(height / 32), ceil(width / 32)]."""
        raise NotImplementedError

    def forward_head(self, maps: Tensor, /, pre_logits: bool = False) -> Tensor:
        """Logits [batch, num_classes] of a last map, or with `pre_logits` its pooled features."""
        raise NotImplementedError

    def feature_maps(
        self, images: Tensor, strides: int | Iterable[int] = STRIDES
    ) -> dict[int, Tensor]:
        """The stages' maps at the strides asked for, for a feature pyramid.

        The map at stride s is [batch, feature_channels[s], ceil(height / s), ceil(width / s)];
        stages beyond the largest stride asked for don't run.
        """
        wanted = (strides,) if isinstance(strides, int) else tuple(strides)
        unknown = [stride for stride in wanted if stride not in STRIDES]
        if unknown or not wanted:
            raise ValueError(f"strides must be some of {STRIDES}, got {wanted}")
        maps = self.stem(self._check_images(images))
        found = {}
        for stride, stage in zip(STRIDES, self.stages, strict=True):
            if stride > max(wanted):
                break
            maps = self._run_stage(stage, maps)
            if stride in wanted:
                found[stride] = maps
        return {stride: found[stride] for stride in wanted}

    def get_classifier(self) -> nn.Module:
        """The last linear layer, or an identity where num_classes is 0."""
        return self.get_submodule(self.classifier_name)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by one of `num_classes` classes, all zeros; 0 for none."""
        raise NotImplementedError

    def remove_head(self) -> None:
        """Leave out the classifier and what stands right before it, for a backbone."""
        raise NotImplementedError

    def fuse(self) -> Self:
        """A copy for inference, in eval mode, with batch norms folded into their neighbours.

        Its logits equal this model's in eval mode, up to rounding. It is neither for further
        training nor for `save_model`.
        """
        raise NotImplementedError

    def use_channels_last(self) -> Self:
        """Lay the weights of 2d convolutions out channels last, in place; returns the model.

        `to(memory_format=...)` refuses a model that has a 3d convolution too, as a lambda layer.
        """
        for parameter in self.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        return self

    def _check_images(self, images: Tensor) -> Tensor:
        if not isinstance(images, Tensor):
            raise TypeError(f"images must be a tensor, got {type(images).__name__}")
        if images.dim() != 4 or images.shape[1] != self.in_channels:
            raise ValueError(
                f"images must have shape [batch, {self.in_channels}, height, width], "
                f"got {list(images.shape)}"
            )
        if min(images.shape[2:]) < SMALLEST_IMAGE:
            raise ValueError(
                f"images must have {SMALLEST_IMAGE} pixels or more on a side, "
                f"got {list(images.shape)}"
            )
        weight = next(self.parameters(), None)
        is_double = images.dtype is torch.float64 and weight is not None
        if not images.is_floating_point() or (is_double and weight.dtype is not torch.float64):
            expected = "floating-point numbers" if weight is None else weight.dtype
            raise ValueError(
                f"images must be {expected}, as the model's weights, got {images.dtype}"
            )
        return images

    def _run_stage(self, stage: nn.Module, maps: Tensor) -> Tensor:
        return stage(maps)


def name_classes(model: Classifier) -> tuple[str, ...]:
    """The names of a model's classes, their numbers where it has none."""
    return model.class_names or tuple(map(str, range(model.num_classes)))
