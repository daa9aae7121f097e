"""Detection data by name: which format it has, what its parts are, and whether it has masks."""

from pathlib import Path
from typing import TYPE_CHECKING

from halonet.data.sources import split_name
from halonet.data.splits import VALIDATION_NAMES
from halonet.detection.annotations import has_mask
from halonet.detection.check import Content, check_content
from halonet.detection.coco import read_coco
from halonet.detection.data import DetectionData
from halonet.detection.layouts import TRAINING_NAMES, find_annotations

if TYPE_CHECKING:
    from accelerate import Accelerator


def load_detection_data(
    name: str,
    *,
    masks: str = "auto",
    bad_annotations: str = "skip",
    read_images: bool = True,
    progress: bool = True,
    accelerator: "Accelerator | None" = None,
) -> DetectionData:
    """Find, read and check a data set.

    Args:
        name: `coco:FOLDER`. The folder has annotations/instances_train2017.json with the images
            in train2017 or images/train2017; or train.json with train; or
            train/_annotations.coco.json beside its images; and the same for val.
        masks: "need" leaves out objects without a mask, "ignore" takes the boxes of all; "auto" is
            need where all have one, ignore where none has one, and an error else.
        bad_annotations: "skip" leaves out what is wrong and lists it in `problems`; "refuse"
            raises.
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
    kind, place = split_name(name)
    if kind != "coco":
        raise ValueError(f"data must be coco:FOLDER, got {name!r}")
    folder = Path(place)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder at {folder}")
    contents = [
        read_coco(find_annotations(folder, names)) for names in (TRAINING_NAMES, VALIDATION_NAMES)
    ]
    _compare_categories(*contents)
    with_masks, notes = choose_masks(masks, contents)
    training, validation = (
        check_content(
            content,
            masks=with_masks,
            bad_annotations=bad_annotations,
            read_images=read_images,
            progress=progress,
            accelerator=accelerator,
        )
        for content in contents
    )
    return DetectionData(name, training, validation, notes)


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


def _compare_categories(training: Content, validation: Content) -> None:
    if training.categories != validation.categories:
        different = set(training.categories) ^ set(validation.categories)
        first = min(different, key=lambda one: one.id)
        raise ValueError(
            f"{training.source} and {validation.source} must have the same categories; "
            f"{first.id} {first.name!r} is in one only"
        )
