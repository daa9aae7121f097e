"""The options and the runs of both train commands."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from halonet.cli.parser import CommandParser, fail, one_line
from halonet.training.config import RunConfig


def make_training_parser(command: str, purpose: str, defaults: RunConfig) -> CommandParser:
    """The options of a train command: the run's folder, and the fields of its configuration.

    Args:
        command: as halonet train.
        purpose: the description that --help shows.
        defaults: the options' default values, from a recipe.
    """
    parser = CommandParser(prog=command, description=purpose)
    parser.add_argument(
        "--output",
        type=str | None,
        help="the run's folder; without it runs/RECIPE, or the next free",
    )
    parser.add_argument(
        "--resume", type=str | None, help="folder of a run to go on with, from its last saved step"
    )
    parser.add_argument(
        "--allow_changed_data",
        type=bool,
        default=False,
        help="with --resume: go on though images were added, removed or changed",
    )
    parser.add_class_arguments(type(defaults), as_group=False)
    parser.set_defaults(dataclasses.asdict(defaults))
    parser.epilog = "halonet recipes lists the recipes"
    return parser


def parse_training(parser: CommandParser, words: Sequence[str]) -> dict[str, Any]:
    """The values of the options; exits where others are given with --resume."""
    fields = parser.parse_words(words).as_dict()
    names = [word.partition("=")[0][2:].replace("-", "_") for word in words if word[:2] == "--"]
    allowed = ("resume", "allow_changed_data")
    if fields["resume"] is not None and not all(
        any(one.startswith(name) for one in allowed) for name in names
    ):
        parser.error(
            "--resume takes its configuration from the run and allows no other option than "
            "--allow_changed_data"
        )
    if fields["resume"] is None and fields["allow_changed_data"]:
        parser.error("--allow_changed_data goes with --resume")
    return fields


def run_training(task_class: Any, fields: dict[str, Any]) -> Any:
    """Start or resume a run, and train to its end; exits where it stops before.

    Args:
        task_class: the task, a class as `halonet.training.task.Task`.
        fields: from `parse_training`.

    Returns:
        The `RunResult`, or None in all processes but the main one.
    """
    from accelerate import PartialState

    from halonet.training.loop import LossNotFinite, TrainingInterrupted
    from halonet.training.parallel import ProcessLost
    from halonet.training.run import resume_run, start_run

    values = dict(fields)
    output, run, changed = (values.pop(name) for name in ("output", "resume", "allow_changed_data"))
    try:
        if run is None:
            result = start_run(task_class, task_class.make_config(values), output=output)
        else:
            result = resume_run(task_class, Path(run), allow_changed_data=changed)
    except (TrainingInterrupted, LossNotFinite, ProcessLost) as stopped:
        fail(one_line(stopped), 130 if isinstance(stopped, TrainingInterrupted) else 1)
    return result if PartialState().is_main_process else None
