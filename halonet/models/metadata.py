"""What a weights file says of its model: dataclasses as JSON in the metadata of safetensors."""

import dataclasses
import json
import os
import reprlib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from halonet.files import write_atomically
from halonet.models.classifier import Preprocessing
from halonet.models.variants import TimmVariant, Variant

LAST_NAME = "last.safetensors"  # in a run folder
HUB_NAME = "model.safetensors"  # in a folder of save_pretrained, or of the Hub
EXPORTED = (".onnx", ".xml", ".pt2")  # endings of what `export_model` writes


@dataclass(frozen=True)
class Description:
    """What is needed beside the weights to create a model again.

    Attributes:
        key: of the metadata's entry that holds the description.
        model_kind: what messages call the model.
        added: fields that earlier files lack, with the values that they stand for.
        variant: the architecture.
        num_classes: classes that the model tells apart.
        preprocessing: what its images go through.
        class_names: names of the classes in order, or None.
    """

    key: ClassVar[str]
    model_kind: ClassVar[str]
    added: ClassVar[dict[str, Any]] = {}

    variant: Variant | TimmVariant
    num_classes: int
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None


Described = TypeVar("Described", bound=Description)
Model = TypeVar("Model", bound=nn.Module)

# The descriptions' keys, and what to do with a file of the other kind.
KINDS = {
    "halonet": "a classifier, for halonet predict, evaluate and train, and load_model",
    "halonet_detector": "a detector, for halonet detect predict and evaluate, and load_detector",
}


def unwrap(model: nn.Module, kind: type[Model]) -> Model:
    """The model of a class inside the wrappers of torch.compile, DDP, DataParallel and averaging.

    Raises:
        TypeError: there is none.
    """
    inner: Any = model
    while not isinstance(inner, kind):
        inner = getattr(inner, "_orig_mod", getattr(inner, "module", None))
        if inner is None:
            raise TypeError(f"model must be a {kind.__name__}, got {type(model).__name__}")
    return inner


def find_misfit(tensors: Mapping[str, Tensor], model: nn.Module) -> str | None:
    """How tensors differ from a model's state dict in names and shapes, or None."""
    expected = model.state_dict()
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]
    if missing or unexpected:
        return (
            f"missing {missing[:3]}, unexpected {unexpected[:3]} "
            f"({len(missing)} and {len(unexpected)} in all)"
        )
    for name, target in expected.items():
        if tensors[name].shape != target.shape:
            return f"{name} has shape {list(tensors[name].shape)}, expected {list(target.shape)}"
    return None


def write_weights(
    path: str | os.PathLike[str],
    model: nn.Module,
    description: Description,
    create: Callable[[], nn.Module],
) -> None:
    """Write a state dict and its description to a safetensors file, whole or not at all.

    Args:
        path: of the file.
        model: whose weights are written.
        description: of the model.
        create: makes the model that the description describes, as loading does.

    Raises:
        OSError: the file can't be written.
        ValueError: what was written couldn't be read again: the description has a value of a wrong
            type, or the model's tensors aren't those of the model described, or aren't finite.
    """
    text = json.dumps(dataclasses.asdict(description))
    _check_names(_parse(type(description), json.loads(text), ""))
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    with torch.device("meta"):
        misfit = find_misfit(tensors, create())
    if misfit is not None:
        raise ValueError(
            f"model can't be saved: its tensors aren't those of a {description.model_kind} "
            f"{description.variant.name}: {misfit}; of a fused, compiled or changed model, save "
            "the one that it was made from"
        )
    for name, tensor in tensors.items():
        if type(tensor) is not Tensor or tensor.is_meta:
            what = "on the meta device" if tensor.is_meta else f"a {type(tensor).__name__}"
            raise ValueError(f"model can't be saved: {name} is {what}, without its numbers")
    check_finite("model can't be saved: it", tensors)
    # Not save_file: it lets nobody else read the file.
    content = save(tensors, {description.key: text})
    write_atomically(Path(path), lambda temporary: temporary.write_bytes(content))


def read_weights(
    path: str | os.PathLike[str], kind: type[Described]
) -> tuple[dict[str, Tensor], Described]:
    """The tensors and the description that `write_weights` put into a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no safetensors file, doesn't describe a model of this kind, or has
            weights that aren't finite.
    """
    path = find_checkpoint(Path(path))
    description = read_description(path, kind)  # first: it names a damaged file
    tensors = load_file(path)
    check_finite(path, tensors)
    return tensors, description


def check_finite(owner: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError where a file's or a model's weights are infinite or nan."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{owner} has weights that are infinite or nan: {name}")


def read_description(path: str | os.PathLike[str], kind: type[Described]) -> Described:
    """What `write_weights` put into a file beside the tensors, which aren't read.

    Raises:
        FileNotFoundError, ValueError: as `read_weights`.
    """
    path = find_checkpoint(Path(path))
    try:
        metadata = read_metadata(path)
    except SafetensorError as error:
        if path.suffix in EXPORTED:
            reason = "an exported file, where a checkpoint is needed"
            raise ValueError(f"{path} is {reason}: a run folder or a safetensors file") from None
        raise ValueError(f"{path} is not a safetensors file: {error}") from None
    if kind.key not in metadata:
        for key in KINDS.keys() & metadata.keys():
            raise ValueError(f"{path} is not a {kind.model_kind}, but {KINDS[key]}")
        raise ValueError(
            f"{path} was not written by halonet as a {kind.model_kind}: "
            f"its metadata has no {kind.key!r}"
        )
    try:
        description = _parse(kind, json.loads(metadata[kind.key]), "")
        _check_names(description)
        return description
    except ValueError as error:
        raise ValueError(f"{path} doesn't describe its {kind.model_kind}: {error}") from None


def read_metadata(path: Path) -> dict[str, str]:
    """The entries of a safetensors file's metadata."""
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def find_checkpoint(path: Path) -> Path:
    """The weights at `path`: the file itself, or a folder's: a run's last ones, or the Hub's.

    Raises:
        FileNotFoundError: there are none.
    """
    if path.is_file():
        return path
    for name in (LAST_NAME, HUB_NAME):
        if (path / name).is_file():
            return path / name
    if path.is_dir():
        raise FileNotFoundError(f"no checkpoint in {path}: it has no {LAST_NAME} or {HUB_NAME}")
    raise FileNotFoundError(f"no checkpoint at {path}")


def _check_names(description: Description) -> None:
    """Raise ValueError unless there is a name for each class, or none."""
    names = description.class_names
    if names is not None and len(names) != description.num_classes:
        raise ValueError(
            f"class_names must be {description.num_classes} names, as num_classes, got {len(names)}"
        )


def _parse(kind: Any, value: Any, name: str) -> Any:
    """A value of JSON as the type that an annotation asks for; `name` is its path for messages.

    Raises:
        ValueError: it is of another type, or a dataclass has other fields.
    """
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        prefix = f"{name}." if name else ""
        value = getattr(kind, "added", {}) | value
        annotations = typing.get_type_hints(kind)
        fields = [field.name for field in dataclasses.fields(kind)]
        for field in fields:
            if field not in value:
                raise ValueError(f"the field {prefix}{field} is missing")
        for field in value:
            if field not in fields:
                raise ValueError(f"the field {prefix}{field} is unknown to this version of halonet")
        return kind(
            **{field: _parse(annotations[field], value[field], prefix + field) for field in fields}
        )
    if isinstance(kind, types.UnionType):  # a type or None, or two dataclasses
        kinds = [one for one in typing.get_args(kind) if one is not type(None)]
        chosen = [one for one in kinds if _has_fields(one, value)]
        return None if value is None else _parse([*chosen, *kinds][0], value, name)
    if typing.get_origin(kind) is typing.Literal and value in typing.get_args(kind):
        return value
    if typing.get_origin(kind) is tuple and isinstance(value, list):
        entries = typing.get_args(kind)
        if entries[-1] is ...:
            entries = entries[:1] * len(value)
        if len(entries) == len(value):
            return tuple(
                _parse(entry, one, f"{name}[{index}]")
                for index, (entry, one) in enumerate(zip(entries, value, strict=True))
            )
    elif type(value) is kind or (kind is float and type(value) is int):
        return kind(value)
    expected = kind if typing.get_origin(kind) else kind.__name__
    raise ValueError(f"{name or 'it'} must be {expected}, got {reprlib.repr(value)}")


def _has_fields(kind: Any, value: Any) -> bool:
    """Whether all of an object's keys are fields of a dataclass."""
    if not dataclasses.is_dataclass(kind) or not isinstance(value, dict):
        return False
    return value.keys() <= {field.name for field in dataclasses.fields(kind)}
