"""COCO's metrics, and the detections of a model as COCO's results."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.transforms.v2 import functional
from tqdm import tqdm

from halonet.data.pixels import read_image
from halonet.data.splits import Source
from halonet.detection.data import AnnotatedImages, as_ground_truth
from halonet.detection.detector import Detector
from halonet.detection.options import find_thin

MASKS_AT_ONCE = 16  # a mask of the whole image takes 4 bytes a pixel


@dataclass(frozen=True)
class AveragePrecision:
    """COCO's metrics of boxes or of masks, each from 0 to 1, or None where nothing counts.

    Attributes:
        all: the mean over overlaps (IoU) from 0.5 to 0.95 and over categories: COCO's AP.
        at_50, at_75: at one overlap.
        small, medium, large: of objects below 32 x 32, up to 96 x 96, and above.
        recall: the mean over overlaps of the share of objects found.
        categories: AP of each category by name.
    """

    all: float | None
    at_50: float | None
    at_75: float | None
    small: float | None
    medium: float | None
    large: float | None
    recall: float | None
    categories: dict[str, float | None]


@dataclass(frozen=True)
class DetectionMetrics:
    """COCO's metrics of boxes and of masks.

    Attributes:
        box, mask: the metrics; no `mask` where the data or the detections have none.
        max_detections: detections counted in each image.
        images: their number.
    """

    box: AveragePrecision
    mask: AveragePrecision | None
    max_detections: int
    images: int


def detect_images(
    model: Detector,
    data: AnnotatedImages,
    indices: Sequence[int] | None = None,
    *,
    progress: bool = False,
) -> list[dict[str, Any]]:
    """Detections of a model in COCO's result format, one image after the other.

    Each is a dict of "image_id", "category_id" as in the data, "bbox" [left, top, width, height]
    in pixels, "score", and, of Mask R-CNN, "segmentation" as compressed run lengths in text. The
    model is in evaluation mode afterwards only if it was before.

    Args:
        model: of the data's categories.
        data: images; their annotations aren't used.
        indices: which images; None for all. Processes that share an evaluation take different
            ones, and `merge_results` puts their lists together.
        progress: show a progress bar on a terminal.

    Raises:
        ValueError: the model has another number of classes than the data, or an image can't be
            read or is too thin, see `find_thin`.
    """
    check_categories(model, data)
    ids = [category.id for category in data.categories]
    results = []
    with evaluation_mode(model):
        for index in tqdm(
            range(len(data.images)) if indices is None else indices, "detecting", leave=False,
            disable=None if progress else True,  # None: off where it is no terminal
        ):  # fmt: skip
            image = data.images[index]
            found = detect_one(model, as_pixels(read_for(model, image.path)))
            results += as_results(found, (image.height, image.width), image.id, ids)
    return results


def merge_results(parts: Iterable[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The results of several processes as one list, in an order that doesn't depend on theirs."""
    everything = [one for part in parts for one in part]
    return sorted(
        everything,
        key=lambda one: (one["image_id"], -one["score"], one["category_id"], one["bbox"]),
    )


def score(
    data: AnnotatedImages, results: Sequence[dict[str, Any]], *, max_detections: int = 100
) -> DetectionMetrics:
    """Box and mask metrics of results, as COCO's own evaluation computes them.

    Args:
        data: images and their true objects.
        results: as from `detect_images`.
        max_detections: how many count in an image and category, the best first; COCO's is 100.

    Raises:
        ValueError: a result of an image that the data doesn't have, or `max_detections` below 1.
    """
    if max_detections < 1:
        raise ValueError(f"max_detections must be positive, got {max_detections}")
    known = {image.id for image in data.images}
    unknown = [one["image_id"] for one in results if one["image_id"] not in known]
    if unknown:
        raise ValueError(f"results must be of images in {data.source}, got image {unknown[0]}")
    box = _score_kind(data, results, "bbox", max_detections)
    mask = None
    if data.masks and all("segmentation" in one for one in results):
        mask = _score_kind(data, results, "segm", max_detections)
    return DetectionMetrics(box, mask, max_detections, len(data.images))


def check_categories(model: Detector, data: AnnotatedImages) -> None:
    """Raise ValueError unless a model's classes are the data's categories, in their order."""
    ids, names = zip(*((one.id, one.name) for one in data.categories), strict=True)
    if model.num_classes != len(ids):
        raise ValueError(f"the model has {model.num_classes} classes, {data.source} {len(ids)}")
    if model.class_names is not None and model.class_names != names:
        mine, theirs = next(
            pair for pair in zip(model.class_names, names, strict=True) if pair[0] != pair[1]
        )
        raise ValueError(
            f"the model's classes aren't those of {data.source}: {mine!r} there is {theirs!r}"
        )


@contextmanager
def evaluation_mode(model: Detector) -> Iterator[None]:
    """Put a model in evaluation mode, and back in the mode that it was in at the end."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def read_for(model: Detector, source: Source) -> Image.Image:
    """An image, as a detector takes it.

    Raises:
        ValueError, FileNotFoundError: see `read_image`; or it is too thin for the detector.
    """
    image = read_image(source)
    thin = find_thin(*image.size, model.options.image_size)
    if thin is not None:
        raise ValueError(f"{source} can't be used: {thin}")
    return image


def detect_one(model: Detector, image: Tensor) -> dict[str, Tensor]:
    """What `Detector.detect` finds in an image [3, height, width] from 0 to 1.

    The image goes to the model's device and the result stays there. An exported file has no
    parameters and runs on the CPU.
    """
    device = next((one.device for one in model.parameters()), torch.device("cpu"))
    with torch.inference_mode():
        found = model.detect([image.to(device)])[0]
    return {name: one.clone() for name, one in found.items()}  # which may be changed in place


def paste_masks(found: dict[str, Tensor], size: tuple[int, int]) -> Iterator[Tensor]:
    """Masks [n, height, width] of bools over the whole image, a few at a time.

    Args:
        found: as from `detect_one`.
        size: height and width of the image in pixels.
    """
    chunks = zip(
        found["masks"].split(MASKS_AT_ONCE), found["boxes"].split(MASKS_AT_ONCE), strict=True
    )
    for masks, boxes in chunks:
        yield paste_masks_in_image(masks, boxes, size)[:, 0] > 0.5


def as_results(
    found: dict[str, Tensor], size: tuple[int, int], image_id: int, category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Detections in one image, in COCO's result format.

    Args:
        found: as from `detect_one`.
        size: height and width of the image in pixels.
        image_id: as in the data.
        category_ids: those of the labels 1, 2, ...
    """
    results = []
    for box, score_, label in zip(
        found["boxes"].tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True
    ):
        left, top, right, bottom = box
        results.append(
            {
                "image_id": image_id,
                "category_id": category_ids[label - 1],
                "bbox": [round(one, 3) for one in (left, top, right - left, bottom - top)],
                "score": round(score_, 6),
            }
        )
    if "masks" in found:
        for result, mask in zip(results, _encode_masks(found, size), strict=True):
            result["segmentation"] = mask
    return results


def _encode_masks(found: dict[str, Tensor], size: tuple[int, int]) -> Iterator[dict[str, Any]]:
    """Masks over the whole image as compressed run lengths in text."""
    from faster_coco_eval import mask as encoder

    for pasted in paste_masks(found, size):
        by_column = np.asfortranarray(pasted.permute(1, 2, 0).cpu().numpy().astype(np.uint8))
        for mask in encoder.encode(by_column):
            yield {"size": list(size), "counts": mask["counts"].decode()}


def as_pixels(image: object) -> Tensor:
    """A Pillow image in colour as [3, height, width] from 0 to 1."""
    return functional.to_dtype(functional.pil_to_tensor(image), torch.float32, scale=True)


def _score_kind(
    data: AnnotatedImages, results: Sequence[dict[str, Any]], kind: Any, max_detections: int
) -> AveragePrecision:
    from faster_coco_eval import COCO, COCOeval_faster

    # The evaluation writes into what it gets.
    copies = [dict(one) for one in results]
    for one in copies:
        if kind == "segm":
            del one["bbox"]  # so that a detection is small or large by its mask
            one["segmentation"] = dict(one["segmentation"])
        else:
            one.pop("segmentation", None)
    truth = COCO(as_ground_truth(data))
    evaluation = COCOeval_faster(truth, truth.loadRes(copies), kind)
    evaluation.params.maxDets = [max_detections]
    evaluation.evaluate()
    evaluation.accumulate()
    # Overlaps, recalls, categories, areas (all, small, medium, large), limits.
    precision = np.asarray(evaluation.eval["precision"])[..., -1]
    recall = np.asarray(evaluation.eval["recall"])[..., 0, -1]
    names = {
        category.name: _mean(precision[:, :, place, 0])
        for place, category in enumerate(data.categories)
    }
    return AveragePrecision(
        all=_mean(precision[..., 0]),
        at_50=_mean(precision[0, ..., 0]),
        at_75=_mean(precision[5, ..., 0]),
        small=_mean(precision[..., 1]),
        medium=_mean(precision[..., 2]),
        large=_mean(precision[..., 3]),
        recall=_mean(recall),
        categories=names,
    )


def _mean(values: np.ndarray) -> float | None:
    """The mean of the values but -1, which stands where there is no object."""
    counted = values[values > -1]
    return float(counted.mean()) if counted.size else None
