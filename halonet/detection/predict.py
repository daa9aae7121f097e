"""Objects in images, and pictures of them."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from halonet.data.pixels import read_image
from halonet.data.splits import Source
from halonet.detection.data import AnnotatedImage, Category
from halonet.detection.detector import Detector
from halonet.detection.evaluate import (
    as_pixels,
    as_results,
    detect_one,
    evaluation_mode,
    paste_masks,
    read_for,
)
from halonet.detection.masks import decode_masks, measure_area
from halonet.files import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from supervision import Detections

Given = TypeVar("Given", bound=Source)

# Told apart with most kinds of colour blindness (Okabe and Ito); classes take turns.
COLORS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")


@dataclass(frozen=True)
class Objects:
    """The objects found in an image, best scores first.

    Attributes:
        image: where it comes from.
        size: its height and width in pixels, upright.
        boxes: [n, 4], left, top, right, bottom in pixels.
        labels: [n], from 1 on.
        scores: [n], from 0 to 1.
        class_names: of the labels 1, 2, ...
        category_ids: their ids in COCO's files.
        source: the image, as `read_image` takes it, for `plot`.
        masks: [n, 1, 28, 28] within the boxes, from 0 to 1; None of Faster R-CNN.
        time: of a video's frame, in seconds from the first; None of an image.
    """

    image: str
    size: tuple[int, int]
    boxes: Tensor
    labels: Tensor
    scores: Tensor
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    source: Source
    masks: Tensor | None = None
    time: float | None = None

    @property
    def names(self) -> list[str]:
        """The class name of each object."""
        return [self.class_names[label - 1] for label in self.labels.tolist()]

    def as_results(self, image_id: int) -> list[dict[str, Any]]:
        """The objects in COCO's result format."""
        return as_results(self._found(), self.size, image_id, self.category_ids)

    def draw(self, image: Image.Image) -> Image.Image:
        """A copy of the image with masks, boxes, names and scores."""
        colors: list[Any] = [COLORS[(label - 1) % len(COLORS)] for label in self.labels.tolist()]
        captions = [
            f"{name} {score:.2f}"
            for name, score in zip(self.names, self.scores.tolist(), strict=True)
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

    def paste_masks(self) -> Tensor | None:
        """The masks over the whole image as bools [n, height, width]; None of Faster R-CNN."""
        if self.masks is None:
            return None
        empty = torch.zeros(0, *self.size, dtype=torch.bool)
        return torch.cat([empty, *paste_masks(self._found(), self.size)])

    def to_dict(self) -> dict[str, Any]:
        """The objects as JSON has them: class, score, box as left, top, right, bottom in pixels.

        A mask is there as COCO's compressed run lengths over the whole image.
        """
        objects = []
        for name, box, result in zip(
            self.names, self.boxes.tolist(), self.as_results(0), strict=True
        ):
            mask = {"mask": result["segmentation"]} if "segmentation" in result else {}
            rounded = [round(edge, 3) for edge in box]
            objects.append({"class": name, "score": result["score"], "box": rounded, **mask})
        height, width = self.size
        time = {} if self.time is None else {"time": round(self.time, 3)}
        return {"image": self.image, **time, "width": width, "height": height, "objects": objects}

    def to_json(self) -> str:
        """The objects as text."""
        return json.dumps(self.to_dict(), indent=2)

    def to_supervision(self) -> "Detections":
        """The objects as the package supervision has them; class_id counts from 0.

        Raises:
            ModuleNotFoundError: supervision isn't installed.
        """
        import numpy as np
        from supervision import Detections

        masks = self.paste_masks()
        return Detections(
            xyxy=self.boxes.numpy(),
            mask=None if masks is None else masks.numpy(),
            confidence=self.scores.numpy(),
            class_id=(self.labels - 1).numpy(),
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def plot(self, path: Path | str | None = None) -> "Figure":
        """The image with the objects drawn in; written to `path` where there is one."""
        from matplotlib.figure import Figure

        height, width = self.size
        scale = 8 / max(height, width)
        figure = Figure((max(1, width * scale), max(1, height * scale)), dpi=110)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.imshow(self.draw(read_image(self.source)))
        return save_figure(figure, path)

    def _found(self) -> dict[str, Tensor]:
        found = {"boxes": self.boxes, "scores": self.scores, "labels": self.labels}
        return found if self.masks is None else found | {"masks": self.masks}


def predict(
    model: Detector, sources: Iterable[Given], *, score_threshold: float = 0.5
) -> Iterator[tuple[Given, Objects | str]]:
    """Find the objects in images; one that can't be read, or is too thin
    for the detector, gives the reason instead.

    Args:
        model: a detector.
        sources: paths or other stored images, or functions that give one.
        score_threshold: objects with lower scores are left out.

    Raises:
        ValueError: `score_threshold` isn't from 0 to 1.
    """
    if not 0 <= score_threshold <= 1:
        raise ValueError(f"score_threshold must be from 0 to 1, got {score_threshold}")
    return _predict(model, sources, score_threshold)


def _predict(
    model: Detector, sources: Iterable[Given], score_threshold: float
) -> Iterator[tuple[Given, Objects | str]]:
    categories = name_categories(model)
    names = tuple(category.name for category in categories)
    ids = tuple(category.id for category in categories)
    with evaluation_mode(model):
        for source in sources:
            try:
                image = read_for(model, source)
            except (ValueError, FileNotFoundError) as error:
                yield source, str(error)
                continue
            found = {name: one.cpu() for name, one in detect_one(model, as_pixels(image)).items()}
            kept = found["scores"] >= score_threshold
            found = {name: one[kept] for name, one in found.items()}
            size = (image.height, image.width)
            yield (
                source,
                Objects(
                    str(source),
                    size,
                    **found,
                    class_names=names,
                    category_ids=ids,
                    source=source,
                    time=getattr(source, "time", None),
                ),
            )


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
