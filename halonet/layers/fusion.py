"""Batch norm folded into its neighbours, for inference."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights

from halonet.layers.attention import HaloAttention
from halonet.layers.bottleneck import Bottleneck
from halonet.layers.normalization import ChannelShift


def fuse_sequential(layers: nn.Sequential) -> None:
    """Fold each batch norm of a sequence into the convolution before it, in place."""
    for index in range(1, len(layers)):
        before, norm = layers[index - 1], layers[index]
        if isinstance(before, nn.Conv2d) and not isinstance(norm, nn.Identity):
            layers[index - 1] = fuse_conv_bn_eval(before, _check_norm(norm))
            layers[index] = nn.Identity()


def fuse_bottleneck(bottleneck: Bottleneck) -> None:
    """Fold all batch norms of a bottleneck into its convolutions and its attention, in place.

    After 1x1 products and attention a `ChannelShift` takes the norm's place, which the activation
    adds in passing; a product would copy its bias first.
    """
    reduce, spatial, expand = bottleneck.reduce, bottleneck.spatial, bottleneck.expand
    bottleneck.reduce_norm = ChannelShift(_fold_scale(reduce.weight, bottleneck.reduce_norm))
    shift = _fold_scale(expand.weight, bottleneck.expand_norm)
    if isinstance(spatial, HaloAttention):
        bottleneck.spatial_norm = ChannelShift(fuse_attention(spatial, bottleneck.spatial_norm))
        if isinstance(bottleneck.shortcut, nn.Sequential):
            projection, norm = bottleneck.shortcut
            assert isinstance(projection, nn.Conv2d)
            shift += _fold_scale(projection.weight, norm)
            bottleneck.shortcut = projection
    elif isinstance(spatial, nn.Conv2d):
        bottleneck.spatial = fuse_conv_bn_eval(spatial, _check_norm(bottleneck.spatial_norm))
        bottleneck.spatial_norm = nn.Identity()
        # With the shortcut's bias the branch would be further from 0, and coarser in eight bits.
        if isinstance(bottleneck.shortcut, nn.Sequential):
            fuse_sequential(bottleneck.shortcut)
    bottleneck.expand_norm = ChannelShift(shift)


def fuse_attention(attention: HaloAttention, norm: nn.Module) -> Tensor:
    """Fold the scale of the norm after an attention layer into its weights, in place.

    Attention is linear in its values. Returns the shift that is left to be added to the result.
    """
    if isinstance(attention.output, nn.Conv2d):
        return _fold_scale(attention.output.weight, norm)
    return _fold_scale(attention.projection.weight[-attention.value_channels :], norm)


@torch.no_grad()
def _fold_scale(weight: Tensor, norm: nn.Module) -> Tensor:
    """Multiply the rows of a weight without bias by a norm's scale, in place; returns the shift."""
    batch_norm = _check_norm(norm)
    statistics = batch_norm.running_mean, batch_norm.running_var
    folded, shift = fuse_conv_bn_weights(
        weight, None, *statistics, batch_norm.eps, batch_norm.weight, batch_norm.bias
    )
    weight.copy_(folded)
    return shift.detach()


def _check_norm(norm: nn.Module) -> Any:
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None:
        raise TypeError(f"only batch norms with running statistics can be fused, got {norm}")
    return norm
