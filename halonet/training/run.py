"""A run from its start to its end, whatever it trains."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from halonet.training.checkpoint import check_output, new_run_folder, write_config
from halonet.training.config import RunConfig
from halonet.training.loop import Task, Trainer
from halonet.training.parallel import do_once, make_accelerator, naming_lost_process


def run_task(
    make_task: Callable[[Accelerator], Task],
    config: RunConfig,
    *,
    sharded_modules: tuple[str, ...],
    resume_command: str,
    output: str | None = None,
    started: Path | None = None,
) -> tuple[Trainer, Path, Any]:
    """Start a run, or go on with one, and train to its end.

    Args:
        make_task: reads the data and makes the model.
        config: what the task was told.
        sharded_modules: class names of the modules that FSDP gathers one at a time.
        resume_command: what goes on with the run, but for its folder.
        output: the folder of a new run; None takes the first free one.
        started: the folder of a run to go on with, instead.

    Returns:
        The trainer at its end, the run's folder, and the last evaluation.
    """
    accelerator = make_accelerator(config, sharded_modules)
    folder = started
    with naming_lost_process(accelerator, resume_command, lambda: folder):
        if folder is None and output is not None:
            do_once(accelerator, lambda: check_output(output))
        task = make_task(accelerator)  # before the folder: what can't run leaves none
        trainer = Trainer(task, accelerator)
        if folder is None:
            folder = do_once(accelerator, lambda: _start(config, output))
        return trainer, folder, trainer.go(folder)


def _start(config: RunConfig, output: str | None) -> Path:
    folder = new_run_folder(output, config.recipe)
    write_config(folder, config)
    return folder
