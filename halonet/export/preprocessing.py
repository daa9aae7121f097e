"""A photo's way to a model's input, in the graph: crop of a strip, resizing, crop, normalizing."""

import math

import numpy as np

from halonet.export.graph import Graph
from halonet.export.maps import Maps
from halonet.models.classifier import Preprocessing

LONGEST_SHAPE = 8  # as in data/pixels.py, which needs what an export doesn't


def write_preprocessing(
    graph: Graph, photos: str, preprocessing: Preprocessing, in_channels: int
) -> Maps:
    """What `halonet.data.pixels` does to a photo, for a batch of photos of one size.

    Args:
        graph: to write into.
        photos: bytes [batch, height, width, in_channels].
        preprocessing: of the model.
        in_channels: of the photos and the model.
    """
    shape = graph.add("Shape", photos)
    sizes = [graph.add("Gather", shape, axis) for axis in (1, 2)]
    shorter = graph.add("Min", *sizes)
    longest = graph.add("Mul", shorter, LONGEST_SHAPE)
    photos = _crop_center(
        graph, photos, [graph.add("Min", size, longest) for size in sizes], [1, 2]
    )

    target = math.floor(preprocessing.image_size / preprocessing.crop_share)
    resized = [
        graph.add("Div", graph.add("Mul", graph.add("Min", size, longest), target), shorter)
        for size in sizes
    ]
    planes = graph.add("Transpose", photos, perm=[0, 3, 1, 2])
    first = graph.add("Slice", graph.add("Shape", planes), [0], [2])
    planes = graph.add(
        "Resize",
        planes,
        "",
        "",
        graph.add("Concat", first, graph.shape(*resized), axis=0),
        mode="cubic",
        antialias=1,
        cubic_coeff_a=-0.5,
        exclude_outside=1,
    )
    side = graph.constant(preprocessing.image_size)
    planes = _crop_center(graph, planes, [side, side], [2, 3], to_even=True)

    mean = 255 * np.array(preprocessing.mean, np.float32)[:, None, None]
    std = 255 * np.array(preprocessing.std, np.float32)[:, None, None]
    real = np.float32
    centered = graph.add("Sub", graph.cast(planes, real), graph.constant(mean, real))
    images = graph.add("Div", centered, graph.constant(std, real))
    return Maps(images, in_channels, side, side, "planes")


def _crop_center(
    graph: Graph, value: str, sizes: list[str], axes: list[int], *, to_even: bool = False
) -> str:
    """The central part of a value along two axes.

    Where the rest is odd, the smaller half comes first, or the even one, as torchvision has it.
    """
    shape = graph.add("Shape", value)
    for axis, size in zip(axes, sizes, strict=True):
        whole = graph.add("Gather", shape, axis)
        rest = graph.add("Sub", whole, size)
        start = graph.add("Div", rest, 2)
        if to_even:
            half = graph.add("Mul", graph.cast(rest, np.float32), graph.constant(0.5, np.float32))
            start = graph.cast(graph.add("Round", half), np.int64)
        end = graph.add("Add", start, size)
        value = graph.add("Slice", value, graph.shape(start), graph.shape(end), [axis])
    return value
