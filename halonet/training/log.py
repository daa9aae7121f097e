"""What a run says of itself while it goes on: a line an epoch, a table, TensorBoard's logs."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from halonet.files import write_atomically
from halonet.training.checkpoint import METRICS_NAME

LOG_FOLDER = "tensorboard"


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
    """One line on an epoch for a person."""
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


class RunLog:
    """Logs for TensorBoard, in the run's folder; what a resumed run repeats is written over.

    Args:
        folder: of the run.
        step: the last one that is saved.
        wanted: without it, nothing is written.
    """

    def __init__(self, folder: Path, step: int, wanted: bool) -> None:
        self.writer = None
        if wanted:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(folder / LOG_FOLDER), purge_step=step + 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.writer is not None:
            self.writer.close()

    def add_step(self, step: int, figures: Mapping[str, float]) -> None:
        """Note the figures of one step."""
        if self.writer is not None:
            for name, value in figures.items():
                if name != "stop":
                    self.writer.add_scalar(f"step/{name}", value, step)

    def add_epoch(self, row: Mapping[str, Any]) -> None:
        """Note an epoch's row of the table."""
        if self.writer is not None:
            for name, value in row.items():
                if name not in ("epoch", "step"):
                    self.writer.add_scalar(f"epoch/{name}", value, row["step"])
