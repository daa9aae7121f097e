"""What the training loop asks of a task, such as classification or detection."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader

from halonet.data.listing import Listing
from halonet.training.config import RunConfig


class Evaluation(Protocol):
    """Scores on the held-out images, by name; loss may be among them."""

    @property
    def figures(self) -> dict[str, float]: ...


class Task(Protocol):
    """A model to train, its data, its loss and its scores.

    Attributes:
        config: of the run.
        model: as it is saved.
        data: as the data's loader gives it; a finished run returns it.
        training, validation: data sets whose items are asked for by (epoch, index).
        collate: makes a batch of items; None stacks them.
        layer_rates: arguments of `make_optimizer`, where layers have learning rates of their own.
        score: the name of the figure of an evaluation that decides which checkpoint is the best;
            the figure is nan where nothing in the held-out images counts.
        start: what a new run starts from, in words.
        resume_command: resumes a run, followed by its folder.
    """

    data: Any
    training: Any
    validation: Any
    layer_rates: dict[str, float]
    score: str
    start: str
    resume_command: str

    def __init__(self, config: Any, accelerator: Accelerator) -> None:
        """Load the data and create the model, by a configuration of the task's own class."""
        ...

    @staticmethod
    def make_config(fields: Mapping[str, Any]) -> RunConfig:
        """A configuration from plain values, as JSON or the command line has them.

        Raises:
            KeyError, TypeError, ValueError: a field is missing or unknown, or of another task.
        """
        ...

    @staticmethod
    def check_config(config: Any) -> None:
        """Raise ValueError for a value that no run of the task can have."""
        ...

    @property
    def config(self) -> RunConfig: ...

    @property
    def model(self) -> nn.Module: ...

    @property
    def collate(self) -> Callable[[list], Any] | None: ...

    def list_data(self) -> Listing:
        """What the data consist of; a resumed run compares it."""
        ...

    def compute_loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean loss of a batch, and figures for the log, the loss among them.

        All of them stay on the device: reading one would make the host wait for it.
        """
        ...

    def count_flops(self) -> int:
        """Operations of one training image's forward pass, or what is known of them."""
        ...

    def evaluate(self, model: nn.Module, loader: DataLoader, accelerator: Accelerator) -> Any:
        """An `Evaluation` of all held-out images.

        The loader has this process's part of them, which may be empty.
        """
        ...

    def save(self, model: nn.Module, path: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        ...

    def write_report(
        self, folder: Path, model: Any, evaluation: Any, rows: list[dict], *, minutes: float
    ) -> None:
        """Write a finished run's summary, report and pictures.

        Args:
            folder: of the run.
            model: as it was evaluated last.
            evaluation: the last one.
            rows: the epochs' figures, as in metrics.csv.
            minutes: that the run took.
        """
        ...
