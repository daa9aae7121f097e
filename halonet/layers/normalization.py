"""Batch norm with the activation behind it, keeping less for the backward pass."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def normalize_and_activate(
    maps: Tensor, norm: nn.Module, activation: nn.Module, added: Tensor | None = None
) -> Tensor:
    """`activation(norm(maps))`, or `activation(norm(maps) + added)`.

    A training step of SiLU on a CPU keeps only `maps` and `added` for the backward pass, which
    computes the norm again; torch keeps the activation's input too. ReLU needs its output only.
    """
    if not _can_recompute(maps, norm, activation, added):
        normed = norm(maps)
        return activation(normed if added is None else normed + added)
    assert isinstance(norm, nn.BatchNorm2d)
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
    )[0]


class NormalizedSequence(nn.Sequential):
    """A sequence in which each batch norm and the activation behind it are computed together."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name in torch
        layers = list(self)
        while layers:
            layer = layers.pop(0)
            if isinstance(layer, nn.BatchNorm2d) and layers:
                input = normalize_and_activate(input, layer, layers.pop(0))  # noqa: A001
            else:
                input = layer(input)  # noqa: A001
        return input


def _can_recompute(
    maps: Tensor, norm: nn.Module, activation: nn.Module, added: Tensor | None
) -> bool:
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and isinstance(maps, Tensor)  # and no proxy of torch.fx
        and maps.device.type == "cpu"
        and type(norm) is nn.BatchNorm2d
        and type(activation) is nn.SiLU
        and norm.running_mean is not None
        and norm.momentum is not None
        and not _is_hooked(norm)
        and not _is_hooked(activation)
        and maps.numel() > maps.shape[1]  # otherwise the norm has its say
        and (added is None or added.dtype == maps.dtype)
    )


def _is_hooked(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    return any((*hooks, module._backward_hooks, module._backward_pre_hooks))


class _NormThenSiLU(torch.autograd.Function):
    """The result, and the statistics of the batch for the backward pass."""

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
        summed, mean, inverse_deviation = torch.native_batch_norm(
            maps, weight, bias, running_mean, running_var, training, momentum, eps
        )
        if added is not None:
            summed += added
        return F.silu(summed, inplace=True), mean, inverse_deviation

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
        else:
            if ctx.training:
                running_mean, running_var = mean, inverse_deviation.pow(-2) - ctx.eps
            summed = F.batch_norm(maps, running_mean, running_var, weight, bias, eps=ctx.eps)
            if added is not None:
                summed += added
            gradient = torch.ops.aten.silu_backward.grad_input(
                gradients[0], summed, grad_input=summed
            )
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
