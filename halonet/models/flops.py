"""Floating-point operations of a model, by formula."""

import torch

from halonet.models.building import build_classifier
from halonet.models.classifier import STRIDES
from halonet.models.variants import TimmVariant, Variant


def count_flops(
    variant: Variant | TimmVariant,
    image_size: int | None = None,
    *,
    num_classes: int = 1000,
    in_channels: int = 3,
) -> int:
    """Floating-point operations of one image's forward pass, a multiply-add counting as two.

    Counts convolutions, projections, attention over whole windows as the paper does
    (4 (b + 2h)^2 c for a pixel, section 2.1; cells outside the image too), relative logits and
    the classifier; not norms, activations, softmax and pooling.

    A model of timm's runs on the meta device, and torch counts its products.

    Args:
        variant: the architecture, from `get_variant`.
        image_size: pixels on a side of a square image; None means the variant's.
        num_classes: width of the classifier.
        in_channels: channels of the image.
    """
    size = variant.image_size if image_size is None else image_size
    if isinstance(variant, TimmVariant):
        return _count_products(variant, size, num_classes, in_channels)
    kernel, stride = (7, 2) if variant.stem == "convolution" else (4, 4)
    total = _convolution(_divide(size, stride), in_channels * kernel**2, variant.stem_width)
    channels = variant.stem_width
    entering = _divide(size, 4)
    for stage, layers in enumerate(variant.layers):
        width = variant.base_width * 2**stage
        out_channels = round(width * variant.bottleneck_ratio)
        for position in range(layers):
            downsample = 2 if stage > 0 and position == 0 else 1
            side = _divide(entering, downsample)
            total += _convolution(entering, channels, width)
            if variant.spatial[stage] == "convolution":
                spatial_channels = width
                total += _convolution(side, width * 9, width)
            else:
                spatial_channels = round(width * variant.value_ratio)
                total += _attention(variant, width, spatial_channels, entering, downsample)
            if variant.squeeze_excitation[stage]:
                total += 4 * spatial_channels * max(1, round(spatial_channels / 8))
            total += _convolution(side, spatial_channels, out_channels)
            if downsample == 2 or channels != out_channels:
                total += _convolution(side, channels, out_channels)
            channels, entering = out_channels, side
    if variant.final_width is not None:
        total += _convolution(_divide(size, STRIDES[-1]), channels, variant.final_width)
        channels = variant.final_width
    return total + 2 * channels * num_classes


def _count_products(variant: TimmVariant, size: int, num_classes: int, in_channels: int) -> int:
    from torch.utils.flop_counter import FlopCounterMode  # here, as it imports Triton

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = build_classifier(
            variant, num_classes=num_classes, in_channels=in_channels, backend="reference"
        )
        model.eval()(torch.empty(1, in_channels, size, size))
    return counter.get_total_flops()


def _attention(variant: Variant, width: int, value_width: int, side: int, stride: int) -> int:
    query_key_width = round(width * variant.query_key_ratio)
    window = variant.block_size + 2 * variant.halo_size
    queries = (_divide(side, variant.block_size) * variant.block_size // stride) ** 2
    projections = (
        _convolution(_divide(side, stride), width, query_key_width)
        + _convolution(side, width, query_key_width)
        + _convolution(side, width, value_width)
    )
    relative = 2 * queries * window * query_key_width if variant.position == "relative" else 0
    return projections + 2 * queries * window**2 * (query_key_width + value_width) + relative


def _convolution(side: int, inputs: int, outputs: int) -> int:
    return 2 * side**2 * inputs * outputs


def _divide(size: int, stride: int) -> int:
    return -(-size // stride)
