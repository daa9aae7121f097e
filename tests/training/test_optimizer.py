"""Which parameters a run's optimizer decays, and by which rule it updates them."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from timm.optim import create_optimizer_v2, muon, param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from halonet.classification.recipes import get_recipe
from halonet.training.checkpoint import load_state, save_state
from halonet.training.config import RunConfig
from halonet.training.optimizer import check_optimizer, make_optimizer
from halonet.training.parallel import make_accelerator
from tests.detection.pictures import small_detector
from tests.models.test_halonet import small_model

POSITIONS = ("row_table", "column_table", "absolute_rows", "absolute_columns")
MODELS = {
    "classifier": small_model,
    "classifier, absolute": lambda: small_model(position="absolute"),
    "detector": lambda: small_detector(box_channels=8, mask_channels=8),
}


def make_config(optimizer: str, **changes: Any) -> RunConfig:
    return dataclasses.replace(get_recipe("small"), optimizer=optimizer, **changes)


def options_by_name(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict]:
    """The options of each parameter's group."""
    groups = {id(one): group for group in optimizer.param_groups for one in group["params"]}
    return {name: groups[id(one)] for name, one in model.named_parameters()}


class Types(TorchDispatchMode):
    """Collects the types of the numbers that operations of torch take."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen |= {one.dtype for one in tree_leaves(args) if isinstance(one, torch.Tensor)}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["muon", "nadamuon", "lookahead_muon"])
def test_muon_multiplies_in_float32_on_a_cpu(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(24, 16)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = model.weight.detach().clone()
    optimizer = make_optimizer(model, make_config(name))
    with Types() as types:
        optimizer.step()
    assert torch.bfloat16 not in types.seen
    assert not torch.equal(model.weight, before)
    # Elsewhere timm's function is its own again.
    assert muon.zeropower_via_newtonschulz(torch.eye(3), 5, [(2.0, -1.5, 0.5)]).dtype == (
        torch.bfloat16
    )


@pytest.mark.parametrize("everything", [False, True], ids=["", "decay_everything"])
@pytest.mark.parametrize("name", ["nadamw", "sgd", "lamb", "muon", "nadamuon", "lookahead_adamw"])
@pytest.mark.parametrize("kind", MODELS)
def test_decay_leaves_norms_biases_and_positions_alone(
    kind: str, name: str, everything: bool
) -> None:
    model = MODELS[kind]()
    optimizer = make_optimizer(model, make_config(name, decay_everything=everything))
    found = options_by_name(model, optimizer)
    positions = {one for one in found if one.endswith(POSITIONS)}
    assert positions
    for one, options in found.items():
        left_alone = one in positions or model.get_parameter(one).ndim <= 1
        assert options["weight_decay"] == (0.05 if everything or not left_alone else 0), one
        assert options.get("use_fallback", False) == (one in positions and "muon" in name), one


@pytest.mark.parametrize("changes", [{}, {"weight_decay": 0.0}, {"decay_everything": True}])
@pytest.mark.parametrize("kind", MODELS)
def test_muon_updates_no_position(kind: str, changes: dict[str, Any]) -> None:
    model = MODELS[kind]()
    optimizer = make_optimizer(model, make_config("muon", **changes))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    by_muon = {
        name for name, one in model.named_parameters() if "momentum_buffer" in optimizer.state[one]
    }
    assert any(name.endswith("projection.weight") for name in by_muon)
    assert not any(name.endswith(POSITIONS) for name in by_muon)


def test_unknown_optimizer_is_named() -> None:
    with pytest.raises(ValueError, match="Optimizer fastest not found"):
        make_optimizer(nn.Linear(1, 1), make_config("fastest"))


def test_any_of_timms_names_is_one() -> None:
    for name in ("nadamw", "Lookahead_AdamW", "muon"):
        check_optimizer(name)
    with pytest.raises(ValueError, match=r"optimizer must be one of timm's .* nadamw.*; got 'nad"):
        check_optimizer("nadamv")


def make_run(model: nn.Module, optimizer: torch.optim.Optimizer, config: RunConfig) -> Any:
    accelerator = make_accelerator(config)
    prepared_model, prepared_optimizer = accelerator.prepare(model, optimizer)
    return SimpleNamespace(
        config=config,
        accelerator=accelerator,
        model=model,
        prepared_model=prepared_model,
        prepared_optimizer=prepared_optimizer,
        average=ModelEmaV3(model),
        progress={"step": 1},
        listing=None,
        allow_changed_data=False,
    )


def save_as_before(model: nn.Module, config: RunConfig, folder: Path) -> dict[str, torch.Tensor]:
    """A state whose optimizer was made as before there was a rule for positions."""
    optimizer = create_optimizer_v2(
        model,
        opt=config.optimizer,
        lr=1e-3,
        param_group_fn=lambda model: param_groups_weight_decay(model, config.weight_decay),
    )
    run = make_run(model, optimizer, config)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    run.prepared_optimizer.step()
    save_state(folder, run)
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_muons_state_of_before_is_refused_in_one_line(tmp_path: Path) -> None:
    config = make_config("muon")
    save_as_before(small_model(), config, tmp_path)
    model = small_model()
    run = make_run(model, make_optimizer(model, config), config)
    message = r"can't go on from .*step_000000001.pt: Muon updates stages.*row_table and 5 more"
    with pytest.raises(ValueError, match=message) as caught:
        load_state(tmp_path, run)
    assert "\n" not in str(caught.value)


def test_other_states_of_before_go_on_without_decay_of_positions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config("nadamw")
    before = save_as_before(MODELS["detector"](), config, tmp_path)
    model = MODELS["detector"]()
    run = make_run(model, make_optimizer(model, config), config)
    assert load_state(tmp_path, run) == {"step": 1}
    assert capsys.readouterr().err == (
        "halonet: weight decay of 2 parameters is off from here on, unlike in the version that "
        "saved the run: backbone.body.stages.3.0.spatial.row_table, ...\n"
    )
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    for name, options in options_by_name(model, run.prepared_optimizer.optimizer).items():
        left_alone = name.endswith(POSITIONS) or model.get_parameter(name).ndim <= 1
        assert options["weight_decay"] == (0 if left_alone else 0.05), name
    save_state(tmp_path, run)
    load_state(tmp_path, run)
    assert capsys.readouterr().err == ""
