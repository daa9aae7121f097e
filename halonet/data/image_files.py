"""Image files in folders: which are read, and which are left out, counted by kind."""

import json
import os
import re
from collections import Counter
from pathlib import Path

from PIL import Image

# Formats that Pillow recognizes but doesn't decode by itself.
NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
# Folders that systems and archives leave behind, whose images are copies or thumbnails.
SYSTEM_FOLDERS = {"__MACOSX", "@eaDir"}
# What the commands leave, besides runs: the files of evaluate, of detect evaluate, of explain.
REPORTS = (
    ("summary.json", "report.html"),
    ("summary.json", "results.json"),
    ("explanations.json",),
)
OUTPUT = "halonet output folder"
SHOWN = 8  # kinds in a line


class LeftOut:
    """What was found in a folder but isn't read, counted by kind, with an example of each.

    Args:
        folder: the examples are named from it on.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def add(self, kind: str, path: str | Path, count: int = 1) -> None:
        """Count something; `kind` is a file's ending, as .txt, or in words."""
        self.counts[kind] += count
        self.examples.setdefault(kind, os.path.relpath(path, self.folder))

    def __str__(self) -> str:
        """As "3 .txt, 1 dangling link (cat/a.jpg)"; empty for nothing."""
        shown = []
        for kind, count in self.counts.most_common(SHOWN):
            plural = "s" if count > 1 and re.search(r"(file|folder|image|link)$", kind) else ""
            example = "" if kind.startswith(".") else f" ({self.examples[kind]})"
            shown.append(f"{count} {kind}{plural}{example}")
        rest = self.counts.total() - sum(count for _, count in self.counts.most_common(SHOWN))
        shown += [f"{rest} of other kinds"] if rest else []
        return ", ".join(shown)


class ImageSearch:
    """A search for images in a folder and below it, which enters every real folder once.

    Links are followed. Hidden files, runs, and what `evaluate` and `detect predict` wrote are left
    out, as all that isn't an image by its ending.

    Args:
        root: links to it and to the folders that it lies in aren't followed.
        left_out: counts what isn't read.
    """

    def __init__(self, root: Path, left_out: LeftOut) -> None:
        self.left_out = left_out
        self.suffixes = image_suffixes()
        real = root.resolve()
        self.entered = {_identify(folder) for folder in (real, *real.parents)}

    def enter(self, folder: Path) -> bool:
        """Note a folder as searched; False where it was already."""
        identity = _identify(folder)
        if identity in self.entered:
            return False
        self.entered.add(identity)
        return True

    def find(self, folder: Path) -> list[Path]:
        """The images in a folder and below it, sorted."""
        found: list[Path] = []
        waiting = [(folder, False)]
        while waiting:
            place, predicted = waiting.pop()
            if is_output(place):
                self.left_out.add(OUTPUT, place)
                continue
            predicted = predicted or (place / "predictions.json").is_file()
            inner: list[tuple[Path, bool]] = []
            for entry in self._list(place):
                path = Path(entry.path)
                kind = classify(entry, self.suffixes)
                if kind == "folder" and self.enter(path):
                    inner.append((path, predicted))
                elif kind == "folder":
                    self.left_out.add("repeated link", path)
                elif kind != "image":
                    self.left_out.add(kind, path)
                elif predicted and self._shows_detections(path):
                    self.left_out.add("predicted image", path)
                else:
                    found.append(path)
            waiting += reversed(inner)
        return sorted(found)

    def _shows_detections(self, path: Path) -> bool:
        """Whether an image is named as `detect predict` names its pictures, a.jpg.png."""
        return path.suffix == ".png" and Path(path.stem).suffix.lower() in self.suffixes

    def _list(self, folder: Path) -> list[os.DirEntry]:
        try:
            with os.scandir(folder) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError:
            self.left_out.add("unreadable folder", folder)
            return []


def find_images(folder: Path) -> tuple[list[Path], LeftOut]:
    """The images in a folder and below it, sorted, and what was left out."""
    left_out = LeftOut(folder)
    return ImageSearch(folder, left_out).find(folder), left_out


def locate(folder: Path, name: str) -> Path:
    """The file that a list names, from its folder on; a path written on Windows is read too."""
    place = folder / name
    if "\\" in name and not os.path.isfile(place):
        return folder / name.replace("\\", "/")
    return place


def image_suffixes() -> set[str]:
    """Endings of the files that Pillow decodes, in small letters, with their dot."""
    return {
        suffix
        for suffix, kind in Image.registered_extensions().items()
        if (kind in Image.OPEN or kind == "MPO") and kind not in NOT_DECODED
    }


def classify(entry: os.DirEntry, suffixes: set[str]) -> str:
    """A folder, an image, or what else an entry of a folder is, by its ending or in words."""
    if entry.name.startswith(".") or entry.name in SYSTEM_FOLDERS:
        return "hidden file"
    try:
        if entry.is_dir():
            return "folder"
        if not entry.is_file():
            return "dangling link" if entry.is_symlink() else "special file"
    except OSError:  # as of a link to itself
        return "dangling link"
    suffix = os.path.splitext(entry.name)[1].lower()
    return "image" if suffix in suffixes else suffix or "untyped file"


def is_output(folder: Path) -> bool:
    """Whether a folder is a run's, or of an evaluation."""
    if any(all((folder / name).is_file() for name in names) for names in REPORTS):
        return True
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and {"recipe", "data", "seed"} <= config.keys()


def _identify(folder: Path) -> tuple[int, int]:
    state = folder.stat()
    return state.st_dev, state.st_ino
