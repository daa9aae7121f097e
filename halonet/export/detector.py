"""A detector as one ONNX file: a photo's bytes in, boxes, labels, scores and masks out."""

import copy
import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from halonet.detection.detector import Detector
from halonet.export.check import draw_photo
from halonet.export.description import KEY
from halonet.export.detector_graph import write_detector
from halonet.export.formats import ExportReport, check_output, write_checked
from halonet.export.onnx_detector import load_onnx_detector
from halonet.export.pyramid import copy_detector

# Of a photo's objects, boxes are compared relative to its longer side. Rounding makes about 1e-6.
TOLERANCE = 1e-3
# Photos of the check, as shares of the detector's image size.
CHECKED_PHOTOS = ((0.6, 1.0), (1.3, 0.9), (0.5, 0.5))
# Of regions or objects that overlap, or lie at a limit of their number, and have equal scores up to
# rounding, any may be kept, and so others after them: one object in so many may be another.
OBJECTS_OF_A_CHANGE = 4
EQUAL_SCORES = 1e-5


def export_detector(
    detector: Detector,
    path: str | os.PathLike[str],
    *,
    command: str = "halonet.export.detector.export_detector",
    license: str | None = None,  # noqa: A002 - the usual name
) -> ExportReport:
    """Write a detector to an ONNX file (opset 18) that takes a photo of any size, and check it.

    The input is `photos`, bytes [1, height, width, 3]; the outputs are torchvision's: `boxes`
    [n, 4], left, top, right, bottom in pixels of the photo, `labels` [n] from 1 on, `scores` [n]
    and, of Mask R-CNN, `masks` [n, 1, 28, 28] within the boxes, from 0 to 1; best scores first.
    The file is run beside the detector on drawn photos, without a least score, and appears only if
    it finds the same.

    Args:
        detector: neither fused nor compiled; it stays as it is.
        path: of the file; there must be none yet.
        command: that the metadata names.
        license: of the weights, in words, for the metadata.

    Raises:
        FileExistsError, ModuleNotFoundError, OSError, TypeError: as of `export_model`.
        ValueError: a fused detector, a part that has no counterpart, or a file that would find
            something else.
    """
    path = Path(path)
    plain = copy_detector(detector)
    check_output(path, "onnx")
    texts = describe_detector(plain, command=command, license=license)
    fused = plain.fuse()

    def write(temporary: Path) -> float:
        started = time.perf_counter()
        write_detector(fused, temporary, texts, score_threshold=plain.options.score_threshold)
        return time.perf_counter() - started

    def compare(temporary: Path) -> dict[str, float]:
        return compare_with_detector(plain, fused, temporary, texts)

    return write_checked(path, write, compare, TOLERANCE)


def describe_detector(
    detector: Detector,
    *,
    command: str,
    license: str | None,  # noqa: A002 - the usual name
) -> dict[str, str]:
    """The metadata of a detector's file, as JSON texts by name."""
    facts = {
        "model": detector.name,
        "parameters": detector.parameter_count,
        "num_classes": detector.num_classes,
        "class_names": detector.class_names,
        "category_ids": detector.category_ids,
        "options": dataclasses.asdict(detector.options),
        "command": command,
        "license": license,
    }
    return {KEY + name: json.dumps(value) for name, value in facts.items()}


def compare_with_detector(
    detector: Detector, fused: Detector, path: Path, metadata: Mapping[str, str]
) -> dict[str, float]:
    """The differences of what a file finds from what the detector finds, by size of the photo.

    A trained detector may find nothing in what is drawn: it is compared with a second file, both
    without a least score, and the file itself with what the second one finds above its own.
    """
    numbers = torch.Generator().manual_seed(0)
    everything: Any = copy.deepcopy(detector)
    everything.roi_heads.score_thresh = 0.0
    threshold = detector.options.score_threshold
    written = load_onnx_detector(path)
    differences = {}
    with tempfile.TemporaryDirectory() as folder:
        second = Path(folder, path.name)
        write_detector(fused, second, metadata, score_threshold=0.0)
        without_least = load_onnx_detector(second)
    for shares in CHECKED_PHOTOS:
        height, width = (max(1, round(share * detector.options.image_size)) for share in shares)
        photo = draw_photo(detector.backbone.body.in_channels, height, width, numbers)
        pixels = torch.from_numpy(photo).permute(2, 0, 1) / 255
        with torch.inference_mode():
            (expected,) = everything.detect([pixels])
        longer = max(height, width)
        (found,) = without_least.detect([pixels])
        difference = compare_objects(found, expected, longer)
        kept = {name: value[found["scores"] > threshold] for name, value in found.items()}
        (found,) = written.detect([pixels])
        difference = max(difference, compare_objects(found, kept, longer))
        differences[f"1 x {height} x {width}"] = difference
    return differences


def compare_objects(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], longer: int
) -> float:
    """The largest difference of two detections of a photo: of boxes, scores, and a mask's mean.

    Each expected object is compared with the nearest one of its label; those that have a score in
    common are left out where others are there, and one in four may have no counterpart.

    Args:
        found, expected: as `Detector.detect` gives them.
        longer: pixels of the photo's longer side, which boxes are relative to.
    """
    spared = len(expected["scores"]) // OBJECTS_OF_A_CHANGE
    if abs(len(found["scores"]) - len(expected["scores"])) > spared:
        return float("inf")
    if not len(expected["scores"]) or not len(found["scores"]):
        return 0.0
    boxes = (expected["boxes"][:, None] - found["boxes"]).abs().amax(2) / longer
    scores = (expected["scores"][:, None] - found["scores"]).abs()
    apart = torch.maximum(boxes, scores)
    apart[expected["labels"][:, None] != found["labels"]] = float("inf")
    nearest, place = apart.min(1)
    if "masks" in expected:
        masks = (expected["masks"] - found["masks"][place]).abs().flatten(1).mean(1)
        nearest = torch.maximum(nearest, masks)
    gaps = (expected["scores"][:, None] - expected["scores"]).abs()
    alone = (gaps < EQUAL_SCORES).sum(1) == 1
    nearest = nearest[alone] if alone.any() else nearest
    spared = len(nearest) // OBJECTS_OF_A_CHANGE
    return nearest.sort().values[len(nearest) - 1 - spared].item()
