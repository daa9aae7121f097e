"""A run's figures while it goes on: a line for each epoch, metrics.csv, and a tracker's logs."""

import csv
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from halonet.files import naming_file, write_atomically
from halonet.training.checkpoint import METRICS_NAME
from halonet.training.config import RunConfig, flatten_fields

TENSORBOARD = "tensorboard"  # the tracker's name, and its folder's


def write_metrics(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the epochs' figures as CSV; an epoch without evaluation has empty fields."""
    columns = [*max(rows, key=len)]

    def write(path: Path) -> None:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(folder / METRICS_NAME, write)


def describe_epoch(row: Mapping[str, Any], epochs: int) -> str:
    """The line that is printed after an epoch."""
    line = f"epoch {row['epoch']}/{epochs}"
    for part, label in (("training_", ""), ("validation_", "  held out:")):
        figures = [
            _describe(name.removeprefix(part), value)
            for name, value in row.items()
            if name.startswith(part) and value is not None
        ]
        if figures:
            line += label + "".join(figures)
    return line


def _describe(name: str, value: float) -> str:
    if name == "replaced_images" and value == 0:
        return ""
    words = name.replace("_", " ")
    return f"  {words} {value:.3f}" if "loss" in name else f"  {words} {100 * value:.1f} %"


def check_tracker(name: str) -> None:
    """Raise ModuleNotFoundError for a tracker that isn't installed: accelerate would skip it."""
    available = {str(tracker) for tracker in get_available_trackers()}
    if name not in available | {"none", "all"}:
        installed = ", ".join(sorted(available)) or "none"
        raise ModuleNotFoundError(
            f"log_with {name!r} needs a package that isn't installed: pip install {name}; "
            f"the installed trackers are {installed}"
        )


@contextmanager
def track_run(
    accelerator: Accelerator, config: RunConfig, folder: Path, step: int
) -> Iterator[None]:
    """Log a run with the tracker that its configuration names, from accelerate's.

    TensorBoard's logs lie in the run's folder, and a resumed run replaces the steps that it
    repeats. To any other tracker a resumed run is a new run, which begins at the next step.

    Args:
        accelerator: from `make_accelerator`.
        config: of the run, logged too.
        folder: of the run.
        step: the last saved one.

    Raises:
        ValueError: the tracker can't start.
    """
    if config.log_with != "none":
        accelerator.project_configuration.logging_dir = str(folder)
        try:
            accelerator.init_trackers(
                TENSORBOARD if config.log_with == TENSORBOARD else "halonet",
                init_kwargs={
                    TENSORBOARD: {"purge_step": step + 1},
                    "mlflow": {"run_name": folder.name},
                    "wandb": {"name": folder.name, "dir": str(folder)},
                },
            )
            for tracker in accelerator.trackers:
                if tracker.name != TENSORBOARD:  # which would show each as a run of its own
                    tracker.store_init_configuration(_plain_values(config))
        except Exception as error:  # of any tracker: no account, no connection, ...
            raise ValueError(f"log_with {config.log_with!r} can't start: {error}") from None
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()


def _plain_values(config: RunConfig) -> dict[str, Any]:
    fields = flatten_fields(dataclasses.asdict(config))
    return {
        name: value if isinstance(value, bool | int | float) else _as_text(value)
        for name, value in fields.items()
    }


def _as_text(value: Any) -> str:
    """Text as it is, but for what isn't Unicode in names of files; anything else as JSON."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode("utf-8", "backslashreplace").decode()


def log_step(accelerator: Accelerator, step: int, figures: Mapping[str, float]) -> None:
    """Log the figures of one step."""
    values = {f"step/{name}": value for name, value in figures.items() if name != "stop"}
    _log(accelerator, values, step)


def log_epoch(accelerator: Accelerator, row: Mapping[str, Any]) -> None:
    """Log an epoch's row of metrics.csv."""
    values = {f"epoch/{name}": row[name] for name in row if name not in ("epoch", "step")}
    _log(accelerator, values, row["step"])


def _log(accelerator: Accelerator, values: Mapping[str, Any], step: int) -> None:
    with naming_file(Path(accelerator.project_configuration.logging_dir or ".")):
        accelerator.log({**values}, step=step)
