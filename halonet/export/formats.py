"""Export: which formats there are, what is refused, and a file that appears when it is right."""

import copy
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from halonet.export.description import ExportDescription, describe
from halonet.export.graph import OPSET, OPSETS
from halonet.files import write_atomically
from halonet.models.classifier import SMALLEST_IMAGE, Classifier

# Of the formats, as files are called unless a user says; AOTInductor wants .pt2 too.
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2", "aoti": ".aoti.pt2"}
# The largest difference of logits from the model's, relative to the largest logit. Rounding alone
# makes about 1e-6 in float32 and 1e-3 in float16; what eight bits may make, only accuracy tells.
TOLERANCES = {"float32": 1e-4, "float16": 1e-2, "int8": math.inf}
# Of photos, whose resized pixels may differ by a level of 255 from Pillow's.
PHOTO_TOLERANCE = 1e-2


@dataclass(frozen=True)
class ExportReport:
    """What `export_model` did.

    Attributes:
        path: the file.
        bytes: its size; of openvino with its weights' file.
        seconds: that the writing took, without the check.
        differences: by batch and size, as "2 x 97 x 131", of the file's logits from the model's,
            relative to the largest logit.
    """

    path: Path
    bytes: int
    seconds: float
    differences: dict[str, float]


def export_model(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    format: str = "onnx",  # noqa: A002 - the name that everybody uses
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    precision: str = "float32",
    with_preprocessing: bool = False,
    calibration: Tensor | None = None,
    opset: int = OPSET,
    command: str = "halonet.export_model",
    license: str | None = None,  # noqa: A002 - the usual name
) -> ExportReport:
    """Write a classifier to a file that other runtimes run, and check it.

    The file holds the model as it is in evaluation mode, batch norms folded into the weights, and
    in its metadata what `halonet predict` needs: preprocessing, class names and task. It is run
    beside the model, at three sizes and two batches where it is for any, and appears under its
    name only if its logits are the model's.

    Args:
        model: a `HaloNet` or one of timm's HaloNets, neither fused nor compiled; it stays as it is.
        path: of the file; there must be none yet.
        format: "onnx"; "openvino", a network in `path`, which ends in .xml, and its
            weights in the same name in .bin; "torch-export", a program of `torch.export` for
            where torch and halonet are, without the model's classes; or "aoti", such a program
            compiled by AOTInductor for this kind of processor, in a `path` that ends in .pt2,
            which takes minutes unless `size` and `batch` are given.
        size: height and width of the images, in pixels; None for any from 32 on, with torch-export
            and aoti from 33 on, or for the only one that the model takes.
        batch: number of images; None for any.
        precision: "float32", "float16" for half the size, or "int8" for convolutions and products
            with weights in eight bits and attention in float32; images and logits are float32.
        with_preprocessing: the file takes photos as bytes [batch, height, width, channels], of any
            size, and resizes and normalizes them itself.
        calibration: for int8, images as the model takes them, [images, channels, height, width],
            32 or more of those that it is for; their activations decide the ranges.
        opset: version of ONNX's operators, for format "onnx": 23, or 18 for runtimes that don't
            know the operator `Attention`, as onnxruntime before 1.23 and OpenVINO before 2026.2.
        command: that the metadata names.
        license: of the weights, in words, for the metadata.

    Raises:
        FileExistsError: there is a file at `path`, or where the weights would be.
        ModuleNotFoundError: a package that the format needs is not installed.
        OSError: the file can't be written.
        TypeError: the model isn't a `Classifier`.
        ValueError: an argument that doesn't fit, a model that has no counterpart in the format, or
            a file that would give other logits than the model.
    """
    path = Path(path)
    plain = _copy_model(model)
    _check_options(format, size, batch, precision, with_preprocessing, opset)
    if plain.only_size is not None and not with_preprocessing:
        if size not in (None, plain.only_size):
            raise ValueError(f"size must be {plain.only_size}, the model's only one, got {size}")
        size = plain.only_size
    _check_calibration(calibration, plain, size, batch, precision)
    check_output(path, format)
    from halonet.export.check import compare_with_model
    from halonet.export.openvino_model import weights_path

    description = describe(
        plain,
        precision=precision,
        with_preprocessing=with_preprocessing,
        command=command,
        license=license,
    )
    tolerance = max(TOLERANCES[precision], PHOTO_TOLERANCE if with_preprocessing else 0)

    def write(temporary: Path) -> float:
        started = time.perf_counter()
        _write_file(format, plain.fuse(), temporary, description, size, batch, calibration, opset)
        return time.perf_counter() - started

    def compare(temporary: Path) -> dict[str, float]:
        return compare_with_model(
            plain,
            _open_file(format, temporary),
            description,
            size=size,
            batch=batch,
            calibration=calibration,
        )

    companion = weights_path if format == "openvino" else None
    return write_checked(path, write, compare, tolerance, companion)


def check_output(path: Path, format: str) -> None:  # noqa: A002
    """Raise what a file can't be written for, before any work.

    Raises:
        FileExistsError, FileNotFoundError, ModuleNotFoundError, ValueError: as of `export_model`.
    """
    if path.exists():
        raise FileExistsError(f"{path} exists already; choose another output")
    from halonet.export.openvino_model import import_openvino, weights_path

    if format == "openvino":
        if path.suffix != SUFFIXES[format]:
            raise ValueError(f"output of openvino must end in {SUFFIXES[format]}, got {path.name}")
        weights = weights_path(path)
        if weights.exists():
            raise FileExistsError(f"{weights} exists already; choose another output")
    if format == "aoti" and path.suffix != ".pt2":
        raise ValueError(f"output of aoti must end in .pt2, got {path.name}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder at {path.parent}")
    if format in ("onnx", "openvino"):
        import onnx  # noqa: F401
    if format == "onnx":
        import onnxruntime  # noqa: F401
    if format == "openvino":
        import_openvino()
    if format == "aoti":
        from halonet.export.torch_program import find_compiler

        find_compiler()


def write_checked(
    path: Path,
    write: Callable[[Path], float],
    compare: Callable[[Path], dict[str, float]],
    tolerance: float,
    companion: Callable[[Path], Path] | None = None,
) -> ExportReport:
    """Write a file that appears under its name only if it is right.

    Args:
        path: of the file.
        write: fills a temporary one, and returns the seconds that it took.
        compare: the differences of such a file from its model, by batch and size.
        tolerance: the largest one allowed.
        companion: the name of a second file that is written with one of a name.

    Raises:
        OSError: it can't be written.
        ValueError: a difference is larger.
    """
    seconds = 0.0
    differences: dict[str, float] = {}

    def write_and_check(temporary: Path) -> None:
        nonlocal seconds, differences
        seconds = write(temporary)
        differences = compare(temporary)
        for shape, difference in differences.items():
            if not (math.isfinite(difference) and difference <= tolerance):
                raise ValueError(
                    f"{path} wasn't written: its results differ by {difference:.2g} of the "
                    f"largest, more than {tolerance:g}, from the model's for {shape}"
                )

    if companion is None:
        write_atomically(path, write_and_check)
        return ExportReport(path, path.stat().st_size, seconds, differences)

    def write_both(temporary: Path) -> None:
        second = companion(temporary)
        try:
            write_and_check(temporary)
            os.replace(second, companion(path))
        finally:
            second.unlink(missing_ok=True)

    write_atomically(path, write_both)
    size = path.stat().st_size + companion(path).stat().st_size
    return ExportReport(path, size, seconds, differences)


def _write_file(
    format: str,  # noqa: A002
    fused: Classifier,
    path: Path,
    description: ExportDescription,
    size: tuple[int, int] | None,
    batch: int | None,
    calibration: Tensor | None,
    opset: int,
) -> None:
    if format == "torch-export":
        from halonet.export.torch_program import write_program

        write_program(fused, path, description, size=size, batch=batch)
        return
    if format == "aoti":
        from halonet.export.torch_program import write_compiled

        write_compiled(fused, path, description, size=size, batch=batch)
        return
    if format == "openvino":
        from halonet.export.openvino_model import write_openvino

        write_openvino(fused, path, description, size=size, batch=batch)
        return
    from halonet.export.onnx_file import write_onnx

    write_onnx(fused, path, description, size=size, batch=batch, opset=opset)
    if calibration is not None:
        from halonet.export.quantization import quantize_onnx

        quantize_onnx(path, path, calibration, batch)


def _open_file(format: str, path: Path) -> Callable[[Any], Any]:  # noqa: A002
    """What the file makes of an array, as an array."""
    if format == "torch-export":
        from halonet.export.torch_program import run_program

        return run_program(path)
    if format == "aoti":
        from halonet.export.torch_program import run_compiled

        return run_compiled(path)
    if format == "openvino":
        from halonet.export.openvino_model import open_openvino

        return open_openvino(path)
    from halonet.export.onnx_classifier import open_session, run_session

    return partial(run_session, open_session(path))


def _copy_model(model: nn.Module) -> Classifier:
    """A copy in evaluation mode, in float32 on the CPU."""
    if not isinstance(model, Classifier):
        raise TypeError(
            f"model must be a HaloNet, got {type(model).__name__}; of a compiled or wrapped model, "
            "export the one that it was made from"
        )
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.stem.modules()):
        raise ValueError("model is fused already: export the one that it was made from")
    return copy.deepcopy(model).cpu().float().eval()


def _check_options(
    format: str,  # noqa: A002
    size: tuple[int, int] | None,
    batch: int | None,
    precision: str,
    with_preprocessing: bool,
    opset: int,
) -> None:
    if format not in SUFFIXES:
        raise ValueError(f"format must be one of {', '.join(SUFFIXES)}, got {format!r}")
    if precision not in TOLERANCES:
        raise ValueError(f"precision must be one of {', '.join(TOLERANCES)}, got {precision!r}")
    if batch is not None and batch < 1:
        raise ValueError(f"batch must be positive, got {batch}")
    if size is not None and (len(size) != 2 or min(size) < SMALLEST_IMAGE):
        raise ValueError(
            f"size must be a height and a width of {SMALLEST_IMAGE} pixels or more, got {size}"
        )
    if size is not None and with_preprocessing:
        raise ValueError("size doesn't go with with_preprocessing, which takes photos of any size")
    if format != "onnx" and (precision != "float32" or with_preprocessing):
        raise ValueError(f"format {format} takes precision float32 and no with_preprocessing")
    if opset not in OPSETS:
        raise ValueError(f"opset must be one of {', '.join(map(str, OPSETS))}, got {opset}")
    if format != "onnx" and opset != OPSET:
        raise ValueError(f"opset {opset} goes with format onnx only, got {format}")
    if precision == "int8" and with_preprocessing:
        raise ValueError("precision int8 doesn't go with with_preprocessing")


def _check_calibration(
    calibration: Tensor | None,
    model: Classifier,
    size: tuple[int, int] | None,
    batch: int | None,
    precision: str,
) -> None:
    if (calibration is not None) != (precision == "int8"):
        raise ValueError(
            f"calibration must be images for int8, and None else; got precision {precision!r} and "
            f"{'none' if calibration is None else list(calibration.shape)}"
        )
    if calibration is None:
        return
    fits = (
        calibration.dim() == 4
        and len(calibration) >= (batch or 2)
        and calibration.shape[1] == model.in_channels
        and (
            tuple(calibration.shape[2:]) == size
            if size
            else min(calibration.shape[2:]) >= SMALLEST_IMAGE
        )
    )
    if not fits:
        sides = "height, width" if size is None else f"{size[0]}, {size[1]}"
        raise ValueError(
            f"calibration must have shape [{batch or 2} or more, {model.in_channels}, {sides}], "
            f"got {list(calibration.shape)}"
        )
