"""Put halo attention where a torchvision ResNet has 3x3 convolutions.

Run: python examples/swap_convolutions.py
"""

import torch
from torchvision.models import resnet18

from halonet import HaloAttention

model = resnet18(num_classes=10)
for block in model.layer4:
    for name in ("conv1", "conv2"):
        convolution = getattr(block, name)
        attention = HaloAttention(
            convolution.in_channels,
            convolution.out_channels,
            heads=8,
            block_size=8,
            halo_size=3,
            stride=convolution.stride[0],
        )
        setattr(block, name, attention)

images = torch.randn(2, 3, 224, 160)
logits = model(images)
logits.square().mean().backward()
print(f"images {list(images.shape)} -> logits {list(logits.shape)}")
