"""Data in COCO's format, read and checked before anything is trained."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from halonet.data.pixels import read_image
from halonet.data.splits import VALIDATION_NAMES
from halonet.detection.annotations import (
    LARGEST,
    Annotation,
    BadAnnotations,
    Problem,
    is_whole,
    read_annotation,
)
from halonet.detection.config import POLICIES
from halonet.detection.layouts import TRAINING_NAMES, find_annotations, find_image_folder

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Category:
    """A class, its id as in the file."""

    id: int
    name: str


@dataclass(frozen=True)
class AnnotatedImage:
    """An image file and the objects in it.

    Attributes:
        id, width, height: as in the file; pixels.
        path: of the file.
        annotations: its objects, crowds among them; may be empty.
    """

    id: int
    path: Path
    width: int
    height: int
    annotations: tuple[Annotation, ...]


@dataclass(frozen=True)
class AnnotatedImages:
    """The images of one annotation file.

    Attributes:
        source: the annotation file.
        categories: in the order of their ids; the model's label of the first is 1.
        images: those that can be used, in the order of the file.
        problems: what is wrong in the file or its images, and was left out.
    """

    source: Path
    categories: tuple[Category, ...]
    images: tuple[AnnotatedImage, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class DetectionData:
    """A data set with its training and its held-out part, of the same categories."""

    name: str
    training: AnnotatedImages
    validation: AnnotatedImages

    @property
    def categories(self) -> tuple[Category, ...]:
        """The categories, the same in both parts."""
        return self.training.categories


def load_coco(
    name: str,
    *,
    bad_annotations: str = "skip",
    read_images: bool = True,
    progress: bool = True,
    accelerator: "Accelerator | None" = None,
) -> DetectionData:
    """Find, read and check a data set in COCO's format.

    Args:
        name: `coco:FOLDER`. The folder has annotations/instances_train2017.json with the images
            in train2017 or images/train2017; or train.json with train; or
            train/_annotations.coco.json beside its images; and the same for val.
        bad_annotations: "skip" leaves out what is wrong and lists it in `problems`; "refuse"
            raises.
        read_images: decode each image once, so that a broken one is known before training.
        progress: show progress bars on a terminal.
        accelerator: of processes that all call this at the same time: each looks at its share of
            the image files, and all learn what is wrong with any. None looks at all of them.

    Raises:
        FileNotFoundError: no folder, or no annotation file or images where they are looked for.
        BadAnnotations: something is wrong, and is to be refused; a ValueError.
        ValueError: another name or policy, a file that isn't COCO's format, or parts of different
            categories.
    """
    if not name.startswith("coco:"):
        raise ValueError(f"data must be coco:FOLDER, got {name!r}")
    folder = Path(name.removeprefix("coco:"))
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder at {folder}")
    training, validation = (
        read_coco(
            find_annotations(folder, names),
            bad_annotations=bad_annotations,
            read_images=read_images,
            progress=progress,
            accelerator=accelerator,
        )
        for names in (TRAINING_NAMES, VALIDATION_NAMES)
    )
    if training.categories != validation.categories:
        different = set(training.categories) ^ set(validation.categories)
        first = min(different, key=lambda one: one.id)
        raise ValueError(
            f"{training.source} and {validation.source} must have the same categories; "
            f"{first.id} {first.name!r} is in one only"
        )
    return DetectionData(name, training, validation)


def read_coco(
    annotations: Path,
    images: Path | None = None,
    *,
    bad_annotations: str = "skip",
    read_images: bool = True,
    progress: bool = True,
    accelerator: "Accelerator | None" = None,
) -> AnnotatedImages:
    """Read and check one annotation file; as `load_coco`.

    An image that can't be read, has another size than the file says, or has nothing but bad
    annotations, is left out; any other keeps its good ones.

    Args:
        annotations: the file.
        images: the folder of the images; None looks for them where COCO and others have them.
        bad_annotations, read_images, progress, accelerator: as for `load_coco`.
    """
    if bad_annotations not in POLICIES:
        raise ValueError(f"bad_annotations must be skip or refuse, got {bad_annotations!r}")
    content = _read_json(annotations)
    folder = find_image_folder(annotations, content["images"]) if images is None else images
    categories = _read_categories(annotations, content["categories"])
    entries = {entry["id"]: entry for entry in content["images"]}
    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    problems = []
    for entry in content["annotations"]:
        number = entry.get("image_id")
        if not is_whole(number):
            reason = f"its image_id must be a whole number, got {number!r}"
            problems.append(Problem(None, entry["id"], reason))
        elif number in entries:
            by_image[number].append(entry)
        else:
            problems.append(Problem(number, entry["id"], "the image is unknown"))

    ids = {category.id for category in categories}
    kept = []
    for entry in tqdm(
        entries.values(), f"checking {annotations.name}", leave=False,
        disable=None if progress else True,  # None: off where it is no terminal
    ):  # fmt: skip
        image, found = _read_entry(entry, folder, by_image[entry["id"]], ids)
        problems += found
        if image is not None:
            kept.append(image)
    broken = _find_broken(kept, read_images, annotations.name, progress, accelerator)
    problems += broken
    if problems and bad_annotations == "refuse":
        raise BadAnnotations(str(annotations), problems)
    left_out = {problem.image_id for problem in broken}
    used = tuple(image for image in kept if image.id not in left_out)
    if not used:
        first = f": {problems[0]}" if problems else ""
        raise ValueError(f"{annotations} has no image that can be used{first}")
    return AnnotatedImages(annotations, categories, used, tuple(problems))


def select_images(data: AnnotatedImages, indices: Sequence[int]) -> AnnotatedImages:
    """The data with only some of its images."""
    return replace(data, images=tuple(data.images[index] for index in indices))


def as_ground_truth(data: AnnotatedImages) -> dict[str, Any]:
    """The data in COCO's format, masks as run lengths; annotations are numbered from 1 on."""
    annotations = []
    for image in data.images:
        for one in image.annotations:
            annotations.append(
                {
                    "id": len(annotations) + 1,  # 0 means no match in COCO's evaluation
                    "image_id": image.id,
                    "category_id": one.category_id,
                    "bbox": list(one.box),
                    "area": one.area,
                    "iscrowd": int(one.crowd),
                    "segmentation": {
                        "size": [image.height, image.width],
                        "counts": one.counts.decode(),
                    },
                }
            )
    return {
        "images": [
            {
                "id": image.id,
                "file_name": image.path.name,
                "width": image.width,
                "height": image.height,
            }
            for image in data.images
        ],
        "categories": [{"id": one.id, "name": one.name} for one in data.categories],
        "annotations": annotations,
    }


def _read_entry(
    entry: dict[str, Any], folder: Path, annotations: Sequence[dict[str, Any]], ids: set[int]
) -> tuple[AnnotatedImage | None, list[Problem]]:
    """An image without its pixels, and what is wrong with its annotations."""
    number, width, height = entry["id"], entry.get("width"), entry.get("height")
    name = entry.get("file_name")
    if not isinstance(name, str):
        return None, [Problem(number, None, f"its file_name must be text, got {name!r}")]
    whole = is_whole(width) and is_whole(height)
    if not (whole and min(width, height) > 0 and width * height < LARGEST):
        reason = (
            "its width and height must be positive whole numbers with a product below 2**32, "
            f"got {width!r} and {height!r}"
        )
        return None, [Problem(number, None, reason)]
    good, problems = [], []
    for annotation in annotations:
        try:
            good.append(read_annotation(annotation, height, width, ids))
        except ValueError as error:
            problems.append(Problem(number, annotation["id"], str(error)))
    if problems and not good:
        return None, problems
    return AnnotatedImage(number, folder / name, width, height, tuple(good)), problems


def _find_broken(
    images: Sequence[AnnotatedImage],
    read: bool,
    label: str,
    progress: bool,
    accelerator: "Accelerator | None",
) -> list[Problem]:
    """What is wrong with the files: missing, and if they are read, broken or of another size."""
    share = slice(None)
    if accelerator is not None:
        share = slice(accelerator.process_index, None, accelerator.num_processes)
    mine = images[share]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        checked = tqdm(
            pool.map(lambda image: _check_file(image, read), mine),
            f"reading the images of {label}",
            len(mine),
            leave=False,
            disable=None if progress else True,  # None: off where it is no terminal
        )
        broken = [problem for problem in checked if problem is not None]
    if accelerator is not None:
        from accelerate.utils import gather_object

        places = {image.id: place for place, image in enumerate(images)}
        broken = sorted(gather_object(broken), key=lambda problem: places[problem.image_id])
    return broken


def _check_file(image: AnnotatedImage, read: bool) -> Problem | None:
    if not os.path.isfile(image.path):  # Path.is_file raises where the name is too long
        return Problem(image.id, None, f"no image at {image.path}")
    if not read:
        return None
    try:
        size = read_image(image.path).size
    except (ValueError, FileNotFoundError) as error:
        return Problem(image.id, None, str(error))
    if size == (image.width, image.height):
        return None
    reason = (
        f"{image.path} has {size[0]} x {size[1]} pixels, the annotations say "
        f"{image.width} x {image.height}"
    )
    return Problem(image.id, None, reason)


def _read_json(path: Path) -> dict[str, Any]:
    """The content of an annotation file; its three lists are there, and their entries have ids."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    for part in ("images", "annotations", "categories"):
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
            raise ValueError(f"{path} is not in COCO's format: it has no list of {part}")
        numbers = [entry.get("id") for entry in entries]
        wrong = [one for one in numbers if not is_whole(one)]
        if wrong:
            raise ValueError(
                f"{path}: the id of each of {part} must be a whole number, got {wrong[0]!r}"
            )
        number, times = max(Counter(numbers).items(), key=lambda pair: pair[1], default=(0, 0))
        if times > 1:
            raise ValueError(f"{path}: {part} has the id {number} {times} times")
        if not entries and part != "annotations":
            raise ValueError(f"{path} has no {part}")
    return content


def _read_categories(path: Path, entries: Sequence[dict[str, Any]]) -> tuple[Category, ...]:
    categories = []
    for entry in entries:
        number, name = entry["id"], entry.get("name")
        if not isinstance(name, str | int | float | None):
            raise ValueError(f"{path}: the name of category {number} must be text, got {name!r}")
        categories.append(Category(number, str(number if name is None else name)))
    return tuple(sorted(categories, key=lambda category: category.id))
