"""int8: static quantization by onnxruntime's tools, calibrated on images; attention stays float."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halonet.data.dataset import ImageDataset
from halonet.data.splits import Split
from halonet.models.classifier import Classifier

# Convolutions and the products with weights; the products, sums and softmax of attention stay as
# they are: scores of masked cells would take up the eight bits.
QUANTIZED = ["Conv", "Gemm"]
# onnxruntime's product of eight bits gives float32 at once; its convolution doesn't.
FLOAT_RESULTS = ["Gemm"]
CALIBRATION_IMAGES = 128  # enough for the ranges of a run's images
BATCH = 8  # images at a time, where the file takes any number


def quantize_onnx(source: Path, target: Path, images: Tensor, batch: int | None) -> None:
    """Write a float32 file's model with weights and activations in eight bits.

    Weights are int8 by output channel; what comes into a layer, and out of a convolution, is uint8,
    with the extremes that it has on the images. The file has ONNX's QuantizeLinear and
    DequantizeLinear, which runtimes fuse.

    Args:
        source: the file in float32.
        target: the file to write.
        images: as the model takes them, [images, channels, height, width].
        batch: number of images that the file takes; None for any.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    with _without_advice():
        quantize_static(
            source,
            target,
            _make_reader(images, batch or min(BATCH, len(images))),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTIZED,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"OpTypesToExcludeOutputQuantization": FLOAT_RESULTS},
        )


def choose_calibration_images(model: Classifier, split: Split, count: int) -> Tensor:
    """Images of a split as a model takes them, evenly spaced, without those that can't be read.

    Raises:
        ValueError: none of them can be read.
    """
    dataset = ImageDataset(split, model.preprocessing, in_channels=model.in_channels)
    places = torch.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().long()
    items = dataset.__getitems__([(0, place) for place in places.tolist()])
    readable = [pixels for pixels, _, broken in items if broken < 0]
    if not readable:
        raise ValueError(f"none of {len(items)} images for the calibration can be read")
    return torch.stack(readable)


def _make_reader(images: Tensor, batch: int) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        """Batches of equal size, of which the last may begin in the one before."""

        def __init__(self) -> None:
            ends = range(batch, len(images) + batch, batch)
            self.batches = iter([images[:end][-batch:] for end in ends])

        def get_next(self) -> Any:
            part = next(self.batches, None)
            return None if part is None else {"images": part.numpy()}

    return Reader()


@contextmanager
def _without_advice() -> Iterator[None]:
    """Keep onnxruntime from advising on the command line to prepare the graph, which it is."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
