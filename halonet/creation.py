"""Models by name: our family, and timm's HaloNets with our operator inside."""

from typing import Any, overload

from torch import nn

from halonet.integrations.timm_checkpoints import (
    TIMM_CHECKPOINTS,
    TimmCheckpoint,
    create_timm_checkpoint,
)
from halonet.models.halonet import HaloNet, get_variant
from halonet.models.variants import VARIANTS


@overload
def create_model(
    name: TimmCheckpoint,
    *,
    pretrained: bool = False,
    num_classes: int = 1000,
    in_channels: int = 3,
    backend: str | None = None,
    **options: Any,
) -> nn.Module: ...
@overload
def create_model(
    name: str,
    *,
    pretrained: bool = False,
    num_classes: int = 1000,
    in_channels: int = 3,
    backend: str | None = None,
    **options: Any,
) -> HaloNet: ...
def create_model(
    name: str,
    *,
    pretrained: bool = False,
    num_classes: int = 1000,
    in_channels: int = 3,
    backend: str | None = None,
    **options: Any,
) -> nn.Module:
    """Create a model of the family, or one of timm's with its weights if wanted.

    Args:
        name: one of `list_models()`, or a HaloNet of timm's that has public weights: halonet26t,
            halonet50ts, sehalonet33ts, eca_halonext26ts, haloregnetz_b, halo2botnet50ts_256,
            lamhalobotnet50ts_256. Those are timm's own models with our operator inside.
        pretrained: load timm's weights, through its own hub code. The family has none.
        num_classes: width of the classifier; 0 for none.
        in_channels: channels of the images.
        backend: name of the operator's backend; None takes the fastest.
        **options: for a model of the family, fields of `Variant` to change, such as `block_size`,
            `halo_size`, `activation`, `dropout`, `stochastic_depth`, `kernel_size`, `position`,
            `image_size`; `squeeze_excitation` takes one bool for all stages, or four. For one of
            timm's, options of `timm.create_model`.

    Raises:
        ValueError: an unknown name or option, or a value that doesn't fit.
        ModuleNotFoundError: a model of timm's without timm.

    Example:
        >>> model = halonet.create_model("halonet_h1", num_classes=10, block_size=4, halo_size=1)
        >>> model = halonet.create_model("halonet50ts", pretrained=True)
    """
    if name in TIMM_CHECKPOINTS:
        return create_timm_checkpoint(
            name,
            pretrained=pretrained,
            num_classes=num_classes,
            in_channels=in_channels,
            backend=backend,
            **options,
        )
    if name not in VARIANTS:
        names = ", ".join([*VARIANTS, *TIMM_CHECKPOINTS])
        raise ValueError(f"model must be one of {names}, got {name!r}")
    if pretrained:
        raise ValueError(
            f"pretrained must be False for {name}: only {', '.join(TIMM_CHECKPOINTS)} have weights"
        )
    return HaloNet(
        get_variant(name, **options),
        num_classes=num_classes,
        in_channels=in_channels,
        backend=backend,
    )
