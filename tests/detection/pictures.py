"""A small data set in COCO's format, and detectors of a second or two."""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as official

from halonet.detection.data import DetectionData
from halonet.detection.detector import Detector, create_detector
from halonet.detection.sources import load_detection_data
from tests.models.test_halonet import revive

CATEGORIES = [{"id": 7, "name": "square"}, {"id": 3, "name": "bar"}]  # gaps, and not in order
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
NARROW: dict[str, Any] = {
    "layers": (1, 1, 1, 1),
    "base_width": 8,
    "stem_width": 8,
    "heads": (1, 2, 2, 2),
}


def needs_shared_data(test: Any) -> Any:
    """Marks a test of real data, which are read once: one process runs them all."""
    absent = not (SHARED / "tiny_coco").is_dir()
    skip = pytest.mark.skipif(absent, reason=f"there is no data at {SHARED}")
    return skip(pytest.mark.xdist_group("shared data")(test))


@functools.cache
def load_shared_data(name: str) -> DetectionData:
    """Annotations of tiny_coco or nuclei."""
    return load_detection_data(f"coco:{SHARED / name}", read_images=False)


def small_detector(name: str = "resnet_50_se_halo8", **options: Any) -> Detector:
    """A detector with every part, few channels, and residual branches that matter."""
    torch.manual_seed(0)
    model_options = NARROW | options.pop("model_options", {})
    options = {
        "num_classes": 2,
        "image_size": 64,
        "anchor_sizes": (8, 16, 32, 64, 128),
        "pyramid_channels": 8,
        "training_proposals": 40,
        "proposals": 40,
        "detections": 10,
        "score_threshold": 0.0,
    } | options
    model = create_detector(name, model_options=model_options, **options)
    if "init" not in options:
        revive(model.backbone.body)
    return model


def make_target(size: int, boxes: list[list[int]], **more: int) -> dict[str, torch.Tensor]:
    """A target whose masks fill their boxes; labels take turns."""
    masks = torch.zeros(len(boxes), size, size, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top:bottom, left:right] = 1
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.arange(len(boxes)) % 2 + 1,
        "masks": masks,
    } | {name: torch.tensor(value) for name, value in more.items()}


def rectangle(left: int, top: int, width: int, height: int) -> list[float]:
    """A polygon."""
    right, bottom = left + width, top + height
    return [float(one) for one in (left, top, right, top, right, bottom, left, bottom)]


def draw_mask(
    size: tuple[int, int], left: int, top: int, width: int, height: int
) -> dict[str, Any]:
    """Compressed run lengths of a rectangle; size is height and width."""
    mask = np.zeros(size, np.uint8, order="F")
    mask[top : top + height, left : left + width] = 1
    encoded = official.encode(mask)
    return {"size": list(size), "counts": encoded["counts"].decode()}


def draw_coco(folder: Path, *, masks: bool = True) -> Path:
    """Three images with objects and one without, in COCO's own layout; train and val alike."""
    for part in ("train2017", "val2017"):
        (folder / part).mkdir(parents=True)
        (folder / "annotations").mkdir(exist_ok=True)
        content = describe_images(folder / part)
        for entry in content["annotations"]:
            entry["segmentation"] = entry["segmentation"] if masks else []
        path = folder / "annotations" / f"instances_{part}.json"
        path.write_text(json.dumps(content))
    return folder


def describe_images(folder: Path) -> dict[str, Any]:
    """Draw the images, with each kind of mask, and return their annotations."""
    images, annotations = [], []
    for number, (width, height) in enumerate([(60, 44), (50, 70), (64, 64), (40, 40)], start=10):
        pixels = np.full((height, width, 3), 60, np.uint8)
        pixels[8:24, 10:26] = (250, 0, 0)
        pixels[30:36, 4:34] = (0, 250, 0)
        if number == 13:
            pixels[:] = 60
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images.append(
            {"id": number, "file_name": f"{number}.png", "width": width, "height": height}
        )
        if number == 13:
            continue
        square: Any = [rectangle(10, 8, 16, 16)]
        bar: Any = draw_mask((height, width), 4, 30, 30, 6)
        if number == 11:
            square = {"size": [height, width], "counts": _run_lengths(height, width)}
        annotations += [
            _entry(len(annotations), number, 7, [10, 8, 16, 16], square),
            _entry(len(annotations) + 1, number, 3, [4, 30, 30, 6], bar),
        ]
    crowd = draw_mask((64, 64), 40, 2, 20, 20)
    annotations.append(_entry(len(annotations), 12, 7, [40, 2, 20, 20], crowd) | {"iscrowd": 1})
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


def _entry(
    number: int, image: int, category: int, box: list[float], mask: object
) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": 0,
        "segmentation": mask,
    }


def _run_lengths(height: int, width: int) -> list[int]:
    """Uncompressed, by columns: the square of 16 x 16 pixels at (10, 8)."""
    lengths = [10 * height + 8]
    for _ in range(15):
        lengths += [16, height - 16]
    return [*lengths, 16, height * width - 10 * height - 8 - 15 * height - 16]
