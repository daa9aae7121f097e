"""OpenVINO's own files: the network as .xml, and its weights beside it as .bin."""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from halonet.export.description import ExportDescription
from halonet.export.onnx_classifier import count_at_once
from halonet.export.onnx_file import write_onnx
from halonet.models.classifier import Classifier


def import_openvino() -> Any:
    """The package, without openvino_telemetry, which tells Intel of every import.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    telemetry = "openvino_telemetry"
    hidden = telemetry not in sys.modules
    if hidden:
        sys.modules[telemetry] = None  # type: ignore[assignment]  # openvino does without it
    try:
        import openvino
    finally:
        if hidden:
            del sys.modules[telemetry]
    return openvino


def write_openvino(
    model: Classifier,
    path: Path,
    description: ExportDescription,
    *,
    size: tuple[int, int] | None,
    batch: int | None,
) -> None:
    """Write a model for OpenVINO, by way of ONNX, whose metadata are the network's rt_info.

    Args:
        model: fused, in float32 on the CPU.
        path: of the network, a name in .xml; the weights get the same name in .bin.
        description: of the model.
        size: height and width; None for any.
        batch: number of images; None for any.
    """
    openvino = import_openvino()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "model.onnx")
        # Attention, of opset 23, is unknown to OpenVINO before 2026.2, and no faster there; loops
        # are slower.
        write_onnx(model, source, description, size=size, batch=batch, opset=18, loops=False)
        network = openvino.Core().read_model(source)
        try:
            openvino.save_model(network, path, compress_to_fp16=False)
        except RuntimeError as error:  # as of a full disk
            raise OSError(f"OpenVINO can't write it: {error}") from None


def open_openvino(path: Path) -> Callable[[Any], Any]:
    """What a file makes of an array of images, as an array, in float32 on the CPU.

    It takes as many threads as torch, and of a file for any batch size a few images at once, see
    `count_at_once`.

    Args:
        path: of the network, .xml, or of an ONNX file.
    """
    # Without the hint, a processor that has bfloat16 would compute in it.
    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    network = import_openvino().Core().compile_model(path, "CPU", options)
    any_batch = network.input().get_partial_shape()[0].is_dynamic

    def run(images: Any) -> Any:
        count = count_at_once(*images.shape[2:]) if any_batch else len(images)
        results = []
        for start in range(0, len(images), count):
            (result,) = network(images[start : start + count]).values()
            results.append(result)
        return np.concatenate(results)

    return run


def weights_path(path: Path) -> Path:
    """Where the weights of a network's file lie."""
    return Path(os.path.realpath(path)).with_suffix(".bin")
