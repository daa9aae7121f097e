"""Files written whole or not at all, and folders that hold nothing else."""

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE_SUFFIXES = (".pdf", ".png", ".svg")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it.

    The temporary name ends in the same suffix, by which some writers choose their format. A
    symbolic link stays one, the file that it names is written; a pipe or a device is written to,
    never replaced.

    Raises:
        OSError: it can't be written; the error names `path`, which is as it was before.
    """
    if is_stream(path):
        _write_stream(path, write)
        return
    real = Path(os.path.realpath(path))
    temporary = real.with_name(f".{os.getpid()}.tmp.{real.name}")
    try:
        with naming_file(path, temporary):
            write(temporary)
            os.replace(temporary, real)
    finally:
        temporary.unlink(missing_ok=True)


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, without the byte order mark that editors on Windows put first.

    Raises:
        ValueError: it is no such text; the message names it.
        OSError: it can't be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text in UTF-8") from None


def is_stream(path: Path) -> bool:
    """Whether `path` is a pipe, a device or a socket, or one of this process's open files."""
    place = os.path.abspath(path)
    if place in ("/dev/stdout", "/dev/stderr") or place.startswith(("/dev/fd/", "/proc/")):
        return True
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _write_stream(path: Path, write: Callable[[Path], object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder, path.name)
        with naming_file(path, temporary):
            write(temporary)
            # Appended: standard output may be a file that has something in it already.
            with open(temporary, "rb") as source, open(path, "ab") as stream:
                shutil.copyfileobj(source, stream)


@contextmanager
def naming_file(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Let an OSError that names no file, as of a full disk, or the temporary one name `path`."""
    try:
        yield
    except OSError as error:
        if error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all; what isn't Unicode in file names is escaped."""
    content = text.encode("utf-8", "backslashreplace")
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def save_figure(figure: "Figure", path: Path | str | None) -> "Figure":
    """The figure; written to `path`, where there is one, whole or not at all."""
    if path is not None:
        write_atomically(Path(path), figure.savefig)
    return figure


def require_new_file(path: Path) -> None:
    """Raise an OSError unless a new file can be at `path`, or it is a pipe or a device.

    Raises:
        FileNotFoundError: its folder isn't there. FileExistsError: there is something at `path`.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder at {path.parent}")
    if path.exists() and not is_stream(path):
        raise FileExistsError(f"{path} exists already; choose another --output")


def check_picture_file(path: Path) -> None:
    """Raise ValueError unless a file's name says in which format matplotlib draws into it."""
    if path.suffix not in PICTURE_SUFFIXES:
        raise ValueError(f"output must end in one of {', '.join(PICTURE_SUFFIXES)}, got {path}")


def require_no_input(output: Path, inputs: Iterable[Path]) -> None:
    """Raise FileExistsError where writing to `output` would overwrite one of the inputs."""
    if output.is_file():
        for path in inputs:
            if path.exists() and path.samefile(output):
                raise FileExistsError(f"output {output} is an input too; choose another")


def require_empty(folder: Path) -> None:
    """Raise FileExistsError unless there is no such folder, or an empty one."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists already and isn't an empty folder")


def make_free_folder(folder: Path) -> Path:
    """Create the first of NAME, NAME-2, NAME-3, ... that there isn't yet."""
    number = 1
    while True:
        free = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        try:
            free.mkdir(parents=True)
            return free
        except FileExistsError:
            number += 1
