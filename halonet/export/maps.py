"""Maps in a graph: their two layouts, and how layers of products and activations are written."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from torch import Tensor, nn

from halonet.export.graph import Graph


@dataclass(frozen=True)
class Maps:
    """A batch of maps in a graph.

    Attributes:
        value: name of the value.
        channels: of each map.
        height, width: names of scalars, in pixels.
        layout: "rows", [batch * height * width, channels], in which a 1x1 convolution is one
            matrix product and attention gathers pixels; or "planes", [batch, channels, height,
            width], as convolutions have it.
    """

    value: str
    channels: int
    height: str
    width: str
    layout: Literal["rows", "planes"]

    def replace_value(self, value: str) -> "Maps":
        """Maps of the same shape and layout."""
        return replace(self, value=value)


def to_array(tensor: Tensor) -> np.ndarray:
    """A tensor's numbers in float32."""
    return tensor.detach().float().cpu().numpy()


def halve(graph: Graph, size: str) -> str:
    """The size that stride 2 makes of a size, rounded up."""
    return graph.add("Div", graph.add("Add", size, 1), 2)


def count_pixels(graph: Graph, maps: Maps) -> str:
    """Pixels of a map, as a scalar."""
    return graph.add("Mul", maps.height, maps.width)


def to_rows(graph: Graph, maps: Maps) -> Maps:
    """Maps in the layout of attention."""
    if maps.layout == "rows":
        return maps
    last = graph.add("Transpose", maps.value, perm=[0, 2, 3, 1])
    return replace(maps, value=graph.reshape(last, -1, maps.channels), layout="rows")


def to_planes(graph: Graph, maps: Maps) -> Maps:
    """Maps in the layout of convolutions."""
    if maps.layout == "planes":
        return maps
    pixels = graph.reshape(maps.value, -1, maps.height, maps.width, maps.channels)
    return replace(maps, value=graph.add("Transpose", pixels, perm=[0, 3, 1, 2]), layout="planes")


def split_images(graph: Graph, maps: Maps) -> str:
    """Maps of rows as [batch, height * width, channels]."""
    return graph.reshape(maps.value, -1, count_pixels(graph, maps), maps.channels)


def skip_pixels(graph: Graph, maps: Maps) -> Maps:
    """Maps of rows with every second pixel of every second row."""
    rows, columns = (graph.add("Range", 0, size, 2) for size in (maps.height, maps.width))
    starts = graph.add("Mul", graph.reshape(rows, -1, 1), maps.width)
    index = graph.reshape(graph.add("Add", starts, columns), -1)
    kept = graph.add("Gather", split_images(graph, maps), index, axis=1)
    value = graph.reshape(kept, -1, maps.channels)
    return Maps(value, maps.channels, halve(graph, maps.height), halve(graph, maps.width), "rows")


def write_product(graph: Graph, rows: str, weight: Tensor, bias: Tensor | None) -> str:
    """Rows [.., in] times a weight [out, in], which may have more dimensions of size 1."""
    inputs = [rows, graph.weight(to_array(weight.flatten(1)))]
    if bias is not None:
        inputs.append(graph.weight(to_array(bias)))
    return graph.add("Gemm", *inputs, transB=1)


def write_convolution(
    graph: Graph, maps: Maps, layer: nn.Conv2d, shift: Tensor | None = None
) -> Maps:
    """A convolution with equal padding on all sides, in the layout of the maps if it is 1x1.

    `shift` is the bias of a layer that has none.

    Raises:
        ValueError: a convolution with dilation, or another padding; the message says it.
    """
    sides, padding = layer.kernel_size, layer.padding
    stride = layer.stride[0]
    if (
        layer.dilation != (1, 1)
        or layer.padding_mode != "zeros"
        or layer.stride not in ((1, 1), (2, 2))
        or padding != (sides[0] // 2, sides[1] // 2)
        or sides[0] % 2 == 0
    ):
        raise ValueError(f"can't export the convolution {layer}")
    bias = layer.bias if shift is None else shift
    height, width = maps.height, maps.width
    if stride == 2:
        height, width = halve(graph, height), halve(graph, width)
    if maps.layout == "rows" and sides == (1, 1) and layer.groups == 1:
        rows = maps if stride == 1 else skip_pixels(graph, maps)
        value = write_product(graph, rows.value, layer.weight, bias)
        return Maps(value, layer.out_channels, height, width, "rows")
    planes = to_planes(graph, maps)
    value = write_kernel(graph, planes.value, layer, bias)
    return Maps(value, layer.out_channels, height, width, "planes")


def write_kernel(graph: Graph, planes: str, layer: nn.Conv2d, bias: Tensor | None) -> str:
    """ONNX's Conv of planes, with the layer's own padding."""
    inputs = [planes, graph.weight(to_array(layer.weight))]
    if bias is not None:
        inputs.append(graph.weight(to_array(bias)))
    (top, left), padding = layer.padding, layer.padding  # numbers: fuse and halonet have no names
    assert not isinstance(padding, str)
    return graph.add(
        "Conv",
        *inputs,
        kernel_shape=list(layer.kernel_size),
        strides=list(layer.stride),
        group=layer.groups,
        pads=[top, left, top, left],
    )


def write_activation(graph: Graph, value: str, layer: nn.Module) -> str:
    """An activation, in any layout.

    Raises:
        ValueError: there is no such activation here.
    """
    if isinstance(layer, nn.Identity):
        return value
    if isinstance(layer, nn.ReLU):
        return graph.add("Relu", value)
    if isinstance(layer, nn.SiLU):
        return graph.add("Mul", value, graph.add("Sigmoid", value))
    if isinstance(layer, nn.GELU) and layer.approximate == "none":
        scaled = graph.add("Mul", value, graph.weight(0.5**0.5))
        share = graph.add("Add", graph.add("Erf", scaled), graph.weight(1))
        return graph.add("Mul", graph.add("Mul", value, graph.weight(0.5)), share)
    raise ValueError(f"can't export the activation {layer}")
