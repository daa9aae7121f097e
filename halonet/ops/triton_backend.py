"""Halo attention by Triton kernels: what they can run, their launches, and autograd.

Letters of shapes: see `window.py`. Triton is imported when a kernel is first launched, not with
this module. With TRITON_INTERPRET=1 in the environment the same kernels run on a CPU, slowly.
"""

import functools
import importlib.util
import math
import os
from typing import Any, NamedTuple

import torch
from torch import Tensor

from halonet.ops import triton_tuning
from halonet.ops.triton_tuning import Launch, Tiles
from halonet.ops.window import Window

INSTALLED = importlib.util.find_spec("triton") is not None
# Triton reads it when a kernel is defined, so later changes have no effect.
INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"

MAX_CHANNELS = 128
MAX_VALUE_CHANNELS = 256
# Programs of the queries' gradient; each leaves a part of the tables' gradient, and more than a
# few waves over the processors gain nothing.
PROGRAMS_PER_PROCESSOR = 8
MAX_PART_BYTES = 1 << 26
# Few, large steps: the interpreter's time goes by their number.
INTERPRETED_TILES = Tiles(16, 8, 8, 4, 1)


def why_not(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_table: Tensor | None,
    column_table: Tensor | None,
    window: Window,
    scale: float,
    position_scale: float,
) -> str | None:
    """CUDA from Ampere on; whole windows; up to 128 query and 256 value channels a head."""
    if not INSTALLED:
        return "triton is not installed"
    if INTERPRETING:
        if query.device.type != "cpu":
            return "TRITON_INTERPRET=1 is set: it needs CPU tensors"
    elif query.device.type != "cuda":
        return f"it needs a CUDA device, got {query.device}"
    elif (objection := _device_objection(query.device.index)) is not None:
        return objection
    if query.dtype == torch.float64:
        return "it has no float64"
    if window.kernel_size is not None:
        return "it has no kernel_size"
    if scale == 0 and position_scale != 0:
        return "it has no scale of 0 beside another position_scale"
    if query.shape[-1] > MAX_CHANNELS:
        return f"it takes {MAX_CHANNELS} channels a head, got {query.shape[-1]}"
    if value.shape[-1] > MAX_VALUE_CHANNELS:
        return f"it takes {MAX_VALUE_CHANNELS} value channels a head, got {value.shape[-1]}"
    return None


def _device_objection(device_index: int) -> str | None:
    if torch.version.hip is not None:
        return "it is untested on ROCm"
    if torch.cuda.get_device_capability(device_index) < (8, 0):
        return "it needs a GPU of compute capability 8.0 (Ampere) or newer"
    return None


# torch.compile can't trace the query of a device. This is torch.compiler.assume_constant_result,
# less its import of the whole compiler.
_device_objection._dynamo_marked_constant = True  # type: ignore[attr-defined]


def run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_table: Tensor | None,
    column_table: Tensor | None,
    window: Window,
    scale: float,
    position_scale: float,
) -> Tensor:
    """Shapes as `halonet.halo_attention` has them; the arguments are already checked."""
    if row_table is not None and column_table is not None:
        tables = torch.stack([row_table, column_table])
        if position_scale != scale:
            tables = tables * (position_scale / scale)
    else:
        tables = query.new_empty(2, window.table_length, 0)
    result, _ = forward(
        query.contiguous(), key.contiguous(), value.contiguous(), tables,
        window.block_size, window.halo_size, window.stride, window.position_stride,
        window.mask_padding, scale,
    )  # fmt: skip
    return result


@torch.library.custom_op("halonet::triton_forward", mutates_args=())
def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tables: Tensor,
    block_size: int,
    halo_size: int,
    stride: int,
    position_stride: int,
    mask_padding: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """The result [B, H', W', N, D], and maximum and sum of each softmax, [2, B, N, H', W'].

    `tables` are the row and the column table, [2, T, table channels], of no channels for none.
    """
    window = Window(block_size, halo_size, stride, None, position_stride, mask_padding)
    problem = _problem(query, key, value, tables, window)
    dtype = query.dtype
    query, key, value, tables = _launchable(query, key, value, tables)
    batch, height, width, heads, _ = query.shape
    result = query.new_empty(batch, height, width, heads, value.shape[-1])
    softmax = query.new_empty(2, batch, heads, height, width, dtype=torch.float32)
    if batch == 0:
        return result, softmax

    from halonet.ops import triton_kernels

    kernel: Any = triton_kernels.forward_kernel

    def launch(tiles: Tiles) -> None:
        grid = (problem.query_tiles(tiles.queries),)
        kernel[grid](
            query, key, value, tables, result, *softmax, _score_scale(scale, query.dtype),
            *problem.sizes, **problem.constants, MASK=mask_padding,
            BLOCK_P=_padded(2 * window.size), BLOCK_Q=tiles.queries,
            BLOCK_K=tiles.key_rows * tiles.key_columns,
            **tiles.options,
        )  # fmt: skip

    _launch_best("forward", problem, query, launch)
    return result.to(dtype), softmax


@forward.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tables: Tensor,
    block_size: int,
    halo_size: int,
    stride: int,
    position_stride: int,
    mask_padding: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    batch, height, width, heads, _ = query.shape
    return (
        query.new_empty(batch, height, width, heads, value.shape[-1]),
        query.new_empty(2, batch, heads, height, width, dtype=torch.float32),
    )


@torch.library.custom_op("halonet::triton_backward", mutates_args=())
def backward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tables: Tensor,
    result: Tensor,
    softmax: Tensor,
    result_gradient: Tensor,
    block_size: int,
    halo_size: int,
    stride: int,
    position_stride: int,
    mask_padding: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and tables."""
    window = Window(block_size, halo_size, stride, None, position_stride, mask_padding)
    problem = _problem(query, key, value, tables, window)
    dtype = query.dtype
    query, key, value, tables, result, result_gradient = _launchable(
        query, key, value, tables, result, result_gradient
    )
    query_gradient = torch.empty_like(query)
    key_gradient = torch.empty_like(key)
    value_gradient = torch.empty_like(value)
    if query.shape[0] == 0:
        return query_gradient, key_gradient, value_gradient, torch.zeros_like(tables)

    from halonet.ops import triton_gradients

    query_kernel: Any = triton_gradients.backward_query_kernel
    key_kernel: Any = triton_gradients.backward_key_kernel

    delta = torch.empty_like(softmax[0])
    programs = problem.programs(query, tables)
    parts = tables.new_zeros(programs, *tables.shape, dtype=torch.float32)
    # Beside the tensor cores, accuracy is what float32 is wanted for.
    exact = query.dtype == torch.float32 and problem.constants["PRECISION"] == "ieee"
    score_scale = _score_scale(scale, query.dtype)

    def launch_query(tiles: Tiles) -> None:
        items = problem.query_tiles(tiles.queries)
        grid = (min(items, programs) if tables.numel() else items,)
        query_kernel[grid](
            query, key, value, tables, result, result_gradient, *softmax, delta,
            query_gradient, parts, score_scale, scale, items, grid[0],
            *problem.sizes, **problem.constants, MASK=mask_padding, EXACT=exact,
            BLOCK_P=_padded(2 * window.size), BLOCK_Q=tiles.queries,
            BLOCK_K=tiles.key_rows * tiles.key_columns,
            **tiles.options,
        )  # fmt: skip

    def launch_key(tiles: Tiles) -> None:
        row_shift, rows = _key_tiles(key.shape[1], window, tiles.key_rows)
        column_shift, columns = _key_tiles(key.shape[2], window, tiles.key_columns)
        grid = (key.shape[0] * rows * columns * key.shape[3],)
        key_kernel[grid](
            query, key, value, tables, result_gradient, *softmax, delta,
            key_gradient, value_gradient, score_scale, scale,
            rows, columns, row_shift, column_shift,
            *problem.sizes, **problem.constants,
            BLOCK_P=_padded(tiles.key_rows + tiles.key_columns), BLOCK_Q=tiles.queries,
            KEY_ROWS=tiles.key_rows, KEY_COLUMNS=tiles.key_columns,
            **tiles.options,
        )  # fmt: skip

    _launch_best("query gradient", problem, query, launch_query)
    # It reads the delta that the first one wrote.
    _launch_best("key gradient", problem, query, launch_key)
    return (
        query_gradient.to(dtype),
        key_gradient.to(dtype),
        value_gradient.to(dtype),
        parts.sum(0).to(dtype),
    )


@backward.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tables: Tensor,
    result: Tensor,
    softmax: Tensor,
    result_gradient: Tensor,
    block_size: int,
    halo_size: int,
    stride: int,
    position_stride: int,
    mask_padding: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        query.new_empty(query.shape),
        key.new_empty(key.shape),
        value.new_empty(value.shape),
        tables.new_empty(tables.shape),
    )


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.block_size, ctx.halo_size, ctx.stride = inputs[:7]
    ctx.position_stride, ctx.mask_padding, ctx.scale = inputs[7:]
    ctx.save_for_backward(*tensors, *output)


def _differentiate(
    ctx: Any, result_gradient: Tensor, softmax_gradient: Tensor | None
) -> tuple[Tensor | None, ...]:
    gradients = backward(
        *ctx.saved_tensors, result_gradient, ctx.block_size, ctx.halo_size,
        ctx.stride, ctx.position_stride, ctx.mask_padding, ctx.scale,
    )  # fmt: skip
    return *gradients, None, None, None, None, None, None


forward.register_autograd(_differentiate, setup_context=_setup_context)


class _Problem(NamedTuple):
    """What the launches share: arguments, and the names by which tuned tiles are kept."""

    window: Window
    key: tuple
    sizes: tuple[int, ...]
    constants: dict[str, Any]
    blocks: int  # of all maps and heads

    @property
    def most_queries(self) -> int:
        """Queries of a block, as the least block of values that holds them."""
        return _padded(self.window.block_queries**2)

    def query_tiles(self, block_queries: int) -> int:
        """Tiles of queries over all blocks."""
        return self.blocks * -(-(self.window.block_queries**2) // block_queries)

    def programs(self, query: Tensor, tables: Tensor) -> int:
        """Programs of the queries' gradient, fixed for a device so that sums keep their order."""
        processors = 1
        if query.is_cuda:
            processors = torch.cuda.get_device_properties(query.device).multi_processor_count
        fit = MAX_PART_BYTES // max(1, 4 * tables.numel())
        return max(1, min(self.query_tiles(16), PROGRAMS_PER_PROCESSOR * processors, fit))


def _problem(query: Tensor, key: Tensor, value: Tensor, tables: Tensor, window: Window) -> _Problem:
    batch, height, width, heads, channels = key.shape
    rows, columns = window.blocks(height), window.blocks(width)
    precision = "ieee"
    if query.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32":
        precision = "tf32"
    constants = {
        "CHANNELS": channels,
        "VALUE_CHANNELS": value.shape[-1],
        "TABLE_CHANNELS": tables.shape[-1],
        "BLOCK_SIZE": window.block_size,
        "HALO_SIZE": window.halo_size,
        "STRIDE": window.stride,
        "POSITION_STRIDE": window.position_stride,
        "PRECISION": precision,
        "BLOCK_C": _padded(channels),
        "BLOCK_D": _padded(value.shape[-1]),
        "BLOCK_T": _padded(2 * window.table_length),
    }
    # The best tiles hardly depend on the batch and on how many blocks there are beyond a few.
    key_of_tiles = (
        query.device, query.dtype, *constants.values(), window.mask_padding, min(rows, 3),
        min(columns, 3),
    )  # fmt: skip
    sizes = (height, width, query.shape[1], query.shape[2], heads, rows, columns)
    return _Problem(window, key_of_tiles, sizes, constants, batch * rows * columns * heads)


def _padded(size: int) -> int:
    """The least power of two that holds it and that a product of blocks takes."""
    return max(16, 1 << (size - 1).bit_length())


def _launchable(*tensors: Tensor) -> list[Tensor]:
    """Contiguous; in float32 where Triton's interpreter, whose bfloat16 is wrong, is to run."""
    interpreted = INTERPRETING and tensors[0].dtype == torch.bfloat16
    return [(tensor.float() if interpreted else tensor).contiguous() for tensor in tensors]


def _score_scale(scale: float, dtype: torch.dtype) -> float:
    """Kernels of narrow types have scores in powers of two."""
    return scale if dtype == torch.float32 else scale * math.log2(math.e)


@functools.lru_cache(maxsize=1024)
def _key_tiles(map_size: int, window: Window, tile: int) -> tuple[int, int]:
    """How far before the map the tiles of keys begin, and how many there are along an axis.

    That shift whose tiles meet the fewest blocks: with 2h <= b and tiles of b pixels, half a
    block, where each meets two blocks and not three.
    """

    def meetings(shift: int) -> int:
        total = 0
        for start in range(-shift, map_size, tile):
            first, last = max(start, 0), min(start + tile, map_size) - 1
            # As `covering_blocks` of the kernel has it.
            low = max(first - window.halo_size - window.block_size + 1, 0)
            high = min((last + window.halo_size) // window.block_size, blocks - 1)
            total += high - -(-low // window.block_size) + 1
        return total

    blocks = window.blocks(map_size)
    shift = min(range(tile), key=lambda shift: (meetings(shift), shift))
    return shift, -(-(map_size + shift) // tile)


def _launch_best(kernel: str, problem: _Problem, query: Tensor, launch: Launch) -> None:
    constants = problem.constants
    candidates = triton_tuning.list_candidates(
        kernel, query.dtype, constants["PRECISION"],
        max(constants["BLOCK_C"], constants["BLOCK_D"]), problem.most_queries,
    )  # fmt: skip
    if INTERPRETING:
        launch(INTERPRETED_TILES)
        return
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device(query.device):
        triton_tuning.run_tuned((kernel, *problem.key), candidates, launch)
