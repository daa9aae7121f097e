"""What is saved can be loaded: wrappers are taken off, and anything else is refused."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel

import halonet
from halonet.integrations.hub import HubHaloNet
from halonet.models.pretrained import describe_model
from tests.models.test_halonet import revive, small_model

WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "torch.compile": lambda model: torch.compile(model, backend="eager"),  # type: ignore[return-value]
    "DataParallel": nn.DataParallel,
    "averaged": AveragedModel,
    "both": lambda model: nn.DataParallel(torch.compile(model, backend="eager")),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapped_model_is_saved_without_its_wrapper(name: str, tmp_path: Path) -> None:
    model = revive(small_model())
    model.class_names = ("a", "b", "c", "d", "e")
    halonet.save_model(WRAPPERS[name](model), tmp_path / "model.safetensors")
    loaded = halonet.load_model(tmp_path / "model.safetensors")
    assert loaded.class_names == model.class_names
    assert all(
        torch.equal(one, model.state_dict()[key]) for key, one in loaded.state_dict().items()
    )
    HubHaloNet.from_model(WRAPPERS[name](model)).save_pretrained(tmp_path / "hub")
    again = HubHaloNet.from_pretrained(tmp_path / "hub")
    assert torch.equal(again.stem[0].weight, model.stem[0].weight)


def compile_a_stage(model: halonet.HaloNet) -> halonet.HaloNet:
    model.stages[0] = torch.compile(model.stages[0], backend="eager")  # type: ignore[assignment]
    return model


def normalize_a_weight(model: halonet.HaloNet) -> halonet.HaloNet:
    parametrizations.weight_norm(model.stem[0])
    return model


def replace_the_classifier(model: halonet.HaloNet) -> halonet.HaloNet:
    model.classifier = nn.Linear(model.num_features, 7)
    return model


def name_too_few(model: halonet.HaloNet) -> halonet.HaloNet:
    model.class_names = ("a", "b")
    return model


CHANGES: dict[str, tuple[Callable[[halonet.HaloNet], nn.Module], str]] = {
    "fused": (lambda model: model.fuse(), r"missing \['stem.1.weight', .*of a fused, .* the one"),
    "a compiled stage": (compile_a_stage, "unexpected .*_orig_mod"),
    "a parametrization": (normalize_a_weight, "unexpected .*parametrizations"),
    "another classifier": (replace_the_classifier, r"classifier.weight has shape \[7, .*expected \[5"),
    "too few names": (name_too_few, "class_names must be 5 names, as num_classes, got 2"),
    "no numbers": (lambda model: model.to("meta"), "stem.0.weight is on the meta device"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_what_could_not_be_loaded_is_not_saved(name: str, tmp_path: Path) -> None:
    change, message = CHANGES[name]
    path = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match=message):
        halonet.save_model(change(small_model()), path)
    assert not path.exists()
    if name in ("fused", "a compiled stage", "another classifier"):
        with pytest.raises(
            ValueError, match=r"model can't go to the Hub: .*" + message.split(".*")[0]
        ):
            HubHaloNet.from_model(change(small_model()))


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    model: Any = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="model must be a Classifier, got Linear"):
        halonet.save_model(model, tmp_path / "model.safetensors")


def test_a_file_without_a_classifier_for_its_classes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    halonet.save_model(small_model(), path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    del tensors["classifier.weight"]
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match=r"has no classifier.weight for its 5 classes"):
        halonet.load_model(path)
    assert not halonet.load_model(path, num_classes=3).classifier.weight.any()


def test_saving_changes_nothing(tmp_path: Path) -> None:
    model = revive(small_model())
    before = copy.deepcopy(model.state_dict())
    halonet.save_model(model, tmp_path / "model.safetensors")
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert describe_model(model).num_classes == 5


@pytest.mark.parametrize("command", ["save_pretrained", "save_model"])
def test_a_folder_of_the_hub_is_a_checkpoint(command: str, tmp_path: Path) -> None:
    model = revive(small_model())
    if command == "save_pretrained":
        HubHaloNet.from_model(model).save_pretrained(tmp_path)
    else:
        halonet.save_model(model, tmp_path / "last.safetensors")
    assert torch.equal(halonet.load_model(tmp_path).stem[0].weight, model.stem[0].weight)
    assert halonet.load_weights(small_model(), tmp_path).changed_fields == ()
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*empty: it has no last\.safe"):
        halonet.load_model(tmp_path / "empty")
