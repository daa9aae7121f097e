"""The native CPU kernel of csrc/: the library, and attention as a backend.

The kernel copies the cells of a few windows at a time and stores no weights; the backward pass
computes them again from the log-sum-exp of the forward pass, the statistics here.
"""

import ctypes
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from halonet.ops.operators import (
    Gradients,
    register_operators,
    transform_objection,
)
from halonet.ops.problem import Problem

LIBRARY = {"win32": "halonet_cpu.dll", "darwin": "libhalonet_cpu.dylib"}.get(
    sys.platform, "libhalonet_cpu.so"
)
DATA_TYPES = {torch.float32: 0, torch.bfloat16: 1}

# HALONET_INTERFACE of csrc/halonet_cpu.h, and HaloProblem, field by field. Packing it takes a third
# of the time that filling a ctypes.Structure does, which small maps notice.
INTERFACE = 4
_MAP = "P4q"  # the address, and four strides
_FORWARD_FIELDS = "14q2d" + 5 * _MAP + "2P"
_BACKWARD_FIELDS = 4 * _MAP + "3P"
_PROBLEM = struct.Struct("@" + _FORWARD_FIELDS + _BACKWARD_FIELDS)
_NO_BACKWARD = (0,) * (4 * 5 + 3)
_NO_MAP = (0,) * 5


def find_library(name: str) -> Path | None:
    """The file of the kernel's library in this package, None where there is none."""
    # An editable install has the sources in one folder of the package and what it built in another.
    folders = sys.modules["halonet.ops"].__path__
    return next((path for folder in folders if (path := Path(folder) / name).exists()), None)


def load_library(name: str) -> ctypes.CDLL | str:
    """The kernel's library in this package, or why it can't be used."""
    found = find_library(name)
    if found is None:
        return f"the native library {name} was not built with this installation"
    try:
        library = ctypes.CDLL(str(found))
    except OSError as error:
        return f"the native library can't be loaded: {error}"
    expected = f"{INTERFACE} ({_PROBLEM.size} bytes)"
    try:
        interface = f"{library.halonet_interface()} ({library.halonet_problem_size()} bytes)"
    except AttributeError:
        interface = "unknown"
    if interface != expected:
        return (
            "the native library was built from another version of the sources: its interface is "
            f"{interface}, not {expected}; install halonet again"
        )
    for function in (
        library.halonet_forward,
        library.halonet_backward,
        library.halonet_affine_silu,
        library.halonet_pool_silu,
        library.halonet_statistics,
        library.halonet_norm_gradient,
    ):
        function.argtypes = [ctypes.c_char_p]
        function.restype = ctypes.c_int
    library.halonet_backward_workspace.argtypes = [ctypes.c_char_p]
    library.halonet_backward_workspace.restype = ctypes.c_int64
    library.halonet_variant.restype = ctypes.c_char_p
    library.halonet_select.argtypes = [ctypes.c_char_p]
    return library


# Loaded after torch's OpenMP, whose threads it then shares, and once: torch.compile can trace
# `why_not` only where the reason is a constant.
_library = load_library(LIBRARY)
MISSING = _library if isinstance(_library, str) else None


def loaded() -> ctypes.CDLL:
    """The library.

    Raises:
        RuntimeError: it can't be used.
    """
    if isinstance(_library, str):
        raise RuntimeError(_library)
    return _library


def variant() -> str | None:
    """The instruction set that the kernel uses here, or None where there is no kernel."""
    return None if isinstance(_library, str) else _library.halonet_variant().decode()


def select_variant(name: str | None) -> None:
    """Use the kernel's variant of this name from now on; None is the best one."""
    if loaded().halonet_select(None if name is None else name.encode()):
        raise ValueError(
            f"the kernel's variant {name!r} is not there or can't run on this processor"
        )


def why_not(problem: Problem) -> str | None:
    """float32 and bfloat16 on a CPU, without kernel_size."""
    query = problem.query
    if query.device.type != "cpu":
        return f"it runs on the CPU only, the tensors are on {query.device}"
    if query.dtype not in DATA_TYPES:
        return f"it computes in float32 and bfloat16, not {query.dtype}"
    if problem.window.kernel_size:
        return "it has no kernel_size (SASA)"
    if problem.scale == 0 and problem.position_scale != 0:
        return "it has no scale of 0 with another position_scale"
    return MISSING or transform_objection()


def _options(problem: Problem) -> tuple[int | float, ...]:
    """The first fields of a HaloProblem, up to its maps."""
    query, key, value, row_table, _, window, scale, position_scale = problem
    return (
        *key.shape,
        value.shape[4],
        window.block_size,
        window.halo_size,
        window.stride,
        window.position_stride,
        window.mask_padding,
        0 if row_table is None else row_table.shape[1],
        DATA_TYPES[query.dtype],
        torch.get_num_threads(),
        scale,
        position_scale,
    )


def _map(tensor: Tensor) -> tuple:
    return (tensor.data_ptr(), *tensor.stride()[:4])


def _readable(tensor: Tensor) -> Tensor:
    """The kernel takes any strides but the last, which must be 1."""
    return tensor if tensor.stride()[-1] == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _table(tensor: Tensor | None) -> Tensor | None:
    if tensor is None or (tensor.dtype is torch.float32 and tensor.is_contiguous()):
        return tensor
    return tensor.detach().to(torch.float32).contiguous()


def address_of(tensor: Tensor | None) -> int:
    """For a pointer of a struct; None is the null pointer."""
    return 0 if tensor is None else tensor.data_ptr()


def call(function: Callable[[bytes], int], problem: bytes) -> None:
    """A function of the library with a packed struct."""
    status = function(problem)
    if status:
        raise RuntimeError({1: "out of memory", 2: "bad argument"}[status] + " in the CPU kernel")


def _empty_log_sum(problem: Problem) -> Tensor:
    """Natural logarithm of the softmax's denominator, [B, H', W', N]."""
    return problem.query.new_empty(problem.query.shape[:4], dtype=torch.float32)


def _forward(problem: Problem, log_sum: Tensor | None) -> Tensor:
    query, key, value = _readable(problem.query), _readable(problem.key), _readable(problem.value)
    output = query.new_empty(*query.shape[:4], value.shape[4])
    if query.numel() == 0:
        return output
    row, column = _table(problem.row_table), _table(problem.column_table)
    packed = _PROBLEM.pack(
        *_options(problem),
        *_map(query),
        *_map(key),
        *_map(value),
        *_map(output),
        *(_NO_MAP if log_sum is None else _map(log_sum)),
        address_of(row),
        address_of(column),
        *_NO_BACKWARD,
    )
    call(loaded().halonet_forward, packed)
    return output


def _backward(problem: Problem, gradient: Tensor, output: Tensor, log_sum: Tensor) -> Gradients:
    query, key, value = _readable(problem.query), _readable(problem.key), _readable(problem.value)
    gradient = _readable(gradient)
    row, column = _table(problem.row_table), _table(problem.column_table)
    query_gradient = query.new_empty(query.shape)
    key_gradient = key.new_zeros(key.shape, dtype=torch.float32)
    value_gradient = value.new_zeros(value.shape, dtype=torch.float32)
    row_gradient = None if row is None else torch.zeros_like(row)
    column_gradient = None if column is None else torch.zeros_like(column)
    if query.numel():
        fields = (
            *_options(problem),
            *_map(query),
            *_map(key),
            *_map(value),
            *_map(output),
            *_map(log_sum),
            address_of(row),
            address_of(column),
            *_map(gradient),
            *_map(query_gradient),
            *_map(key_gradient),
            *_map(value_gradient),
            address_of(row_gradient),
            address_of(column_gradient),
        )
        library = loaded()
        size = library.halonet_backward_workspace(_PROBLEM.pack(*fields, 0))
        workspace = key_gradient.new_empty(size)
        call(library.halonet_backward, _PROBLEM.pack(*fields, workspace.data_ptr()))
    dtype = query.dtype
    return (
        query_gradient,
        key_gradient.to(dtype),
        value_gradient.to(dtype),
        None if row_gradient is None else row_gradient.to(dtype),
        None if column_gradient is None else column_gradient.to(dtype),
    )


run = register_operators(
    "cpu", "CPU", forward=_forward, backward=_backward, empty_statistics=_empty_log_sum
)
