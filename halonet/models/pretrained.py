"""Weights in and out: safetensors files that say what model, images and classes they are for."""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from halonet.layers.attention import (
    ABSOLUTE_VECTORS,
    RELATIVE_TABLES,
    interpolate_table,
    interpolate_vectors,
)
from halonet.layers.timm_attention import TIMM_TABLES, import_timm
from halonet.models.building import build_classifier
from halonet.models.classifier import Classifier, LabelTask
from halonet.models.metadata import (
    Description,
    check_finite,
    read_weights,
    unwrap,
    write_weights,
)
from halonet.models.timm_variants import TIMM_CHECKPOINTS
from halonet.models.variants import TimmVariant, Variant, change_variant

# Fields in which a model may differ from the weights that it loads: images and tables are resampled
# to fit, and dropout and stochastic depth act in training only. The others decide what the weights
# compute, though some change no shape.
ADAPTABLE_FIELDS = ("image_size", "block_size", "halo_size", "dropout", "stochastic_depth")
_LABELS = ("name", "source", "parameters")
_OF_ATTENTION = (
    *("block_size", "halo_size", "kernel_size", "position", "mask_padding"),
    *("value_ratio", "query_key_ratio"),
)
_RESAMPLED = RELATIVE_TABLES + ABSOLUTE_VECTORS + TIMM_TABLES


@dataclass(frozen=True)
class ModelDescription(Description):
    """What is needed beside the weights of a classifier."""

    key: ClassVar[str] = "halonet"
    model_kind: ClassVar[str] = "classifier"
    added: ClassVar[dict[str, Any]] = {"task": "multiclass"}

    in_channels: int
    task: LabelTask


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did beside copying.

    Attributes:
        interpolated: names in the state dict of the tables and vectors that were resampled.
        started_from_zero: names of the classifier's parameters, where its classes are others.
        changed_fields: fields of `Variant` in which the model differs from the file's, as is
            allowed for `image_size`, `block_size`, `halo_size`, `dropout` and `stochastic_depth`.
    """

    interpolated: tuple[str, ...]
    started_from_zero: tuple[str, ...]
    changed_fields: tuple[str, ...]


def save_model(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write a model's weights, architecture, preprocessing and class names to a safetensors file.

    The file appears under its name only when it is complete.

    Args:
        model: a `HaloNet`, or one of timm's models that `create_model` made; also inside the
            wrapper of torch.compile, DDP or DataParallel.
        path: of the file.

    Raises:
        OSError: the file can't be written.
        TypeError: there is no such model in it.
        ValueError: `load_model` couldn't read it again: something that describes the model is of
            a wrong type, as a class name that is a number, or its tensors aren't those of its
            variant, as those of a fused model.
    """
    plain = unwrap(model, Classifier)
    description = describe_model(plain)
    write_weights(path, plain, description, lambda: _create(description))


def _create(
    description: ModelDescription, backend: str | None = None, **changes: Any
) -> Classifier:
    """The model that a description describes, with its own weights; `changes` as `load_model`'s."""
    classes = changes.pop("num_classes", description.num_classes)
    return build_classifier(
        change_variant(description.variant, changes),
        num_classes=classes,
        in_channels=description.in_channels,
        backend=backend,
    )


def describe_model(model: Classifier) -> ModelDescription:
    """What `load_model` needs beside the weights."""
    return ModelDescription(
        variant=model.variant,
        num_classes=model.num_classes,
        in_channels=model.in_channels,
        preprocessing=model.preprocessing,
        class_names=model.class_names,
        task=model.task,
    )


def load_model(
    path: str | os.PathLike[str],
    *,
    num_classes: int | None = None,
    backend: str | None = None,
    **changes: Any,
) -> Classifier:
    """Create the model that a file describes and load its weights. Nothing is unpickled.

    Args:
        path: a safetensors file written by `save_model`, a run folder, or a folder of the Hub's
            `save_pretrained`.
        num_classes: another class count starts the classifier from zero.
        backend: name of the operator's backend; None takes the fastest.
        **changes: fields of the architecture to change, as of `create_model`. With
            `block_size`, `halo_size` and `image_size` relative tables and absolute vectors are
            interpolated. Others are allowed as long as every weight keeps its shape; with
            `activation`, `heads`, `kernel_size` or `mask_padding` the weights then compute
            something that they weren't trained for.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: a number of classes that is none.
        ValueError: the file isn't one of ours, or a change doesn't fit.
    """
    if not isinstance(num_classes, Integral | None):
        raise TypeError(f"num_classes must be an integer, got {num_classes!r}")
    tensors, description = read_weights(path, ModelDescription)
    classes = description.num_classes if num_classes is None else num_classes
    try:
        model = _create(description, backend, num_classes=classes, **changes)
    except ValueError as error:
        raise ValueError(f"can't create the model of {path}: {error}") from None
    report = _load(model, _fit_timm(tensors, description.variant, model), str(path))
    if report.started_from_zero and classes == description.num_classes:
        raise ValueError(f"{path} has no {report.started_from_zero[0]} for its {classes} classes")
    model.preprocessing = description.preprocessing
    model.task = description.task
    if "image_size" in changes:
        model.preprocessing = dataclasses.replace(
            description.preprocessing, image_size=changes["image_size"]
        )
    if classes == description.num_classes:
        model.class_names = description.class_names
    return model


def load_weights(model: Classifier, path: str | os.PathLike[str]) -> LoadReport:
    """Load weights into a model that computes the same function of them.

    The model may differ from the file's in `image_size`, `block_size` and `halo_size` (relative
    tables and absolute vectors are interpolated linearly, paper section 4.4), in its classes (the
    classifier starts from zero), in one grey channel in place of three (the first convolution is
    summed over them, as timm does it), and in `dropout` and `stochastic_depth`, which act in
    training only. Every other field of `Variant` must be the same, also where the shapes would
    fit, as for `activation`, `heads`, `kernel_size`, `position` and `mask_padding`; to load weights
    with such a change nonetheless, name it in `load_model`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file isn't one of ours, or its model is another; the message names the
            field.
    """
    tensors, description = read_weights(path, ModelDescription)
    if isinstance(model.variant, Variant) and (description.in_channels, model.in_channels) == (
        3,
        1,
    ):
        tensors["stem.0.weight"] = tensors["stem.0.weight"].float().sum(1, keepdim=True)
        description = dataclasses.replace(description, in_channels=1)
    if type(description.variant) is not type(model.variant):
        raise ValueError(
            f"{path} is a {description.variant.name} and doesn't fit {model.variant.name}"
        )
    stored, wanted = (_decisive_fields(variant) for variant in (description.variant, model.variant))
    stored["in_channels"], wanted["in_channels"] = description.in_channels, model.in_channels
    differing = [name for name in wanted if stored[name] != wanted[name]]
    for name in differing:
        if name not in ADAPTABLE_FIELDS:
            raise ValueError(
                f"{path} is a {description.variant.name} and doesn't fit {model.variant.name}: "
                f"{name} is {stored[name]} there, {wanted[name]} here"
            )
    report = _load(model, _fit_timm(tensors, description.variant, model), str(path))
    return dataclasses.replace(report, changed_fields=tuple(differing))


def load_timm_weights(model: Classifier, path: str | os.PathLike[str] | None) -> LoadReport:
    """Load timm's weights into one of its models: from the Hub by timm, or from a file of timm's.

    Differences are fitted as by `load_weights`; channels of the images as timm does it.

    Raises:
        ConnectionError: they can't be fetched. FileNotFoundError: there is no such file.
        ValueError: the file isn't one of this model's weights.
    """
    variant = model.variant
    assert isinstance(variant, TimmVariant)
    checkpoint = TIMM_CHECKPOINTS[variant.architecture]
    timm = import_timm()
    if path is not None and not os.path.isfile(path):
        raise FileNotFoundError(f"no file of weights at {path}")
    try:
        if path is None:
            tensors = timm.create_model(variant.architecture, pretrained=True).state_dict()
        else:
            tensors = dict(timm.models.load_state_dict(os.fspath(path)))
    except Exception as error:  # of any of the Hub's layers, or the unpickler's
        reason = str(error).partition("\n")[0]
        if path is None:
            raise ConnectionError(
                f"can't fetch the weights {variant.architecture}.{checkpoint.tag} from the Hub: "
                f"{reason}; without a network name their file (pretrained PATH)"
            ) from None
        raise ValueError(f"{path} can't be read as weights of timm's: {reason}") from None
    stored = TimmVariant(variant.architecture, checkpoint.image_size)
    where = f"{variant.architecture}.{checkpoint.tag}" if path is None else str(path)
    check_finite(where, {name: one for name, one in tensors.items() if isinstance(one, Tensor)})
    return _load(model, _fit_timm(tensors, stored, model), where)


def _fit_timm(
    tensors: dict[str, Tensor], stored: Variant | TimmVariant, model: Classifier
) -> dict[str, Tensor]:
    """Weights of timm's with another block, halo or number of channels; ours as they are."""
    if isinstance(stored, Variant):
        return tensors
    from halonet.models.byob_halonet import ByobHaloNet, fit_timm_tensors

    return fit_timm_tensors(tensors, stored, model) if isinstance(model, ByobHaloNet) else tensors


def _decisive_fields(variant: Variant | TimmVariant) -> dict[str, Any]:
    """The fields of a variant that decide what its weights compute; the kinds of stages first."""
    if isinstance(variant, TimmVariant):
        return {"architecture": variant.architecture, **vars(variant)}
    values = {"spatial": variant.spatial, **vars(variant)}
    for name in _LABELS:
        del values[name]
    attends = [kind == "attention" for kind in variant.spatial]
    values["heads"] = [
        heads if attending else None
        for heads, attending in zip(variant.heads, attends, strict=True)
    ]
    if not any(attends):
        values |= dict.fromkeys(_OF_ATTENTION)
    return values


def fit_tables(tensors: Mapping[str, Tensor], model: Classifier) -> dict[str, Tensor]:
    """The tensors of a state dict, relative tables and absolute vectors resampled for `model`."""
    expected = model.state_dict()
    return {
        name: _resample(name, tensor, expected[name].shape[0])
        if name.endswith(_RESAMPLED) and name in expected
        else tensor
        for name, tensor in tensors.items()
    }


def _resample(name: str, tensor: Tensor, length: int) -> Tensor:
    resample = interpolate_vectors if name.endswith(ABSOLUTE_VECTORS) else interpolate_table
    return resample(tensor, length)


def _load(model: Classifier, tensors: Mapping[str, Tensor], path: str) -> LoadReport:
    expected = model.state_dict()
    head = model.classifier_name + "."
    missing = [name for name in expected if name not in tensors and not name.startswith(head)]
    unexpected = [name for name in tensors if name not in expected and not name.startswith(head)]
    if missing or unexpected:
        raise ValueError(
            f"{path} doesn't fit {model.variant.name}: missing {missing[:3]}, "
            f"unexpected {unexpected[:3]} ({len(missing)} and {len(unexpected)} in all)"
        )
    loaded, interpolated, zeros = {}, [], []
    for name, target in expected.items():
        source = tensors.get(name)
        if source is not None and source.shape == target.shape:
            loaded[name] = source
        elif name.startswith(head):
            loaded[name] = torch.zeros_like(target)
            zeros.append(name)
        elif (
            source is not None
            and name.endswith(_RESAMPLED)
            and source.shape[1:] == target.shape[1:]
        ):
            loaded[name] = _resample(name, source, target.shape[0])
            interpolated.append(name)
        else:
            shape = None if source is None else list(source.shape)
            raise ValueError(
                f"{path} doesn't fit {model.variant.name}: {name} has shape {shape}, "
                f"expected {list(target.shape)}"
            )
    model.load_state_dict(loaded)
    return LoadReport(tuple(interpolated), tuple(zeros), changed_fields=())
