"""Backbones for detection: a variant's feature maps, and the pyramid over them."""

import os
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from halonet.detection.options import STAGES
from halonet.models.building import build_classifier
from halonet.models.classifier import STRIDES, Classifier
from halonet.models.creation import find_variant, load_pretrained
from halonet.models.metadata import read_description
from halonet.models.pretrained import ModelDescription, load_weights


class PyramidBackbone(nn.Module):
    """A HaloNet, ours or timm's, under torchvision's feature pyramid (FPN).

    Args:
        body: the network; its classifier and the layers right before it are removed.
        channels: of each level of the pyramid.

    Attributes:
        body: the network without its classifier.
        out_channels: channels of each level; torchvision's detectors read it.
    """

    def __init__(self, body: Classifier, *, channels: int = 256) -> None:
        super().__init__()
        body.remove_head()
        self.body = body
        self.fpn = FeaturePyramidNetwork(
            [body.feature_channels[stride] for stride in STRIDES],
            channels,
            extra_blocks=LastLevelMaxPool(),
        )
        self.out_channels = channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Levels "4", "8", "16", "32" and "pool" of images [batch, 3, height, width].

        The level of stride s is [batch, out_channels, ceil(height / s), ceil(width / s)]; "pool"
        has every second pixel of the last.
        """
        maps = self.body.feature_maps(images.contiguous(memory_format=torch.channels_last))
        return self.fpn({str(stride): found for stride, found in maps.items()})


def make_backbone(
    name: str,
    *,
    init: str | os.PathLike[str] | None = None,
    pretrained: bool | str | os.PathLike[str] = False,
    trainable_stages: int = STAGES,
    frozen_norms: bool = False,
    pyramid_channels: int = 256,
    backend: str | None = None,
    **changes: Any,
) -> PyramidBackbone:
    """A model as a backbone.

    Args:
        name: a model of `halonet.create_model`; the paper's are `resnet_50_se`,
            `resnet_50_se_halo8`, `resnet_50_se_halo32`, `resnet_101_se` and `resnet_101_se_halo8`
            (paper, detection). Their squeeze-and-excitation comes after the 3x3 convolution or
            the attention and before the last 1x1, with ReLU as in the paper's ablation, which has
            SE and ReLU together; for detection the paper names no activation.
        init: a classification checkpoint of ours to start from; its classifier is dropped, and
            its relative tables are interpolated to the block and halo wanted. None starts from
            fresh weights.
        pretrained: start from public weights, or those in a file, as `create_model` does.
        trainable_stages: stages that learn, counted from the last; the fifth is the stem. The
            others keep their weights and norms, so that fewer than 5 need weights to start from.
        frozen_norms: batch norms keep the statistics, scales and shifts that they start from, and
            need such weights: in fresh ones the last scale of each bottleneck is 0, and would stay.
        pyramid_channels: of each level of the pyramid.
        backend: name of the operator's backend; None takes the fastest.
        **changes: fields of `Variant` to change, such as `block_size`.

    Raises:
        ValueError: an unknown name or option, or a checkpoint of another architecture.
        FileNotFoundError: there is no such checkpoint.
    """
    is_fresh = init is None and pretrained is False
    if is_fresh and frozen_norms:
        raise ValueError(
            "frozen_norms needs init or pretrained: norms of fresh weights have nothing to keep"
        )
    if is_fresh and trainable_stages < STAGES:
        raise ValueError(
            f"trainable_stages below {STAGES} needs init or pretrained: fresh weights must learn, "
            f"got {trainable_stages}"
        )
    body = build_classifier(find_variant(name, **changes), num_classes=0, backend=backend)
    if init is not None:
        load_weights(body, init)
        body.preprocessing = read_description(init, ModelDescription).preprocessing
    elif pretrained is not False:
        load_pretrained(body, pretrained)
    backbone = PyramidBackbone(body, channels=pyramid_channels)
    freeze(backbone, trainable_stages=trainable_stages, frozen_norms=frozen_norms)
    return backbone


def freeze(backbone: PyramidBackbone, *, trainable_stages: int, frozen_norms: bool) -> None:
    """Keep a backbone's first stages, or all its norms, as they are; in place.

    Raises:
        ValueError: `trainable_stages` isn't from 0 to 5.
    """
    if not 0 <= trainable_stages <= STAGES:
        raise ValueError(f"trainable_stages must be from 0 to {STAGES}, got {trainable_stages}")
    from timm.layers import freeze_batch_norm_2d  # here, as most detectors have no use of timm

    stages = [backbone.body.stem, *backbone.body.stages]
    for stage in stages[: STAGES - trainable_stages]:
        stage.requires_grad_(False)
        freeze_batch_norm_2d(stage)
    if frozen_norms:
        freeze_batch_norm_2d(backbone.body)
