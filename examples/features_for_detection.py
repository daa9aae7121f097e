"""Use a HaloNet as a backbone: maps at chosen strides, of an image of any size.

Run: python examples/features_for_detection.py
"""

import torch

import halonet

model = halonet.create_model("halonet_h0", num_classes=0).eval()
with torch.no_grad():
    maps = model.feature_maps(torch.randn(1, 3, 200, 333), strides=(8, 16, 32))
for stride, found in maps.items():
    print(f"stride {stride}: {list(found.shape)}, {model.feature_channels[stride]} channels")
