"""Batch norm followed by an activation, saving less for the backward pass."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halonet.ops import cpu_norm
from halonet.ops.operators import differentiates_by_rules


class ChannelShift(nn.Module):
    """Adds a constant to each channel: the rest of a norm whose scale was folded into weights."""

    def __init__(self, shift: Tensor) -> None:
        super().__init__()
        self.shift = nn.Parameter(shift)

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.shift.to(maps.dtype)[:, None, None]  # autocast doesn't reach a sum


def normalize_and_activate(
    maps: Tensor, norm: nn.Module, activation: nn.Module, added: Tensor | None = None
) -> Tensor:
    """`activation(norm(maps))`, or `activation(norm(maps) + added)`.

    With SiLU on a CPU, only `maps` and `added` are saved for the backward pass, which recomputes
    the norm; torch saves the activation's input too. ReLU needs no more than its output. Without
    gradients, SiLU after a folded norm is written over `maps`, if it works in place.
    """
    if _is_folded(norm) and _is_silu_in_place(activation):
        shift = norm.shift if isinstance(norm, ChannelShift) else None
        if cpu_norm.can_affine_silu(maps, added, per_channel=shift is not None):
            return cpu_norm.affine_silu(maps, None, shift, added, in_place=True)
    if not _can_recompute(maps, norm, activation, added):
        normed = norm(maps)
        return activation(normed if added is None else normed + added)
    assert isinstance(norm, nn.BatchNorm2d)
    return _norm_then_silu(maps, norm, added)[0]


def apply_to_activated(
    layer: Callable[[Tensor], Tensor], maps: Tensor, norm: nn.Module, activation: nn.Module
) -> Tensor:
    """`layer(activation(norm(maps)))`.

    Where `normalize_and_activate` saves only `maps`, what the layer saves of its input is
    recomputed too: one map is saved instead of two. Without gradients, SiLU after a folded norm and
    a stem's max pooling are one pass on a CPU.
    """
    if (
        type(norm) is nn.Identity
        and type(activation) is nn.SiLU
        and _is_stem_pool(layer)
        and not any(map(_is_hooked, (norm, activation)))
        and cpu_norm.can_affine_silu(maps)
    ):
        return cpu_norm.pool_silu(maps)
    autograd: Any = torch._C._autograd
    if (
        not _can_recompute(maps, norm, activation, None)
        or not autograd._saved_tensors_hooks_is_enabled()  # torch.func disables them
    ):
        return layer(normalize_and_activate(maps, norm, activation))
    assert isinstance(norm, nn.BatchNorm2d)
    activated, mean, inverse_deviation = _norm_then_silu(maps, norm, None)
    # Hooks that are already active, as gradient checkpointing's, get what we save.
    outer = autograd._top_saved_tensors_default_hooks(True)
    pack_outer, unpack_outer = outer or (_keep, _read)
    statistics = (mean, inverse_deviation)
    if not norm.training:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        statistics = (norm.running_mean, norm.running_var)
    inputs = [
        None if tensor is None else tensor.detach()
        for tensor in (maps, norm.weight, norm.bias, *statistics)
    ]
    training, eps = norm.training, norm.eps
    address, version = activated.untyped_storage().data_ptr(), activated._version
    shape, strides = activated.shape, activated.stride()
    owner = object()

    def pack(tensor: Tensor) -> Any:
        # Of another tensor, or changed in place by the layer: can't be recomputed.
        if tensor.untyped_storage().data_ptr() != address or tensor._version != version:
            return pack_outer(tensor)
        kept = [None if one is None else pack_outer(one) for one in inputs]
        view = tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())
        return _Recomputable(owner, kept, view)

    def unpack(packed: Any) -> Tensor:
        if not isinstance(packed, _Recomputable) or packed.owner is not owner:
            return unpack_outer(packed)
        kept: list[Any] = [None if one is None else unpack_outer(one) for one in packed.kept]
        again = _activate(kept[0], None, *kept[1:], training=training, eps=eps)
        if again.stride() != strides:  # outer hooks may change the memory order
            again = again.new_empty_strided(shape, strides).copy_(again)
        return again.as_strided(*packed.view)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        result = layer(activated)
    # The graph holds these hooks, which hold `inputs`: what stays in memory is up to outer hooks.
    inputs.clear()
    return result


@contextmanager
def keep_running_statistics(module: nn.Module) -> Iterator[None]:
    """Let the batch norms inside a module compute as ever, but not update their statistics.

    For a forward pass that is computed again, as in gradient checkpointing.
    """
    kept = []
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.training:
            kept += [(norm, *named) for named in norm.named_buffers(recurse=False)]
    for norm, name, buffer in kept:
        setattr(norm, name, buffer.clone())  # takes the update
    try:
        yield
    finally:
        for norm, name, buffer in kept:
            setattr(norm, name, buffer)


class NormalizedSequence(nn.Sequential):
    """A sequence that applies a norm, its activation and the next layer by `apply_to_activated`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name in torch
        layers = list(self)
        while layers:
            layer = layers.pop(0)
            if isinstance(layer, nn.BatchNorm2d | nn.Identity) and layers:
                activation = layers.pop(0)
                following = layers.pop(0) if layers else _same
                input = apply_to_activated(following, input, layer, activation)  # noqa: A001
            else:
                input = layer(input)  # noqa: A001
        return input


def _can_recompute(
    maps: Tensor, norm: nn.Module, activation: nn.Module, added: Tensor | None
) -> bool:
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not differentiates_by_rules()
        and type(maps) is Tensor  # not a proxy of torch.fx, nor a subclass without storage
        and maps.device.type == "cpu"
        and type(norm) is nn.BatchNorm2d
        and type(activation) is nn.SiLU
        and norm.running_mean is not None
        and norm.momentum is not None
        and not _is_hooked(norm)
        and not _is_hooked(activation)
        and maps.numel() > maps.shape[1]  # else the norm raises its own error
        and (added is None or added.dtype == maps.dtype)
    )


def _is_folded(norm: nn.Module) -> bool:
    return type(norm) in (nn.Identity, ChannelShift) and not _is_hooked(norm)


def _is_silu_in_place(activation: nn.Module) -> bool:
    return type(activation) is nn.SiLU and activation.inplace and not _is_hooked(activation)


def _is_stem_pool(layer: object) -> bool:
    """Whether it is the max pooling after the stem's convolution (paper, table 2)."""
    return (
        type(layer) is nn.MaxPool2d
        and (layer.kernel_size, layer.stride, layer.padding, layer.dilation) == (3, 2, 1, 1)
        and not (layer.ceil_mode or layer.return_indices or _is_hooked(layer))
    )


def _is_hooked(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    return any((*hooks, module._backward_hooks, module._backward_pre_hooks))


class _Recomputable(NamedTuple):
    """What is saved instead of a view of an activation."""

    owner: object  # of the hooks that can read it
    kept: list
    view: tuple[tuple[int, ...], tuple[int, ...], int]  # shape, strides, offset


def _same(value: Any) -> Any:
    return value


def _keep(tensor: Tensor) -> tuple[Tensor, int]:
    """Save a tensor without its graph, which would be a reference cycle, and its version."""
    return tensor.detach(), tensor._version


def _read(kept: tuple[Tensor, int]) -> Tensor:
    tensor, version = kept
    if tensor._version != version:
        raise RuntimeError(
            "a tensor that the backward pass needs was changed in place since the forward pass: "
            f"its shape is {list(tensor.shape)}"
        )
    return tensor


def _norm_then_silu(
    maps: Tensor, norm: nn.BatchNorm2d, added: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The activation, and the batch's means and inverse standard deviations."""
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    return _NormThenSiLU.apply(
        maps,
        added,
        norm.weight,
        norm.bias,
        norm.running_mean,
        norm.running_var,
        norm.training,
        norm.momentum,
        norm.eps,
    )


def _activate(
    maps: Tensor,
    added: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    spread: Tensor,
    *,
    training: bool,
    eps: float,
) -> Tensor:
    """SiLU of batch norm by given statistics and what is added.

    `spread` is 1 / deviation in training, else the variance.
    """
    if cpu_norm.can_affine_silu(maps, added):
        inverse_deviation = spread if training else (spread + eps).rsqrt()
        scale, shift = cpu_norm.norm_affine(weight, bias, mean, inverse_deviation)
        return cpu_norm.affine_silu(maps, scale, shift, added)
    variance = spread.pow(-2) - eps if training else spread
    return F.silu(_normalize(maps, added, weight, bias, mean, variance, eps), inplace=True)


def _normalize(
    maps: Tensor,
    added: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    eps: float,
) -> Tensor:
    """Batch norm by given statistics, and what is added."""
    normed = F.batch_norm(maps, mean, variance, weight, bias, eps=eps)
    return normed if added is None else normed.add_(added)


def _update_statistics(
    maps: Tensor, running_mean: Tensor, running_var: Tensor, momentum: float
) -> tuple[Tensor, Tensor]:
    """Mean and variance of a batch, which move the running ones."""
    if not cpu_norm.can_affine_silu(maps):
        return torch.ops.aten.batch_norm_update_stats(maps, running_mean, running_var, momentum)
    mean, variance = (found.to(running_mean.dtype) for found in cpu_norm.norm_statistics(maps))
    pixels = maps.numel() // maps.shape[1]
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(variance * (pixels / (pixels - 1)), momentum)
    return mean, variance


class _NormThenSiLU(torch.autograd.Function):
    """Returns the statistics of the batch too, for the backward pass."""

    @staticmethod
    def forward(
        maps: Tensor,
        added: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor,
        running_var: Tensor,
        training: bool,
        momentum: float,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if training:
            mean, variance = _update_statistics(maps, running_mean, running_var, momentum)
            inverse_deviation = (variance + eps).rsqrt()
            statistics = (mean, inverse_deviation)
        else:
            mean = inverse_deviation = running_mean.new_empty(0)
            statistics = (running_mean, running_var)
        activated = _activate(maps, added, weight, bias, *statistics, training=training, eps=eps)
        return activated, mean, inverse_deviation

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
        *tensors, ctx.training, _, ctx.eps = inputs
        if ctx.training:
            tensors[4:] = (None, None)
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*tensors, *output[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        maps, added, weight, bias, running_mean, running_var, mean, inverse_deviation = (
            ctx.saved_tensors
        )
        if torch.is_grad_enabled():  # for a second derivative
            summed, mean, inverse_deviation = torch.native_batch_norm(
                maps, weight, bias, running_mean, running_var, ctx.training, 0.0, ctx.eps
            )
            summed = summed if added is None else summed + added
            gates = summed.sigmoid()
            gradient = gradients[0] * gates * (1 + summed * (1 - gates))
        elif cpu_norm.can_affine_silu(maps, added):
            if not ctx.training:
                mean, inverse_deviation = running_mean, (running_var + ctx.eps).rsqrt()
            of_maps, of_added, *found = cpu_norm.norm_silu_gradient(
                *(maps, added, gradients[0], weight, bias, mean, inverse_deviation),
                batch_statistics=ctx.training,
            )
            of_weights = (
                None if numbers is None else of_it.to(numbers.dtype)
                for numbers, of_it in zip((weight, bias), found, strict=True)
            )
            return of_maps, of_added, *of_weights, *(None,) * 5
        else:
            variance = inverse_deviation.pow(-2) - ctx.eps if ctx.training else running_var
            center = mean if ctx.training else running_mean
            summed = _normalize(maps, added, weight, bias, center, variance, ctx.eps)
            gradient = torch.ops.aten.silu_backward(gradients[0], summed)
        of_maps, *of_weights = torch.ops.aten.native_batch_norm_backward(
            gradient,
            maps,
            weight,
            running_mean,
            running_var,
            mean,
            inverse_deviation,
            ctx.training,
            ctx.eps,
            [ctx.needs_input_grad[0], *ctx.needs_input_grad[2:4]],
        )
        return of_maps, None if added is None else gradient, *of_weights, *(None,) * 5
