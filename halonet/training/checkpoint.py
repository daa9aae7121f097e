"""The run folder: files written whole or not at all, and the state to go on from."""

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError

from halonet.training.config import TrainingConfig, make_config

CONFIG_NAME = "config.json"
METRICS_NAME = "metrics.csv"
STATE_FOLDER = "state"
PROGRESS_NAME = "progress.json"


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


def check_output(output: str) -> None:
    """Raise FileExistsError where `output` can't become a run's folder: it holds something."""
    folder = Path(output)
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.is_dir() and (folder / CONFIG_NAME).is_file():
        raise FileExistsError(
            f"{folder} holds a run already; go on with --resume {folder}, "
            "or choose another --output"
        )
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; choose another --output")


def new_run_folder(output: str | None, default: str) -> Path:
    """Create the folder of a new run: `output`, or the first free of runs/NAME, runs/NAME-2, ...

    Raises:
        FileExistsError: `output` exists and holds something.
    """
    if output is not None:
        check_output(output)
        folder = Path(output)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    number = 1
    while True:
        folder = Path("runs") / (default if number == 1 else f"{default}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1


def write_config(folder: Path, config: TrainingConfig) -> None:
    """Keep a run's whole configuration beside its results."""
    write_text(folder / CONFIG_NAME, json.dumps(dataclasses.asdict(config), indent=2) + "\n")


def read_config(folder: Path) -> TrainingConfig:
    """The configuration of the run in `folder`.

    Raises:
        FileNotFoundError: there is no run. ValueError: its configuration can't be read.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise FileNotFoundError(f"no run at {folder}: it has no {CONFIG_NAME}")
    try:
        return make_config(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is not a run's configuration: {error}") from None


def save_state(folder: Path, accelerator: Accelerator, progress: dict[str, Any]) -> None:
    """Write all that the next step depends on, whole or not at all, and drop older states.

    Raises:
        OSError: it can't be written; the earlier state is left as it was.
    """
    states = folder / STATE_FOLDER
    states.mkdir(exist_ok=True)
    final = states / f"step_{progress['step']:09d}"
    temporary = states / f".{final.name}.tmp"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        accelerator.save_state(str(temporary))
        if accelerator.is_main_process:
            write_text(temporary / PROGRESS_NAME, json.dumps(progress))
            os.replace(temporary, final)
    except (OSError, RuntimeError, SafetensorError) as error:  # three writers, three complaints
        raise OSError(f"can't write {final}, the state before is kept: {error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for older in states.iterdir():  # also what a killed run left half written
        if older != final:
            shutil.rmtree(older, ignore_errors=True)


def find_states(folder: Path) -> list[Path]:
    """The complete states of a run, oldest first."""
    states = folder / STATE_FOLDER
    if not states.is_dir():
        return []
    named = [path for path in states.iterdir() if re.fullmatch(r"step_\d+", path.name)]
    return sorted(path for path in named if (path / PROGRESS_NAME).is_file())


def load_state(folder: Path, accelerator: Accelerator) -> dict[str, Any] | None:
    """Put a run back to its last complete state; None if it has none yet.

    Raises:
        ValueError: the state is damaged, or of another configuration.
    """
    states = find_states(folder)
    if not states:
        return None
    last = states[-1]
    try:
        accelerator.load_state(str(last))
        return json.loads((last / PROGRESS_NAME).read_text(encoding="utf-8"))
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, SafetensorError) as error:
        raise ValueError(f"can't go on from {last}: {error}") from None


def find_checkpoint(path: Path) -> Path:
    """The weights at `path`: the file itself, or a run folder's last ones.

    Raises:
        FileNotFoundError: there are none.
    """
    found = path / "last.safetensors" if path.is_dir() else path
    if not found.is_file():
        raise FileNotFoundError(f"no checkpoint at {found}")
    return found


def find_run(checkpoint: Path) -> Path | None:
    """The run folder that a checkpoint lies in, if it lies in one."""
    return checkpoint.parent if (checkpoint.parent / CONFIG_NAME).is_file() else None
