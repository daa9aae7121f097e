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
    skip_pixels,
    to_array,
    to_rows,
    write_product,
)
from halonet.ops.problem import Window

# Scores of an image that a runtime makes at once, as each is written and read several times: 0.8 MB
# are in reach of second-level caches. They are those of 16 windows of 14 x 14 for 8 x 8 queries.
SCORES_AT_ONCE = 16 * 14**2 * 8**2
# Where more windows fit, they are small and many: a loop would cost more than it gains.
MOST_WINDOWS_AT_ONCE = 256


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
    heads = layer.heads
    place = _Placement(graph, layer.window, heads, maps.height, maps.width)

    chosen = maps if layer.window.stride == 1 else skip_pixels(graph, maps)
    query_pixels = _project(graph, chosen, layer.query_weight, layer.query_bias, heads)
    key_bias = None if layer.key_bias is None else layer.key_bias * layer.scale
    cells = [
        place.add_outside(_project(graph, maps, weight, bias, heads))
        for weight, bias in (
            (layer.key_weight * layer.scale, key_bias),
            (layer.value_weight, layer.value_bias),
        )
    ]
    logits = _write_position(graph, query_pixels, layer, place)

    def attend(numbers: str | None) -> str:
        """The sums of values [B, windows, I J, C] of some of the windows, or of all."""
        query_index, window_index, chosen_logits = place.query_index, place.window_index, logits
        if numbers is not None:
            query_index = graph.add("Gather", query_index, numbers, axis=0)
            window_index = graph.add("Gather", window_index, numbers, axis=0)
            if logits is not None:
                chosen_logits = graph.add("Gather", logits, numbers, axis=1)
        query = graph.add("Gather", query_pixels, query_index, axis=1)
        key, value = (graph.add("Gather", one, window_index, axis=1) for one in cells)
        spread = _spread(graph, chosen_logits, layer.window.size)
        return _attend(graph, query, key, value, spread)

    at_once = SCORES_AT_ONCE // (layer.window.block_queries * layer.window.size) ** 2
    if graph.loops and at_once <= MOST_WINDOWS_AT_ONCE:
        times, numbers = place.split_windows(max(at_once, 1))
        parts = graph.add_loop(
            times, lambda number: attend(graph.add("Gather", numbers, number, axis=0))
        )
        attended = graph.add("Transpose", parts, perm=[1, 0, 2, 3, 4])  # [B, times, windows, ..]
    else:
        attended = attend(None)
    width = layer.value_weight.shape[0]  # of all heads
    merged = graph.add("Reshape", attended, [0, -1, width // heads])
    merged = graph.add("Gather", merged, place.result_index, axis=1)
    return Maps(
        graph.reshape(merged, -1, width), width, place.result_height, place.result_width, "rows"
    )


def _attend(graph: Graph, query: str, key: str, value: str, logits: str | None) -> str:
    """The sums of values [B, N Y X, I J, C]; logits are added to the queries' products with keys.

    Runtimes make one kernel of it, where its arguments have four dimensions.
    """
    if graph.opset >= 23:
        given = () if logits is None else (logits,)
        return graph.add("Attention", query, key, value, *given, scale=1.0)
    scores = graph.add("MatMul", query, graph.add("Transpose", key, perm=[0, 1, 3, 2]))
    if logits is not None:
        scores = graph.add("Add", scores, logits)
    return graph.add("MatMul", graph.add("Softmax", scores, axis=-1), value)


def _project(graph: Graph, maps: Maps, weight: Tensor, bias: Tensor | None, heads: int) -> str:
    """Maps times a weight, with a row for each pixel and head: [B, H W N, C]."""
    rows = write_product(graph, maps.value, weight, bias)
    count = graph.add("Mul", count_pixels(graph, maps), heads)
    return graph.reshape(rows, -1, count, weight.shape[0] // heads)


def _write_position(
    graph: Graph, query_pixels: str, layer: AttentionLayer, place: "_Placement"
) -> str | None:
    """What is added to the scores for relative position and mask, [B, N Y X, I J, U + V], or for
    all images [1, N Y X, I J, U + V]; None for nothing.

    Both are sums of a part for the cell's row and one for its column.
    """
    window, queries = layer.window, layer.window.block_queries**2
    visible = place.write_visible()
    if layer.row_table is not None and layer.column_table is not None:
        logits = _write_relative_logits(graph, query_pixels, layer, place)
    elif visible is not None:
        logits = graph.weight(np.zeros([1, queries, 1, 2 * window.size]))
    else:
        return None
    if visible is not None:
        hidden = _write_hidden(graph, logits, window)
        largest = graph.weight(np.finfo(graph.dtype).max)
        logits = graph.add("Min", logits, graph.add("Where", visible, largest, hidden))
    return graph.add("Transpose", logits, perm=[0, 2, 1, 3])


def _spread(graph: Graph, logits: str | None, size: int) -> str | None:
    """Logits of rows and columns [.., U + V] as those of cells, [.., U V]."""
    if logits is None:
        return None
    ones = np.eye(size)
    rows, columns = np.repeat(ones, size, 1), np.tile(ones, size)
    return graph.add("MatMul", logits, graph.weight(np.concatenate([rows, columns])))


def _write_hidden(graph: Graph, logits: str, window: Window) -> str:
    """The logit of a row or column of the window that isn't visible."""
    if window.kernel_size:
        # Twice of it is still a number.
        return graph.weight(-1e30 if graph.dtype is np.float32 else -3e4)
    # A cell outside the map has the key of the nearest pixel, which is in the window: with a logit
    # that is lower by 30 or more it has at most 1e-13 of this pixel's weight. A weight of nothing,
    # as of -1e30, would take many times as long: numbers below 1e-38 are slow on most processors.
    # The lowest logit of all costs less than that of each query.
    lowest = graph.add("ReduceMin", logits, keepdims=0)
    return graph.add("Add", lowest, graph.weight(-30))


def _write_relative_logits(
    graph: Graph, query_pixels: str, layer: AttentionLayer, place: "_Placement"
) -> str:
    """Queries times the tables: logits of rows and columns [B, I J, N Y X, U + V].

    All queries at one place of their blocks take the same entries of the tables, which makes one
    matrix for each place. Query i and cell u take the entry u - i * step + b - 1.
    """
    assert layer.row_table is not None
    assert layer.column_table is not None
    window, heads = layer.window, layer.heads
    side, size, channels = window.block_queries, window.size, layer.query_weight.shape[0] // heads
    row_table, column_table = (
        to_array(table) * layer.position_scale for table in (layer.row_table, layer.column_table)
    )
    length = len(row_table)
    if row_table.shape[1] != channels:  # half width: each is for one half of the channels
        zeros = np.zeros_like(row_table)
        row_table = np.concatenate([row_table, zeros], 1)
        column_table = np.concatenate([zeros, column_table], 1)
    steps = np.arange(side) * window.position_stride
    entries = np.arange(size) - steps[:, None] + window.block_size - 1  # [I, U]
    whole = side, side, size
    rows = np.broadcast_to(entries[:, None], whole)
    columns = np.broadcast_to(entries + length, whole)
    index = np.concatenate([rows, columns], 2).reshape(side**2, 2 * size)
    tables = graph.weight(np.concatenate([row_table, column_table]))
    matrices = graph.add("Gather", tables, graph.constant(index), axis=0)  # [I J, U + V, C]
    query = graph.add("Gather", query_pixels, place.turned_query_index, axis=1)
    return graph.add("MatMul", query, graph.add("Transpose", matrices, perm=[0, 2, 1]))


def _divide_up(graph: Graph, number: str, divisor: str) -> str:
    """A quotient, rounded up."""
    above = graph.add("Sub", graph.add("Add", number, divisor), 1)
    return graph.add("Div", above, divisor)


class _Placement:
    """Which pixels of a map the queries, the windows and the result are, as flat indices.

    A projection's row for each pixel and head is read by one index, head n of pixel p at p N + n:
    so heads are never transposed.

    Attributes:
        window: the operator's options.
        heads: number of heads.
        query_index: row of each query among those of the map at 1 / stride of the size,
            [N Y X, I J].
        turned_query_index: the same as [I J, N Y X].
        window_index: row of each cell of each window, [N Y X, U V]; of a cell outside the map the
            nearest pixel's, or where padding counts the one after the last pixel's.
        result_index: the query that each pixel and head of the result is, of [N Y X I J],
            [result_height * result_width * N].
        result_height, result_width: scalars.
    """

    def __init__(self, graph: Graph, window: Window, heads: int, height: str, width: str) -> None:
        self.graph, self.window, self.heads = graph, window, heads
        self.sizes = height, width
        self.rows, self.columns = (self._count_axis_blocks(size) for size in self.sizes)
        self.result_height, self.result_width = (
            size if window.stride == 1 else halve(graph, size) for size in self.sizes
        )
        side = window.block_queries
        result_sizes = self.result_height, self.result_width
        self.query_index = self._make_index(result_sizes, side, side, 0)
        self.turned_query_index = graph.add("Transpose", self.query_index, perm=[1, 0])
        self.window_index = self._make_index(
            self.sizes,
            window.block_size,
            window.size,
            window.halo_size,
            one_beyond=not window.mask_padding,
        )
        self.result_index = self._make_result_index()

    def count_blocks(self) -> str:
        """Blocks of a map."""
        return self.graph.add("Mul", self.rows, self.columns)

    def count_windows(self) -> str:
        """Windows of a map in all heads."""
        return self.graph.add("Mul", self.count_blocks(), self.heads)

    def add_outside(self, pixels: str) -> str:
        """A projection [B, H W N, C], with what cells outside the map are if padding counts."""
        if self.window.mask_padding:
            return pixels
        # One pixel more, of zeros.
        return self.graph.add("Pad", pixels, [0, 0, 0, 0, self.heads, 0])

    def split_windows(self, most: int) -> tuple[str, str]:
        """How often windows are attended, and the numbers of those of each time, [times, windows].

        Each time it is an equal number, at most `most` of an image; the last may come twice.
        """
        graph, windows = self.graph, self.count_windows()
        times = _divide_up(graph, windows, graph.constant(most))
        at_once = _divide_up(graph, windows, times)
        numbers = graph.add("Range", 0, graph.add("Mul", times, at_once), 1)
        numbers = graph.add("Min", numbers, graph.add("Sub", windows, 1))
        return times, graph.reshape(numbers, -1, at_once)

    def write_visible(self) -> str | None:
        """Rows and columns of the window that a query may attend to; None where all are.

        [1, N Y X, U + V], or with a kernel_size [I J, N Y X, U + V].
        """
        window = self.window
        if not window.mask_padding and not window.kernel_size:
            return None
        graph, size = self.graph, window.size
        side = window.block_queries if window.kernel_size else 1
        whole = graph.shape(side, side, self.rows, self.columns, size)
        parts = []
        for axis, blocks in enumerate((self.rows, self.columns)):
            shape = [1, 1, 1, 1, size]
            shape[axis], shape[2 + axis] = side, -1
            part = graph.add("Reshape", self._write_axis_visible(axis, blocks), shape)
            parts.append(graph.add("Expand", part, whole))
        both = graph.add("Concat", *parts, axis=4)
        both = graph.reshape(both, side**2, self.count_blocks(), 2 * size)
        return graph.add("Concat", *[both] * self.heads, axis=1)

    def _write_axis_visible(self, axis: int, blocks: str) -> str:
        """What is visible along one axis: [1, Y, U], with a kernel_size [I, Y, U]."""
        graph, window = self.graph, self.window
        pixels = self._list_pixels(blocks, window.block_size, window.size, window.halo_size)
        inside = self._is_inside(self.sizes[axis], pixels)
        if not window.kernel_size:
            return inside
        cells = np.arange(window.size) - window.halo_size
        queries = np.arange(window.block_queries) * window.stride
        near = np.abs(cells - queries[:, None]) <= window.kernel_size // 2
        kernel = graph.constant(near[:, None], bool)
        if window.mask_padding:
            return graph.add("And", inside, kernel)
        return graph.add("Expand", kernel, graph.shape(len(queries), blocks, len(cells)))

    def _count_axis_blocks(self, size: str) -> str:
        block = self.window.block_size
        return self.graph.add("Div", self.graph.add("Add", size, block - 1), block)

    def _list_pixels(self, blocks: str, block: int, count: int, before: int) -> str:
        """Along one axis, `count` pixels of each block from `before` ahead of it on, [Y, count]."""
        graph = self.graph
        starts = graph.add("Mul", graph.add("Range", 0, blocks, 1), block)
        offsets = graph.constant(np.arange(count) - before)
        return graph.add("Add", graph.add("Unsqueeze", starts, [1]), offsets)

    def _is_inside(self, size: str, pixels: str) -> str:
        graph = self.graph
        return graph.add(
            "And", graph.add("GreaterOrEqual", pixels, 0), graph.add("Less", pixels, size)
        )

    def _make_index(
        self,
        sizes: tuple[str, str],
        block: int,
        count: int,
        before: int,
        *,
        one_beyond: bool = False,
    ) -> str:
        """Rows of `count` x `count` pixels of each block in all heads, [N Y X, count * count];
        outside a map of these sizes the nearest pixel's.

        With `one_beyond` what is outside has the index after the last pixel's.
        """
        graph = self.graph
        axes, inside = [], []
        for axis, blocks in enumerate((self.rows, self.columns)):
            pixels = self._list_pixels(blocks, block, count, before)
            shape = [1, 1, 1, 1]
            shape[axis], shape[2 + axis] = -1, count
            last = graph.add("Sub", sizes[axis], 1)
            clipped = graph.add("Clip", pixels, 0, last)
            axes.append(graph.add("Reshape", clipped, shape))
            inside.append(graph.add("Reshape", self._is_inside(sizes[axis], pixels), shape))
        index = graph.add("Add", graph.add("Mul", axes[0], sizes[1]), axes[1])
        if one_beyond:
            pixels = graph.add("Mul", *sizes)
            index = graph.add("Where", graph.add("And", *inside), index, pixels)
        first = graph.add("Mul", graph.reshape(index, -1, count**2), self.heads)
        index = graph.add("Add", first, graph.constant(np.arange(self.heads)[:, None, None]))
        return graph.reshape(index, -1, count**2)

    def _make_result_index(self) -> str:
        graph, side = self.graph, self.window.block_queries
        rows = graph.add("Unsqueeze", graph.add("Range", 0, self.result_height, 1), [1])
        columns = graph.add("Range", 0, self.result_width, 1)
        row_blocks, column_blocks = (graph.add("Div", axis, side) for axis in (rows, columns))
        row_places, column_places = (graph.add("Mod", axis, side) for axis in (rows, columns))
        block = graph.add("Add", graph.add("Mul", row_blocks, self.columns), column_blocks)
        place = graph.add("Add", graph.add("Mul", row_places, side), column_places)
        first = graph.add("Add", graph.add("Mul", block, side**2), place)
        per_head = graph.add("Mul", self.count_blocks(), side**2)
        heads = graph.add("Mul", graph.constant(np.arange(self.heads)), per_head)
        return graph.reshape(graph.add("Add", graph.add("Unsqueeze", first, [2]), heads), -1)
