"""Detection data by name: which format it has, what its parts are, and whether it has masks."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from halonet.data.sources import split_name
from halonet.detection.annotations import has_mask
from halonet.detection.check import Content, check_content
from halonet.detection.coco import find_coco
from halonet.detection.data import AnnotatedImages, DetectionData, select_images
from halonet.detection.voc import find_voc
from halonet.detection.yolo import find_yolo

if TYPE_CHECKING:
    from accelerate import Accelerator

FORMATS: dict[str, Callable[[Path], tuple[Content, Content | None]]] = {
    "coco": find_coco,
    "voc": find_voc,
    "yolo": find_yolo,
}


def load_detection_data(
    name: str,
    *,
    validation_share: float = 0.2,
    masks: str = "auto",
    bad_annotations: str = "skip",
    image_size: int | None = None,
    read_images: bool = True,
    progress: bool = True,
    accelerator: "Accelerator | None" = None,
) -> DetectionData:
    """Find, read and check a data set.

    Args:
        name: `coco:PATH`, see `find_coco`; `voc:PATH`, see `find_voc`; `yolo:PATH`, see
            `find_yolo`; or the path alone, whose content tells the format.
        validation_share: share of the images that is held out where there is no held-out part;
            the same ones every time.
        masks: "need" leaves out objects without a mask, "ignore" takes the boxes of all; "auto" is
            need where all have one, ignore where none has one, and an error else.
        bad_annotations: "skip" leaves out what is wrong and lists it in `problems`; "refuse"
            raises.
        image_size: of the detector, for which an image may be too thin; see `find_thin`. None takes
            images of any shape.
        read_images: decode each image once, so that a broken one is known before training.
        progress: show progress bars on a terminal.
        accelerator: of processes that all call this at the same time: each looks at its share of
            the image files, and all learn what is wrong with any. None looks at all of them.

    Raises:
        FileNotFoundError: no folder, or no annotation file or images where they are looked for.
        BadAnnotations: something is wrong, and is to be refused; a ValueError.
        ValueError: another name or policy, a file that isn't in the format, parts of different
            categories or without objects, or some objects without masks.
    """
    kind, place = find_format(name)
    training, validation = FORMATS[kind](place)
    parts = [part for part in (training, validation) if part is not None]
    _compare_categories(parts)
    with_masks, notes = choose_masks(masks, parts)
    checked = [
        check_content(
            part,
            masks=with_masks,
            bad_annotations=bad_annotations,
            image_size=image_size,
            read_images=read_images,
            progress=progress,
            accelerator=accelerator,
        )
        for part in parts
    ]
    if validation is None:
        checked = hold_out(checked[0], validation_share)
    else:
        notes += _note_shared(checked)
    return DetectionData(name, checked[0], checked[1], notes, validation is not None)


def find_format(name: str) -> tuple[str, Path]:
    """The format and the path of a data set.

    Raises:
        FileNotFoundError: there is nothing at the path. ValueError: no format, or no path.
    """
    kind, rest = _split(name)
    place = Path(rest)
    if not rest.strip() or (not kind and not place.exists()):
        raise ValueError(
            "data must be coco:PATH, voc:PATH or yolo:PATH, or the path of such a data set, "
            f"got {name!r}"
        )
    if not place.exists():
        raise FileNotFoundError(f"no folder at {place}")
    return kind or _recognize(place), place


def is_same_data(one: str, other: str) -> bool:
    """Whether two names are of the same data, however they are spelled."""
    return Path(_split(one)[1]).resolve() == Path(_split(other)[1]).resolve()


def _split(name: str) -> tuple[str, str]:
    """The format, if it is named, and the path."""
    kind, place = split_name(name)
    return (kind, place) if kind in FORMATS else ("", os.path.expanduser(name))


def _recognize(place: Path) -> str:
    """The format of a data set, by the files that it has."""
    if any(place.glob("[Aa]nnotations/*.xml")) or any(place.glob("train/*.xml")):
        return "voc"
    if place.suffix in (".yaml", ".yml") or any(place.glob("*.y*ml")):
        return "yolo"
    return "yolo" if (place / "classes.txt").is_file() else "coco"


def hold_out(data: AnnotatedImages, share: float) -> list[AnnotatedImages]:
    """A training and a held-out part of images chosen at random, the same ones every time.

    Raises:
        ValueError: a share that isn't between 0 and 1, one image, or a part without objects.
    """
    if not 0 < share < 1:
        raise ValueError(f"validation_share must be between 0 and 1, got {share}")
    count = len(data.images)
    if count < 2:
        raise ValueError(f"{data.source} has one image; it takes two to hold one out")
    held_out = min(max(1, round(count * share)), count - 1)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    parts = [select_images(data, sorted(chosen)) for chosen in (order[held_out:], order[:held_out])]
    for part in parts:
        if not any(not one.crowd for image in part.images for one in image.annotations):
            raise ValueError(
                f"{data.source}: of its {count} images, {held_out} are held out, and one of the "
                "parts has no object; choose another validation_share"
            )
    note = f"{data.source}: {held_out} of {count} images are held out, as there is no such part"
    return [
        replace(parts[0], notes=(*data.notes, note)),
        replace(parts[1], problems=(), notes=()),
    ]


def choose_masks(policy: str, contents: list[Content]) -> tuple[bool, tuple[str, ...]]:
    """Whether objects have masks, by the training part first, and what that means in words.

    Raises:
        ValueError: none has one, where they are needed, or some have and it isn't said what to do.
    """
    if policy not in ("auto", "need", "ignore"):
        raise ValueError(f"masks must be auto, need or ignore, got {policy!r}")
    having = sum(map(has_mask, contents[0].annotations))
    everything = [entry for content in contents for entry in content.annotations]
    lacking = sum(not has_mask(entry) for entry in everything)
    count = f"{lacking} of {len(everything)} annotations have no mask"
    if policy == "ignore" or (policy == "auto" and not having):
        reason = "no annotation has a mask" if not having else "masks are ignored"
        return False, (f"{reason}: boxes alone",)
    if not having:
        raise ValueError(f"{contents[0].source} has no masks, and masks is need")
    if lacking and policy == "auto":
        raise ValueError(f"{count}: --masks need leaves them out, --masks ignore takes all boxes")
    return True, (f"{count}, and are left out",) if lacking else ()


def _note_shared(parts: Sequence[AnnotatedImages]) -> tuple[str, ...]:
    """What is said where held-out images are training images too."""
    training, validation = ([os.path.realpath(one.path) for one in part.images] for part in parts)
    shared = sorted({*training} & {*validation})
    if not shared:
        return ()
    return (
        f"{len(shared)} of {len(validation)} held-out images are training images too, whose scores "
        f"say nothing about new ones; the first is {shared[0]}",
    )


def _compare_categories(parts: list[Content]) -> None:
    training, validation = parts[0], parts[-1]
    if training.categories != validation.categories:
        different = set(training.categories) ^ set(validation.categories)
        first = min(different, key=lambda one: one.id)
        raise ValueError(
            f"{training.source} and {validation.source} must have the same categories; "
            f"{first.id} {first.name!r} is in one only"
        )
