"""The attention of a place in an image, in a chosen stage, layer and head of a model."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from halonet.layers.attention import HaloAttention
from halonet.layers.timm_attention import TimmHaloAttention
from halonet.models.classifier import STRIDES, Classifier

Attention = HaloAttention | TimmHaloAttention


class AttentionLayer(NamedTuple):
    """An attention layer and its place in a model; stages and layers count from 1 on."""

    stage: int
    layer: int
    module: Attention


@dataclass(frozen=True)
class AttentionView:
    """Where one place of an image looks, in pixels of the model's input.

    Attributes:
        stage, layer, head: which attention; counted from 1, head None for the mean over all.
        pixel: left, top, right, bottom of the pixel of the layer's result that looks.
        window: left, top, right, bottom of all that it may attend to; may reach beyond the image.
        weights: of the window's cells [rows, columns], in even steps over the window; sum 1.
    """

    stage: int
    layer: int
    head: int | None
    pixel: tuple[int, int, int, int]
    window: tuple[int, int, int, int]
    weights: Tensor

    def to_dict(self) -> dict[str, Any]:
        """The view as JSON has it."""
        rows = [[round(weight, 6) for weight in row] for row in self.weights.tolist()]
        return vars(self) | {"weights": rows}


def list_attention_layers(model: Classifier) -> list[AttentionLayer]:
    """The attention layers of a model, in the order in which they run."""
    found = []
    for stage, layers in enumerate(model.stages.children(), start=1):
        modules = [module for module in layers.modules() if isinstance(module, Attention)]
        found += [AttentionLayer(stage, *pair) for pair in enumerate(modules, start=1)]
    return found


def find_attention_layer(
    model: Classifier, stage: int | None = None, layer: int | None = None
) -> AttentionLayer:
    """An attention layer by its place; without a stage in the last, without a layer the last there.

    Raises:
        ValueError: there is no such layer; the message lists those that there are.
    """
    layers = list_attention_layers(model)
    found = [one for one in layers if stage in (None, one.stage) and layer in (None, one.layer)]
    if found:
        return found[-1]
    counts = {one.stage: one.layer for one in layers}
    there = ", ".join(f"stage {stage} has layers 1 to {count}" for stage, count in counts.items())
    asked = f"stage {stage if stage is not None else 'any'}, layer {layer or 'any'}"
    raise ValueError(f"no attention at {asked}: {there or 'the model has no HaloAttention'}")


def view_attention(
    model: Classifier,
    image: Tensor,
    point: tuple[float, float],
    *,
    stage: int | None = None,
    layer: int | None = None,
    head: int | None = None,
) -> AttentionView:
    """Where the pixel at a point of an image looks.

    Args:
        model: in eval mode.
        image: as the model takes it, [channels, height, width].
        point: x and y in pixels of the image, from its left and upper border.
        stage, layer, head: which attention, counted from 1. None: the last stage that has some,
            its last layer, the mean over the heads.

    Raises:
        ValueError: a point outside the image, or no such stage, layer or head.
    """
    height, width = image.shape[1:]
    if not (0 <= point[0] < width and 0 <= point[1] < height):
        raise ValueError(f"point must lie in the image of {width} x {height}, got {point}")
    found = find_attention_layer(model, stage, layer)
    heads = found.module.heads
    if head is not None and not 1 <= head <= heads:
        raise ValueError(
            f"head must be from 1 to {heads} in stage {found.stage}, layer {found.layer}, "
            f"got {head}"
        )
    # Of a pixel of the layer's result, before any pooling that ends it.
    side = STRIDES[found.stage - 1] // pooling(found.module)
    cell = side // found.module.stride
    row, column = int(point[1]) // side, int(point[0]) // side
    maps: list[Tensor] = []
    with torch.inference_mode(), keep_inputs(found.module, maps.append):
        model.forward_features(image[None])
        attended = found.module.attention_weights(maps[0], [(row, column)])
    weights = attended.weights[0, 0]
    top, left = (attended.corners[0] * cell).tolist()
    rows, columns = weights.shape[1:]
    return AttentionView(
        found.stage,
        found.layer,
        head,
        pixel=(column * side, row * side, (column + 1) * side, (row + 1) * side),
        window=(left, top, left + columns * cell, top + rows * cell),
        weights=(weights.mean(0) if head is None else weights[head - 1]).float().cpu(),
    )


def pooling(module: Attention) -> int:
    """How many times longer the side of a layer's result is before the pooling that ends it."""
    pooled = isinstance(module, TimmHaloAttention) and not isinstance(module.pool, nn.Identity)
    return 2 if pooled else 1


def keep_inputs(
    module: nn.Module, keep: Callable[[Tensor], None]
) -> AbstractContextManager[object]:
    """Calls `keep` with what a module is given, as long as the context lasts."""
    return module.register_forward_pre_hook(lambda _, inputs: keep(inputs[0]))


def keep_outputs(
    module: nn.Module, keep: Callable[[Tensor], None]
) -> AbstractContextManager[object]:
    """Calls `keep` with what a module returns, as long as the context lasts."""
    return module.register_forward_hook(lambda _module, _inputs, output: keep(output))
