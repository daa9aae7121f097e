"""Objects in image files, and pictures of them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from halonet.data.pixels import read_image
from halonet.detection.data import AnnotatedImage, Category
from halonet.detection.detector import Detector
from halonet.detection.evaluate import (
    as_pixels,
    as_results,
    detect_one,
    evaluation_mode,
    paste_masks,
)
from halonet.detection.masks import decode_masks, measure_area

# Told apart with most kinds of colour blindness (Okabe and Ito); classes take turns.
COLORS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")


@dataclass(frozen=True)
class Objects:
    """The objects found in an image, best scores first.

    Attributes:
        path: the image file.
        size: its height and width in pixels, upright.
        boxes: [n, 4], left, top, right, bottom in pixels.
        labels: [n], from 1 on.
        scores: [n], from 0 to 1.
        class_names: of the labels 1, 2, ...
        category_ids: their ids in COCO's files.
        masks: [n, 1, 28, 28] within the boxes, from 0 to 1; None of Faster R-CNN.
    """

    path: Path
    size: tuple[int, int]
    boxes: Tensor
    labels: Tensor
    scores: Tensor
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    masks: Tensor | None = None

    def as_results(self, image_id: int) -> list[dict[str, Any]]:
        """The objects in COCO's result format."""
        return as_results(self._found(), self.size, image_id, self.category_ids)

    def draw(self, image: Image.Image) -> Image.Image:
        """A copy of the image with masks, boxes, names and scores."""
        colors: list[Any] = [COLORS[(label - 1) % len(COLORS)] for label in self.labels.tolist()]
        captions = [
            f"{self.class_names[label - 1]} {score:.2f}"
            for label, score in zip(self.labels.tolist(), self.scores.tolist(), strict=True)
        ]
        pixels = functional.pil_to_tensor(image.convert("RGB"))
        if not colors:
            return functional.to_pil_image(pixels)
        first = 0
        for masks in () if self.masks is None else paste_masks(self._found(), self.size):
            chosen = colors[first : first + len(masks)]
            pixels = draw_segmentation_masks(pixels, masks, alpha=0.45, colors=chosen)
            first += len(masks)
        pixels = draw_bounding_boxes(pixels, self.boxes, captions, colors)
        return functional.to_pil_image(pixels)

    def _found(self) -> dict[str, Tensor]:
        found = {"boxes": self.boxes, "scores": self.scores, "labels": self.labels}
        return found if self.masks is None else found | {"masks": self.masks}


def predict(
    model: Detector, paths: Iterable[Path], *, score_threshold: float = 0.5
) -> Iterator[tuple[Path, Objects | str]]:
    """Find the objects in image files; a file that can't be read gives the reason instead.

    Args:
        model: a detector.
        paths: image files.
        score_threshold: objects with lower scores are left out.

    Raises:
        ValueError: `score_threshold` isn't from 0 to 1.
    """
    if not 0 <= score_threshold <= 1:
        raise ValueError(f"score_threshold must be from 0 to 1, got {score_threshold}")
    return _predict(model, paths, score_threshold)


def _predict(
    model: Detector, paths: Iterable[Path], score_threshold: float
) -> Iterator[tuple[Path, Objects | str]]:
    categories = name_categories(model)
    names = tuple(category.name for category in categories)
    ids = tuple(category.id for category in categories)
    with evaluation_mode(model):
        for path in paths:
            try:
                image = read_image(path)
            except (ValueError, FileNotFoundError) as error:
                yield path, str(error)
                continue
            found = {name: one.cpu() for name, one in detect_one(model, as_pixels(image)).items()}
            kept = found["scores"] >= score_threshold
            found = {name: one[kept] for name, one in found.items()}
            size = (image.height, image.width)
            yield path, Objects(path, size, **found, class_names=names, category_ids=ids)


def name_categories(model: Detector) -> list[Category]:
    """The categories of the labels 1, 2, ..., with these numbers where the model has no names."""
    numbers = range(1, model.num_classes + 1)
    pairs = zip(model.category_ids or numbers, model.class_names or numbers, strict=True)
    return [Category(number, str(name)) for number, name in pairs]


def as_data_set(
    images: Sequence[dict[str, Any]],
    results: Sequence[dict[str, Any]],
    categories: Sequence[Category],
) -> dict[str, Any]:
    """Results as a data set in COCO's format, whose annotations are numbered from 1 on.

    Args:
        images: as in COCO's format.
        results: of these images, as `Objects.as_results` gives them.
        categories: of the results.
    """
    annotations = []
    for number, result in enumerate(results, start=1):
        mask = result.get("segmentation")
        area = result["bbox"][2] * result["bbox"][3]
        if mask is not None:
            area = measure_area(mask["counts"].encode(), *mask["size"])
        extra = {"id": number, "area": area, "iscrowd": 0, "segmentation": mask or []}
        annotations.append(result | extra)
    return {
        "images": list(images),
        "annotations": annotations,
        "categories": [{"id": one.id, "name": one.name} for one in categories],
    }


def draw_truth(image: AnnotatedImage, categories: Sequence[Category]) -> Image.Image:
    """An image with its annotations as `Objects.draw` has them, without scores."""
    places = {category.id: place for place, category in enumerate(categories)}
    colors: list[Any] = [COLORS[places[one.category_id] % len(COLORS)] for one in image.annotations]
    names = [categories[places[one.category_id]].name for one in image.annotations]
    pixels = functional.pil_to_tensor(read_image(image.path))
    if not colors:
        return functional.to_pil_image(pixels)
    for one, color in zip(image.annotations, colors, strict=True):
        if one.counts is None:
            continue
        mask = torch.from_numpy(decode_masks([one.counts], image.height, image.width))
        mask = mask.permute(2, 0, 1)
        pixels = draw_segmentation_masks(pixels, mask.bool(), alpha=0.45, colors=color)
    boxes = torch.tensor([one.box for one in image.annotations])
    boxes[:, 2:] += boxes[:, :2]
    return functional.to_pil_image(draw_bounding_boxes(pixels, boxes, names, colors))
