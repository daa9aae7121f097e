"""Runs side by side: their scores, how their configurations differ, and their curves."""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from halonet.files import check_picture_file, save_figure
from halonet.training.checkpoint import CONFIG_NAME, METRICS_NAME
from halonet.training.config import flatten_fields, modernize_fields

SCORE_PREFIX = "validation_"
COLUMNS = 3  # of panels in the picture


@dataclass(frozen=True)
class Run:
    """A run of any task, as read from its folder.

    Attributes:
        folder: as given to `read_run`.
        config: the fields by the names of the command line's options.
        rows: the figures of each epoch, without those that are missing or not finite.
        summary: the content of summary.json; empty for an unfinished run.
    """

    folder: Path
    config: dict[str, Any]
    rows: list[dict[str, float]]
    summary: dict[str, Any]

    @property
    def task(self) -> str:
        """The task, detection or classification."""
        detects = any(name.startswith("detector.") for name in self.config)
        return "detection" if detects else "classification"

    @property
    def scores(self) -> list[str]:
        """The names of the held-out scores, without the losses."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        return [
            name.removeprefix(SCORE_PREFIX)
            for name in names
            if name.startswith(SCORE_PREFIX) and "loss" not in name
        ]

    def curve(self, name: str) -> list[tuple[int, float]]:
        """(epoch, value) of a figure, for the epochs that have it."""
        return [(int(row["epoch"]), row[name]) for row in self.rows if name in row]


@dataclass(frozen=True)
class Outcome:
    """A run's line of the comparison; None for what it doesn't have yet.

    Attributes:
        run: its folder.
        model: the name of its model.
        parameters: of the model, once the run is finished.
        epochs, epochs_planned: finished epochs, and the configuration's.
        finished: whether all epochs are.
        score: the name of the score that the runs are compared by.
        best, best_epoch, last: the best score, its epoch, and the last score.
        training_loss, validation_loss: the last ones.
        minutes: of training, evaluation included.
        differences: fields of its configuration that aren't the same in all runs.
    """

    run: str
    model: str
    parameters: int | None
    epochs: int
    epochs_planned: int
    finished: bool
    score: str | None
    best: float | None
    best_epoch: int | None
    last: float | None
    training_loss: float | None
    validation_loss: float | None
    minutes: float | None
    differences: dict[str, Any]


def read_run(folder: Path) -> Run:
    """Read the folder of a run, finished or not.

    Raises:
        FileNotFoundError: `folder` holds no run.
        ValueError: a file of it is damaged.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise FileNotFoundError(f"no run at {folder}: it has no {CONFIG_NAME}")
    config = flatten_fields(modernize_fields(_read_object(path)))
    if not isinstance(config.get("model"), str) or not isinstance(config.get("epochs"), int):
        raise ValueError(f"{path} is not a run's configuration: it has no model or no epochs")
    metrics, summary = folder / METRICS_NAME, folder / "summary.json"
    return Run(
        folder,
        config,
        _read_rows(metrics) if metrics.is_file() else [],
        _read_object(summary) if summary.is_file() else {},
    )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it holds no JSON object")
    return content


def _read_rows(path: Path) -> list[dict[str, float]]:
    rows = []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file, strict=True):
                row = {name: float(value) for name, value in line.items() if value}
                rows.append({name: value for name, value in row.items() if math.isfinite(value)})
                if "epoch" not in row:
                    raise ValueError("a line has no epoch")
    except (ValueError, TypeError, csv.Error) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    return rows


def choose_score(runs: Sequence[Run], wanted: str | None = None) -> str | None:
    """The score to compare by: `wanted`, or the first that all evaluated runs have.

    Returns:
        Its name; None where no run is evaluated yet.

    Raises:
        ValueError: the runs are of different tasks, or `wanted` isn't a score that all have.
    """
    for run in runs:
        if run.task != runs[0].task:
            raise ValueError(
                f"runs must be of one task: {runs[0].folder} is of {runs[0].task}, "
                f"{run.folder} of {run.task}"
            )
    evaluated = [run for run in runs if run.scores]
    if not evaluated:
        return None
    common = [name for name in evaluated[0].scores if all(name in run.scores for run in evaluated)]
    if wanted is not None and wanted not in common:
        raise ValueError(f"score must be one of {', '.join(common)}, got {wanted!r}")
    return wanted or common[0]


def compare_runs(runs: Sequence[Run], score: str | None) -> list[Outcome]:
    """The outcome of each run, by the score of `choose_score`."""
    missing = object()
    names = dict.fromkeys(name for run in runs for name in run.config)
    differing = [
        name
        for name in names
        if name != "model"
        and any(run.config.get(name, missing) != runs[0].config.get(name, missing) for run in runs)
    ]
    return [_describe(run, score, differing) for run in runs]


def _describe(run: Run, score: str | None, differing: Sequence[str]) -> Outcome:
    curve = [] if score is None else run.curve(SCORE_PREFIX + score)
    best = max(curve, key=lambda point: point[1], default=None)
    lasts = {name: value for row in run.rows for name, value in row.items()}
    epochs, planned = len(run.rows), run.config["epochs"]
    return Outcome(
        run=str(run.folder),
        model=run.config["model"],
        parameters=run.summary.get("parameters"),
        epochs=epochs,
        epochs_planned=planned,
        finished=epochs >= planned,
        score=score,
        best=None if best is None else best[1],
        best_epoch=None if best is None else best[0],
        last=curve[-1][1] if curve else None,
        training_loss=lasts.get("training_loss"),
        validation_loss=lasts.get("validation_loss"),
        minutes=lasts["seconds"] / 60 if "seconds" in lasts else None,
        differences={name: run.config[name] for name in differing if name in run.config},
    )


def draw_curves(runs: Sequence[Run], path: Path) -> None:
    """Draw the losses and the held-out scores of all runs over their epochs.

    Raises:
        ValueError: no run has a finished epoch, or the suffix of `path` is unknown.
        OSError: it can't be written.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    check_picture_file(path)
    drawn = [run for run in runs if run.rows]
    if not drawn:
        raise ValueError("there is nothing to draw: no run has a finished epoch")
    panels = ["loss", *dict.fromkeys(name for run in drawn for name in run.scores)]
    columns = min(COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure((4.5 * columns, 3.2 * lines + 0.25 * len(drawn)), dpi=110, layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).flatten()
    palette = colormaps["tab10" if len(drawn) <= 10 else "tab20"]
    colors = [palette(place % palette.N) for place in range(len(drawn))]
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes, panel in zip(grid, panels, strict=False):
        factor, unit = (1, "") if panel == "loss" else (100, ", %")
        for run, color in zip(drawn, colors, strict=True):
            for part, look in (("training_", ":"), (SCORE_PREFIX, "o-")):
                curve = run.curve(part + panel)
                axes.plot(
                    [epoch for epoch, _ in curve],
                    [factor * value for _, value in curve],
                    look,
                    color=color,
                    markersize=4,
                )
        axes.set_xlabel("epoch")
        axes.set_ylabel(panel.replace("_", " ") + unit)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        [Line2D([], [], color=color) for color in colors],
        [str(run.folder) for run in drawn],
        loc="outside lower left",
        frameon=False,
        title="held out: points and lines; training: dotted",
        alignment="left",
    )
    save_figure(figure, path)
