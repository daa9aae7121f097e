"""A fused `HaloNet` as an ONNX graph, written straight from its modules."""

import numpy as np
from torch import nn

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
from halonet.layers.fusion import ChannelShift
from halonet.models.halonet import HaloNet, PatchStem
from halonet.ops.problem import Window


def write_network(graph: Graph, model: HaloNet, images: Maps) -> str:
    """Logits [batch, num_classes] of images; of no classes, the pooled features.

    Args:
        graph: to write into.
        model: fused, see `HaloNet.fuse`.
        images: planes.

    Raises:
        ValueError: a module that has no counterpart here; the message names it.
    """
    maps = _write_stem(graph, model.stem, images)
    for stage in model.stages.children():
        for bottleneck in stage.children():
            if not isinstance(bottleneck, Bottleneck):
                raise ValueError(
                    f"can't export {type(bottleneck).__name__} in place of a bottleneck"
                )
            maps = _write_bottleneck(graph, maps, bottleneck)
    if isinstance(model.final, nn.Sequential):
        maps = _write_sequence(graph, maps, model.final)
    features = _average(graph, maps)
    if isinstance(model.classifier, nn.Linear):
        return write_product(graph, features, model.classifier.weight, model.classifier.bias)
    return features


def _write_stem(graph: Graph, stem: nn.Sequential, images: Maps) -> Maps:
    if not isinstance(stem, PatchStem):
        return _write_sequence(graph, images, stem)
    patch, *rest = stem
    assert isinstance(patch, nn.Conv2d)
    side = patch.kernel_size[0]
    below, right = (
        graph.add("Mod", graph.add("Neg", size), side) for size in (images.height, images.width)
    )
    padded = graph.add("Pad", images.value, graph.shape(0, 0, 0, 0, 0, 0, below, right))
    value = write_kernel(graph, padded, patch)
    height, width = (
        graph.add("Div", graph.add("Add", size, side - 1), side)
        for size in (images.height, images.width)
    )
    maps = Maps(value, patch.out_channels, height, width, "planes")
    return _write_sequence(graph, maps, rest)


def _write_sequence(graph: Graph, maps: Maps, layers: nn.Sequential | list[nn.Module]) -> Maps:
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            maps = write_convolution(graph, maps, layer)
        elif isinstance(layer, nn.MaxPool2d):
            maps = _write_max_pool(graph, maps, layer)
        else:
            maps = _activate(graph, maps, layer)
    return maps


def _write_max_pool(graph: Graph, maps: Maps, layer: nn.MaxPool2d) -> Maps:
    if (layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode) != (3, 2, 1, False):
        raise ValueError(f"can't export the pooling {layer}")
    value = graph.add("MaxPool", maps.value, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    height, width = halve(graph, maps.height), halve(graph, maps.width)
    return Maps(value, maps.channels, height, width, "planes")


def _write_bottleneck(graph: Graph, maps: Maps, bottleneck: Bottleneck) -> Maps:
    spatial = bottleneck.spatial
    maps = to_rows(graph, maps) if isinstance(spatial, HaloAttention) else to_planes(graph, maps)
    branch = write_convolution(graph, maps, bottleneck.reduce)
    branch = _activate(graph, branch, bottleneck.activation)
    if isinstance(spatial, HaloAttention):
        branch = _write_halo_attention(graph, branch, spatial)
    elif isinstance(spatial, nn.Conv2d):
        branch = write_convolution(graph, branch, spatial)
    else:
        raise ValueError(f"can't export {type(spatial).__name__} as a spatial layer")
    branch = _activate(graph, branch, bottleneck.spatial_norm)
    branch = _activate(graph, branch, bottleneck.activation)
    if isinstance(bottleneck.squeeze_excitation, SqueezeExcitation):
        branch = _write_squeeze_excitation(graph, branch, bottleneck.squeeze_excitation)
    branch = write_convolution(graph, branch, bottleneck.expand)
    if isinstance(bottleneck.shortcut, nn.Sequential):
        maps = _write_sequence(graph, maps, bottleneck.shortcut)
    summed = graph.add("Add", branch.value, maps.value)
    return _activate(graph, branch.replace_value(summed), bottleneck.activation)


def _write_halo_attention(graph: Graph, maps: Maps, layer: HaloAttention) -> Maps:
    if layer.absolute_rows is not None and layer.absolute_columns is not None:
        maps = _add_absolute_position(graph, maps, layer)
    projection = layer.projection
    widths = [layer.query_key_channels, layer.value_channels]
    if layer.query is None:
        widths.insert(0, layer.query_key_channels)
    weights = list(projection.weight.flatten(1).split(widths))
    biases: list = [None] * len(widths)
    if projection.bias is not None:
        biases = list(projection.bias.split(widths))
    if layer.query is not None:
        weights.insert(0, layer.query.weight.flatten(1))
        biases.insert(0, layer.query.bias)
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
        return write_convolution(graph, maps, layer.output)
    return maps


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


def _write_squeeze_excitation(graph: Graph, maps: Maps, layer: SqueezeExcitation) -> Maps:
    means = _average(graph, maps)
    squeezed = write_product(graph, means, layer.squeeze.weight, layer.squeeze.bias)
    squeezed = write_activation(graph, squeezed, layer.activation)
    gates = write_product(graph, squeezed, layer.excite.weight, layer.excite.bias)
    gates = graph.add("Sigmoid", gates)
    if maps.layout == "planes":
        gates = graph.reshape(gates, -1, maps.channels, 1, 1)
        return maps.replace_value(graph.add("Mul", maps.value, gates))
    gates = graph.reshape(gates, -1, 1, maps.channels)
    gated = graph.add("Mul", split_images(graph, maps), gates)
    return maps.replace_value(graph.reshape(gated, -1, maps.channels))


def _average(graph: Graph, maps: Maps) -> str:
    """Means over a map's pixels, [batch, channels]."""
    if maps.layout == "planes":
        return graph.add("ReduceMean", maps.value, [2, 3], keepdims=0)
    return graph.add("ReduceMean", split_images(graph, maps), [1], keepdims=0)


def _activate(graph: Graph, maps: Maps, layer: nn.Module) -> Maps:
    """An activation, or the rest of a norm that couldn't be folded into weights."""
    if not isinstance(layer, ChannelShift):
        return maps.replace_value(write_activation(graph, maps.value, layer))
    shift = to_array(layer.shift)
    if maps.layout == "planes":
        shift = shift[:, None, None]
    return maps.replace_value(graph.add("Add", maps.value, graph.weight(shift)))
