"""One classifier in all formats and precisions that run here: scores first, then times."""

import copy
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from halonet.classification.evaluate import evaluate_on
from halonet.data.splits import LabelledImages
from halonet.export.check import relative_difference
from halonet.export.formats import SUFFIXES, export_model
from halonet.export.onnx_classifier import load_onnx
from halonet.export.openvino_model import open_openvino
from halonet.export.quantization import CALIBRATION_IMAGES, choose_calibration_images
from halonet.export.torch_program import run_compiled
from halonet.models.classifier import Classifier
from halonet.training.precision import compare_bfloat16

BATCHES = (1, 16)  # images at a time that are timed
ROUNDS = 7  # turns of each contestant, of whose times the median is taken
TURN_SECONDS = 0.2  # that a turn lasts at least
EXPORTS = [("onnx", "float32"), ("onnx", "float16"), ("onnx", "int8"), ("openvino", "float32")]


@dataclass
class BenchmarkRow:
    """What is known of a model in one format and precision, on the CPU.

    Attributes:
        format: torch, torch.compile, onnx, openvino or aoti.
        precision: float32, bfloat16, float16 or int8.
        bytes: size of its files; None where it has none.
        figures: scores on the held-out images by name, as of `evaluate`.
        difference: the largest one of its logits from the model's, relative to the largest logit.
        milliseconds: of an image, by the number of images at a time.
        problem: why there is nothing more; None where it runs.
    """

    format: str
    precision: str
    bytes: int | None = None
    figures: dict[str, float] = field(default_factory=dict)
    difference: float | None = None
    milliseconds: dict[int, float] = field(default_factory=dict)
    problem: str | None = None


def benchmark(
    model: Classifier,
    data: LabelledImages,
    *,
    file_bytes: int | None = None,
    compiled: bool = False,
    broken_share: float = 0.0,
) -> list[BenchmarkRow]:
    """Score a model in each format, then time them in turns, with torch's number of threads.

    Every format has the same images, prepared beforehand, onnxruntime and OpenVINO as many at once
    as `count_at_once` says; int8 is calibrated on training images.
    Files lie in a temporary folder for as long as it takes.

    Args:
        model: neither fused nor compiled; it stays as it is.
        data: of the classes that it was trained on; its held-out part is scored.
        file_bytes: size of the checkpoint.
        compiled: compile the model by `torch.compile` and AOTInductor too, which takes minutes.
        broken_share: largest share of images that can't be read.

    Raises:
        ValueError: as of `evaluate_on`.
    """
    images = choose_calibration_images(model, data.validation, max(BATCHES))
    images = torch.cat([images] * -(-max(BATCHES) // len(images)))[: max(BATCHES)]
    model = copy.deepcopy(model).cpu().float().eval()
    fused = model.fuse()
    with torch.inference_mode():
        expected = model(images)
    makers: list[tuple[BenchmarkRow, Callable[[Path], nn.Module]]] = [
        (BenchmarkRow("torch", "float32", file_bytes), lambda folder: fused),
        (BenchmarkRow("torch", "bfloat16"), lambda folder: _make_bfloat16(model)),
    ]
    if compiled:
        row = BenchmarkRow("torch.compile", "float32")
        makers.append((row, lambda folder: _Contestant(model, torch.compile(fused))))
    for name, precision in [*EXPORTS, *([("aoti", "float32")] if compiled else [])]:
        row = BenchmarkRow(name, precision)
        makers.append((row, lambda folder, row=row: _export(model, data, row, folder)))

    running: list[tuple[BenchmarkRow, nn.Module]] = []
    # torch keeps what it compiled for all processes, under a name without the instructions that
    # the processor may use: code for others gives no numbers.
    cache = _make_fresh_cache() if compiled else nullcontext()
    with tempfile.TemporaryDirectory() as folder, cache:
        for row, make in makers:
            try:
                contestant: Any = make(Path(folder))
                with torch.inference_mode():
                    difference = relative_difference(contestant(images), expected)
                if not math.isfinite(difference):
                    raise ValueError("its logits are not finite")
                row.difference = difference
            except ModuleNotFoundError as error:
                row.problem = f"{error.name} is not installed"
            except Exception as error:  # of each runtime's own kind
                row.problem = " ".join(str(error).replace(f"{folder}/", "").split())
            else:
                evaluation = evaluate_on(contestant, data, broken_share=broken_share)
                row.figures = evaluation.figures
                running.append((row, contestant))
        for batch in BATCHES:
            _time_in_turns(running, images[:batch])
    return [row for row, _ in makers]


def _make_fresh_cache() -> AbstractContextManager[Any]:
    """Has torch compile anew, in a temporary folder."""
    import torch._inductor.utils

    return torch._inductor.utils.fresh_cache()


class _Contestant(nn.Module):
    """A function from images to logits, and what an evaluation asks a classifier."""

    takes_photos = False

    def __init__(self, model: Classifier, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.num_classes = model.num_classes
        self.in_channels = model.in_channels
        self.preprocessing = model.preprocessing
        self.class_names = model.class_names
        self.task = model.task

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


def _make_bfloat16(model: Classifier) -> nn.Module:
    factor = compare_bfloat16()
    if factor > 1:
        raise ValueError(f"a product takes {factor:.1f} times as long as in float32 here")
    network = model.fuse().bfloat16()
    return _Contestant(model, lambda images: network(images.bfloat16()).float())


def _export(model: Classifier, data: LabelledImages, row: BenchmarkRow, folder: Path) -> nn.Module:
    calibration = None
    if row.precision == "int8":
        calibration = choose_calibration_images(model, data.training, CALIBRATION_IMAGES)
    side = model.preprocessing.image_size
    report = export_model(
        model,
        folder / f"{row.precision}{SUFFIXES[row.format]}",
        format=row.format,
        size=(side, side) if row.format == "aoti" else None,
        precision=row.precision,
        calibration=calibration,
    )
    row.bytes = report.bytes
    if row.format == "onnx":
        return load_onnx(report.path)
    run = (run_compiled if row.format == "aoti" else open_openvino)(report.path)
    return _Contestant(
        model, lambda images: torch.from_numpy(run(images.contiguous().numpy()).copy())
    )


def _time_in_turns(running: list[tuple[BenchmarkRow, nn.Module]], images: Tensor) -> None:
    """Milliseconds of an image, the medians of several turns, into the rows."""
    turns: list[list[float]] = [[] for _ in running]
    with torch.inference_mode():
        for _ in range(ROUNDS):
            for (_, contestant), times in zip(running, turns, strict=True):
                contestant(images)  # what was before is out of the caches then
                started, calls = time.perf_counter(), 0
                while not calls or time.perf_counter() - started < TURN_SECONDS:
                    contestant(images)
                    calls += 1
                times.append((time.perf_counter() - started) / calls / len(images))
    for (row, _), times in zip(running, turns, strict=True):
        row.milliseconds[len(images)] = 1e3 * statistics.median(times)
