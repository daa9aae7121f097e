"""Start or resume a run of any task, and train to its end."""

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import OutOfMemoryError

from halonet.models.metadata import LAST_NAME
from halonet.training.checkpoint import (
    CONFIG_NAME,
    METRICS_NAME,
    STATE_FOLDER,
    check_output,
    find_states,
    new_run_folder,
    read_config,
    write_config,
)
from halonet.training.config import RunConfig
from halonet.training.log import TENSORBOARD
from halonet.training.loop import LossNotFinite, Trainer
from halonet.training.optimizer import check_optimizer
from halonet.training.parallel import do_once, make_accelerator, naming_lost_process
from halonet.training.precision import warn_of_slow_bfloat16
from halonet.training.task import Task

Data = TypeVar("Data")
Scores = TypeVar("Scores")


@dataclass(frozen=True)
class RunResult(Generic[Data, Scores]):
    """A finished run: its folder, its data, and the last checkpoint's scores."""

    folder: Path
    data: Data
    evaluation: Scores
    minutes: float


def start_run(
    task_class: type[Task], config: RunConfig, *, output: str | None = None
) -> RunResult[Any, Any]:
    """Train by a configuration, in a new run folder.

    Under torchrun or `accelerate launch`, every process calls it with the same arguments. Where it
    fails before anything is saved, no folder is left.

    Args:
        task_class: the task.
        config: of the task's own class.
        output: the run folder; None means runs/RECIPE, or the first free runs/RECIPE-2, ...

    Raises:
        ValueError, FileNotFoundError: a configuration that can't run, or images that can't be read.
        FileExistsError: `output` holds something.
        ModuleNotFoundError: the data or the tracker needs a package that isn't installed.
        OSError: a file can't be written; what was saved before is kept.
        TrainingInterrupted: Ctrl-C or SIGTERM; the state is saved.
        LossNotFinite: the loss or its gradient is infinite or nan.
        ProcessLost: another process of the run ended; the last saved state is kept.
    """
    task_class.check_config(config)
    return _run(task_class, config, output=output)


def resume_run(
    task_class: type[Task], folder: Path, *, allow_changed_data: bool = False
) -> RunResult[Any, Any]:
    """Go on with the run in `folder` from its last saved step, exactly.

    With another number of processes the result is the same within rounding.

    Args:
        task_class: the task.
        folder: of the run.
        allow_changed_data: go on with data to which images were added, or from which some are gone.

    Raises:
        FileNotFoundError: `folder` holds no run.
        ValueError: its configuration or its state is damaged, it is of another task, or its data
            have changed.
        Others as `start_run` does.
    """
    config = read_config(folder, task_class.make_config)
    task_class.check_config(config)
    return _run(task_class, config, started=folder, allow_changed_data=allow_changed_data)


def _run(
    task_class: type[Task],
    config: RunConfig,
    *,
    output: str | None = None,
    started: Path | None = None,
    allow_changed_data: bool = False,
) -> RunResult[Any, Any]:
    accelerator = make_accelerator(config)
    folder = started
    with naming_lost_process(accelerator, task_class.resume_command, lambda: folder):
        if folder is None and output is not None:
            do_once(accelerator, lambda: check_output(output))
        check_optimizer(config.optimizer)
        task = task_class(config, accelerator)  # before the folder: where it fails, none is left
        trainer = Trainer(task, accelerator)
        warn_of_slow_bfloat16(config, accelerator)
        if folder is None:
            folder = do_once(accelerator, lambda: _make_folder(config, output))
        try:
            evaluation = trainer.go(folder, allow_changed_data=allow_changed_data)
        except (LossNotFinite, ValueError, OSError, MemoryError, OutOfMemoryError):
            if started is None and trainer.is_main:
                _remove_without_weights(folder)
            raise
    minutes = trainer.progress["seconds"] / 60
    if trainer.is_main:
        model, rows = trainer.average.module, trainer.progress["rows"]
        task.write_report(folder, model, evaluation, rows, minutes=minutes)
    return RunResult(folder, task.data, evaluation, minutes)


def _remove_without_weights(folder: Path) -> None:
    """Remove what a new run wrote where nothing was saved: it would be in the next run's way."""
    if find_states(folder) or (folder / LAST_NAME).exists():
        return
    for name in (STATE_FOLDER, TENSORBOARD):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (CONFIG_NAME, METRICS_NAME):
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):  # what else is there is the user's
        folder.rmdir()


def _make_folder(config: RunConfig, output: str | None) -> Path:
    folder = new_run_folder(output, config.recipe)
    write_config(folder, config)
    return folder
