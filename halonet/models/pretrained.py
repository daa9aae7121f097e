"""Weights in and out: safetensors files that say what model, images and classes they are for."""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from halonet.files import write_atomically
from halonet.models.halonet import HaloNet, Preprocessing, get_variant
from halonet.models.variants import VARIANTS, Variant

METADATA_KEY = "halonet"
RESAMPLED = ("row_table", "column_table", "absolute_rows", "absolute_columns")


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did beside copying: names of the state dict."""

    interpolated: tuple[str, ...]
    started_from_zero: tuple[str, ...]


def save_model(model: HaloNet, path: str | os.PathLike[str]) -> None:
    """Write a model's weights, architecture, preprocessing and class names to a safetensors file.

    The file appears under its name only when it is complete.

    Raises:
        OSError: the file can't be written.
    """
    write_weights(path, model, METADATA_KEY, describe_model(model))


def write_weights(
    path: str | os.PathLike[str], model: nn.Module, key: str, description: dict[str, Any]
) -> None:
    """Write a state dict, and under `key` of the metadata a description, whole or not at all."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    # Not save_file: it lets nobody else read the file.
    content = save(tensors, {key: json.dumps(description)})
    write_atomically(Path(path), lambda temporary: temporary.write_bytes(content))


def describe_model(model: HaloNet) -> dict[str, Any]:
    """What `load_model` needs beside the weights, ready for JSON."""
    return {
        "variant": dataclasses.asdict(model.variant),
        "num_classes": model.num_classes,
        "in_channels": model.in_channels,
        "preprocessing": dataclasses.asdict(model.preprocessing),
        "class_names": model.class_names,
    }


def load_model(
    path: str | os.PathLike[str],
    *,
    num_classes: int | None = None,
    backend: str | None = None,
    **changes: Any,
) -> HaloNet:
    """Create the model that a file describes and load its weights. Nothing is unpickled.

    Args:
        path: a safetensors file written by `save_model`.
        num_classes: another class count starts the classifier from zero.
        backend: name of the operator's backend; None takes the fastest.
        **changes: fields of `Variant` to change, such as `block_size`, `halo_size` and
            `image_size`; relative tables are interpolated.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file isn't one of ours, or a change doesn't fit.
    """
    tensors, description = read_weights(path, METADATA_KEY)
    classes = description["num_classes"] if num_classes is None else num_classes
    model = HaloNet(
        _variant_from(description["variant"], changes),
        num_classes=classes,
        in_channels=description["in_channels"],
        backend=backend,
    )
    _load(model, tensors, str(path))
    stored: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in description["preprocessing"].items()
    }
    preprocessing = Preprocessing(**stored)
    if "image_size" in changes:
        preprocessing = dataclasses.replace(preprocessing, image_size=changes["image_size"])
    model.preprocessing = preprocessing
    if classes == description["num_classes"] and description["class_names"] is not None:
        model.class_names = tuple(description["class_names"])
    return model


def load_weights(model: HaloNet, path: str | os.PathLike[str]) -> LoadReport:
    """Load weights into a model that may differ in block, halo, map size and classes.

    Relative tables and absolute vectors are interpolated linearly (paper section 4.4); a
    classifier of other classes starts from zero; all else must be there in the same shape.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file isn't one of ours, or its architecture is another.
    """
    tensors, _ = read_weights(path, METADATA_KEY)
    return _load(model, tensors, str(path))


def interpolate_table(table: Tensor, length: int) -> Tensor:
    """Resample a relative table [2 (b + h) - 1, channels] to `length` offsets, linearly.

    The ends meet the ends and offset 0 stays offset 0.
    """
    resampled = F.interpolate(table.T[None].float(), size=length, mode="linear", align_corners=True)
    return resampled[0].T.to(table.dtype)


def fit_tables(tensors: Mapping[str, Tensor], model: HaloNet) -> dict[str, Tensor]:
    """The tensors of a state dict, relative tables and absolute vectors resampled for `model`."""
    expected = model.state_dict()
    return {
        name: interpolate_table(tensor, expected[name].shape[0])
        if name.endswith(RESAMPLED) and name in expected
        else tensor
        for name, tensor in tensors.items()
    }


def _load(model: HaloNet, tensors: Mapping[str, Tensor], path: str) -> LoadReport:
    expected = model.state_dict()
    missing = [name for name in expected if name not in tensors and "classifier" not in name]
    unexpected = [name for name in tensors if name not in expected and "classifier" not in name]
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
        elif name.startswith("classifier."):
            loaded[name] = torch.zeros_like(target)
            zeros.append(name)
        elif (
            source is not None and name.endswith(RESAMPLED) and source.shape[1:] == target.shape[1:]
        ):
            loaded[name] = interpolate_table(source, target.shape[0])
            interpolated.append(name)
        else:
            shape = None if source is None else list(source.shape)
            raise ValueError(
                f"{path} doesn't fit {model.variant.name}: {name} has shape {shape}, "
                f"expected {list(target.shape)}"
            )
    model.load_state_dict(loaded)
    return LoadReport(tuple(interpolated), tuple(zeros))


def read_weights(
    path: str | os.PathLike[str], key: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file of `write_weights`, and the description under `key`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no safetensors file, or has no such description.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from None
    if key not in metadata:
        raise ValueError(f"{path} was not written by halonet: it doesn't name its model")
    return tensors, json.loads(metadata[key])


def _variant_from(fields: dict[str, Any], changes: dict[str, Any]) -> Variant:
    """The variant that a file describes; its name may be one that we don't list."""
    name = fields["name"]
    if name in VARIANTS:
        described = {key: value for key, value in fields.items() if key not in _FIXED}
        return get_variant(name, **(described | changes))
    known = {field.name for field in dataclasses.fields(Variant)}
    described: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in (fields | changes).items()
        if key in known
    }
    return Variant(**described)


_FIXED = ("name", "source", "parameters")
