"""Everything that the annotation files of a part say, checked against each other and the images."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from tqdm import tqdm

from halonet.data.image_files import locate
from halonet.data.pixels import read_image, read_orientation
from halonet.detection.annotations import BadAnnotations, Problem, read_annotation
from halonet.detection.config import POLICIES
from halonet.detection.data import AnnotatedImage, AnnotatedImages, Category, turn_upright
from halonet.detection.options import find_thin
from halonet.detection.values import LARGEST, as_whole

if TYPE_CHECKING:
    from accelerate import Accelerator

TURNED = "photos turned upright (EXIF) whose annotations are of the pixels as stored, turned too"


@dataclass(frozen=True)
class Content:
    """What the annotation files of a part say, in COCO's terms, unchecked but for the ids.

    Attributes:
        source: the file, or the folder of such files.
        folder: that the images' file names start from.
        categories: in the order of their ids.
        images, annotations: entries as in COCO's JSON.
        problems: found already.
        notes: what was decided already.
        places: where an annotation (by id) is, or an image (by minus its id), in words; in
            formats without ids.
    """

    source: Path
    folder: Path
    categories: tuple[Category, ...]
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    places: Mapping[int, str] = field(default_factory=dict)

    def problem(self, image_id: int | None, annotation_id: int | None, reason: str) -> Problem:
        """A problem that says where it is."""
        key = -(image_id or 0) if annotation_id is None else annotation_id
        return Problem(image_id, annotation_id, reason, self.places.get(key))


def check_content(
    content: Content,
    *,
    masks: bool,
    bad_annotations: str = "skip",
    image_size: int | None = None,
    read_images: bool = True,
    progress: bool = True,
    accelerator: "Accelerator | None" = None,
) -> AnnotatedImages:
    """Check what a part's annotation files say, and its images.

    An image that can't be read, has another size than the annotations say, is too thin, or has
    nothing but bad annotations, is left out; any other keeps its good ones.

    Args:
        content: what the files say.
        masks: every object must have a mask; else masks aren't kept.
        bad_annotations, image_size, read_images, progress, accelerator: as for
            `load_detection_data`.

    Raises:
        BadAnnotations: something is wrong, and is to be refused; a ValueError.
        ValueError: another policy, or no image or no object can be used.
    """
    if bad_annotations not in POLICIES:
        raise ValueError(f"bad_annotations must be skip or refuse, got {bad_annotations!r}")
    entries = {entry["id"]: entry for entry in content.images}
    by_image: dict[int, list[dict[str, Any]]] = defaultdict(list)
    problems = [*content.problems]
    for entry in content.annotations:
        number = as_whole(entry.get("image_id"))
        if number is None:
            reason = f"its image_id must be a whole number, got {entry.get('image_id')!r}"
            problems.append(content.problem(None, entry["id"], reason))
        elif number in entries:
            by_image[number].append(entry)
        else:
            problems.append(content.problem(number, entry["id"], "the image is unknown"))

    mended: dict[str, list[str]] = defaultdict(list)
    kept = []
    for entry in tqdm(
        entries.values(), f"checking {content.source.name}", leave=False,
        disable=None if progress else True,  # None: off where it is no terminal
    ):  # fmt: skip
        image, found = _read_entry(content, entry, by_image[entry["id"]], masks, mended, image_size)
        problems += found
        if image is not None:
            kept.append(image)
    broken, turned = _check_files(kept, content, read_images, progress, accelerator)
    problems += broken
    if problems and bad_annotations == "refuse":
        raise BadAnnotations(str(content.source), problems)
    left_out = {problem.image_id for problem in broken}
    used = [image for image in kept if image.id not in left_out]
    first = f": {problems[0]}" if problems else ""
    if not used:
        raise ValueError(f"{content.source} has no image that can be used{first}")
    if not any(not one.crowd for image in used for one in image.annotations):
        raise ValueError(f"{content.source} has no object that can be used{first}")
    used = [
        turn_upright(image, turned[image.id]) if image.id in turned else image for image in used
    ]
    mended[TURNED] = [content.problem(image, None, "").where for image in turned]
    notes = [
        f"{content.source}: {what}: {len(places)}, the first is {places[0]}"
        for what, places in mended.items()
        if places
    ]
    return AnnotatedImages(
        content.source,
        content.categories,
        tuple(used),
        masks,
        tuple(problems),
        (*content.notes, *notes),
    )


def _read_entry(
    content: Content,
    entry: dict[str, Any],
    annotations: Sequence[dict[str, Any]],
    masks: bool,
    mended: dict[str, list[str]],
    image_size: int | None,
) -> tuple[AnnotatedImage | None, list[Problem]]:
    """An image without its pixels, and what is wrong with its annotations."""
    number, name = entry["id"], entry.get("file_name")
    if not isinstance(name, str):
        reason = f"its file_name must be text, got {name!r}"
        return None, [content.problem(number, None, reason)]
    width, height = as_whole(entry.get("width")), as_whole(entry.get("height"))
    if not (width and height and min(width, height) > 0 and width * height < LARGEST):
        reason = (
            "its width and height must be positive whole numbers with a product below 2**32, "
            f"got {entry.get('width')!r} and {entry.get('height')!r}"
        )
        return None, [content.problem(number, None, reason)]
    thin = None if image_size is None else find_thin(width, height, image_size)
    if thin is not None:
        return None, [content.problem(number, None, thin)]
    ids = {category.id for category in content.categories}
    good, problems = [], []
    for annotation in annotations:
        try:
            one, changes = read_annotation(annotation, height, width, ids, masks=masks)
        except ValueError as error:
            problems.append(content.problem(number, annotation["id"], str(error)))
            continue
        good.append(one)
        for what in changes:
            mended[what].append(content.problem(number, one.id, "").where)
    if problems and not good:
        return None, problems
    path = locate(content.folder, name)
    return AnnotatedImage(number, path, width, height, tuple(good)), problems


def _check_files(
    images: Sequence[AnnotatedImage],
    content: Content,
    read: bool,
    progress: bool,
    accelerator: "Accelerator | None",
) -> tuple[list[Problem], dict[int, int]]:
    """What is wrong with the files: missing, and if they are read, broken or of another size.

    Returns:
        The problems, and EXIF's orientation, by id, of the images whose annotations are of the
        pixels as stored. Where the size doesn't tell, the part's other images do.
    """
    share = slice(None)
    if accelerator is not None:
        share = slice(accelerator.process_index, None, accelerator.num_processes)
    mine = images[share]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        checked = tqdm(
            pool.map(lambda image: _check_file(image, read), mine),
            f"reading the images of {content.source.name}",
            len(mine),
            leave=False,
            disable=None if progress else True,  # None: off where it is no terminal
        )
        found = [(image.id, one) for image, one in zip(mine, checked, strict=True) if one]
    if accelerator is not None:
        from accelerate.utils import gather_object

        places = {image.id: place for place, image in enumerate(images)}
        found = sorted(gather_object(found), key=lambda pair: places[pair[0]])
    broken = [content.problem(number, None, one) for number, one in found if isinstance(one, str)]
    turned = {number: one for number, one in found if not isinstance(one, str)}
    told = {fits for _, fits in turned.values() if fits != "either"}
    chosen = ("stored", "either") if told == {"stored"} else ("stored",)
    return broken, {number: one for number, (one, fits) in turned.items() if fits in chosen}


def _check_file(image: AnnotatedImage, read: bool) -> str | tuple[int, str] | None:
    """What is wrong with a file, or EXIF's orientation and which size the annotations fit.

    That is "upright", "stored" or "either"; None where nothing is wrong and nothing is turned.
    """
    if not os.path.isfile(image.path):  # Path.is_file raises where the name is too long
        return f"no image at {image.path}"
    if not read:
        return None
    try:
        size = read_image(image.path).size
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    stored, orientation = _read_header(image.path)
    said = (image.width, image.height)
    if said == size:
        return (orientation, "either" if stored == size else "upright") if orientation > 1 else None
    if said == stored:
        return orientation, "stored"
    return (
        f"{image.path} has {size[0]} x {size[1]} pixels, the annotations say "
        f"{image.width} x {image.height}"
    )


def read_size(path: Path) -> tuple[int, int]:
    """Width and height of an image file, upright, without its pixels.

    Raises:
        FileNotFoundError: there is no such file. ValueError: it is no image.
    """
    try:
        (width, height), orientation = _read_header(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"no image at {path}") from None
    except OSError as error:
        raise ValueError(f"{path} can't be read as an image: {error}") from None
    return (height, width) if orientation >= 5 else (width, height)


def _read_header(path: Path) -> tuple[tuple[int, int], int]:
    """Width and height as stored, and EXIF's orientation, 1 where none can be read."""
    with Image.open(path) as image:
        return image.size, read_orientation(image)
