"""What a weights file says of its model: dataclasses as JSON in the metadata of safetensors."""

import dataclasses
import json
import os
import reprlib
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from halonet.files import write_atomically
from halonet.models.halonet import Preprocessing
from halonet.models.variants import Variant


@dataclass(frozen=True)
class Description:
    """What is needed beside the weights to create a model again.

    Attributes:
        key: of the metadata's entry that holds the description.
        model_kind: what messages call the model.
        variant: the architecture.
        num_classes: classes that the model tells apart.
        preprocessing: what its images go through.
        class_names: names of the classes in order, or None.
    """

    key: ClassVar[str]
    model_kind: ClassVar[str]

    variant: Variant
    num_classes: int
    preprocessing: Preprocessing
    class_names: tuple[str, ...] | None


Described = TypeVar("Described", bound=Description)


def write_weights(path: str | os.PathLike[str], model: nn.Module, description: Description) -> None:
    """Write a state dict and its description to a safetensors file, whole or not at all.

    Raises:
        OSError: the file can't be written.
        ValueError: the description has a value of a wrong type, and couldn't be read again.
    """
    text = json.dumps(dataclasses.asdict(description))
    _parse(type(description), json.loads(text), "")
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    # Not save_file: it lets nobody else read the file.
    content = save(tensors, {description.key: text})
    write_atomically(Path(path), lambda temporary: temporary.write_bytes(content))


def read_weights(
    path: str | os.PathLike[str], kind: type[Described]
) -> tuple[dict[str, Tensor], Described]:
    """The tensors and the description that `write_weights` put into a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no safetensors file, or doesn't describe a model of this kind.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from None
    if kind.key not in metadata:
        raise ValueError(
            f"{path} was not written by halonet as a {kind.model_kind}: "
            f"its metadata has no {kind.key!r}"
        )
    try:
        return tensors, _parse(kind, json.loads(metadata[kind.key]), "")
    except ValueError as error:
        raise ValueError(f"{path} doesn't describe its {kind.model_kind}: {error}") from None


def _parse(kind: Any, value: Any, name: str) -> Any:
    """A value of JSON as the type that an annotation asks for; `name` is its path for messages.

    Raises:
        ValueError: it is of another type, or a dataclass has other fields.
    """
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        prefix = f"{name}." if name else ""
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
    if isinstance(kind, types.UnionType):  # a type or None
        return None if value is None else _parse(typing.get_args(kind)[0], value, name)
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
