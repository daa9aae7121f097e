"""timm's HaloNets as classifiers of ours: timm's own class of models, with our operator inside."""

import copy
from typing import Any, ClassVar

import timm
from timm.layers import BatchNormAct2d, ConvNormAct
from timm.models.byobnet import ByobNet
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from halonet.layers.timm_attention import (
    TIMM_TABLES,
    TimmHaloAttention,
    replace_timm_layers,
)
from halonet.models.classifier import STRIDES, Classifier, Preprocessing
from halonet.models.timm_variants import TIMM_CHECKPOINTS
from halonet.models.variants import TimmVariant


class ByobHaloNet(ByobNet, Classifier):
    """One of timm's HaloNets; made by `make_byob_halonet`, with timm's state-dict keys.

    Attributes: as `Classifier` and timm's `ByobNet` have them.
    """

    classifier_name: ClassVar[str] = "head.fc"
    final_name: ClassVar[str] = "final_conv"
    variant: TimmVariant

    @property
    def only_size(self) -> tuple[int, int] | None:
        """The image size, where the last attention has a table of its map's size."""
        if TIMM_CHECKPOINTS[self.variant.architecture].any_size:
            return None
        return self.variant.image_size, self.variant.image_size

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """timm's own, with the preprocessing and classes as they are now."""
        return vars(self)["pretrained_cfg"] | super().pretrained_cfg

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, num_classes] of images [batch, in_channels, height, width]."""
        return super().forward(self._check_images(x))

    def reset_classifier(self, num_classes: int, *arguments: Any, **options: Any) -> None:
        """Replace the classifier by one of `num_classes` classes, all zeros; 0 for none.

        Takes more of timm's arguments.
        """
        if num_classes < 0:
            raise ValueError(f"num_classes must be 0 or more, got {num_classes}")
        super().reset_classifier(num_classes, *arguments, **options)
        self.class_names = None
        for parameter in self.get_classifier().parameters():
            nn.init.zeros_(parameter)

    def remove_head(self) -> None:
        """Leave out the classifier and what stands right before it, for a backbone.

        Raises:
            ValueError: the model takes images of one size only.
        """
        if self.only_size is not None:
            raise ValueError(
                f"{self.variant.name} can't be a backbone: its last attention takes images of "
                f"{self.variant.image_size} px only"
            )
        self.reset_classifier(0)
        self.final_conv = nn.Identity()

    def no_weight_decay(self) -> set[str]:
        """Names of the relative tables, which aren't decayed."""
        return {name for name, _ in self.named_parameters() if name.endswith(TIMM_TABLES)}

    def fuse(self) -> "ByobHaloNet":
        """A copy for inference, in eval mode, with batch norms folded into the convolutions.

        Norms right after attention stay: values outside of the map count as zeros, so that they
        can't be shifted before.
        """
        fused = copy.deepcopy(self).eval().requires_grad_(False)
        for module in list(fused.modules()):
            if isinstance(module, ConvNormAct) and isinstance(module.bn, BatchNormAct2d):
                module.conv = fuse_conv_bn_eval(module.conv, module.bn)
                module.bn = module.bn.act
        return fused.requires_grad_(False)

    def _check_images(self, images: Tensor) -> Tensor:
        super()._check_images(images)
        if self.only_size not in (None, tuple(images.shape[2:])):
            side = self.variant.image_size
            raise ValueError(
                f"images of {self.variant.name} must have {side} x {side} pixels, for which its "
                f"last attention was made, got {list(images.shape)}"
            )
        return images


def make_byob_halonet(
    variant: TimmVariant,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
    backend: str | None = None,
    pretrained: bool = False,
    **options: Any,
) -> ByobHaloNet:
    """One of timm's HaloNets with our operator, and fresh weights or timm's.

    Args:
        variant: the architecture.
        num_classes: width of the classifier; 0 for none.
        in_channels: channels of the images.
        backend: name of the operator's backend; None takes the fastest.
        pretrained: load timm's weights by timm, which takes its own block and halo.
        **options: of `timm.create_model`, that change no architecture, such as `cache_dir`.

    Raises:
        ValueError: an unknown backend, or an option that doesn't fit.
    """
    checkpoint = TIMM_CHECKPOINTS[variant.architecture]
    if not checkpoint.any_size:
        if variant.image_size < STRIDES[-1] or variant.image_size % STRIDES[-1]:
            raise ValueError(
                f"image_size of {variant.name} must be a multiple of {STRIDES[-1]}, "
                f"got {variant.image_size}"
            )
        options["img_size"] = variant.image_size
    model = timm.create_model(
        variant.architecture,
        pretrained=pretrained,
        num_classes=num_classes,
        in_chans=in_channels,
        drop_rate=variant.dropout,
        drop_path_rate=variant.stochastic_depth,
        **options,
    )
    replace_timm_layers(model, backend=backend)
    # timm's function makes a ByobNet. A model around it would have other state-dict keys.
    model.__class__ = ByobHaloNet
    assert isinstance(model, ByobHaloNet)
    model.variant = variant
    model.in_channels = in_channels
    model.class_names = None
    model.task = "multiclass"
    model.feature_channels = {
        stage["reduction"]: stage["num_chs"] for stage in model.feature_info[1:-1]
    }
    model.feature_channels[STRIDES[-1]] = _count_channels(model.stages[-1])
    stated: dict[str, Any] = vars(model)["pretrained_cfg"]
    neutral = (0.5,) * in_channels
    model.preprocessing = Preprocessing(
        variant.image_size,
        crop_share=stated["crop_pct"],
        mean=stated["mean"] if in_channels == 3 else neutral,
        std=stated["std"] if in_channels == 3 else neutral,
    )
    change_windows(model, variant)
    return model


def change_windows(model: nn.Module, variant: TimmVariant) -> None:
    """Give every halo attention the block and halo that a variant has, where it has them."""
    if variant.block_size is None and variant.halo_size is None:
        return
    for module in model.modules():
        if isinstance(module, TimmHaloAttention):
            module.change_window(
                variant.block_size or module.block_size,
                module.halo_size if variant.halo_size is None else variant.halo_size,
            )


def fit_timm_tensors(
    tensors: dict[str, Tensor], stored: TimmVariant, model: ByobHaloNet
) -> dict[str, Tensor]:
    """A state dict of timm's with tables for the block and halo of a model, and its channels."""
    wanted = model.variant
    fitted = dict(tensors)
    if (stored.block_size, stored.halo_size) != (wanted.block_size, wanted.halo_size):
        source = make_byob_halonet(stored, num_classes=0, in_channels=model.in_channels)
        held = source.state_dict()
        fitting = {
            name: tensor
            for name, tensor in tensors.items()
            if name in held and held[name].shape == tensor.shape
        }
        source.load_state_dict(fitting, strict=False)
        change_windows(source, wanted)
        changed = source.state_dict()
        fitted |= {name: changed[name] for name in fitting if name.endswith(TIMM_TABLES)}
    first = vars(model)["pretrained_cfg"]["first_conv"] + ".weight"
    if first in fitted and fitted[first].shape[1] != model.in_channels:
        fitted[first] = timm.models.adapt_input_conv(model.in_channels, fitted[first])
    return fitted


def _count_channels(stage: nn.Module) -> int:
    """Channels of the map that a stage returns."""
    last = [module for module in stage.modules() if isinstance(module, nn.Conv2d)]
    return last[-1].out_channels
