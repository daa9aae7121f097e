"""The public operator: its signature, its checks, and the choice of a backend."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from halonet.ops import cpu, reference, sdpa, triton_backend
from halonet.ops.problem import Problem, Window

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Backend(NamedTuple):
    """One way to compute halo attention. `why_not` gives a reason or None and never raises."""

    name: str
    why_not: Callable[[Problem], str | None]
    run: Callable[[Problem], Tensor]


# Fastest first: without a name, the first backend with no objection runs.
BACKENDS = (
    Backend("cpu", cpu.why_not, cpu.run),
    Backend("sdpa", sdpa.why_not, sdpa.run),
    Backend("reference", reference.why_not, reference.run),
    # Last, and so by name only, until it has been run on a GPU.
    Backend("triton", triton_backend.why_not, triton_backend.run),
)

# The user's own first choice. Read once: torch.compile can trace it then.
PREFERRED = os.environ.get("HALONET_BACKEND") or None


@dataclass(frozen=True)
class BackendChoice:
    """Which backend runs, and what the others object to.

    `reasons` has every backend in the order of choice: None for one that could run.
    """

    chosen: str
    reasons: dict[str, str | None]

    def __str__(self) -> str:
        lines = []
        for name, reason in self.reasons.items():
            if name == self.chosen:
                lines.append(f"{name}: runs")
            else:
                lines.append(f"{name}: {reason or f'could run, but {self.chosen} comes first'}")
        return "\n".join(lines)


def halo_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_table: Tensor | None = None,
    column_table: Tensor | None = None,
    *,
    block_size: int,
    halo_size: int,
    stride: int = 1,
    kernel_size: int | None = None,
    position_stride: int | None = None,
    scale: float | Tensor | None = None,
    position_scale: float | Tensor | None = None,
    mask_padding: bool = True,
    backend: str | None = None,
) -> Tensor:
    """Blocked local attention with haloing (paper section 2.2), on channels-last maps.

    The map is cut into blocks of `block_size` x `block_size` pixels from (0, 0) on; every query
    of a block attends to the block and a band of `halo_size` pixels around it:
    softmax(scale * q.k + position_scale * (q.row[dy] + q.column[dx])) times v. Height and width
    need not be multiples of the block.

    Args:
        query: [batch, ceil(height / stride), ceil(width / stride), heads, channels]; the query
            at (i, j) is that of pixel (i * stride, j * stride).
        key: [batch, height, width, heads, channels].
        value: [batch, height, width, heads, value_channels].
        row_table: relative positions of rows, [2 (block_size + halo_size) - 1, channels / 2] or
            [.., channels]. Entry t belongs to key row minus query row = t - (block_size +
            halo_size - 1). A table of half width (channels then even) is multiplied with the first
            half of the query's channels, one of full width with all. None: no relative position.
        column_table: the same for columns, of the same shape; of half width, it is multiplied
            with the second half of the query's channels.
        block_size: pixels on a side of a block, a multiple of `stride`. May exceed the map.
        halo_size: pixels of the band around a block, 0 or more.
        stride: 1, or 2 for attention downsampling (paper section 2.3).
        kernel_size: keep only the kernel_size x kernel_size cells centred on the query (SASA);
            odd, at most 2 halo_size + 1.
        position_stride: the step in pixels that the tables take from one query of a block to the
            next. None means `stride`, which is true to the image; 1 at stride 2 is timm's rule.
        scale: factor of the queries' products with keys, a number or a tensor of one element,
            which gets its gradient; None means channels ** -0.5.
        position_scale: factor of those with the tables, likewise; None means `scale`, 1 is timm's
            rule.
        mask_padding: cells outside the map get no weight. Otherwise they take part with key 0
            and value 0, and with their relative position.
        backend: name of a backend; None takes the fastest that can run, or the one that the
            environment's HALONET_BACKEND names where that can.

    Returns:
        [batch, ceil(height / stride), ceil(width / stride), heads, value_channels].

    Raises:
        TypeError: an argument is not of the type above.
        ValueError: a shape or option that doesn't fit; the message names it.
        NotImplementedError: the named backend can't run these arguments; the message says why.
    """
    problem, autocast = resolve_arguments(
        query, key, value, row_table, column_table,
        block_size, halo_size, stride, kernel_size, position_stride, scale, position_scale,
        mask_padding,
    )  # fmt: skip
    run = _select(backend, problem)
    if autocast:
        # The problem's tensors are cast; those that a backend makes of them must not be.
        with torch.autocast(query.device.type, enabled=False):
            return run(problem)
    return run(problem)


def explain_backend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_table: Tensor | None = None,
    column_table: Tensor | None = None,
    *,
    block_size: int,
    halo_size: int,
    stride: int = 1,
    kernel_size: int | None = None,
    position_stride: int | None = None,
    scale: float | Tensor | None = None,
    position_scale: float | Tensor | None = None,
    mask_padding: bool = True,
) -> BackendChoice:
    """Which backend `halo_attention` would run for these arguments, and why not the others.

    Takes the operator's arguments without `backend` and raises as it does; `print` the result.
    """
    problem, _ = resolve_arguments(
        query, key, value, row_table, column_table,
        block_size, halo_size, stride, kernel_size, position_stride, scale, position_scale,
        mask_padding,
    )  # fmt: skip
    reasons = {backend.name: backend.why_not(problem) for backend in _in_order()}
    chosen = next(name for name, reason in reasons.items() if reason is None)
    return BackendChoice(chosen, reasons)


def list_backends() -> list[str]:
    """Names of the backends, in the order of choice."""
    return [backend.name for backend in _in_order()]


def _in_order() -> tuple[Backend, ...]:
    """The backends, the one that HALONET_BACKEND names first."""
    if PREFERRED is None:
        return BACKENDS
    first = tuple(backend for backend in BACKENDS if backend.name == PREFERRED)
    if not first:
        names = ", ".join(backend.name for backend in BACKENDS)
        raise ValueError(f"HALONET_BACKEND must be one of {names}, got {PREFERRED!r}")
    return first + tuple(backend for backend in BACKENDS if backend.name != PREFERRED)


def check_backend_name(name: str | None) -> None:
    """Raise ValueError for a name that is no backend's; None is fine."""
    if name is not None and name not in list_backends():
        raise ValueError(f"backend must be one of {', '.join(list_backends())}, got {name!r}")


def _select(name: str | None, problem: Problem) -> Callable[[Problem], Tensor]:
    check_backend_name(name)
    for backend in _in_order():
        if name is None or backend.name == name:
            reason = backend.why_not(problem)
            if reason is None:
                return backend.run
            if name is not None:
                raise NotImplementedError(f"backend {name!r} can't run this: {reason}")
    raise AssertionError("the reference runs everything")


def check_geometry(block_size: int, halo_size: int, stride: int, kernel_size: int | None) -> None:
    """Raise ValueError or TypeError where these options of the operator don't fit each other."""
    for name, number in (("block_size", block_size), ("halo_size", halo_size), ("stride", stride)):
        _check_integer(name, number)
    if stride not in (1, 2):
        raise ValueError(f"stride must be 1 or 2, got {stride}")
    if block_size < 1 or block_size % stride:
        raise ValueError(
            f"block_size must be a positive multiple of stride {stride}, got {block_size}"
        )
    if halo_size < 0:
        raise ValueError(f"halo_size must be 0 or more, got {halo_size}")
    if kernel_size is not None:
        _check_integer("kernel_size", kernel_size)
        if kernel_size < 1 or kernel_size % 2 == 0 or kernel_size > 2 * halo_size + 1:
            raise ValueError(
                "kernel_size must be odd and at most 2 halo_size + 1 = "
                f"{2 * halo_size + 1}, got {kernel_size}"
            )


def _check_integer(name: str, number: object) -> None:
    if type(number) is int:  # the usual case, in half the time
        return
    if isinstance(number, bool) or not isinstance(number, (int, torch.SymInt)):
        raise TypeError(f"{name} must be an integer, got {number!r}")


def resolve_arguments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_table: Tensor | None,
    column_table: Tensor | None,
    block_size: int,
    halo_size: int,
    stride: int = 1,
    kernel_size: int | None = None,
    position_stride: int | None = None,
    scale: float | Tensor | None = None,
    position_scale: float | Tensor | None = None,
    mask_padding: bool = True,
) -> tuple[Problem, bool]:
    """Check the operator's arguments, fill in defaults, cast under autocast; whether it was on."""
    check_geometry(block_size, halo_size, stride, kernel_size)
    if position_stride is None:
        position_stride = stride
    _check_integer("position_stride", position_stride)
    if not 1 <= position_stride <= stride:
        raise ValueError(
            f"position_stride must be from 1 to stride {stride}, got {position_stride}"
        )
    window = Window(
        block_size, halo_size, stride, kernel_size or 0, position_stride, int(bool(mask_padding))
    )

    if (row_table is None) != (column_table is None):
        raise ValueError("row_table and column_table: give both or neither")
    tensors = {"query": query, "key": key, "value": value}
    if row_table is not None and column_table is not None:
        tensors["row_table"], tensors["column_table"] = row_table, column_table
    _check_tensors(tensors)
    _check_shapes(query, key, value, row_table, column_table, window)
    if scale is None:
        # A head of no channels has no scores to scale.
        scale = max(query.shape[-1], 1) ** -0.5
    if position_scale is None:
        position_scale = scale
    # Backends take numbers: tensors, and so their gradients, go into the keys and the tables.
    if isinstance(scale, Tensor):
        tensors["key"] = key * _one_element("scale", scale)
        scale = 1.0
    if isinstance(position_scale, Tensor):
        factor = _one_element("position_scale", position_scale)
        tensors |= {name: tensors[name] * factor for name in tensors if name.endswith("_table")}
        position_scale = 1.0
    device_type = query.device.type
    autocast = device_type != "meta" and torch.is_autocast_enabled(device_type)
    if autocast:
        dtype = torch.get_autocast_dtype(device_type)
        for name, tensor in tensors.items():
            if tensor.dtype != torch.float64:
                tensors[name] = tensor.to(dtype)
    dtype = tensors["query"].dtype
    for name, tensor in tensors.items():
        if tensor.dtype != dtype:
            raise ValueError(f"{name} must have the query's type {dtype}, got {tensor.dtype}")
    problem = Problem(
        tensors["query"],
        tensors["key"],
        tensors["value"],
        tensors.get("row_table"),
        tensors.get("column_table"),
        window,
        _number("scale", scale),
        _number("position_scale", position_scale),
    )
    return problem, autocast


def _one_element(name: str, factor: Tensor) -> Tensor:
    if factor.numel() != 1 or factor.dtype.is_complex:
        raise ValueError(
            f"{name} must be a number or a tensor of one, got {factor.dtype} of shape "
            f"{list(factor.shape)}"
        )
    return factor.reshape(())


def _number(name: str, factor: Any) -> float:
    if isinstance(factor, str) or not hasattr(factor, "__float__"):
        raise TypeError(f"{name} must be a number or a tensor of one, got {factor!r}")
    number = float(factor)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    return number


def _check_tensors(tensors: dict[str, Tensor]) -> None:
    device = None
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
        dimensions = 2 if name.endswith("_table") else 5
        if tensor.dim() != dimensions:
            raise ValueError(
                f"{name} must have {dimensions} dimensions, got shape {list(tensor.shape)}"
            )
        if tensor.dtype not in DTYPES:
            raise ValueError(
                f"{name} must be float64, float32, bfloat16 or float16, got {tensor.dtype}"
            )
        if device is None:
            device = tensor.device
        elif tensor.device != device:
            raise ValueError(f"{name} must be on the query's device {device}, got {tensor.device}")


def _check_shapes(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_table: Tensor | None,
    column_table: Tensor | None,
    window: Window,
) -> None:
    # Slices of torch's own shapes take longer than those of tuples.
    found, key_shape, value_shape = tuple(query.shape), tuple(key.shape), tuple(value.shape)
    batch, height, width, heads, channels = key_shape
    # Not min(): torch.export would hold on to which of a free height and width was the smaller.
    if height < 1 or width < 1 or heads < 1 or channels < 1:
        raise ValueError(f"key must have no empty dimension but batch, got {list(key_shape)}")
    # Rounded up, as convolutions do it: torch.export then sees that a free height fits.
    query_height, query_width = (height - 1) // window.stride + 1, (width - 1) // window.stride + 1
    expected = (batch, query_height, query_width, heads, channels)
    if found != expected:
        raise ValueError(
            f"query must have shape {list(expected)} for key {list(key_shape)} and stride "
            f"{window.stride}, got {list(found)}"
        )
    if value_shape[:4] != key_shape[:4] or value_shape[4] < 1:
        raise ValueError(
            f"value must have shape {[*key_shape[:4], 'value_channels']} like key, "
            f"got {list(value_shape)}"
        )
    if row_table is None or column_table is None:
        return
    length = window.table_length
    for name, table in (("row_table", row_table), ("column_table", column_table)):
        rows, table_width = table.shape
        if rows != length or not (table_width == channels or table_width * 2 == channels):
            raise ValueError(
                f"{name} must have shape [{length}, {channels} or {channels} / 2] for "
                f"block_size {window.block_size}, halo_size {window.halo_size} and {channels} "
                f"channels, got {list(table.shape)}"
            )
    if row_table.shape != column_table.shape:
        raise ValueError(
            "row_table and column_table must have one shape, got "
            f"{list(row_table.shape)} and {list(column_table.shape)}"
        )
