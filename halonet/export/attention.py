"""Halo attention in standard ONNX operators, of plain parameters: no module of ours is needed.

Letters of shapes as in `halonet/ops/window.py`. Padding and cropping are left out: pixels are
gathered by indices that stay in the map, and what was attended for queries outside the map is never
gathered back.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from halonet.export.graph import Graph
from halonet.export.maps import (
    Maps,
    count_pixels,
    halve,
    split_images,
    to_array,
    to_rows,
    write_product,
)
from halonet.ops.problem import Window


@dataclass(frozen=True)
class AttentionLayer:
    """The parameters of an attention layer, as `halonet.halo_attention` takes them.

    Attributes:
        query_weight, key_weight, value_weight: [heads * channels of a head, in_channels].
        query_bias, key_bias, value_bias: of the projections, or None.
        row_table, column_table: of relative positions, of half or full width, or None.
        window: the operator's options.
        heads: number of heads.
        scale: factor of the queries' products with keys.
        position_scale: factor of those with the tables.
    """

    query_weight: Tensor
    key_weight: Tensor
    value_weight: Tensor
    query_bias: Tensor | None
    key_bias: Tensor | None
    value_bias: Tensor | None
    row_table: Tensor | None
    column_table: Tensor | None
    window: Window
    heads: int
    scale: float
    position_scale: float


def write_attention(graph: Graph, maps: Maps, layer: AttentionLayer) -> Maps:
    """Attention with its projections; maps of rows at 1 / stride of the size."""
    maps = to_rows(graph, maps)
    window, heads = layer.window, layer.heads
    place = _Placement(graph, window, maps.height, maps.width)
    blocks, queries = place.count_blocks(), window.block_queries**2

    chosen = graph.add("Gather", split_images(graph, maps), place.query_index, axis=1)
    chosen = graph.reshape(chosen, -1, maps.channels)
    query = write_product(graph, chosen, layer.query_weight, layer.query_bias)
    query = _split_heads(graph, query, place.count_queries(), heads, layer.query_weight)
    query = graph.reshape(query, -1, heads, blocks, queries, layer.query_weight.shape[0] // heads)
    windows = []
    key_bias = None if layer.key_bias is None else layer.key_bias * layer.scale
    for weight, bias in (
        (layer.key_weight * layer.scale, key_bias),
        (layer.value_weight, layer.value_bias),
    ):
        rows = write_product(graph, maps.value, weight, bias)
        pixels = _split_heads(graph, rows, count_pixels(graph, maps), heads, weight)
        windows.append(place.gather_windows(pixels))
    key, value = windows

    scores = graph.add("MatMul", query, graph.add("Transpose", key, perm=[0, 1, 2, 4, 3]))
    logits = _write_position(graph, query, layer, place)
    if logits is not None:
        scores = graph.add("Add", scores, logits)
    attended = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), value)

    width = layer.value_weight.shape[0]  # of all heads
    merged = graph.reshape(attended, -1, heads, place.count_queries(), width // heads)
    merged = graph.add("Transpose", merged, perm=[0, 2, 1, 3])
    merged = graph.add("Gather", merged, place.result_index, axis=1)
    return Maps(
        graph.reshape(merged, -1, width), width, place.result_height, place.result_width, "rows"
    )


def _split_heads(graph: Graph, rows: str, count: str, heads: int, weight: Tensor) -> str:
    """Rows [B count, N C], as a weight makes them, as [B, N, count, C]."""
    pixels = graph.reshape(rows, -1, count, heads, weight.shape[0] // heads)
    return graph.add("Transpose", pixels, perm=[0, 2, 1, 3])


def _write_position(
    graph: Graph, query: str, layer: AttentionLayer, place: "_Placement"
) -> str | None:
    """What is added to the scores for relative position and mask, [.., I J, U V]; None for nothing.

    Both are sums of a part for the cell's row and one for its column: they are made as [.., U + V],
    and a product with zeros and ones spreads them over the window.
    """
    visible = place.write_visible()
    if layer.row_table is None or layer.column_table is None:
        if visible is None:
            return None
        logits = graph.weight(np.zeros(2 * layer.window.size))
    else:
        logits = _write_relative_logits(graph, query, layer, place.count_blocks())
    if visible is not None:
        logits = graph.add("Where", visible, logits, _write_hidden(graph, logits, layer.window))
    return _spread(graph, logits, layer.window)


def _write_hidden(graph: Graph, logits: str, window: Window) -> str:
    """What stands for the logit of a row or column of the window that isn't visible."""
    if window.kernel_size:
        # Twice of it is still a number.
        return graph.weight(-1e30 if graph.dtype is np.float32 else -3e4)
    # A cell outside the map has the key of the nearest pixel, which is in the window: with a logit
    # that is lower by 30 or more it has at most 1e-13 of this pixel's weight. A weight of nothing,
    # as of -1e30, would take many times as long: numbers below 1e-38 are slow on most processors.
    lowest = graph.add("ReduceMin", logits, [-1], keepdims=1)
    return graph.add("Add", lowest, graph.weight(-30))


def _spread(graph: Graph, logits: str, window: Window) -> str:
    """Logits of rows and columns of the window [.., U + V] as those of its cells [.., U V]."""
    ones = np.eye(window.size)
    rows, columns = np.repeat(ones, window.size, 1), np.tile(ones, window.size)
    return graph.add("MatMul", logits, graph.weight(np.concatenate([rows, columns])))


def _write_relative_logits(graph: Graph, query: str, layer: AttentionLayer, blocks: str) -> str:
    """Queries [B, N, Y X, I J, C] times the tables: logits of rows and columns [.., I J, U + V]."""
    assert layer.row_table is not None
    assert layer.column_table is not None
    window, heads = layer.window, layer.heads
    side, channels = window.block_queries, layer.query_weight.shape[0] // heads
    row_table, column_table = (
        to_array(table) * layer.position_scale for table in (layer.row_table, layer.column_table)
    )
    if row_table.shape[1] != channels:  # half width: each is for one half of the channels
        zeros = np.zeros_like(row_table)
        row_table = np.concatenate([row_table, zeros], 1)
        column_table = np.concatenate([zeros, column_table], 1)
    square = graph.reshape(query, -1, blocks, side, side, channels)
    turned = graph.add("Transpose", square, perm=[0, 1, 3, 2, 4])  # [B N, Y X, J, I, C]
    rows = _write_axis_logits(graph, turned, row_table, window)
    rows = graph.add("Transpose", rows, perm=[0, 1, 3, 2, 4])
    columns = _write_axis_logits(graph, square, column_table, window)
    both = graph.add("Concat", rows, columns, axis=4)  # [B N, Y X, I, J, U + V]
    return graph.reshape(both, -1, heads, blocks, side**2, 2 * window.size)


def _write_axis_logits(graph: Graph, query: str, table: np.ndarray, window: Window) -> str:
    """Logits along one axis, of queries that are in its order: [.., I, C] to [.., I, U].

    Query i and cell u take the table's entry u - i * step + b - 1. Of the used entries, whose
    first is that of the last query and cell 0, that is u + (I - 1 - i) * step: in the flat
    products [.., I T] one step less than T further on for each query.
    """
    side, step, size = window.block_queries, window.position_stride, window.size
    length = size + (side - 1) * step  # T
    first = window.block_size - 1 - (side - 1) * step
    used = table[first : first + length]
    products = graph.add("MatMul", query, graph.weight(used.T))
    if side == 1:
        return products
    flat = graph.add("Reshape", products, [0, 0, 0, side * length])
    start = (side - 1) * step
    flat = graph.add("Slice", flat, [start], [start + side * (length - step)], [3])
    shifted = graph.add("Reshape", flat, [0, 0, 0, side, length - step])
    return graph.add("Slice", shifted, [0], [size], [4])


class _Placement:
    """Which pixels of a map the queries, the windows and the result are, as flat indices.

    Attributes:
        window: the operator's options.
        query_index: pixel of each query, [Y X, I J].
        window_index: pixel of each cell of each window, [Y X, U V]; of a cell outside the map the
            nearest pixel's, or where padding counts the number of pixels.
        result_index: the query that each pixel of the result is, [result_height * result_width].
        result_height, result_width: scalars.
    """

    def __init__(self, graph: Graph, window: Window, height: str, width: str) -> None:
        self.graph, self.window = graph, window
        self.height, self.width = height, width
        self.rows, self.columns = (self._count_axis_blocks(size) for size in (height, width))
        self.result_height, self.result_width = (
            size if window.stride == 1 else halve(graph, size) for size in (height, width)
        )
        self.query_index = self._make_index(window.block_queries, window.stride, 0)
        self.window_index = self._make_index(
            window.size, 1, window.halo_size, one_beyond=not window.mask_padding
        )
        self.result_index = self._make_result_index()

    def count_blocks(self) -> str:
        """Blocks of a map."""
        return self.graph.add("Mul", self.rows, self.columns)

    def count_queries(self) -> str:
        """Queries of a map, those outside it among them."""
        return self.graph.add("Mul", self.count_blocks(), self.window.block_queries**2)

    def gather_windows(self, pixels: str) -> str:
        """The cells [B, N, Y X, U V, C] of the windows of pixels [B, N, H W, C]."""
        graph = self.graph
        if not self.window.mask_padding:
            # One pixel more, of zeros: the cells outside the map.
            pixels = graph.add("Pad", pixels, [0, 0, 0, 0, 0, 0, 1, 0])
        return graph.add("Gather", pixels, self.window_index, axis=2)

    def write_visible(self) -> str | None:
        """Rows and columns of the window that a query may attend to; None where all are.

        [Y X, 1, U + V], or with a kernel_size [Y X, I J, U + V].
        """
        window = self.window
        if not window.mask_padding and not window.kernel_size:
            return None
        graph, size = self.graph, window.size
        side = window.block_queries if window.kernel_size else 1
        whole = graph.shape(self.rows, self.columns, side, side, size)
        parts = []
        for axis, blocks in enumerate((self.rows, self.columns)):
            shape = [1, 1, 1, 1, size]
            shape[axis], shape[2 + axis] = -1, side
            part = graph.add("Reshape", self._write_axis_visible(axis, blocks), shape)
            parts.append(graph.add("Expand", part, whole))
        return graph.reshape(graph.add("Concat", *parts, axis=4), -1, side**2, 2 * size)

    def _write_axis_visible(self, axis: int, blocks: str) -> str:
        """What is visible along one axis: [Y, 1, U], with a kernel_size [Y, I, U]."""
        graph, window = self.graph, self.window
        pixels = self._list_pixels(blocks, window.size, window.halo_size)
        inside = graph.add("Unsqueeze", self._is_inside(axis, pixels), [1])
        if not window.kernel_size:
            return inside
        cells = np.arange(window.size) - window.halo_size
        queries = np.arange(window.block_queries) * window.stride
        near = np.abs(cells - queries[:, None]) <= window.kernel_size // 2
        kernel = graph.constant(near[None], bool)
        if window.mask_padding:
            return graph.add("And", inside, kernel)
        return graph.add("Expand", kernel, graph.shape(blocks, *near.shape))

    def _count_axis_blocks(self, size: str) -> str:
        block = self.window.block_size
        return self.graph.add("Div", self.graph.add("Add", size, block - 1), block)

    def _list_pixels(self, blocks: str, count: int, before: int, step: int = 1) -> str:
        """Along one axis, `count` pixels of each block from `before` ahead of it on, [Y, count]."""
        graph = self.graph
        starts = graph.add("Mul", graph.add("Range", 0, blocks, 1), self.window.block_size)
        offsets = graph.constant(np.arange(count) * step - before)
        return graph.add("Add", graph.add("Unsqueeze", starts, [1]), offsets)

    def _is_inside(self, axis: int, pixels: str) -> str:
        size = (self.height, self.width)[axis]
        graph = self.graph
        return graph.add(
            "And", graph.add("GreaterOrEqual", pixels, 0), graph.add("Less", pixels, size)
        )

    def _make_index(self, count: int, step: int, before: int, *, one_beyond: bool = False) -> str:
        """Flat indices of `count` x `count` pixels of each block; outside the map the nearest one.

        With `one_beyond` what is outside has the index after the last pixel's.
        """
        graph = self.graph
        axes, inside = [], []
        for axis, blocks in enumerate((self.rows, self.columns)):
            pixels = self._list_pixels(blocks, count, before, step)
            shape = [1, 1, 1, 1]
            shape[axis], shape[2 + axis] = -1, count
            last = graph.add("Sub", (self.height, self.width)[axis], 1)
            clipped = graph.add("Clip", pixels, 0, last)
            axes.append(graph.add("Reshape", clipped, shape))
            inside.append(graph.add("Reshape", self._is_inside(axis, pixels), shape))
        index = graph.add("Add", graph.add("Mul", axes[0], self.width), axes[1])
        if one_beyond:
            pixels = graph.add("Mul", self.height, self.width)
            index = graph.add("Where", graph.add("And", *inside), index, pixels)
        return graph.reshape(index, -1, count**2)

    def _make_result_index(self) -> str:
        graph, side = self.graph, self.window.block_queries
        rows = graph.add("Unsqueeze", graph.add("Range", 0, self.result_height, 1), [1])
        columns = graph.add("Range", 0, self.result_width, 1)
        row_blocks, column_blocks = (graph.add("Div", axis, side) for axis in (rows, columns))
        row_places, column_places = (graph.add("Mod", axis, side) for axis in (rows, columns))
        block = graph.add("Add", graph.add("Mul", row_blocks, self.columns), column_blocks)
        place = graph.add("Add", graph.add("Mul", row_places, side), column_places)
        return graph.reshape(graph.add("Add", graph.add("Mul", block, side**2), place), -1)
