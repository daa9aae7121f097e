"""Relevance and attention, drawn on the image."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from halonet.explain.attention import AttentionView

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, LIGHT, ORANGE = "#1f2933", "#ffffff", "#e69f00"
HEAT, HEAT_SHARE = "magma", 0.6
SIGNED = "RdBu_r"
SMOOTHING_SHARE = 1 / 64  # of the side, standard deviation: the eye wants parts, not single pixels


def draw_relevance(picture: Image.Image, relevance: Tensor, titles: tuple[str, str]) -> "Figure":
    """The picture, and the picture under its relevance [size, size]; see `shade_relevance`."""
    size = relevance.shape[0]
    figure, axes = _new_figure(picture, size, titles)
    axes[1].imshow(shade_relevance(picture, relevance), extent=(0, size, size, 0))
    return figure


def shade_relevance(picture: Image.Image, relevance: Tensor) -> Image.Image:
    """The picture under its positive relevance [size, size], smoothed a little, bright where most.

    It has the picture's size, or the relevance's where that is larger.
    """
    from matplotlib import colormaps

    size = relevance.shape[0]
    sigma = SMOOTHING_SHARE * size
    side = 2 * math.ceil(3 * sigma) + 1
    positive = gaussian_blur(relevance.clamp(min=0)[None], [side, side], [sigma, sigma])[0]
    scaled = (positive - positive.min()) / (positive.max() - positive.min()).clamp(min=1e-30)
    heat = Image.fromarray((255 * colormaps[HEAT](scaled.numpy())[..., :3]).astype(np.uint8))
    shown = picture.convert("RGB")
    if min(shown.size) < size:
        shown = shown.resize((size, size))
    return Image.blend(shown, heat.resize(shown.size, Image.Resampling.BICUBIC), HEAT_SHARE)


def draw_attention(picture: Image.Image, view: AttentionView, size: int) -> "Figure":
    """The pixel that looks and its window, and the weights of the window in the image."""
    from matplotlib.patches import Rectangle

    head = "mean of the heads" if view.head is None else f"head {view.head}"
    titles = ("the pixel and its window", f"stage {view.stage}, layer {view.layer}, {head}")
    figure, axes = _new_figure(picture, size, titles)
    left, top, right, bottom = view.window
    axes[1].imshow(
        view.weights.numpy(), cmap=HEAT, alpha=0.7, vmin=0, extent=(left, right, bottom, top)
    )
    for one in axes:
        for box, color in ((view.window, LIGHT), (view.pixel, ORANGE)):
            corner, width, height = box[:2], box[2] - box[0], box[3] - box[1]
            one.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=color))
        one.set_xlim(0, size)
        one.set_ylim(size, 0)
    return figure


def draw_tables(layers: Sequence[tuple[str, Tensor, Tensor]]) -> "Figure":
    """The logits by offset: a row for each layer, a picture for each head, in colours of its own.

    Red is more than the mean, blue less, and white the mean.

    Args:
        layers: a layer's name, its offsets in order [offsets], and the logits of each head
            [heads, offsets, offsets].
    """
    from matplotlib.figure import Figure

    columns = max(len(heads) for _, _, heads in layers)
    size = (1.5 * columns + 0.6, 1.75 * len(layers) + 0.3)
    figure = Figure(size, dpi=110, layout="constrained", facecolor="white")
    places = figure.subplots(len(layers), columns, squeeze=False)
    for row, (name, offsets, heads) in zip(places, layers, strict=True):
        first, last = int(offsets[0]), int(offsets[-1])
        row[0].set_ylabel(name, fontsize=8, color=INK)
        for head, axes in enumerate(row):
            if head >= len(heads):
                axes.set_axis_off()
                continue
            logits = heads[head]
            largest = logits.abs().max().item() or 1.0
            edges = (first - 0.5, last + 0.5, last + 0.5, first - 0.5)
            axes.imshow(logits.numpy(), cmap=SIGNED, vmin=-largest, vmax=largest, extent=edges)
            axes.set_xticks([first, 0, last])
            axes.set_yticks([first, 0, last])
            axes.tick_params(labelsize=7)
            title = f"head {head + 1}, up to {largest:.2f}"
            axes.set_title(title, fontsize=8, color=INK)
    return figure


def draw_fields(rows: Sequence[tuple[str, Tensor, Sequence[int]]]) -> "Figure":
    """Receptive fields: a row for each model, a picture for each stage, as square roots.

    Args:
        rows: a model's name, its fields [stages, height, width], and of each field the pixels on a
            side of the square that has half of it.
    """
    from matplotlib.figure import Figure

    columns = max(len(fields) for _, fields, _ in rows)
    size = (2 * columns + 0.4, 2.3 * len(rows))
    figure = Figure(size, dpi=110, layout="constrained", facecolor="white")
    places = figure.subplots(len(rows), columns, squeeze=False)
    for row, (name, fields, sides) in zip(places, rows, strict=True):
        for stage, (axes, field, side) in enumerate(zip(row, fields, sides, strict=True), start=1):
            # Roots: the tails are far, and faint.
            axes.imshow((field / field.max()).sqrt().numpy(), cmap=HEAT, vmin=0, vmax=1)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(f"stage {stage}: half in {side} px", fontsize=8, color=INK)
        row[0].set_ylabel(name, fontsize=8, color=INK, parse_math=False)
    return figure


def _new_figure(picture: Image.Image, size: int, titles: tuple[str, str]) -> tuple["Figure", Any]:
    """Two copies of a picture side by side, in coordinates of the model's input."""
    from matplotlib.figure import Figure

    figure = Figure((6.4, 3.5), dpi=110, layout="constrained", facecolor="white")
    axes = figure.subplots(1, 2)
    shown = picture.convert("RGB")
    for one, title in zip(axes, titles, strict=True):
        one.set_axis_off()
        one.imshow(shown, extent=(0, size, size, 0))
        one.set_title(title, fontsize=10, color=INK, parse_math=False)
    return figure, axes
