"""Batch norm folded into its neighbours, for inference."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights

from halonet.layers.attention import HaloAttention
from halonet.layers.bottleneck import Bottleneck


class ChannelShift(nn.Module):
    """Adds a constant to each channel: the rest of a norm whose scale was folded into weights."""

    def __init__(self, shift: Tensor) -> None:
        super().__init__()
        self.shift = nn.Parameter(shift)

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.shift[:, None, None]


def fuse_sequential(layers: nn.Sequential) -> None:
    """Fold each batch norm of a sequence into the convolution before it, in place."""
    for index in range(1, len(layers)):
        before, norm = layers[index - 1], layers[index]
        if isinstance(before, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            layers[index - 1] = fuse_conv_bn_eval(before, norm)
            layers[index] = nn.Identity()


def fuse_bottleneck(bottleneck: Bottleneck) -> None:
    """Fold all batch norms of a bottleneck into its convolutions and its attention, in place."""
    norms = (bottleneck.reduce_norm, bottleneck.spatial_norm, bottleneck.expand_norm)
    reduce_norm, spatial_norm, expand_norm = norms
    assert isinstance(reduce_norm, nn.BatchNorm2d)
    assert isinstance(spatial_norm, nn.BatchNorm2d)
    assert isinstance(expand_norm, nn.BatchNorm2d)
    bottleneck.reduce = fuse_conv_bn_eval(bottleneck.reduce, reduce_norm)
    bottleneck.expand = fuse_conv_bn_eval(bottleneck.expand, expand_norm)
    bottleneck.reduce_norm = bottleneck.expand_norm = bottleneck.spatial_norm = nn.Identity()
    if isinstance(bottleneck.spatial, HaloAttention):
        bottleneck.spatial_norm = fuse_attention(bottleneck.spatial, spatial_norm)
    elif isinstance(bottleneck.spatial, nn.Conv2d):
        bottleneck.spatial = fuse_conv_bn_eval(bottleneck.spatial, spatial_norm)
    if isinstance(bottleneck.shortcut, nn.Sequential):
        fuse_sequential(bottleneck.shortcut)


@torch.no_grad()
def fuse_attention(attention: HaloAttention, norm: nn.BatchNorm2d) -> nn.Module:
    """Fold the norm after an attention layer into its values, in place.

    Returns the module that takes the norm's place. Where padding is masked, a query's attention
    weights sum to 1 over pixels of the map, so that a shift of all values shifts the result alike.
    Where padding counts, its values stay zero, and the shift has to follow the attention.
    """
    if isinstance(attention.output, nn.Conv2d):
        attention.output = fuse_conv_bn_eval(attention.output, norm)
        return nn.Identity()
    projection = attention.projection
    assert norm.running_mean is not None
    assert norm.running_var is not None
    values = projection.weight[-attention.value_channels :]
    weight, shift = fuse_conv_bn_weights(
        values, None, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    values.copy_(weight)
    if not attention.mask_padding:
        return ChannelShift(shift)
    queries_and_keys = projection.out_channels - attention.value_channels
    projection.bias = nn.Parameter(F.pad(shift, (queries_and_keys, 0)))
    return nn.Identity()
