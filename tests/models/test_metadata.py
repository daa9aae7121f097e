"""Damaged descriptions of a model: one line that names the file and the field."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import halonet
from halonet.integrations.hub import HubHaloNet
from halonet.models.metadata import Description
from halonet.models.pretrained import ModelDescription
from tests.models.test_halonet import small_model


def rewrite(path: Path, key: str, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the description in a file; what `change` returns takes its place, unless None."""
    with safe_open(path, framework="pt") as file:
        description = json.loads(file.metadata()[key])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    changed = change(description)
    text = json.dumps(description) if changed is None else str(changed)
    save_file(tensors, path, {key: text})


def field_paths(kind: type[Description]) -> list[tuple[str, ...]]:
    """Of every field, those of the dataclasses inside too."""
    paths = []
    for field in dataclasses.fields(kind):
        paths.append((field.name,))
        if dataclasses.is_dataclass(field.type):
            paths += [(field.name, inner.name) for inner in dataclasses.fields(field.type)]
    return paths


def remove(fields: dict[str, Any], path: tuple[str, ...]) -> None:
    for name in path[:-1]:
        fields = fields[name]
    del fields[path[-1]]


def put(fields: dict[str, Any], path: tuple[str, ...], value: object) -> None:
    for name in path[:-1]:
        fields = fields[name]
    fields[path[-1]] = value


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("saved") / "model.safetensors"
    halonet.save_model(small_model(), path)
    return path.read_bytes()


@pytest.mark.parametrize(
    "field",
    [path for path in field_paths(ModelDescription) if path[0] not in ModelDescription.added],
    ids=".".join,
)
def test_missing_field_is_named(field: tuple[str, ...], saved: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(saved)
    rewrite(path, "halonet", lambda fields: remove(fields, field))
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is below
        halonet.load_model(path)
    assert str(caught.value) == (
        f"{path} doesn't describe its classifier: the field {'.'.join(field)} is missing"
    )


def test_task_stands_in_the_file(saved: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model = small_model()
    model.task = "multilabel"
    halonet.save_model(model, path)
    assert halonet.load_model(path).task == "multilabel"
    path.write_bytes(saved)  # earlier files don't say it
    rewrite(path, "halonet", lambda fields: remove(fields, ("task",)))
    assert halonet.load_model(path).task == "multiclass"
    rewrite(path, "halonet", lambda fields: put(fields, ("task",), "multitask"))
    with pytest.raises(ValueError, match=r"task must be .*'multilabel'\], got 'multitask'"):
        halonet.load_model(path)


@pytest.mark.parametrize("field", field_paths(ModelDescription), ids=".".join)
def test_field_of_a_wrong_type_is_named(
    field: tuple[str, ...], saved: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(saved)
    rewrite(path, "halonet", lambda fields: put(fields, field, {"a": 1}))
    message = rf"model.safetensors doesn't describe its classifier: .*{field[-1]}"
    with pytest.raises(ValueError, match=message):
        halonet.load_model(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: "{", "Expecting property name"),
        (lambda _: "[]", "it must be ModelDescription, got"),
        (lambda fields: put(fields, ("shards",), 1), "field shards is unknown"),
        (lambda fields: put(fields, ("variant", "b"), 1), "field variant.b is unknown"),
        (
            lambda fields: put(fields, ("variant", "layers"), [1, 1]),
            r"variant.layers must be tuple\[int, int, int, int\], got \[1, 1\]",
        ),
        (
            lambda fields: put(fields, ("preprocessing", "mean"), [0, "1"]),
            r"preprocessing.mean\[1\] must be float, got '1'",
        ),
        (lambda fields: put(fields, ("num_classes",), True), "num_classes must be int, got True"),
        (
            lambda fields: put(fields, ("variant", "dropout"), 2),
            "can't create the model of .*: dropout must be from 0",
        ),
        (lambda fields: put(fields, ("num_classes",), -1), "num_classes must be 0 or more"),
        (lambda fields: put(fields, ("variant", "base_width"), -1), "base_width must be positive"),
    ],
)
def test_damage_is_one_line(
    change: Callable[[dict[str, Any]], object], message: str, saved: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(saved)
    rewrite(path, "halonet", change)
    for load in (halonet.load_model, lambda _: HubHaloNet.from_pretrained(tmp_path)):
        with pytest.raises(ValueError, match=message) as caught:
            load(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_another_name_and_whole_numbers_are_read(saved: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(saved)
    rewrite(path, "halonet", lambda fields: put(fields, ("variant", "name"), "mine"))
    rewrite(path, "halonet", lambda fields: put(fields, ("variant", "dropout"), 0))
    assert halonet.load_model(path).variant.name == "mine"


@pytest.mark.parametrize("number", ["nan", "inf"])
def test_weights_that_are_no_numbers_are_refused(number: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model = small_model()
    halonet.save_model(model, path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors["classifier.weight"][1, 2] = float(number)
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match=r"safetensors has weights .* nan: classifier\.weight"):
        halonet.load_model(path)
    with pytest.raises(ValueError, match=r"infinite or nan: classifier\.weight"):
        halonet.load_weights(model, path)
    model.load_state_dict(tensors)
    with pytest.raises(ValueError, match="model can't be saved: it has weights that are infinite"):
        halonet.save_model(model, tmp_path / "again.safetensors")


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    model: Any = small_model()
    model.class_names = (1, 2, 3, 4, 5)
    with pytest.raises(ValueError, match=r"class_names\[0\] must be str, got 1"):
        halonet.save_model(model, tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []
