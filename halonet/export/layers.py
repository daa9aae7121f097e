"""Layers of a fused model in an ONNX graph, written straight from the modules: `write_layer`."""

from functools import singledispatch

import numpy as np
from torch import Tensor, nn

from halonet.export.attention import AttentionLayer, write_attention
from halonet.export.graph import Graph
from halonet.export.maps import (
    Maps,
    halve,
    split_images,
    to_array,
    to_planes,
    to_rows,
    write_activation,
    write_convolution,
    write_kernel,
    write_product,
)
from halonet.layers.attention import HaloAttention
from halonet.layers.bottleneck import Bottleneck, SqueezeExcitation
from halonet.layers.normalization import ChannelShift
from halonet.models.halonet import PatchStem
from halonet.ops.problem import Window


@singledispatch
def write_layer(layer: nn.Module, graph: Graph, maps: Maps) -> Maps:
    """What a layer makes of maps. Each kind of layer has a writer of its own; the others are
    activations.

    Args:
        layer: fused, in evaluation mode.
        graph: to write into.
        maps: in any layout.

    Raises:
        ValueError: a layer that has no counterpart here; the message names it.
    """
    return maps.replace_value(write_activation(graph, maps.value, layer))


def average_pixels(graph: Graph, maps: Maps) -> str:
    """Means over a map's pixels, [batch, channels]."""
    if maps.layout == "planes":
        return graph.add("ReduceMean", maps.value, [2, 3], keepdims=0)
    return graph.add("ReduceMean", split_images(graph, maps), [1], keepdims=0)


def scale_channels(graph: Graph, maps: Maps, factors: str) -> Maps:
    """Maps times a factor for each image and channel, [batch, channels]."""
    if maps.layout == "planes":
        factors = graph.reshape(factors, -1, maps.channels, 1, 1)
        return maps.replace_value(graph.add("Mul", maps.value, factors))
    factors = graph.reshape(factors, -1, 1, maps.channels)
    scaled = graph.add("Mul", split_images(graph, maps), factors)
    return maps.replace_value(graph.reshape(scaled, -1, maps.channels))


def to_channel_array(tensor: Tensor, maps: Maps) -> np.ndarray:
    """A number for each channel, in the shape that broadcasts over maps."""
    array = to_array(tensor)
    return array[:, None, None] if maps.layout == "planes" else array


@write_layer.register
def _(layer: nn.Sequential, graph: Graph, maps: Maps) -> Maps:
    for one in layer:
        maps = write_layer(one, graph, maps)
    return maps


@write_layer.register
def _(layer: nn.Conv2d, graph: Graph, maps: Maps) -> Maps:
    return write_convolution(graph, maps, layer)


@write_layer.register
def _(layer: nn.MaxPool2d, graph: Graph, maps: Maps) -> Maps:
    if (layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode) != (3, 2, 1, False):
        raise ValueError(f"can't export the pooling {layer}")
    maps = to_planes(graph, maps)
    value = graph.add("MaxPool", maps.value, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    height, width = halve(graph, maps.height), halve(graph, maps.width)
    return Maps(value, maps.channels, height, width, "planes")


@write_layer.register
def _(layer: PatchStem, graph: Graph, maps: Maps) -> Maps:
    patch, *rest = layer
    assert isinstance(patch, nn.Conv2d)
    side = patch.kernel_size[0]
    below, right = (
        graph.add("Mod", graph.add("Neg", size), side) for size in (maps.height, maps.width)
    )
    padded = graph.add("Pad", maps.value, graph.shape(0, 0, 0, 0, 0, 0, below, right))
    value = write_kernel(graph, padded, patch, patch.bias)
    height, width = (
        graph.add("Div", graph.add("Add", size, side - 1), side)
        for size in (maps.height, maps.width)
    )
    maps = Maps(value, patch.out_channels, height, width, "planes")
    return write_layer(nn.Sequential(*rest), graph, maps)


@write_layer.register
def _(layer: SqueezeExcitation, graph: Graph, maps: Maps) -> Maps:
    return write_squeeze_excitation(graph, maps, layer.squeeze, layer.activation, layer.excite)


def write_squeeze_excitation(
    graph: Graph, maps: Maps, squeeze: nn.Conv2d, activation: nn.Module, excite: nn.Conv2d
) -> Maps:
    """Gates by the means of all channels."""
    means = average_pixels(graph, maps)
    squeezed = write_product(graph, means, squeeze.weight, squeeze.bias)
    squeezed = write_activation(graph, squeezed, activation)
    gates = write_product(graph, squeezed, excite.weight, excite.bias)
    return scale_channels(graph, maps, graph.add("Sigmoid", gates))


@write_layer.register
def _(layer: Bottleneck, graph: Graph, maps: Maps) -> Maps:
    spatial = layer.spatial
    maps = to_rows(graph, maps) if isinstance(spatial, HaloAttention) else to_planes(graph, maps)
    branch = write_convolution(graph, maps, layer.reduce, _shift_of(layer.reduce_norm))
    branch = write_layer(layer.activation, graph, branch)
    if isinstance(spatial, HaloAttention):
        branch = _write_halo_attention(graph, branch, spatial, _shift_of(layer.spatial_norm))
    else:
        branch = write_layer(spatial, graph, branch)
        branch = write_layer(layer.spatial_norm, graph, branch)
    branch = write_layer(layer.activation, graph, branch)
    branch = write_layer(layer.squeeze_excitation, graph, branch)
    branch = write_convolution(graph, branch, layer.expand, _shift_of(layer.expand_norm))
    return write_residual(graph, branch, maps, layer.shortcut, layer.activation)


def _shift_of(norm: nn.Module) -> Tensor:
    """The bias that a folded norm has left."""
    assert isinstance(norm, ChannelShift)
    return norm.shift


def write_residual(
    graph: Graph, branch: Maps, maps: Maps, shortcut: nn.Module, activation: nn.Module
) -> Maps:
    """The sum of a branch and the shortcut of the maps that it was made of, activated."""
    kept = write_layer(shortcut, graph, maps)
    kept = to_rows(graph, kept) if branch.layout == "rows" else to_planes(graph, kept)
    summed = branch.replace_value(graph.add("Add", branch.value, kept.value))
    return write_layer(activation, graph, summed)


def _write_halo_attention(graph: Graph, maps: Maps, layer: HaloAttention, shift: Tensor) -> Maps:
    """An attention layer, and a shift of its results.

    Where padding is masked, a query's weights sum to 1 over pixels of the map, so that a bias of
    the values shifts the results alike. Where padding counts, its values stay zero.
    """
    if layer.absolute_rows is not None and layer.absolute_columns is not None:
        maps = _add_absolute_position(graph, maps, layer)
    projection = layer.projection
    widths = [layer.query_key_channels, layer.value_channels]
    if layer.query is None:
        widths.insert(0, layer.query_key_channels)
    weights = list(projection.weight.flatten(1).split(widths))
    biases: list = [None] * len(widths)
    shifts_values = layer.mask_padding and not isinstance(layer.output, nn.Conv2d)
    if shifts_values:
        biases[-1] = shift
    if layer.query is not None:
        weights.insert(0, layer.query.weight.flatten(1))
        biases.insert(0, None)
    scale = (layer.query_key_channels // layer.heads) ** -0.5
    parameters = AttentionLayer(
        *weights,
        *biases,
        row_table=layer.row_table,
        column_table=layer.column_table,
        window=Window(
            layer.block_size,
            layer.halo_size,
            layer.stride,
            layer.kernel_size or 0,
            layer.stride,
            int(layer.mask_padding),
        ),
        heads=layer.heads,
        scale=scale,
        position_scale=scale,
    )
    maps = write_attention(graph, maps, parameters)
    if isinstance(layer.output, nn.Conv2d):
        return write_convolution(graph, maps, layer.output, shift)
    if shifts_values:
        return maps
    return maps.replace_value(graph.add("Add", maps.value, graph.weight(to_array(shift))))


def _add_absolute_position(graph: Graph, maps: Maps, layer: HaloAttention) -> Maps:
    assert layer.absolute_rows is not None
    assert layer.absolute_columns is not None
    rows, columns = (
        _interpolate(graph, to_array(vectors), size)
        for vectors, size in (
            (layer.absolute_rows, maps.height),
            (layer.absolute_columns, maps.width),
        )
    )
    both = graph.add("Add", graph.add("Unsqueeze", rows, [1]), columns)
    position = graph.reshape(both, -1, maps.channels)
    placed = graph.add("Add", split_images(graph, maps), position)
    return maps.replace_value(graph.reshape(placed, -1, maps.channels))


def _interpolate(graph: Graph, vectors: np.ndarray, size: str) -> str:
    """Vectors [length, channels] resampled to [size, channels] as `interpolate_vectors` does it.

    Pixel i of `size` lies at (i + 1/2) length / size - 1/2 of the vectors, those at the ends held;
    each vector counts with 1 less its distance.
    """
    length = len(vectors)
    real = np.float32  # places of pixels aren't to be rounded to float16
    factor = graph.add("Div", graph.constant(length, real), graph.cast(size, real))
    centers = graph.add(
        "Add", graph.cast(graph.add("Range", 0, size, 1), real), graph.constant(0.5, real)
    )
    places = graph.add("Sub", graph.add("Mul", centers, factor), graph.constant(0.5, real))
    places = graph.add("Clip", places, graph.constant(0, real), graph.constant(length - 1, real))
    distances = graph.add(
        "Sub", graph.add("Unsqueeze", places, [1]), graph.constant(np.arange(length), real)
    )
    shares = graph.add(
        "Relu", graph.add("Sub", graph.constant(1, real), graph.add("Abs", distances))
    )
    return graph.add("MatMul", graph.cast(shares, graph.dtype), graph.weight(vectors))
