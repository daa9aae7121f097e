"""The optimizer of a run, which parameters it decays, and the learning rate of every step."""

import difflib
from functools import partial
from typing import Any

import torch
from timm.optim import (
    Muon,
    create_optimizer_v2,
    get_optimizer_class,
    list_optimizers,
    muon,
    param_groups_layer_decay,
    param_groups_weight_decay,
)
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn

from halonet.training.config import RunConfig

_ORTHOGONALIZE = muon.zeropower_via_newtonschulz


def check_optimizer(name: str) -> None:
    """Raise ValueError unless timm has an optimizer called `name`."""
    names = list_optimizers()
    if _strip_wrappers(name) not in names:
        near: list[Any] = difflib.get_close_matches(name.lower(), names)
        some = ", ".join(near or ["sgd", "adamw", "nadamw", "muon"])
        raise ValueError(f"optimizer must be one of timm's {len(names)}, as {some}; got {name!r}")


def make_optimizer(
    model: nn.Module, config: RunConfig, *, layer_decay: float = 1.0, classifier_rate: float = 1.0
) -> torch.optim.Optimizer:
    """timm's optimizer called `config.optimizer`, with weight decay by parameter groups.

    Norms, biases and what the model's `no_weight_decay` names (relative tables and absolute
    vectors) aren't decayed, unless `config.decay_everything`. Muon updates the weights of layers;
    its fallback AdamW takes what `no_weight_decay` names, as it takes norms and biases. On a CPU
    Muon multiplies in float32: timm's bfloat16 takes tens of times as long on processors without
    instructions for it.

    Args:
        model: whose parameters are trained; those that need no gradient are left out.
        config: of the run.
        layer_decay: learning rate of each layer relative to the next one's, by the model's
            `group_matcher`; as timm has it.
        classifier_rate: learning rate of the classifier relative to its layer's.

    Raises:
        ValueError: an unknown optimizer.
    """
    find_positions: Any = getattr(model, "no_weight_decay", set)
    positions = find_positions()
    optimizer_class: Any = get_optimizer_class(
        _strip_wrappers(config.optimizer), bind_defaults=False
    )
    has_fallback = issubclass(optimizer_class, Muon)
    options: dict[str, Any] = {"layer_decay": layer_decay} if layer_decay < 1 else {}
    make_groups = partial(
        param_groups_layer_decay if options else param_groups_weight_decay,
        weight_decay=config.weight_decay,
        weight_decay_exclude_1d=not config.decay_everything,
        no_weight_decay_list=set() if config.decay_everything else positions,
        # Others ignore it, but the states that they saved so far have no group of its own for it.
        fallback_list=positions if has_fallback else set(),
        **options,
    )

    def make_scaled_groups(model: nn.Module) -> list[dict[str, Any]]:
        groups = make_groups(model)
        if classifier_rate == 1:
            return groups
        find_classifier: Any = model.get_classifier
        return _scale(groups, {*find_classifier().parameters()}, classifier_rate)

    optimizer = create_optimizer_v2(
        model, opt=config.optimizer, lr=config.learning_rate, param_group_fn=make_scaled_groups
    )
    # Lookahead holds the optimizer that it steps.
    inner = getattr(optimizer, "_base_optimizer", optimizer)
    if isinstance(inner, Muon):
        inner.register_step_pre_hook(_orthogonalize_in_float32)
        inner.register_step_post_hook(_orthogonalize_as_timm)
    return optimizer


def _strip_wrappers(name: str) -> str:
    """An optimizer's name as timm reads it: lookahead_ and the like may stand before it."""
    return name.lower().rpartition("_")[2]


def _scale(
    groups: list[dict[str, Any]], chosen: set[nn.Parameter], factor: float
) -> list[dict[str, Any]]:
    """Groups of their own, with a factor of their learning rate, for chosen parameters."""
    scaled = []
    for group in groups:
        for inside in (False, True):
            parameters = [one for one in group["params"] if (one in chosen) == inside]
            if parameters:
                scale = group.get("lr_scale", 1.0) * (factor if inside else 1.0)
                scaled.append({**group, "params": parameters, "lr_scale": scale})
    return scaled


def _orthogonalize_in_float32(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Before a step on a CPU: timm has no option for the type of Muon's products."""
    if optimizer.param_groups[0]["params"][0].device.type == "cpu":
        muon.zeropower_via_newtonschulz = partial(_ORTHOGONALIZE, dtype=torch.float32)


def _orthogonalize_as_timm(*_: Any) -> None:
    muon.zeropower_via_newtonschulz = _ORTHOGONALIZE


def make_schedule(optimizer: torch.optim.Optimizer, config: RunConfig, steps: int) -> Scheduler:
    """The learning rate of every step."""
    common: dict[str, Any] = {
        "warmup_t": round(steps * config.warmup_share),
        "warmup_lr_init": config.learning_rate * config.warmup_start_share,
        "warmup_prefix": False,
        "t_in_epochs": False,
    }
    if config.schedule == "steps":
        decays = [round(steps * share) for share in config.decay_shares]
        return MultiStepLRScheduler(optimizer, decays, decay_rate=0.1, **common)
    return CosineLRScheduler(
        optimizer,
        t_initial=max(2, steps),  # of a single step timm warns; its rate is the same
        lr_min=config.learning_rate * config.final_learning_rate_share,
        **common,
    )
