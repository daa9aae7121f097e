"""Pascal VOC's format: an XML file for the objects of each image."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from halonet.data.image_files import find_images
from halonet.data.splits import VALIDATION_NAMES
from halonet.detection.annotations import Problem
from halonet.detection.check import Content, read_size
from halonet.detection.data import Category
from halonet.detection.layouts import TEST_NAME, TRAINING_NAMES, note_test
from halonet.files import read_text

ANNOTATION_FOLDERS = ("Annotations", "annotations")
IMAGE_FOLDERS = ("JPEGImages", "images")
EDGES = ("xmin", "ymin", "xmax", "ymax")
DIFFICULT = "objects marked difficult, neither learned nor scored"


def find_voc(folder: Path) -> tuple[Content, Content | None]:
    """Read the parts of a folder in VOC's format; None for a held-out part that there isn't.

    The XML files lie in Annotations or annotations, the images in JPEGImages or images, and lists
    of the parts in ImageSets/Main (train.txt or trainval.txt; val.txt or test.txt). Without
    Annotations, the parts are folders, train and valid, each with its images and XML files.

    Raises:
        FileNotFoundError: there are no XML files.
        ValueError: no list or folder is of the training part.
    """
    annotations = _find_folder(folder, ANNOTATION_FOLDERS)
    if annotations is not None:
        lists = {path.stem: path for path in (folder / "ImageSets" / "Main").glob("*.txt")}
        chosen = _choose(lists, (*TRAINING_NAMES, "trainval")), _choose(lists, VALIDATION_NAMES)
        if chosen[0] is None and lists:
            raise ValueError(f"{folder}/ImageSets/Main has no train.txt or trainval.txt")
        everything = sorted(annotations.glob("*.xml"))
        images = _find_folder(folder, IMAGE_FOLDERS)
        if images is None:
            raise FileNotFoundError(f"{folder} has no folder of images, JPEGImages or images")
        test = lists.get(TEST_NAME)
        parts = [
            None if path is None else (path, _list_files(path, annotations)) for path in chosen
        ]
        parts[0] = parts[0] or (annotations, everything)
    else:
        folders = {path.parent.name.lower(): path.parent for path in folder.glob("*/*.xml")}
        chosen = _choose(folders, TRAINING_NAMES), _choose(folders, VALIDATION_NAMES)
        everything = sorted(folder.glob("*.xml"))
        images = None
        test = folders.get(TEST_NAME)
        parts = [None if path is None else (path, sorted(path.glob("*.xml"))) for path in chosen]
        parts[0] = parts[0] or (folder, everything)
    if not parts[0][1]:
        raise FileNotFoundError(f"{folder} has no XML files in Annotations, train or itself")
    documents = [part and (part[0], *_parse_all(part[1])) for part in parts]
    names = sorted(
        {
            name
            for document in documents
            if document
            for root in document[1].values()
            for entry in root.iter("object")
            if (name := _text(entry, "name"))
        }
    )
    categories = tuple(Category(number, name) for number, name in enumerate(names, start=1))
    training, validation = (
        document and _read_part(*document, images, categories) for document in documents
    )
    assert training is not None
    notes = (*training.notes, *note_test(test, chosen[1]))
    return replace(training, notes=notes), validation


def _find_folder(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _choose(places: dict[str, Path], names: Sequence[str]) -> Path | None:
    return next((places[name] for name in names if name in places), None)


def _list_files(path: Path, annotations: Path) -> list[Path]:
    """The XML files that a list names, a line each."""
    names = [line.strip() for line in read_text(path).splitlines()]
    return [annotations / f"{name}.xml" for name in dict.fromkeys(names) if name]


def _parse_all(paths: Sequence[Path]) -> tuple[dict[Path, Element], list[Problem]]:
    roots, problems = {}, []
    for path in paths:
        try:
            roots[path] = parse_xml(path)
        except (ValueError, FileNotFoundError) as error:
            problems.append(Problem(None, None, str(error), path.name))
    return roots, problems


def parse_xml(path: Path) -> Element:
    """The root of an XML file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no XML, or declares entities, which can fill the memory.
    """
    builder = TreeBuilder()
    parser = expat.ParserCreate()

    def refuse(*declaration: Any) -> NoReturn:
        raise ValueError("it has a document type declaration, which is refused")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(path.read_bytes(), True)
    except FileNotFoundError:
        raise FileNotFoundError(f"no annotations at {path}") from None
    except expat.ExpatError as error:
        raise ValueError(f"it is not XML: {error}") from None
    return builder.close()


def _read_part(
    source: Path,
    roots: dict[Path, Element],
    problems: list[Problem],
    folder: Path | None,
    categories: Sequence[Category],
) -> Content:
    ids = {category.name: category.id for category in categories}
    files: dict[Path, dict[str, list[Path]]] = {}
    images, annotations, places, difficult = [], [], {}, []
    for number, (path, root) in enumerate(roots.items(), start=1):
        near = folder or path.parent
        if near not in files:
            files[near] = defaultdict(list)
            for image in find_images(near)[0]:
                files[near][image.stem].append(image)
        image = _find_image(path, root, near, files[near])
        places[-number] = path.name
        width, height = (_number(_text(root, f"size/{name}")) for name in ("width", "height"))
        if not (width and height):  # some tools write 0
            try:
                width, height = read_size(image)
            except (ValueError, FileNotFoundError) as error:
                problems.append(Problem(number, None, str(error), path.name))
                continue
        images.append({"id": number, "file_name": str(image), "width": width, "height": height})
        shift = 1 if _is_original(root) else 0
        for place, entry in enumerate(root.iter("object"), start=1):
            annotation = len(places) + 1
            places[annotation] = f"{path.name}, object {place}"
            try:
                fields = _read_object(entry, shift, ids)
            except ValueError as error:
                problems.append(Problem(number, annotation, str(error), places[annotation]))
                continue
            difficult += [places[annotation]] if fields["iscrowd"] else []
            annotations.append(fields | {"id": annotation, "image_id": number})
    notes = []
    if difficult:
        notes.append(f"{source}: {DIFFICULT}: {len(difficult)}, the first is {difficult[0]}")
    if source.is_dir():  # a list says itself which images are of the part
        used = {entry["file_name"] for entry in images}
        found = [str(path) for named in files.values() for same in named.values() for path in same]
        bare = sorted(path for path in found if path not in used)
        if bare:
            notes.append(
                f"left out: images without an XML file: {len(bare)}, the first is {bare[0]}"
            )
    return Content(
        source,
        Path(),
        tuple(categories),
        images,
        annotations,
        tuple(problems),
        tuple(notes),
        places,
    )


def _is_original(root: Element) -> bool:
    """Whether it is VOC's own, which counts pixels from 1 and has the last within the box."""
    return "VOC20" in f"{_text(root, 'folder')} {_text(root, 'source/database')}"


def _read_object(entry: Element, shift: int, ids: dict[str, int]) -> dict[str, Any]:
    name = _text(entry, "name")
    edges = [_number(_text(entry, f"bndbox/{edge}")) for edge in EDGES]
    known = [edge for edge in edges if edge is not None]
    if name is None or len(known) < len(edges):
        raise ValueError(f"it must have a name and a bndbox of numbers, got {name!r} and {edges}")
    left, top, right, bottom = known
    left, top = left - shift, top - shift
    return {
        "category_id": ids[name],
        "bbox": [left, top, right - left, bottom - top],
        "iscrowd": int(_text(entry, "difficult") == "1"),
    }


def _find_image(path: Path, root: Element, folder: Path, files: dict[str, list[Path]]) -> Path:
    """The image of an XML file: of its name, or else the one that it names."""
    named = _text(root, "filename") or f"{path.stem}.jpg"
    found = files.get(path.stem, [])
    named_too = [image for image in found if image.name == named]
    return (named_too or found or [folder / named])[0]


def _text(element: Element, path: str) -> str | None:
    found = element.findtext(path)
    return found.strip() or None if found else None


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None
