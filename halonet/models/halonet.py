"""The network: stem, four stages of bottlenecks, classifier."""

import copy
import math
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from halonet.layers.attention import ABSOLUTE_VECTORS, RELATIVE_TABLES, HaloAttention
from halonet.layers.bottleneck import Bottleneck, average_pixels, make_activation
from halonet.layers.fusion import fuse_bottleneck, fuse_sequential
from halonet.layers.normalization import (
    ChannelShift,
    NormalizedSequence,
    keep_running_statistics,
)
from halonet.layers.pointwise import PointwiseConvolution
from halonet.models.classifier import (
    SMALLEST_IMAGE,
    STRIDES,
    Classifier,
    LabelTask,
    Preprocessing,
)
from halonet.models.variants import Variant


class HaloNet(Classifier):
    """A ResNet whose 3x3 convolutions are halo attention (paper table 2).

    Takes images [batch, in_channels, height, width] of any size and aspect from 32 pixels on.

    Args:
        variant: the architecture.
        num_classes: width of the classifier; 0 for none (pooled features are returned).
        in_channels: channels of the images.
        backend: name of the operator's backend in every layer; None takes the fastest.

    Attributes: as `Classifier` has them.

    Raises:
        ValueError: an option of the variant that doesn't fit; the message names it.
    """

    classifier_name: ClassVar[str] = "classifier"
    final_name: ClassVar[str] = "final"
    variant: Variant

    def __init__(
        self,
        variant: Variant,
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        _check_variant(variant)
        if num_classes < 0:
            raise ValueError(f"num_classes must be 0 or more, got {num_classes}")
        if in_channels < 1:
            raise ValueError(f"in_channels must be positive, got {in_channels}")
        self.variant = variant
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.class_names: tuple[str, ...] | None = None
        self.task: LabelTask = "multiclass"
        self.preprocessing = Preprocessing(variant.image_size)
        if in_channels != 3:
            neutral = (0.5,) * in_channels
            self.preprocessing = Preprocessing(variant.image_size, mean=neutral, std=neutral)
        self.gradient_checkpointing = False

        self.stem = make_stem(variant, in_channels)
        channels = variant.stem_width
        stages = []
        self.feature_channels = {}
        depths = iter(_stochastic_depths(variant))
        for stage, stride in enumerate(STRIDES):
            bottlenecks = []
            for position in range(variant.layers[stage]):
                downsample = 2 if stage > 0 and position == 0 else 1
                bottlenecks.append(
                    make_bottleneck(variant, stage, channels, downsample, next(depths), backend)
                )
                channels = round(variant.base_width * 2**stage * variant.bottleneck_ratio)
            stages.append(nn.Sequential(*bottlenecks))
            self.feature_channels[stride] = channels
        self.stages = nn.Sequential(*stages)

        if variant.final_width is None:
            self.final: nn.Module = nn.Identity()
        else:
            self.final = NormalizedSequence(
                PointwiseConvolution(channels, variant.final_width),
                nn.BatchNorm2d(variant.final_width),
                make_activation(variant.activation),
            )
            channels = variant.final_width
        self.num_features = channels
        self.dropout = nn.Dropout(variant.dropout)
        self.classifier = make_classifier(channels, num_classes)
        self.reset_parameters()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameters belong to which depth, for learning rates that decay by layer.

        As timm reads it; `coarse` takes a stage as one layer.
        """
        blocks = r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"
        return {"stem": r"^stem", "blocks": [(blocks, None), (r"^final", (99999,))]}

    def reset_parameters(self) -> None:
        """Initialize the weights; each bottleneck starts as its shortcut (last gamma 0)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, HaloAttention):
                module.reset_parameters()
            elif isinstance(module, Bottleneck):
                nn.init.zeros_(module.expand_norm.get_parameter("weight"))
        if isinstance(self.classifier, nn.Linear):
            nn.init.normal_(self.classifier.weight, std=0.01)
            nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [batch, num_classes] of images [batch, in_channels, height, width]."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """The last map, [batch, num_features, ceil(height / 32), ceil(width / 32)]."""
        maps = self.stem(self._check_images(images))
        for stage in self.stages:
            maps = self._run_stage(stage, maps)
        return self.final(maps)

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits [batch, num_classes] of a last map, or with `pre_logits` its pooled features."""
        features = self.dropout(average_pixels(maps))
        return features if pre_logits else self.classifier(features)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by one of `num_classes` classes, all zeros; 0 for none."""
        if num_classes < 0:
            raise ValueError(f"num_classes must be 0 or more, got {num_classes}")
        reference = next(self.parameters())
        self.num_classes = num_classes
        self.class_names = None
        self.classifier = make_classifier(self.num_features, num_classes).to(reference)
        for parameter in self.classifier.parameters():
            nn.init.zeros_(parameter)

    def remove_head(self) -> None:
        """Leave out the classifier and what stands right before it, for a backbone."""
        self.reset_classifier(0)
        self.final = nn.Identity()

    def set_gradient_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory in training: keep only the bottlenecks' inputs."""
        self.gradient_checkpointing = enable

    def fuse(self) -> "HaloNet":
        """A copy for inference, in eval mode, with every batch norm folded into its neighbours.

        Its logits equal this model's in eval mode, up to rounding. It is neither for further
        training nor for `save_model`. Activations are written over the maps that they are of:
        a forward hook that keeps a map must clone it.

        Raises:
            TypeError: a norm is no batch norm with running statistics.
        """
        fused = copy.deepcopy(self).eval().requires_grad_(False)
        for part in (fused.stem, fused.final):
            if isinstance(part, nn.Sequential):
                fuse_sequential(part)
        for module in fused.stages.modules():
            if isinstance(module, Bottleneck) and not isinstance(module.reduce_norm, ChannelShift):
                fuse_bottleneck(module)
        return fused.requires_grad_(False)

    def no_weight_decay(self) -> set[str]:
        """Names of the relative tables and absolute vectors, which aren't decayed."""
        positions = RELATIVE_TABLES + ABSOLUTE_VECTORS
        return {name for name, _ in self.named_parameters() if name.endswith(positions)}

    def _run_stage(self, stage: nn.Module, maps: Tensor) -> Tensor:
        if not (self.gradient_checkpointing and torch.is_grad_enabled()):
            return stage(maps)
        for bottleneck in stage.children():
            options: dict[str, Any] = {}
            # torch.compile recomputes parts of a graph that updates the statistics once.
            if not torch.compiler.is_compiling():
                options["context_fn"] = partial(_recomputation_contexts, bottleneck)
            maps = checkpoint(bottleneck, maps, use_reentrant=False, **options)
        return maps


class PatchStem(NormalizedSequence):
    """Linear projections of 4x4 patches (paper section 4.4); images are padded to whole ones."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name in torch
        below, right = -input.shape[2] % 4, -input.shape[3] % 4
        return super().forward(F.pad(input, (0, right, 0, below)))


def make_stem(variant: Variant, in_channels: int) -> nn.Sequential:
    """Images to maps at 1/4 of their size, of the variant's `stem_width`."""
    width = variant.stem_width
    if variant.stem == "patch":
        return PatchStem(
            nn.Conv2d(in_channels, width, 4, stride=4, bias=False),
            nn.BatchNorm2d(width),
            make_activation(variant.activation),
        )
    return NormalizedSequence(
        nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(width),
        make_activation(variant.activation),
        nn.MaxPool2d(3, stride=2, padding=1),
    )


def make_bottleneck(
    variant: Variant,
    stage: int,
    in_channels: int,
    stride: int,
    stochastic_depth: float,
    backend: str | None,
) -> Bottleneck:
    """One residual unit of a stage, 0 to 3; the first of a stage may change width and stride."""
    width = variant.base_width * 2**stage
    spatial: nn.Module
    if variant.spatial[stage] == "convolution":
        spatial_channels = width
        spatial = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
    else:
        spatial_channels = round(width * variant.value_ratio)
        # The map that enters: a stage's first unit reads the map of the stage before.
        map_side = -(-variant.image_size * stride // STRIDES[stage])
        spatial = HaloAttention(
            width,
            spatial_channels,
            heads=variant.heads[stage],
            query_key_channels=round(width * variant.query_key_ratio),
            block_size=variant.block_size,
            halo_size=variant.halo_size,
            stride=stride,
            kernel_size=variant.kernel_size,
            position=variant.position,
            map_size=(map_side, map_side),
            mask_padding=variant.mask_padding,
            backend=backend,
        )
    return Bottleneck(
        in_channels,
        width,
        round(width * variant.bottleneck_ratio),
        spatial=spatial,
        spatial_channels=spatial_channels,
        stride=stride,
        activation=variant.activation,
        squeeze_excitation=variant.squeeze_excitation[stage],
        stochastic_depth=stochastic_depth,
    )


def make_classifier(features: int, num_classes: int) -> nn.Module:
    """A linear layer, or nothing for no classes."""
    return nn.Linear(features, num_classes) if num_classes else nn.Identity()


def _check_variant(variant: Variant) -> None:
    if variant.stem not in ("convolution", "patch"):
        raise ValueError(f"stem must be convolution or patch, got {variant.stem!r}")
    for field in ("layers", "heads", "spatial", "squeeze_excitation"):
        if len(getattr(variant, field)) != len(STRIDES):
            raise ValueError(f"{field} must have four entries, got {getattr(variant, field)}")
    unknown = set(variant.spatial) - {"attention", "convolution"}
    if unknown:
        raise ValueError(f"spatial must be attention or convolution, got {unknown.pop()!r}")
    if not SMALLEST_IMAGE <= variant.image_size < math.inf:
        raise ValueError(
            f"image_size must be {SMALLEST_IMAGE} pixels or more, got {variant.image_size}"
        )
    positive = ("base_width", "stem_width")
    for field in (*positive, "value_ratio", "bottleneck_ratio", "query_key_ratio"):
        if not 0 < getattr(variant, field) < math.inf:
            raise ValueError(f"{field} must be positive, got {getattr(variant, field)}")
    if variant.final_width is not None and variant.final_width < 1:
        raise ValueError(f"final_width must be positive or None, got {variant.final_width}")
    if min(variant.layers) < 1:
        raise ValueError(f"layers must be 1 or more in each stage, got {variant.layers}")
    if not 0 <= variant.dropout < 1:
        raise ValueError(f"dropout must be from 0 to below 1, got {variant.dropout}")


def _recomputation_contexts(
    bottleneck: nn.Module,
) -> tuple[AbstractContextManager, AbstractContextManager]:
    """Contexts of a checkpointed bottleneck's forward pass and of its recomputation."""
    return nullcontext(), keep_running_statistics(bottleneck)


def _stochastic_depths(variant: Variant) -> list[float]:
    """Probabilities of the bottlenecks, rising linearly from 0 to the variant's."""
    count = sum(variant.layers)
    return [variant.stochastic_depth * index / max(count - 1, 1) for index in range(count)]
