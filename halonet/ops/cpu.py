"""The native CPU kernel (csrc/) as a backend: loads it, registers torch operators, autograd.

The kernel reads windows straight from the maps, adds the relative position itself and never stores
the attention's weights; the backward pass recomputes them from the log-sum-exp of the forward pass.
"""

import ctypes
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from halonet.ops.window import Window

LIBRARY = {"win32": "halonet_cpu.dll", "darwin": "libhalonet_cpu.dylib"}.get(
    sys.platform, "libhalonet_cpu.so"
)
DATA_TYPES = {torch.float32: 0, torch.bfloat16: 1}


# HaloProblem of csrc/halonet_cpu.h as C lays it out. Packing it takes a third of the time that
# filling a ctypes.Structure does, which small maps notice.
_MAP = "P4q"
_FORWARD_FIELDS = "14q2d" + 5 * _MAP + "2P"
_BACKWARD_FIELDS = 4 * _MAP + "3P"
_PROBLEM = struct.Struct("@" + _FORWARD_FIELDS + _BACKWARD_FIELDS)
_NO_BACKWARD = (0,) * (4 * 5 + 3)
_NO_MAP = (0,) * 5


def load_library(name: str) -> ctypes.CDLL | str:
    """The kernel's library beside this module, or why there is none."""
    # An editable install has the sources in one folder of the package and what it built in another.
    folders = sys.modules["halonet.ops"].__path__
    found = [path for folder in folders if (path := Path(folder) / name).exists()]
    if not found:
        return f"the native library {name} was not built with this installation"
    try:
        library = ctypes.CDLL(str(found[0]))
    except OSError as error:
        return f"the native library can't be loaded: {error}"
    for function in (library.halonet_forward, library.halonet_backward):
        function.argtypes = [ctypes.c_char_p]
        function.restype = ctypes.c_int
    library.halonet_backward_workspace.argtypes = [ctypes.c_char_p]
    library.halonet_backward_workspace.restype = ctypes.c_int64
    library.halonet_variant.restype = ctypes.c_char_p
    library.halonet_select.argtypes = [ctypes.c_char_p]
    return library


# Loaded with the module, behind torch's OpenMP, whose threads it then shares. A text says why there
# is none: a constant, as torch.compile wants it.
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
    """One line on why the kernel can't run these arguments, or None."""
    if query.device.type != "cpu":
        return f"it runs on the CPU only, the tensors are on {query.device}"
    if query.dtype not in DATA_TYPES:
        return f"it computes in float32 and bfloat16, not {query.dtype}"
    if window.kernel_size is not None:
        return "it has no kernel_size (SASA)"
    if scale == 0 and position_scale != 0:
        return "it has no scale of 0 beside another position_scale"
    return MISSING


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
    tensors = (query, key, value, row_table, column_table)
    options = (
        window.block_size,
        window.halo_size,
        window.stride,
        window.position_stride,
        window.mask_padding,
        scale,
        position_scale,
    )
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return torch.ops.halonet.cpu_forward.default(*tensors, *options)[0]
    return torch.ops.halonet.cpu_inference.default(*tensors, *options)


def _problem(
    query: Tensor, key: Tensor, value: Tensor, row_table: Tensor | None, options: tuple
) -> list[int | float]:
    """HaloProblem's first fields, up to the scales, which end the options."""
    return [
        *key.shape,
        value.shape[4],
        *options[:-2],
        0 if row_table is None else row_table.shape[1],
        DATA_TYPES[query.dtype],
        torch.get_num_threads(),
        *options[-2:],
    ]


def _map(tensor: Tensor) -> tuple:
    return (tensor.data_ptr(), *tensor.stride()[:4])


def _readable(tensor: Tensor) -> Tensor:
    """The kernel takes any strides but the last, which must be 1."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _table(tensor: Tensor | None) -> Tensor | None:
    if tensor is None or (tensor.dtype is torch.float32 and tensor.is_contiguous()):
        return tensor
    return tensor.detach().to(torch.float32).contiguous()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _call(function: Callable[[bytes], int], problem: bytes) -> None:
    status = function(problem)
    if status:
        raise RuntimeError(
            {1: "out of memory", 2: "bad argument"}[status] + " in the halo attention kernel"
        )


def _inference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_table: Tensor | None,
    column_table: Tensor | None,
    *options: Any,
) -> Tensor:
    return _attend(query, key, value, row_table, column_table, options, None)


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_table: Tensor | None,
    column_table: Tensor | None,
    *options: Any,
) -> tuple[Tensor, Tensor]:
    log_sum = query.new_empty(query.shape[:4], dtype=torch.float32)
    return _attend(query, key, value, row_table, column_table, options, log_sum), log_sum


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_table: Tensor | None,
    column_table: Tensor | None,
    options: tuple,
    log_sum: Tensor | None,
) -> Tensor:
    query, key, value = _readable(query), _readable(key), _readable(value)
    output = query.new_empty((*query.shape[:4], value.shape[4]))
    if query.numel() == 0:
        return output
    row, column = _table(row_table), _table(column_table)
    problem = _PROBLEM.pack(
        *_problem(query, key, value, row, options),
        *_map(query),
        *_map(key),
        *_map(value),
        *_map(output),
        *(_NO_MAP if log_sum is None else _map(log_sum)),
        _address(row),
        _address(column),
        *_NO_BACKWARD,
    )
    _call(_loaded().halonet_forward, problem)
    return output


def _fake_inference(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Tensor:
    return query.new_empty((*query.shape[:4], value.shape[4]))


def _fake_forward(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    log_sum = query.new_empty(query.shape[:4], dtype=torch.float32)
    return _fake_inference(query, key, value), log_sum


def _backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_table: Tensor | None,
    column_table: Tensor | None,
    output: Tensor,
    log_sum: Tensor,
    *options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    gradient, query, key, value = (_readable(tensor) for tensor in (gradient, query, key, value))
    row, column = _table(row_table), _table(column_table)
    query_gradient = query.new_empty(query.shape)
    key_gradient = key.new_zeros(key.shape, dtype=torch.float32)
    value_gradient = value.new_zeros(value.shape, dtype=torch.float32)
    row_gradient = query.new_zeros((0,) if row is None else row.shape, dtype=torch.float32)
    column_gradient = torch.zeros_like(row_gradient)
    if query.numel():
        fields = (
            *_problem(query, key, value, row, options),
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
    type_of_table = query.dtype if row_table is None else row_table.dtype
    return (
        query_gradient,
        key_gradient.to(key.dtype),
        value_gradient.to(value.dtype),
        row_gradient.to(type_of_table),
        column_gradient.to(type_of_table),
    )


def _fake_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_table: Tensor | None,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    table = query.new_empty(0) if row_table is None else row_table.new_empty(row_table.shape)
    return (
        query.new_empty(query.shape),
        key.new_empty(key.shape),
        value.new_empty(value.shape),
        table,
        torch.empty_like(table),
    )


def _setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    tensors, ctx.options = inputs[:5], inputs[5:]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, *output)


def _autograd(
    ctx: Any, gradient: Tensor | None, log_sum_gradient: Tensor | None
) -> tuple[Tensor | None, ...]:
    nothing = (None,) * 7
    if gradient is None:
        return (None,) * 5 + nothing
    query, key, value, row_table, column_table, output, log_sum = ctx.saved_tensors
    gradients = list(
        torch.ops.halonet.cpu_backward.default(
            gradient, query, key, value, row_table, column_table, output, log_sum, *ctx.options
        )
    )
    if row_table is None:
        gradients[3:] = [None, None]
    return (*gradients, *nothing)


def _no_second_derivative(ctx: Any, *gradients: Tensor | None) -> NoReturn:
    raise RuntimeError(
        "halo attention's kernel has no second derivative; use backend='reference' for it"
    )


# Defined by hand: torch.library.custom_op imports torch's compiler at the first call, which takes
# seconds, and costs twice as much a call.
_TENSORS = "Tensor query, Tensor key, Tensor value, Tensor? row_table, Tensor? column_table"
_OPTIONS = (
    "int block_size, int halo_size, int stride, int position_stride, bool mask_padding, "
    "float scale, float position_scale"
)
_operators = torch.library.Library("halonet", "FRAGMENT")
_operators.define(
    f"cpu_inference({_TENSORS}, {_OPTIONS}) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,)
)
_operators.define(
    f"cpu_forward({_TENSORS}, {_OPTIONS}) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_operators.define(
    f"cpu_backward(Tensor gradient, {_TENSORS}, Tensor output, Tensor log_sum, {_OPTIONS})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_operators.impl("cpu_inference", _inference, "CPU")
_operators.impl("cpu_forward", _forward, "CPU")
_operators.impl("cpu_backward", _backward, "CPU")
torch.library.register_fake("halonet::cpu_inference", _fake_inference, lib=_operators)
torch.library.register_fake("halonet::cpu_forward", _fake_forward, lib=_operators)
torch.library.register_fake("halonet::cpu_backward", _fake_backward, lib=_operators)
torch.library.register_autograd(
    "halonet::cpu_forward", _autograd, setup_context=_setup_context, lib=_operators
)
torch.library.register_autograd("halonet::cpu_backward", _no_second_derivative, lib=_operators)
