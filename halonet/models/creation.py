"""Models by name: our family, and timm's HaloNets with our operator inside."""

import os
from numbers import Integral
from pathlib import Path
from typing import Any, overload

from torch import nn

from halonet.layers.timm_attention import import_timm, replace_timm_layers
from halonet.models.building import build_classifier
from halonet.models.classifier import Classifier
from halonet.models.halonet import HaloNet
from halonet.models.metadata import read_description
from halonet.models.pretrained import (
    LoadReport,
    ModelDescription,
    load_timm_weights,
    load_weights,
)
from halonet.models.timm_variants import TIMM_CHECKPOINTS, TimmName, find_timm_name
from halonet.models.variants import VARIANTS, TimmVariant, Variant, change_variant, get_variant
from halonet.ops.halo_attention import check_backend_name

# Models whose weights come with the package, and the terms of these.
PACKAGED = {"halonet_tiny": " (from Tiny ImageNet, whose terms are: research, not commercial)"}
# timm's names of what a variant has.
TIMM_OPTIONS = {"drop_rate": "dropout", "drop_path_rate": "stochastic_depth"}
OF_VARIANT = ("image_size", "block_size", "halo_size", "dropout", "stochastic_depth")


@overload
def create_model(
    name: TimmName,
    *,
    pretrained: bool | str | os.PathLike[str] = False,
    num_classes: int | None = None,
    in_channels: int = 3,
    backend: str | None = None,
    **options: Any,
) -> nn.Module: ...
@overload
def create_model(
    name: str,
    *,
    pretrained: bool | str | os.PathLike[str] = False,
    num_classes: int | None = None,
    in_channels: int = 3,
    backend: str | None = None,
    **options: Any,
) -> HaloNet: ...
def create_model(
    name: str,
    *,
    pretrained: bool | str | os.PathLike[str] = False,
    num_classes: int | None = None,
    in_channels: int = 3,
    backend: str | None = None,
    **options: Any,
) -> nn.Module:
    """Create a model of the family, or one of timm's, with its weights if wanted.

    Args:
        name: one of `list_models()`, or a HaloNet of timm's that has public weights: halonet26t,
            halonet50ts, sehalonet33ts, eca_halonext26ts, haloregnetz_b, halo2botnet50ts_256,
            lamhalobotnet50ts_256, with the weights' tag or the Hub's prefix if you like
            (hf-hub:timm/halonet50ts.a1h_in1k). Those are timm's own models with our operator
            inside.
        pretrained: load the model's public weights: those of halonet_tiny come with the package,
            timm's through its own hub code; or the weights in a file, of ours for a model of the
            family, of timm's for one of its models. Weights are fitted to other channels and
            options as `load_weights` does; a classifier of another width starts from zero.
        num_classes: width of the classifier; 0 for none. None takes that of the weights of ours,
            with their class names, and 1000 without them.
        in_channels: channels of the images.
        backend: name of the operator's backend; None takes the fastest.
        **options: fields of the architecture to change. Of the family those of `Variant`, such as
            `block_size`, `halo_size`, `activation`, `dropout`, `stochastic_depth`, `kernel_size`,
            `position`, `image_size`; `squeeze_excitation` takes one bool for all stages, or four.
            Of timm's `image_size`, `block_size`, `halo_size`, `dropout` and `stochastic_depth`.
            With any other option of `timm.create_model` what comes back is timm's own model with
            our operator, which `save_model` doesn't take.

    Raises:
        ValueError: an unknown name or option, or a value that doesn't fit.
        TypeError: a number of classes or channels that is none.
        ModuleNotFoundError: a model of timm's without timm.
        ConnectionError: the weights can't be fetched.

    Example:
        >>> model = halonet.create_model("halonet_h1", num_classes=10, block_size=4, halo_size=1)
        >>> model = halonet.create_model("halonet50ts", pretrained=True)
    """
    check_backend_name(backend)
    for option, number in (("num_classes", num_classes), ("in_channels", in_channels)):
        if not (isinstance(number, Integral) or (number is None and option == "num_classes")):
            raise TypeError(f"{option} must be an integer, got {number!r}")
    timm_name = find_timm_name(name)
    changes = dict(options)
    if timm_name is not None:
        changes = {TIMM_OPTIONS.get(option, option): value for option, value in options.items()}
        if not changes.keys() <= set(OF_VARIANT):
            return _create_timms_own(
                timm_name, pretrained, num_classes, in_channels, backend, options
            )
    variant = find_variant(name, **changes)
    classes = _count_classes(variant, pretrained) if num_classes is None else num_classes
    model = build_classifier(variant, num_classes=classes, in_channels=in_channels, backend=backend)
    if pretrained is not False:
        load_pretrained(model, pretrained)
        if timm_name is None and "image_size" not in options:
            described = read_description(find_weights(variant, pretrained), ModelDescription)
            model.preprocessing = described.preprocessing
    return model


def find_variant(name: str, **changes: Any) -> Variant | TimmVariant:
    """The architecture called `name`, ours or timm's, with some of its fields changed.

    Raises:
        ValueError: an unknown name or field.
    """
    timm_name = find_timm_name(name)
    if timm_name is None:
        if not isinstance(name, str) or name not in VARIANTS:
            names = ", ".join([*VARIANTS, *TIMM_CHECKPOINTS])
            raise ValueError(f"model must be one of {names}, got {name!r}")
        return get_variant(name, **changes)
    return change_variant(TimmVariant(timm_name, TIMM_CHECKPOINTS[timm_name].image_size), changes)


def load_pretrained(model: Classifier, source: bool | str | os.PathLike[str]) -> LoadReport:
    """Load public weights into a model (True), or those in a file, as `create_model` does."""
    if isinstance(model.variant, TimmVariant):
        return load_timm_weights(model, None if isinstance(source, bool) else source)
    path = find_weights(model.variant, source)
    report = load_weights(model, path)
    description = read_description(path, ModelDescription)
    if not report.started_from_zero and model.num_classes == description.num_classes:
        model.class_names, model.task = description.class_names, description.task
    return report


def find_weights(
    variant: Variant | TimmVariant, source: bool | str | os.PathLike[str]
) -> str | os.PathLike[str]:
    """The file of the weights that come with the package (True), or the one named.

    Raises:
        ValueError: none come with the package for this model.
    """
    if not isinstance(source, bool):
        return source
    if variant.name not in PACKAGED:
        raise ValueError(
            f"pretrained must be False or a file for {variant.name}: only "
            f"{', '.join([*PACKAGED, *TIMM_CHECKPOINTS])} have public weights"
        )
    return Path(__file__).parent / "weights" / f"{variant.name}.safetensors"


def _count_classes(
    variant: Variant | TimmVariant, pretrained: bool | str | os.PathLike[str]
) -> int:
    """The classes of the weights of ours that are wanted; 1000 without, as timm's have."""
    if pretrained is False or isinstance(variant, TimmVariant):
        return 1000
    return read_description(find_weights(variant, pretrained), ModelDescription).num_classes


def _create_timms_own(
    name: TimmName,
    pretrained: bool | str | os.PathLike[str],
    num_classes: int | None,
    in_channels: int,
    backend: str | None,
    options: dict[str, Any],
) -> nn.Module:
    """timm's model as it makes it by its own options, with our operator."""
    if not isinstance(pretrained, bool):
        overlay = options.get("pretrained_cfg_overlay") or {}
        options = options | {"pretrained_cfg_overlay": overlay | {"file": str(pretrained)}}
    model = import_timm().create_model(
        name,
        pretrained=pretrained is not False,
        num_classes=1000 if num_classes is None else num_classes,
        in_chans=in_channels,
        **options,
    )
    return replace_timm_layers(model, backend=backend)
