"""1x1 convolutions, which are most of a HaloNet's arithmetic, as matrix products."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PointwiseConvolution(nn.Conv2d):
    """A 1x1 convolution: the same function, parameters and names as torch's.

    On maps in channels-last order it is one matrix product without a copy, faster than torch's
    convolution on a CPU; maps in another order are copied into this one.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int = 1, bias: bool = False
    ) -> None:
        super().__init__(in_channels, out_channels, 1, stride=stride, bias=bias)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name in torch
        """[batch, in_channels, height, width] to
        [batch, out_channels, ceil(height / stride), ceil(width / stride)]."""
        pixels = input.permute(0, 2, 3, 1)
        if self.stride != (1, 1):
            # After the permutation, so that the gradient is in channels-last order too.
            pixels = pixels[:, :: self.stride[0], :: self.stride[1]]
        if not torch.is_grad_enabled():
            # torch multiplies a strided map row by row. In training the copy would be saved.
            pixels = pixels.contiguous()
        return F.linear(pixels, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
