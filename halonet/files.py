"""Files written whole or not at all, and folders that hold nothing else."""

import os
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it.

    The temporary name ends in the same suffix, by which some writers choose their format.

    Raises:
        OSError: it can't be written; the error names `path`, which is as it was before.
    """
    temporary = path.with_name(f".{os.getpid()}.tmp.{path.name}")
    try:
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


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
