"""The optimizer of a run, and which parameters it decays."""

from functools import partial
from typing import Any

import torch
from timm.optim import (
    Muon,
    create_optimizer_v2,
    get_optimizer_class,
    param_groups_weight_decay,
)
from torch import nn

from halonet.training.config import RunConfig


def make_optimizer(model: nn.Module, config: RunConfig) -> torch.optim.Optimizer:
    """timm's optimizer called `config.optimizer`, with weight decay by parameter groups.

    Norms, biases and what the model's `no_weight_decay` names (relative tables and absolute
    vectors) aren't decayed, unless `config.decay_everything`. Muon updates the weights of layers;
    its fallback AdamW takes what `no_weight_decay` names, as it takes norms and biases.

    Raises:
        ValueError: an unknown optimizer.
    """
    find_positions: Any = getattr(model, "no_weight_decay", set)
    positions = find_positions()
    # As timm reads it: lookahead_ and the like may stand before the name.
    name = config.optimizer.lower().rpartition("_")[2]
    optimizer_class: Any = get_optimizer_class(name, bind_defaults=False)
    has_fallback = issubclass(optimizer_class, Muon)
    make_groups = partial(
        param_groups_weight_decay,
        weight_decay=config.weight_decay,
        weight_decay_exclude_1d=not config.decay_everything,
        no_weight_decay_list=set() if config.decay_everything else positions,
        # Others ignore it, but the states that they saved so far have no group of its own for it.
        fallback_list=positions if has_fallback else set(),
    )
    return create_optimizer_v2(
        model, opt=config.optimizer, lr=config.learning_rate, param_group_fn=make_groups
    )
