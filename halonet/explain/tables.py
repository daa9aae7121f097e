"""What the learned relative tables of a model say to the queries of photos."""

import json
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from halonet.data.pixels import prepare_image
from halonet.data.splits import Source
from halonet.explain.attention import AttentionLayer, keep_inputs, list_attention_layers
from halonet.files import save_figure
from halonet.models.classifier import Classifier
from halonet.ops.halo_attention import resolve_arguments
from halonet.ops.problem import Problem
from halonet.ops.window import offset_index

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class PositionLogits:
    """What the relative tables of a layer add to the scores of cells at each offset.

    They are means over queries, which decide about it: q.row[dy] + q.column[dx], scaled as in the
    layer. A shift of all offsets' logits changes no weight, so the mean over the offsets is 0.

    Attributes:
        stage, layer: which attention; counted from 1.
        offsets: of a cell from the query in pixels of the layer's map [offsets]; below 0 it lies
            above it, or to its left.
        logits: of each head [heads, offsets, offsets], by rows and columns.
    """

    stage: int
    layer: int
    offsets: Tensor
    logits: Tensor

    def to_dict(self) -> dict[str, Any]:
        """The logits as JSON has them."""
        logits = self.logits.double().round(decimals=4).tolist()
        return vars(self) | {"offsets": self.offsets.tolist(), "logits": logits}


@dataclass(frozen=True)
class RelativeTables:
    """What the relative tables of a model's layers say, in the order in which they run.

    Attributes:
        images: number of images whose queries were taken.
        layers: those that have tables.
    """

    images: int
    layers: tuple[PositionLogits, ...]

    def to_dict(self) -> dict[str, Any]:
        """The logits of all layers as JSON has them."""
        return {"images": self.images, "layers": [layer.to_dict() for layer in self.layers]}

    def to_json(self) -> str:
        """The logits as text."""
        return json.dumps(self.to_dict())

    def plot(self, path: Path | str | None = None) -> "Figure":
        """A row for each layer and a picture for each head; written to `path` if there is one."""
        from halonet.explain.pictures import draw_tables

        rows = [
            (f"stage {one.stage}, layer {one.layer}", one.offsets, one.logits)
            for one in self.layers
        ]
        return save_figure(draw_tables(rows), path)


@torch.no_grad()
def read_tables(model: Classifier, sources: Iterable[Source]) -> RelativeTables:
    """What the relative tables of a model say to the queries of images.

    Args:
        model: it is set to eval mode.
        sources: paths or other stored bytes, or functions that give an image; one or more.

    Raises:
        ValueError: the model has no relative tables, or an image can't be read.
        FileNotFoundError: there is no such image.
    """
    model.eval()
    device = next(model.parameters()).device
    layers = list_attention_layers(model)
    problems: dict[int, Problem] = {}
    queries: dict[int, Tensor] = {}

    def add(place: int, maps: Tensor) -> None:
        problem, _ = resolve_arguments(**layers[place].module.operator_arguments(maps))
        problems[place] = problem
        # A mean logit is the mean query's: it is linear in the query.
        mean = problem.query.float().mean((0, 1, 2))
        queries[place] = queries.get(place, 0) + mean

    images = 0
    with ExitStack() as hooks:
        for place, found in enumerate(layers):
            hooks.enter_context(
                keep_inputs(found.module, lambda maps, place=place: add(place, maps))
            )
        for source in sources:
            image = prepare_image(source, model.preprocessing, model.in_channels)
            model.forward_features(image[None].to(device))
            images += 1
    rows = [
        _combine(found, problems[place], queries[place] / images)
        for place, found in enumerate(layers)
        if problems[place].row_table is not None
    ]
    if not rows:
        raise ValueError("the model has no relative tables")
    return RelativeTables(images, tuple(rows))


def _combine(found: AttentionLayer, problem: Problem, query: Tensor) -> PositionLogits:
    """The logits of a query [heads, channels] at all offsets that the layer reads."""
    window = problem.window
    assert problem.row_table is not None and problem.column_table is not None  # noqa: PT018
    read = offset_index(window, query.device).unique()
    offsets = read - (window.block_size + window.halo_size - 1)
    if window.kernel_size:
        near = offsets.abs() <= window.kernel_size // 2
        read, offsets = read[near], offsets[near]
    tables = problem.row_table[read].float(), problem.column_table[read].float()
    half = tables[0].shape[1] != query.shape[1]
    parts = query.chunk(2, 1) if half else (query, query)
    row, column = (part @ table.T for part, table in zip(parts, tables, strict=True))
    logits = (row[:, :, None] + column[:, None, :]) * problem.position_scale
    logits = logits - logits.mean((1, 2), keepdim=True)
    return PositionLogits(found.stage, found.layer, offsets.cpu(), logits.cpu())
