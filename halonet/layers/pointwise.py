"""1x1 convolutions, which are most of a HaloNet's arithmetic, as matrix products."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PointwiseConvolution(nn.Conv2d):
    """A 1x1 convolution: the same function, parameters and names as torch's.

    On maps in channels-last order it is one matrix product without a copy, on a CPU faster than
    torch's convolution; maps in another order are brought into this one.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int = 1, bias: bool = False
    ) -> None:
        super().__init__(in_channels, out_channels, 1, stride=stride, bias=bias)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name in torch
        """[batch, in_channels, height, width] to
        [batch, out_channels, ceil(height / stride), ceil(width / stride)]."""
        rows, columns = self.stride
        # In this order the gradient of the step is in channels-last order too.
        pixels = input.permute(0, 2, 3, 1)[:, ::rows, ::columns]
        if not torch.is_grad_enabled():
            # A strided map torch would multiply row by row. In training the copy would be kept.
            pixels = pixels.contiguous()
        return F.linear(pixels, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
