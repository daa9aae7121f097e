"""Passes of the native CPU kernel around attention: batch norm, SiLU and pooling."""

import struct
from typing import Any

import torch
from torch import Tensor

from halonet.ops import cpu
from halonet.ops.operators import define_operator, differentiates_by_rules

# The structs of csrc/halonet_cpu.h, field by field.
_ACTIVATION = struct.Struct("@5P4q")
_POOLING = struct.Struct("@2P6q")
_STATISTICS = struct.Struct("@4P4q")
_NORM_GRADIENT = struct.Struct("@12P5q")


def can_affine_silu(maps: Tensor, added: Tensor | None = None, *, per_channel: bool = True) -> bool:
    """Whether `affine_silu` takes these: outside of autograd, on a CPU, in an order that it reads.

    Args:
        maps: [batch, channels, height, width].
        added: as `maps`, or None.
        per_channel: whether there is a scale or a shift, for which maps must be channels-last.
    """
    return (
        cpu.MISSING is None
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()  # torch's compiler makes one loop of it, too
        and type(maps) is Tensor  # not a proxy of torch.fx, nor a subclass without storage
        and not differentiates_by_rules()
        and maps.device.type == "cpu"
        and maps.dtype in cpu.DATA_TYPES
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
    in_place: bool = False,
) -> Tensor:
    """`silu(maps * scale + shift + added)`.

    Args:
        maps: [batch, channels, height, width]; see `can_affine_silu`.
        scale: [channels], or None.
        shift: [channels], or None.
        added: as `maps`, or None.
        in_place: write over `maps`.

    Raises:
        ValueError: a scale or shift of another length or on another device.
    """
    output = maps if in_place else torch.empty_like(maps)
    scale, shift = _per_channel("scale", scale, maps), _per_channel("shift", shift, maps)
    _affine_silu(output, maps, scale, shift, added)
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


def _sizes(maps: Tensor) -> tuple[int, ...]:
    channels = maps.shape[1]
    pixels = maps.numel() // max(channels, 1)
    return pixels, channels, cpu.DATA_TYPES[maps.dtype], torch.get_num_threads()


def _run_affine_silu(
    output: Tensor,
    maps: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    added: Tensor | None,
) -> None:
    tensors = (output, maps, scale, shift, added)
    packed = _ACTIVATION.pack(*map(cpu.address_of, tensors), *_sizes(maps))
    cpu.call(cpu.loaded().halonet_affine_silu, packed)


_affine_silu = define_operator(
    "cpu_affine_silu_",
    "(Tensor(a!) output, Tensor maps, Tensor? scale, Tensor? shift, Tensor? added) -> ()",
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
    options = (height, width, channels, cpu.DATA_TYPES[maps.dtype], torch.get_num_threads())
    packed = _POOLING.pack(output.data_ptr(), maps.data_ptr(), batch, *options)
    cpu.call(cpu.loaded().halonet_pool_silu, packed)
    return output


_pool_silu = define_operator(
    "cpu_pool_silu", "(Tensor maps) -> Tensor", "CPU", _run_pool_silu, _empty_pooled
)


def norm_statistics(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel over a batch, as batch norm takes them, in float32.

    The variance divides by the number of pixels, not by one less.

    Args:
        maps: [batch, channels, height, width]; see `can_affine_silu`.
    """
    return _norm_statistics(maps)


def norm_affine(
    weight: Tensor | None, bias: Tensor | None, mean: Tensor, inverse_deviation: Tensor
) -> tuple[Tensor, Tensor]:
    """A batch norm's scale and shift of each channel, from its weights and statistics."""
    scale = inverse_deviation if weight is None else inverse_deviation * weight
    return scale, -mean * scale if bias is None else bias - mean * scale


def norm_silu_gradient(
    maps: Tensor,
    added: Tensor | None,
    gradient: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    inverse_deviation: Tensor,
    *,
    batch_statistics: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """The backward pass of `silu(norm(maps) + added)` for a batch norm.

    Args:
        maps: [batch, channels, height, width]; see `can_affine_silu`.
        added: as `maps`, or None.
        gradient: of the result, in the shape of `maps`.
        weight, bias: of the norm, [channels], or None.
        mean, inverse_deviation: that the norm took, [channels].
        batch_statistics: they are those of `maps`, and move with them.

    Returns:
        The gradients of maps, of what is added (None for None), and, in float32, of weight and
        bias.
    """
    if not _is_alike(gradient, maps):
        gradient = torch.empty_like(maps).copy_(gradient)
    scale, shift = norm_affine(weight, bias, mean, inverse_deviation)
    given = {"scale": scale, "shift": shift, "mean": mean, "inverse_deviation": inverse_deviation}
    numbers = [_per_channel(name, tensor, maps) for name, tensor in given.items()]
    of_maps, of_added, *of_weights = _norm_gradient(
        maps, added, gradient, *numbers, batch_statistics
    )
    return of_maps, None if added is None else of_added, *of_weights


def _workspace(maps: Tensor) -> Tensor:
    """Sums for each thread."""
    return maps.new_empty(3 * maps.shape[1] * torch.get_num_threads(), dtype=torch.float64)


def _empty_numbers(maps: Tensor) -> tuple[Tensor, Tensor]:
    mean = maps.new_empty(maps.shape[1], dtype=torch.float32)
    return mean, torch.empty_like(mean)


def _run_norm_statistics(maps: Tensor) -> tuple[Tensor, Tensor]:
    mean, variance = _empty_numbers(maps)
    workspace = _workspace(maps)
    tensors = (maps, mean, variance, workspace)
    packed = _STATISTICS.pack(*map(cpu.address_of, tensors), *_sizes(maps))
    cpu.call(cpu.loaded().halonet_statistics, packed)
    return mean, variance


_norm_statistics = define_operator(
    "cpu_norm_statistics",
    "(Tensor maps) -> (Tensor, Tensor)",
    "CPU",
    _run_norm_statistics,
    _empty_numbers,
)


def _empty_gradients(
    maps: Tensor, added: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of_added = maps.new_empty(0) if added is None else torch.empty_like(maps)
    return torch.empty_like(maps), of_added, *_empty_numbers(maps)


def _run_norm_gradient(
    maps: Tensor,
    added: Tensor | None,
    gradient: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    inverse_deviation: Tensor,
    batch_statistics: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gradients = _empty_gradients(maps, added)
    of_maps, of_added, of_weight, of_bias = gradients
    workspace = _workspace(maps)
    tensors = (
        *(of_maps, None if added is None else of_added, of_weight, of_bias),
        *(maps, added, gradient, scale, shift, mean, inverse_deviation, workspace),
    )
    packed = _NORM_GRADIENT.pack(*map(cpu.address_of, tensors), batch_statistics, *_sizes(maps))
    cpu.call(cpu.loaded().halonet_norm_gradient, packed)
    return gradients


_norm_gradient = define_operator(
    "cpu_norm_gradient",
    "(Tensor maps, Tensor? added, Tensor gradient, Tensor scale, Tensor shift, Tensor mean, "
    "Tensor inverse_deviation, bool batch_statistics) -> (Tensor, Tensor, Tensor, Tensor)",
    "CPU",
    _run_norm_gradient,
    _empty_gradients,
)
