"""1x1 convolutions against torch's own."""

import pytest
import torch
from torch import nn

from halonet.layers.pointwise import PointwiseConvolution


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_is_torchs_convolution(stride, bias, memory_format):
    layer = PointwiseConvolution(5, 7, stride=stride, bias=bias).double()
    torchs = nn.Conv2d(5, 7, 1, stride=stride, bias=bias).double()
    torchs.load_state_dict(layer.state_dict())
    maps = torch.randn(2, 5, 9, 4, dtype=torch.float64).contiguous(memory_format=memory_format)
    gradient = torch.randn(2, 7, -(-9 // stride), -(-4 // stride), dtype=torch.float64)
    outcomes = []
    for convolution in (layer, torchs):
        leaf = maps.clone().requires_grad_()
        result = convolution(leaf)
        result.backward(gradient)
        outcomes.append([result, leaf.grad, *(p.grad for p in convolution.parameters())])
    for found, expected in zip(*outcomes, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("stride", [1, 2])
def test_channels_last_in_both_directions(stride):
    # Batch norm has no fast backward pass where the orders differ.
    layer = PointwiseConvolution(8, 16, stride=stride)
    leaf = torch.randn(2, 8, 6, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
    seen = []
    maps = leaf * 1
    maps.register_hook(
        lambda gradient: seen.append(gradient.is_contiguous(memory_format=torch.channels_last))
    )
    result = layer(maps)
    result.sum().backward()
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert seen == [True]
