"""The residual unit of a HaloNet, and the parts that only it has."""

import torch
from torch import Tensor, nn

from halonet.layers.normalization import apply_to_activated, normalize_and_activate
from halonet.layers.pointwise import PointwiseConvolution

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}


def make_activation(name: str) -> nn.Module:
    """The activation called `name`; ValueError for an unknown one."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {name!r}")
    # In place: nothing else reads the norm or the sum before it. GELU has no such option.
    return ACTIVATIONS[name]() if name == "gelu" else ACTIVATIONS[name](inplace=True)


def average_pixels(maps: Tensor) -> Tensor:
    """Means over a map's pixels, [batch, channels, height, width] to [batch, channels].

    The gradient is in channels-last order, as the maps are.
    """
    return maps.permute(0, 2, 3, 1).mean((1, 2))


class SqueezeExcitation(nn.Module):
    """Gates channels by the map's mean, with a bottleneck of channels * ratio (1/8 here)."""

    def __init__(self, channels: int, *, activation: str, ratio: float = 0.125) -> None:
        super().__init__()
        squeezed = max(1, round(channels * ratio))
        self.squeeze = PointwiseConvolution(channels, squeezed, bias=True)
        self.activation = make_activation(activation)
        self.excite = PointwiseConvolution(squeezed, channels, bias=True)

    def forward(self, maps: Tensor) -> Tensor:
        gates = self.excite(self.activation(self.squeeze(average_pixels(maps)[:, :, None, None])))
        return maps * gates.sigmoid()


class StochasticDepth(nn.Module):
    """Drops a residual branch of each image with the given probability while training."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        if not 0 <= probability < 1:
            raise ValueError(f"stochastic_depth must be from 0 to below 1, got {probability}")
        self.probability = probability

    def forward(self, maps: Tensor) -> Tensor:
        if not self.drops():
            return maps
        kept = 1 - self.probability
        return maps * torch.empty_like(maps[:, :1, :1, :1]).bernoulli_(kept) / kept

    def drops(self) -> bool:
        """Whether it may drop a branch: in training, with a probability above 0."""
        return self.training and self.probability > 0

    def extra_repr(self) -> str:
        return f"probability={self.probability}"


class Bottleneck(nn.Module):
    """ResNet's bottleneck around any spatial layer (paper table 2).

    1x1 to `width`, the spatial layer to `spatial_channels`, squeeze-and-excitation if wanted, 1x1
    to `out_channels`, and the shortcut: a 1x1 projection where the shape changes. Batch norm
    follows each convolution and the spatial layer; the activation follows the first two norms and
    the sum with the shortcut.

    Args:
        in_channels: channels of the input map.
        width: channels between the 1x1 convolutions, the paper's c.
        out_channels: channels of the result, c * r_b.
        spatial: halo attention or a 3x3 convolution, from `width` to `spatial_channels`.
        spatial_channels: channels of its output, c * r_v for attention.
        stride: the spatial layer's stride, for the shortcut.
        activation: "relu", "silu" or "gelu".
        squeeze_excitation: gate the spatial layer's channels, reduction 1/8.
        stochastic_depth: probability to drop the residual branch.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        out_channels: int,
        *,
        spatial: nn.Module,
        spatial_channels: int,
        stride: int,
        activation: str,
        squeeze_excitation: bool,
        stochastic_depth: float,
    ) -> None:
        super().__init__()
        self.reduce: nn.Conv2d = PointwiseConvolution(in_channels, width)
        self.reduce_norm: nn.Module = nn.BatchNorm2d(width)
        self.spatial = spatial
        self.spatial_norm: nn.Module = nn.BatchNorm2d(spatial_channels)
        self.squeeze_excitation = (
            SqueezeExcitation(spatial_channels, activation=activation)
            if squeeze_excitation
            else nn.Identity()
        )
        self.expand: nn.Conv2d = PointwiseConvolution(spatial_channels, out_channels)
        self.expand_norm: nn.Module = nn.BatchNorm2d(out_channels)
        self.stochastic_depth = StochasticDepth(stochastic_depth)
        self.activation = make_activation(activation)
        if stride == 1 and in_channels == out_channels:
            self.shortcut: nn.Module = nn.Identity()
        else:
            self.shortcut = nn.Sequential(
                PointwiseConvolution(in_channels, out_channels, stride=stride),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, maps: Tensor) -> Tensor:
        branch = apply_to_activated(
            self.spatial, self.reduce(maps), self.reduce_norm, self.activation
        )
        branch = apply_to_activated(
            self._gate_and_expand, branch, self.spatial_norm, self.activation
        )
        shortcut = self.shortcut(maps)
        if self.stochastic_depth.drops():
            branch = self.stochastic_depth(self.expand_norm(branch))
            return self.activation(branch + shortcut)
        return normalize_and_activate(branch, self.expand_norm, self.activation, shortcut)

    def _gate_and_expand(self, maps: Tensor) -> Tensor:
        return self.expand(self.squeeze_excitation(maps))
