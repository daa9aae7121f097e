"""A detection data set: images and their objects, checked, in a training and a held-out part."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from halonet.detection.annotations import Annotation, Problem
from halonet.detection.geometry import turn_box
from halonet.detection.masks import turn_mask


@dataclass(frozen=True)
class Category:
    """A class, its id as in the file."""

    id: int
    name: str


@dataclass(frozen=True)
class AnnotatedImage:
    """An image file and the objects in it.

    Attributes:
        id: as in the file.
        path: of the file.
        width, height: in pixels, upright.
        annotations: its objects, crowds among them; may be empty.
    """

    id: int
    path: Path
    width: int
    height: int
    annotations: tuple[Annotation, ...]


@dataclass(frozen=True)
class AnnotatedImages:
    """The images of a part.

    Attributes:
        source: the annotation file, or the folder of such files.
        categories: in the order of their ids; the model's label of the first is 1.
        images: those that can be used, in the order of the file.
        masks: whether every object has a mask, or none.
        problems: what is wrong in the file or its images, and was left out.
        notes: what was mended or decided, in words.
    """

    source: Path
    categories: tuple[Category, ...]
    images: tuple[AnnotatedImage, ...]
    masks: bool
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DetectionData:
    """A data set with its training and its held-out part, of the same categories.

    Attributes:
        name: as it was asked for.
        training, validation: the parts.
        notes: what was decided for both, in words.
        own_parts: whether the data has both parts, or one was held out of the other.
    """

    name: str
    training: AnnotatedImages
    validation: AnnotatedImages
    notes: tuple[str, ...] = ()
    own_parts: bool = True

    @property
    def categories(self) -> tuple[Category, ...]:
        """The categories, the same in both parts."""
        return self.training.categories

    @property
    def masks(self) -> bool:
        """Whether the objects have masks, the same in both parts."""
        return self.training.masks

    def describe(self) -> list[str]:
        """What was decided, mended and left out, a line each; not more than 20 are left out."""
        parts = (self.training, self.validation)
        problems = [problem for part in parts for problem in part.problems]
        lines = [*self.notes, *(note for part in parts for note in part.notes)]
        lines += [f"left out: {problem}" for problem in problems[:20]]
        if len(problems) > 20:
            lines.append(f"and {len(problems) - 20} more are left out")
        return lines


PARTS = {"train": "training images", "val": "held-out images", "all": "images"}


def choose_part(data: DetectionData, split: str) -> DetectionData:
    """The data with its training part ("train"), or both parts ("all"), as the held-out one.

    Raises:
        ValueError: images of both parts have the same id.
    """
    if split == "val":
        return data
    chosen = data.training
    if split == "all":
        images = (*data.training.images, *data.validation.images)
        ids = Counter(image.id for image in images)
        number, times = max(ids.items(), key=lambda pair: pair[1])
        if times > 1:
            raise ValueError(
                f"both parts of {data.name} have an image {number}; score them one after the other"
            )
        chosen = replace(chosen, images=images)
    return replace(data, validation=chosen)


def select_images(data: AnnotatedImages, indices: Sequence[int]) -> AnnotatedImages:
    """The data with only some of its images."""
    return replace(data, images=tuple(data.images[index] for index in indices))


def turn_upright(image: AnnotatedImage, orientation: int) -> AnnotatedImage:
    """A stored image with its objects as a person sees it; `orientation` is EXIF's, 1 to 8."""
    size = image.width, image.height
    turned = [
        replace(
            one,
            box=turn_box(one.box, *size, orientation),
            counts=one.counts and turn_mask(one.counts, size[1], size[0], orientation),
        )
        for one in image.annotations
    ]
    width, height = reversed(size) if orientation >= 5 else size
    return replace(image, width=width, height=height, annotations=tuple(turned))


def as_ground_truth(data: AnnotatedImages) -> dict[str, Any]:
    """The data in COCO's format, masks as run lengths; annotations are numbered from 1 on."""
    annotations = []
    for image in data.images:
        for one in image.annotations:
            mask: Any = []
            if one.counts is not None:
                mask = {"size": [image.height, image.width], "counts": one.counts.decode()}
            annotations.append(
                {
                    "id": len(annotations) + 1,  # 0 means no match in COCO's evaluation
                    "image_id": image.id,
                    "category_id": one.category_id,
                    "bbox": list(one.box),
                    "area": one.area,
                    "iscrowd": int(one.crowd),
                    "segmentation": mask,
                }
            )
    return {
        "images": [
            {
                "id": image.id,
                "file_name": str(image.path),
                "width": image.width,
                "height": image.height,
            }
            for image in data.images
        ],
        "categories": [{"id": one.id, "name": one.name} for one in data.categories],
        "annotations": annotations,
    }
