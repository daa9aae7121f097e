"""Relevance and attention, drawn on the image."""

import math
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
