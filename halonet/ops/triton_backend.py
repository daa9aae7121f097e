"""Halo attention by Triton kernels: what they can run, their launches, and autograd.

Letters of shapes: see `window.py`. Triton is imported when a kernel is first launched, not with
this module. With TRITON_INTERPRET=1 in the environment the same kernels run on a CPU, slowly.
"""

import functools
import importlib.util
import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from halonet.ops import triton_tuning
from halonet.ops.operators import Gradients, register_operators, transform_objection
from halonet.ops.problem import Problem, Window
from halonet.ops.triton_tuning import Tiles

INSTALLED = importlib.util.find_spec("triton") is not None
# Triton reads it when a kernel is defined, so later changes have no effect.
INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"

MAX_CHANNELS = 128
MAX_VALUE_CHANNELS = 256
# Programs of the queries' gradient: each writes a part of the tables' gradient, and more than a few
# for each processor gain nothing.
PROGRAMS_PER_PROCESSOR = 8
MAX_PART_BYTES = 1 << 26
# Few, large steps: the interpreter's time depends on their number.
INTERPRETED_TILES = Tiles(16, 8, 8, 4, 1)


def why_not(problem: Problem) -> str | None:
    """CUDA from Ampere on; whole windows; up to 128 query and 256 value channels a head."""
    query = problem.query
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
    if problem.window.kernel_size:
        return "it has no kernel_size"
    if problem.scale == 0 and problem.position_scale != 0:
        return "it has no scale of 0 with another position_scale"
    if query.shape[-1] > MAX_CHANNELS:
        return f"it takes {MAX_CHANNELS} channels a head, got {query.shape[-1]}"
    if problem.value.shape[-1] > MAX_VALUE_CHANNELS:
        return f"it takes {MAX_VALUE_CHANNELS} value channels a head, got {problem.value.shape[-1]}"
    return transform_objection()


def _device_objection(device_index: int) -> str | None:
    if torch.version.hip is not None:
        return "it is untested on ROCm"
    if torch.cuda.get_device_capability(device_index) < (8, 0):
        return "it needs a GPU of compute capability 8.0 (Ampere) or newer"
    return None


# torch.compile can't trace the query of a device. This is torch.compiler.assume_constant_result,
# less its import of the whole compiler.
_device_objection._dynamo_marked_constant = True  # type: ignore[attr-defined]


def run(problem: Problem) -> Tensor:
    """The output, [B, H', W', N, D]."""
    # Here, and not in the operators alone, so that one copy serves both directions.
    query, key, value = (tensor.contiguous() for tensor in problem[:3])
    return _run_operators(Problem(query, key, value, *problem[3:]))


def _empty_softmax(problem: Problem) -> Tensor:
    """What is subtracted from the scores of each softmax, [1, B, N, H', W'].

    In float32 the weights' factors follow, [2, B, N, H', W'].
    """
    batch, height, width, heads, _ = problem.query.shape
    kept = 2 if INTERPRETING or problem.query.dtype == torch.float32 else 1
    return problem.query.new_empty(kept, batch, heads, height, width, dtype=torch.float32)


def _stack_tables(problem: Problem) -> Tensor:
    """The tables as the kernels read them, [2, entries, channels], of no channels for none.

    Both numbers are padded. The row table takes the first channels of a query, the column table the
    last; each has zeros for the others.
    """
    query, row_table, column_table = problem.query, problem.row_table, problem.column_table
    entries = _padded(2 * problem.window.table_length) // 2
    if row_table is None or column_table is None:
        return query.new_empty(2, entries, 0)
    tables = query.new_zeros(2, entries, _padded(query.shape[-1]))
    for table, part in zip((row_table, column_table), _unpad(tables, problem), strict=True):
        part.copy_(_rescale(table, problem))
    return tables


def _unpad(tables: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    """The row and the column table among the padded ones, [T, table channels] each."""
    assert problem.row_table is not None
    length, width = problem.row_table.shape
    channels = problem.query.shape[-1]
    return tables[0, :length, :width], tables[1, :length, channels - width : channels]


def _rescale(table: Tensor, problem: Problem) -> Tensor:
    """The kernels have one scale, for the products with keys and with tables."""
    if problem.position_scale == problem.scale:
        return table
    return table * (problem.position_scale / problem.scale)


class _Plan(NamedTuple):
    """What the launches of one problem share: arguments, and the key of their tuned tiles."""

    window: Window
    tiles_key: tuple
    sizes: tuple[int, ...]
    constants: dict[str, Any]
    blocks: int  # of all maps and heads
    hidden: bool  # whether cells that take no part have a place of their own, whose logit is -1e30

    @property
    def most_queries(self) -> int:
        """Queries of a block, as the least block of values that holds them."""
        return _padded(self.window.block_queries**2)

    @property
    def entries(self) -> int:
        """Entries of both tables, padded."""
        return _padded(2 * self.window.table_length)

    def query_tiles(self, block_queries: int) -> int:
        """Tiles of queries over all blocks."""
        return self.blocks * -(-(self.window.block_queries**2) // block_queries)

    @property
    def places(self) -> int:
        """Rows and columns of a window, one half each."""
        return _count_places(self.window)

    def make_places(self, query: Tensor) -> Tensor:
        """Ones at each cell's row and column among the places, [cells of a window + 1, places].

        The last row is of the cells that take no part. Not kept from one call to the next: CUDA
        graphs would own it.
        """
        size = self.window.size
        if not self.constants["HAS_TABLES"]:
            return query.new_empty(0)
        places = query.new_zeros(size**2 + 1, self.places)
        matrix = places[:-1].view(size, size, self.places)
        matrix.diagonal(0, 0, 2).fill_(1)
        matrix[:, :, self.places // 2 :].diagonal(0, 1, 2).fill_(1)
        places[-1, size] = 1
        return places

    def query_constants(self, tiles: Tiles) -> dict[str, Any]:
        """Of the two kernels that go over the window of some queries."""
        return {
            "MASK": self.window.mask_padding,
            "POSITION_STRIDE": self.window.position_stride,
            "BLOCK_T": self.entries,
            "HIDDEN": self.hidden,
            "BLOCK_P": self.places,
            "BLOCK_Q": tiles.queries,
            "BLOCK_K": tiles.key_rows * tiles.key_columns,
        }

    def programs(self, query: Tensor, tables: Tensor) -> int:
        """Programs of the queries' gradient, fixed for a device so that sums keep their order."""
        processors = 1
        if query.is_cuda:
            processors = torch.cuda.get_device_properties(query.device).multi_processor_count
        fit = MAX_PART_BYTES // max(1, 4 * tables.numel())
        return max(1, min(self.query_tiles(16), PROGRAMS_PER_PROCESSOR * processors, fit))


class Work(NamedTuple):
    """One kernel's launch, but for its tiles."""

    name: str  # in `triton_tuning`
    kernel: Any
    plan: _Plan
    query: Tensor
    # Programs, arguments and constants of a launch with some tiles.
    arrange: Callable[[Tiles], tuple[int, tuple, dict[str, Any]]]

    @property
    def candidates(self) -> list[Tiles]:
        """Tiles worth a try, the best by the model first and the last resort last."""
        constants = self.plan.constants
        return triton_tuning.list_candidates(
            self.name, self.query.dtype, constants["PRECISION"],
            max(constants["BLOCK_C"], constants["BLOCK_D"]), self.plan.most_queries,
            self.plan.entries,
        )  # fmt: skip

    def launch(self, tiles: Tiles) -> int:
        """Run the kernel on the current device; registers of a thread that are kept in memory."""
        programs, arguments, constants = self.arrange(tiles)
        compiled = self.kernel[(programs,)](*arguments, **constants, **tiles.options)
        return 0 if INTERPRETING else compiled.n_spills


def list_work(problem: Problem) -> list[Work]:
    """What forward and backward pass launch, on fresh memory: of meta tensors too."""
    query, key, value, tables = _launchable(*problem[:3], _stack_tables(problem))
    result = query.new_empty(*query.shape[:4], value.shape[-1])
    softmax = _empty_softmax(problem)
    parts = tables.new_empty(1, *tables.shape, dtype=torch.float32)
    maps = problem, query, key, value, tables, result
    return [
        _forward_work(*maps, softmax),
        *_backward_work(*maps, result, softmax, query, key, value, parts),
    ]


def _forward(problem: Problem, softmax: Tensor | None) -> Tensor:
    query, key, value, tables = _launchable(*problem[:3], _stack_tables(problem))
    result = query.new_empty(*query.shape[:4], value.shape[-1])
    if query.shape[0]:
        softmax = _empty_softmax(problem) if softmax is None else softmax
        _launch_best(_forward_work(problem, query, key, value, tables, result, softmax))
    return result.to(problem.query.dtype)


def _forward_work(
    problem: Problem,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tables: Tensor,
    result: Tensor,
    softmax: Tensor,
) -> Work:
    from halonet.ops import triton_kernels

    plan = _make_plan(problem)
    shift, factor = softmax[0], softmax[-1]
    places = plan.make_places(query)
    # The kernel's scale is above 0. So small a one gives equal weights, as 0 does.
    score_scale = max(abs(_score_scale(problem.scale, query.dtype)), 1e-30)
    if problem.scale < 0:
        query = -query

    def arrange(tiles: Tiles) -> tuple[int, tuple, dict[str, Any]]:
        arguments = (
            query, key, value, tables, places, result, shift, factor, score_scale, *plan.sizes,
        )  # fmt: skip
        constants = plan.constants | plan.query_constants(tiles)
        return plan.query_tiles(tiles.queries), arguments, constants

    return Work("forward", triton_kernels.forward_kernel, plan, query, arrange)


def _backward(problem: Problem, gradient: Tensor, output: Tensor, softmax: Tensor) -> Gradients:
    query, key, value, tables, result, result_gradient = _launchable(
        *problem[:3], _stack_tables(problem), output, gradient
    )
    query_gradient = torch.empty_like(query)
    key_gradient = torch.empty_like(key)
    value_gradient = torch.empty_like(value)
    programs = _make_plan(problem).programs(query, tables)
    parts = tables.new_zeros(programs, *tables.shape, dtype=torch.float32)
    if query.shape[0]:
        # The second reads the deltas and logits that the first writes.
        for work in _backward_work(
            problem, query, key, value, tables, result, result_gradient, softmax,
            query_gradient, key_gradient, value_gradient, parts,
        ):  # fmt: skip
            _launch_best(work)
    dtype = problem.query.dtype
    gradients = query_gradient.to(dtype), key_gradient.to(dtype), value_gradient.to(dtype)
    if problem.row_table is None:
        return *gradients, None, None
    row_gradient, column_gradient = (
        table.to(dtype) for table in _unpad(_rescale(parts.sum(0), problem), problem)
    )
    return *gradients, row_gradient.contiguous(), column_gradient.contiguous()


def _backward_work(
    problem: Problem,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tables: Tensor,
    result: Tensor,
    result_gradient: Tensor,
    softmax: Tensor,
    query_gradient: Tensor,
    key_gradient: Tensor,
    value_gradient: Tensor,
    parts: Tensor,
) -> list[Work]:
    from halonet.ops import triton_gradients

    plan, window = _make_plan(problem), problem.window
    shift, factor = softmax[0], softmax[-1]
    delta = torch.empty_like(shift)
    logits = query.new_empty(*shift.shape, plan.places if tables.numel() else 0)
    places = plan.make_places(query)
    score_scale = _score_scale(problem.scale, query.dtype)
    # Full float32 (no tensor cores) is chosen for its accuracy.
    exact = query.dtype == torch.float32 and plan.constants["PRECISION"] == "ieee"

    in_parts = plan.entries > triton_tuning.MOST_ENTRIES

    def arrange_query(tiles: Tiles) -> tuple[int, tuple, dict[str, Any]]:
        items = plan.query_tiles(tiles.queries)
        programs = min(items, len(parts)) if tables.numel() else items
        arguments = (
            query, key, value, tables, places, result, result_gradient, shift, factor, delta,
            logits, query_gradient, parts, score_scale, problem.scale, items, programs, *plan.sizes,
        )  # fmt: skip
        constants = (
            plan.constants | {"EXACT": exact, "IN_PARTS": in_parts} | plan.query_constants(tiles)
        )
        return programs, arguments, constants

    def arrange_key(tiles: Tiles) -> tuple[int, tuple, dict[str, Any]]:
        row_shift, rows = _key_tiles(key.shape[1], window, tiles.key_rows)
        column_shift, columns = _key_tiles(key.shape[2], window, tiles.key_columns)
        arguments = (
            query, key, value, places, result_gradient, shift, factor, delta, logits, key_gradient,
            value_gradient, score_scale, problem.scale, rows, columns, row_shift, column_shift,
            *plan.sizes,
        )  # fmt: skip
        constants = plan.constants | {
            "HIDDEN": plan.hidden,
            "BLOCK_P": plan.places,
            "BLOCK_Q": tiles.queries,
            "KEY_ROWS": tiles.key_rows,
            "KEY_COLUMNS": tiles.key_columns,
        }
        return key.shape[0] * rows * columns * key.shape[3], arguments, constants

    query_kernel: Any = triton_gradients.backward_query_kernel
    key_kernel: Any = triton_gradients.backward_key_kernel
    return [
        Work("query gradient", query_kernel, plan, query, arrange_query),
        Work("key gradient", key_kernel, plan, query, arrange_key),
    ]


# Of all devices: the interpreter takes tensors of the CPU.
_run_operators = register_operators(
    "triton",
    "CompositeExplicitAutograd",
    forward=_forward,
    backward=_backward,
    empty_statistics=_empty_softmax,
)


def _make_plan(problem: Problem) -> _Plan:
    query, key, value, row_table, _, window, scale, _ = problem
    batch, height, width, heads, channels = key.shape
    rows, columns = window.blocks(height), window.blocks(width)
    precision = "ieee"
    if query.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32":
        precision = "tf32"
    constants = {
        "CHANNELS": channels,
        "VALUE_CHANNELS": value.shape[-1],
        "HAS_TABLES": row_table is not None,
        "BLOCK_SIZE": window.block_size,
        "HALO_SIZE": window.halo_size,
        "STRIDE": window.stride,
        "PRECISION": precision,
        "BLOCK_C": _padded(channels),
        "BLOCK_D": _padded(value.shape[-1]),
    }
    # The best tiles hardly depend on the batch and on how many blocks there are beyond a few.
    tiles_key = (
        query.device, query.dtype, *constants.values(), window.mask_padding, min(rows, 3),
        min(columns, 3),
    )  # fmt: skip
    sizes = (height, width, query.shape[1], query.shape[2], heads, rows, columns)
    # A logit of -1e30 must be low in the type, and low still when it is scaled.
    hidden = row_table is not None and window.size < _count_places(window) // 2
    hidden = hidden and query.dtype != torch.float16 and abs(scale) > 1e-20
    return _Plan(window, tiles_key, sizes, constants, batch * rows * columns * heads, hidden)


def _count_places(window: Window) -> int:
    return _padded(2 * window.size)


def _padded(size: int) -> int:
    """The least power of two that holds it, and at least 16, as Triton's products need."""
    return max(16, 1 << (size - 1).bit_length())


def _launchable(*tensors: Tensor) -> list[Tensor]:
    """Contiguous copies; bfloat16 as float32 in Triton's interpreter, which computes it wrongly."""
    interpreted = INTERPRETING and tensors[0].dtype == torch.bfloat16
    return [(tensor.float() if interpreted else tensor).contiguous() for tensor in tensors]


def _score_scale(scale: float, dtype: torch.dtype) -> float:
    """Kernels of narrow types have scores in powers of two."""
    return scale if dtype == torch.float32 else scale * math.log2(math.e)


@functools.lru_cache(maxsize=1024)
def _key_tiles(map_size: int, window: Window, tile: int) -> tuple[int, int]:
    """How far before the map the tiles of keys begin, and how many there are along an axis.

    The shift is the one whose tiles lie in the fewest blocks' windows: with 2h <= b and tiles of b
    pixels it is half a block, and each tile is in two windows, not three.
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


def _launch_best(work: Work) -> None:
    if INTERPRETING:
        work.launch(INTERPRETED_TILES)
        return
    # Triton launches on the current device, which need not be the tensors'.
    with torch.cuda.device(work.query.device):
        triton_tuning.run_tuned((work.name, *work.plan.tiles_key), work.candidates, work.launch)
