"""Gradient times attention, rolled over the layers, as a relevance of a map's pixels.

Abnar and Zuidema 2020 (arXiv 2005.00928) roll attention over layers, each half shortcut and half
attention. Chefer, Gur and Wolf 2021 (arXiv 2103.15679) weigh it by its gradient for a class and
keep what is positive. Here both, for windows on maps.
"""

from collections.abc import Sequence
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor

from halonet.explain.attention import (
    Attention,
    keep_inputs,
    keep_outputs,
    list_attention_layers,
)
from halonet.layers.timm_attention import TimmHaloAttention
from halonet.models.classifier import Classifier
from halonet.ops import reference
from halonet.ops.halo_attention import resolve_arguments
from halonet.ops.window import gather_windows, split_into_blocks


def roll_attention(model: Classifier, image: Tensor, class_index: int) -> Tensor:
    """The relevance of each pixel of the map before the first attention layer, [rows, columns].

    Starts from what each pixel of the last map adds to the class's logit, where that is positive,
    and hands it down layer by layer. Of a single label the logit is taken above the mean of all
    classes: a shift of all logits changes no probability. Convolutions between the layers are taken
    as if each pixel depended on itself only. All 0 where nothing speaks for the class.

    Args:
        model: in eval mode.
        image: as the model takes it, [channels, height, width].
        class_index: the class whose logit is explained.

    Raises:
        ValueError: the model has no attention.
    """
    layers = [found.module for found in list_attention_layers(model)]
    if not layers:
        raise ValueError("method rollout needs HaloAttention layers; the model has none")
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    with ExitStack() as hooks, torch.enable_grad():
        for layer in layers:
            hooks.enter_context(keep_inputs(layer, inputs.append))
            if isinstance(layer, TimmHaloAttention):  # what it attends to, not yet pooled
                hooks.enter_context(keep_inputs(layer.pool, outputs.append))
            else:
                hooks.enter_context(keep_outputs(layer, outputs.append))
        last = model.forward_features(image[None].requires_grad_())
        logits = model.forward_head(last)[0]
        score = logits[class_index]
        if model.task == "multiclass" and len(logits) > 1:
            score = score - logits.mean()
        gradients = torch.autograd.grad(score, [last, *outputs])
    with torch.no_grad():
        relevance = (gradients[0] * last).sum(1, keepdim=True).clamp(min=0)  # [1, 1, rows, columns]
        for layer, maps, gradient in list(zip(layers, inputs, gradients[1:], strict=True))[::-1]:
            relevance = _resize(relevance, gradient.shape[2:])
            attended = hand_down(layer, maps, gradient, relevance)
            relevance = (_resize(relevance, maps.shape[2:]) + attended) / 2
    return relevance[0, 0]


def _resize(relevance: Tensor, size: Sequence[int]) -> Tensor:
    """Relevance on another map; a pixel's is shared by those in its place."""
    if relevance.shape[2:] == torch.Size(size):
        return relevance
    total = relevance.sum()
    resized = F.interpolate(relevance, size=tuple(size), mode="nearest")
    return resized * (total / resized.sum().clamp(min=torch.finfo(total.dtype).tiny))


def hand_down(layer: Attention, maps: Tensor, gradient: Tensor, relevance: Tensor) -> Tensor:
    """The relevance of an attention layer's result, handed to the pixels that it attends to.

    Each query shares out its own by its positive products of weight and gradient, means over the
    heads; one that has none hands down nothing.

    Args:
        layer: whose weights are taken.
        maps: what it was given, [1, channels, height, width].
        gradient: of the class's logit by its result, [1, channels, rows, columns].
        relevance: of its result's pixels, [1, 1, rows, columns].

    Returns:
        [1, 1, height, width].
    """
    problem, _ = resolve_arguments(**layer.operator_arguments(maps))
    window = problem.window
    rows, columns = (window.blocks(size) for size in problem.key.shape[1:3])
    weights = reference.weigh_cells(problem)
    values = gather_windows(problem.value, window, rows, columns)
    gradient = gradient.permute(0, 2, 3, 1).unflatten(3, (layer.heads, -1))
    gradients = torch.einsum(
        "byxijnd,byxuvnd->byxnijuv", split_into_blocks(gradient, window, rows, columns), values
    )
    shares = (weights * gradients).clamp(min=0).mean(3)  # [B, Y, X, I, J, U, V]
    total = shares.sum((5, 6), keepdim=True).clamp(min=torch.finfo(shares.dtype).tiny)
    # Maps of one head and one channel, as the windows' geometry takes them.
    queries = split_into_blocks(relevance.permute(0, 2, 3, 1)[..., None], window, rows, columns)
    cells = torch.einsum("byxij,byxijuv->byxuv", queries[..., 0, 0], shares / total)
    with torch.enable_grad():  # the gradient of reading windows puts them back
        pixels = torch.zeros_like(problem.key[..., :1, :1]).requires_grad_()
        windows = gather_windows(pixels, window, rows, columns)
        (handed,) = torch.autograd.grad(windows, pixels, cells[..., None, None])
    return handed[..., 0].permute(0, 3, 1, 2)
