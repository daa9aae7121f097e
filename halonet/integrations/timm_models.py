"""The family in timm: importing this module registers every variant with `timm.create_model`.

The names are ours with the prefix `paper_`, as paper_halonet_h1; timm has a halonet_h1 of its own.
timm loads weights of `halonet.save_model`, and `save_model` saves these models. timm reads weights
without the description in their file: that options such as `activation` are those that the weights
were trained with isn't checked, as `halonet.load_weights` does.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from halonet.layers.attention import HaloAttention
from halonet.layers.timm_attention import import_timm
from halonet.models.classifier import STRIDES, Preprocessing
from halonet.models.halonet import HaloNet
from halonet.models.pretrained import fit_tables
from halonet.models.variants import VARIANTS, Variant, get_variant

import_timm()

from timm.layers import SelectAdaptivePool2d  # noqa: E402 - after the check above
from timm.models import (  # noqa: E402
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
    register_notrace_module,
)
from timm.models._features import feature_take_indices  # noqa: E402

PREFIX = "paper_"
POOLS = ("avg", "max", "avgmax", "")


class TimmHaloNet(HaloNet):
    """A `HaloNet` with the interface that timm expects of a model.

    Args:
        variant: the architecture.
        num_classes: width of the classifier; 0 for none.
        in_chans: channels of the images.
        global_pool: "avg", "max", "avgmax", or "" for none: the classifier sees each pixel.
        output_stride: 32; attention isn't dilated.
        img_size: pixels on a side of the images, for absolute positions; any size runs.
        drop_rate: dropout before the classifier; None means the variant's.
        drop_path_rate: stochastic depth; None means the variant's.
        device: where the parameters are made.
        dtype: their type.
        backend: name of the operator's backend; None takes the fastest.
        **changes: fields of `Variant` to change, such as `block_size`.

    Raises:
        ValueError: an option that doesn't fit; the message names it.
        TypeError: an unknown option.
    """

    pretrained_cfg: Any = None  # timm sets its own

    def __init__(
        self,
        variant: Variant,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        output_stride: int = 32,
        img_size: int | Sequence[int] | None = None,
        drop_rate: float | None = None,
        drop_path_rate: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        backend: str | None = None,
        **changes: Any,
    ) -> None:
        if output_stride != STRIDES[-1]:
            raise ValueError(
                f"output_stride must be {STRIDES[-1]}, attention isn't dilated; got {output_stride}"
            )
        _check_pool(global_pool)
        if img_size is not None:
            changes["image_size"] = _one_side(img_size)
        if drop_rate is not None:
            changes["dropout"] = float(drop_rate)
        if drop_path_rate is not None:
            changes["stochastic_depth"] = float(drop_path_rate)
        unknown = sorted(changes.keys() - Variant.__dataclass_fields__.keys())
        if unknown:
            raise TypeError(f"{PREFIX}{variant.name} takes no option {unknown[0]!r}")
        with torch.device(torch.get_default_device() if device is None else device):
            super().__init__(
                get_variant(variant.name, **changes),
                num_classes=num_classes,
                in_channels=in_chans,
                backend=backend,
            )
        self.to(dtype=dtype)
        self.in_chans = in_chans
        self.drop_rate = self.variant.dropout
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
        self.head_hidden_size = self.num_features
        self.feature_info = _feature_info(self)

    def forward_head(self, maps: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits [batch, num_classes] of a last map, or with `pre_logits` its pooled features.

        Without pooling they are [batch, ..., height, width].
        """
        features = self.dropout(self.global_pool(maps))
        if pre_logits:
            return features
        return self.classifier(features.movedim(1, -1)).movedim(-1, 1)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by one of all zeros; 0 for none. None keeps the pooling."""
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        _check_pool(pool)
        super().reset_classifier(num_classes)
        self.classifier.train(self.training)
        if global_pool is not None:
            self.global_pool = SelectAdaptivePool2d(pool_type=pool, flatten=bool(pool))
            self.global_pool.train(self.training)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The last map and the maps of `feature_info` at `indices`.

        Args:
            x: images [batch, in_chans, height, width].
            indices: of `feature_info`, negative ones from its end; a number for the last so many;
                None for all.
            norm: has no effect; every map is normalized.
            stop_early: leave out the stages after the last map wanted, which is returned as last.
            output_fmt: "NCHW".
            intermediates_only: return the maps alone.
        """
        if str(output_fmt).rpartition(".")[2] != "NCHW":
            raise ValueError(f"output_fmt must be NCHW, got {output_fmt}")
        wanted, last = _places(len(self.feature_info), indices)
        maps, found = self._check_images(x), []
        in_stem = len(self.feature_info) - len(STRIDES)  # 1 where a map comes before the pooling
        if in_stem:
            maps = self.stem[:3](maps)
            if 0 in wanted:
                found.append(maps)
        maps = self.stem[3 * in_stem :](maps)
        count = last + 1 - in_stem if stop_early else len(self.stages)
        for place, stage in enumerate(self.stages[:count], in_stem):
            maps = self._run_stage(stage, maps)
            if place in wanted:
                found.append(maps)
        if intermediates_only:
            return found
        return self.final(maps) if count >= len(self.stages) else maps, found

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Remove what the maps at `indices` don't need; returns them counted from the start."""
        wanted, last = _places(len(self.feature_info), indices)
        stages = last + 1 - (len(self.feature_info) - len(STRIDES))
        pruned = stages < len(self.stages)
        self.stages = self.stages[:stages]
        if not stages and self.feature_info[0]["module"] == "stem.2":
            self.stem = self.stem[:3]
        if pruned or prune_head:
            self.final = nn.Identity()
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
            self.reset_classifier(0, "")
        return wanted

    def _check_images(self, images: Tensor) -> Tensor:
        # torch.fx traces the model without an image.
        return images if isinstance(images, Proxy) else super()._check_images(images)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """timm's name of `set_gradient_checkpointing`."""
        self.set_gradient_checkpointing(enable)


def _places(count: int, indices: int | Sequence[int] | None) -> tuple[list[int], int]:
    """Indices counted from the start, and the largest of them."""
    given = indices if indices is None or isinstance(indices, int) else list(indices)
    return feature_take_indices(count, given)


def _check_pool(global_pool: str) -> None:
    if global_pool not in POOLS:
        names = ", ".join(map(repr, POOLS))
        raise ValueError(f"global_pool must be one of {names}, got {global_pool!r}")


def _one_side(img_size: int | Sequence[int]) -> int:
    sides = {img_size} if isinstance(img_size, int) else set(img_size)
    if len(sides) != 1 or min(sides) < 1:
        raise ValueError(f"img_size must be one positive side of a square, got {img_size}")
    return sides.pop()


def _feature_info(model: HaloNet) -> list[dict[str, Any]]:
    info = [
        {"num_chs": channels, "reduction": stride, "module": f"stages.{stage}"}
        for stage, (stride, channels) in enumerate(model.feature_channels.items())
    ]
    if model.variant.stem == "convolution":
        info.insert(0, {"num_chs": model.variant.stem_width, "reduction": 2, "module": "stem.2"})
    return info


def _default_cfg(variant: Variant) -> dict[str, Any]:
    """What timm's data pipeline and its loading of weights read."""
    preprocessing = Preprocessing(variant.image_size)
    side = -(-variant.image_size // STRIDES[-1])
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, variant.image_size, variant.image_size),
        "min_input_size": (3, 32, 32),
        "fixed_input_size": False,
        "pool_size": (side, side),
        "crop_pct": preprocessing.crop_share,
        "interpolation": "bicubic",
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "first_conv": "stem.0",
        "classifier": "classifier",
        "paper_ids": "arXiv:2103.12731",
        "paper_name": "Scaling Local Self-Attention for Parameter Efficient Visual Backbones",
        "origin_url": "https://arxiv.org/abs/2103.12731",
    }


def _make_entry(variant: Variant) -> Callable[..., nn.Module]:
    """The function that timm calls to create a model."""

    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        maps = range(5 if variant.stem == "convolution" else 4)
        return build_model_with_cfg(
            partial(TimmHaloNet, variant),
            PREFIX + variant.name,
            pretrained,
            # Its own loop over the stages: timm's other wrappers take the stem apart.
            feature_cfg={
                "feature_cls": "getter",
                "out_indices": tuple(maps),
                "flatten_sequential": True,
            },
            pretrained_filter_fn=fit_tables,
            **options,
        )

    create.__name__ = create.__qualname__ = PREFIX + variant.name
    create.__doc__ = f"{variant.name} of halonet ({variant.source})."
    return create


# The operator's checks read shapes: torch.fx takes the layer as one node.
register_notrace_module(HaloAttention)

default_cfgs = generate_default_cfgs(
    {PREFIX + variant.name: _default_cfg(variant) for variant in VARIANTS.values()}
)
for _variant in VARIANTS.values():
    register_model(_make_entry(_variant))
