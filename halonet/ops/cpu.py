"""The native CPU kernel of csrc/: the library, the attention as a backend, activation and pooling.

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
    define_operator,
    differentiates_by_rules,
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
INTERFACE = 3
_MAP = "P4q"  # the address, and four strides
_FORWARD_FIELDS = "14q2d" + 5 * _MAP + "2P"
_BACKWARD_FIELDS = 4 * _MAP + "3P"
_PROBLEM = struct.Struct("@" + _FORWARD_FIELDS + _BACKWARD_FIELDS)
_NO_BACKWARD = (0,) * (4 * 5 + 3)
_NO_MAP = (0,) * 5
_ACTIVATION = struct.Struct("@6P4q")  # HaloActivation
_POOLING = struct.Struct("@2P6q")  # HaloPooling


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


def _loaded() -> ctypes.CDLL:
    if isinstance(_library, str):
        raise RuntimeError(_library)
    return _library


def variant() -> str | None:
    """The instruction set that the kernel uses here, or None where there is no kernel."""
    return None if isinstance(_library, str) else _library.halonet_variant().decode()


def select_variant(name: str | None) -> None:
    """Use the kernel's variant of this name from now on; None is the best one."""
    if _loaded().halonet_select(None if name is None else name.encode()):
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


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _call(function: Callable[[bytes], int], problem: bytes) -> None:
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
        _address(row),
        _address(column),
        *_NO_BACKWARD,
    )
    _call(_loaded().halonet_forward, packed)
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
            _address(row),
            _address(column),
            *_map(gradient),
            *_map(query_gradient),
            *_map(key_gradient),
            *_map(value_gradient),
            _address(row_gradient),
            _address(column_gradient),
        )
        library = _loaded()
        size = library.halonet_backward_workspace(_PROBLEM.pack(*fields, 0))
        workspace = key_gradient.new_empty(size)
        _call(library.halonet_backward, _PROBLEM.pack(*fields, workspace.data_ptr()))
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


def can_affine_silu(maps: Tensor, added: Tensor | None = None, *, per_channel: bool = True) -> bool:
    """Whether `affine_silu` takes these: outside of autograd, on a CPU, in an order that it reads.

    Args:
        maps: [batch, channels, height, width].
        added: as `maps`, or None.
        per_channel: whether there is a scale or a shift, for which maps must be channels-last.
    """
    return (
        MISSING is None
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()  # torch's compiler makes one loop of it, too
        and type(maps) is Tensor  # not a proxy of torch.fx, nor a subclass without storage
        and not differentiates_by_rules()
        and maps.device.type == "cpu"
        and maps.dtype in DATA_TYPES
        and maps.dim() == 4
        and (
            maps.is_contiguous(memory_format=torch.channels_last)
            or (not per_channel and maps.is_contiguous())
        )
        and (added is None or _is_alike(added, maps))
    )


def affine_silu(
    maps: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    added: Tensor | None,
    *,
    gradient: Tensor | None = None,
    in_place: bool = False,
) -> Tensor:
    """`silu(x)` for `x = maps * scale + shift + added`, or with a gradient the one of `x`.

    Args:
        maps: [batch, channels, height, width]; see `can_affine_silu`.
        scale: [channels], or None.
        shift: [channels], or None.
        added: as `maps`, or None.
        gradient: of the result, in the shape of `maps`, or None.
        in_place: write over `maps`.

    Raises:
        ValueError: a scale or shift of another length or on another device.
    """
    output = maps if in_place else torch.empty_like(maps)
    if gradient is not None and not _is_alike(gradient, maps):
        gradient = torch.empty_like(maps).copy_(gradient)
    scale, shift = _per_channel("scale", scale, maps), _per_channel("shift", shift, maps)
    _affine_silu(output, maps, scale, shift, added, gradient)
    if in_place and not maps.is_inference():  # those have no version
        torch.autograd.graph.increment_version(maps)
    return output


def pool_silu(maps: Tensor) -> Tensor:
    """`max_pool2d(silu(maps), kernel_size=3, stride=2, padding=1)`.

    Args:
        maps: [batch, channels, height, width], channels-last; see `can_affine_silu`.
    """
    return _pool_silu(maps)


def _per_channel(name: str, numbers: Tensor | None, maps: Tensor) -> Tensor | None:
    if numbers is None:
        return None
    if numbers.shape != maps.shape[1:2] or numbers.device != maps.device:
        raise ValueError(
            f"{name} must have a number for each of {maps.shape[1]} channels on {maps.device}, "
            f"got shape {list(numbers.shape)} on {numbers.device}"
        )
    return numbers.float().contiguous()


def _is_alike(tensor: Tensor, maps: Tensor) -> bool:
    return (
        type(tensor) is Tensor
        and tensor.device == maps.device
        and tensor.dtype == maps.dtype
        and tensor.shape == maps.shape
        and tensor.stride() == maps.stride()
    )


def _run_affine_silu(
    output: Tensor,
    maps: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    added: Tensor | None,
    gradient: Tensor | None,
) -> None:
    channels = maps.shape[1]
    packed = _ACTIVATION.pack(
        *(_address(tensor) for tensor in (output, maps, scale, shift, added, gradient)),
        maps.numel() // max(channels, 1),
        channels,
        DATA_TYPES[maps.dtype],
        torch.get_num_threads(),
    )
    _call(_loaded().halonet_affine_silu, packed)


_affine_silu = define_operator(
    "cpu_affine_silu_",
    "(Tensor(a!) output, Tensor maps, Tensor? scale, Tensor? shift, Tensor? added, "
    "Tensor? gradient) -> ()",
    "CPU",
    _run_affine_silu,
    lambda *_: None,
)


def _empty_pooled(maps: Tensor) -> Tensor:
    batch, channels, height, width = maps.shape
    return torch.empty(
        (batch, channels, -(-height // 2), -(-width // 2)),
        dtype=maps.dtype,
        device=maps.device,
        memory_format=torch.channels_last,
    )


def _run_pool_silu(maps: Tensor) -> Tensor:
    output = _empty_pooled(maps)
    batch, channels, height, width = maps.shape
    options = (height, width, channels, DATA_TYPES[maps.dtype], torch.get_num_threads())
    packed = _POOLING.pack(output.data_ptr(), maps.data_ptr(), batch, *options)
    _call(_loaded().halonet_pool_silu, packed)
    return output


_pool_silu = define_operator(
    "cpu_pool_silu", "(Tensor maps) -> Tensor", "CPU", _run_pool_silu, _empty_pooled
)
