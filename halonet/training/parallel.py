"""Several processes that train together: how they start, share figures and weights, and end."""

import atexit
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    FullyShardedDataParallelPlugin,
    ProjectConfiguration,
    broadcast,
    broadcast_object_list,
)
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from halonet.layers.bottleneck import Bottleneck
from halonet.training.config import RunConfig
from halonet.training.log import check_tracker

Result = TypeVar("Result")


class ProcessLost(Exception):
    """Another process of the run ended before the run did."""


def make_accelerator(config: RunConfig) -> Accelerator:
    """Join the processes that torchrun or `accelerate launch` started, or train alone.

    Args:
        config: decides the precision, the tracker, and whether weights are split over the
            processes (FSDP, a unit for each bottleneck).

    Raises:
        ValueError: what the configuration asks for isn't possible on this device, or with this
            number of processes.
        ModuleNotFoundError: the tracker isn't installed.
    """
    check_tracker(config.log_with)
    # An earlier run in this process may have had another precision.
    AcceleratorState._reset_state()
    plugin = None
    if config.shard_weights:
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=[Bottleneck.__name__],
        )
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # otherwise it doesn't join processes on a CPU
        mixed_precision=config.mixed_precision,
        log_with=None if config.log_with == "none" else config.log_with,
        project_config=ProjectConfiguration(logging_dir="."),  # `track_run` knows the folder
        fsdp_plugin=plugin,
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
    count = accelerator.num_processes
    # accelerate would train in float32 without a word.
    if config.mixed_precision == "fp16" and not accelerator.native_amp:
        raise ValueError(
            "mixed_precision must be no or bf16 on a CPU, where fp16 isn't supported; "
            f"got {config.mixed_precision!r}"
        )
    if config.shard_weights and count == 1:
        raise ValueError(
            "shard_weights takes two or more processes; start them with torchrun or accelerate"
        )
    if config.batch_norm == "synchronized" and accelerator.device.type == "cpu":
        raise ValueError("batch_norm must be local or frozen on a CPU, got 'synchronized'")
    if config.batch_size % (count * config.accumulation_steps):
        raise ValueError(
            f"batch_size must be a multiple of {count} processes times accumulation_steps "
            f"{config.accumulation_steps}, got {config.batch_size}"
        )
    if count > 1:
        atexit.register(_leave)
        # Two layouts have the same strides but for dimensions of size 1, as 1x1 weights have.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    return accelerator


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


@contextmanager
def naming_lost_process(
    accelerator: Accelerator, resume_command: str, folder: Callable[[], Path | None]
) -> Iterator:
    """Raise ProcessLost where the connection to another process breaks.

    Args:
        accelerator: of the run.
        resume_command: resumes the run, followed by its folder.
        folder: returns the run's folder, None before there is one.
    """
    try:
        yield
    except RuntimeError as error:
        if accelerator.num_processes == 1 or not _tells_lost_process(error):
            raise
        run = folder()
        advice = "" if run is None else f"; go on with: {resume_command} {run}"
        raise ProcessLost(f"lost another process of this run{advice}") from error


def _tells_lost_process(error: RuntimeError) -> bool:
    """Whether an error is of the connection; gloo raises plain RuntimeErrors."""
    if isinstance(error, distributed.DistError):
        return True
    text = str(error).lower()
    return any(word in text for word in ("gloo", "connection closed", "connection reset"))


def do_once(accelerator: Accelerator, act: Callable[[], Result]) -> Result:
    """Run `act` in the main process only, and return its result in all.

    Raises:
        What `act` raises, in the main process; the others exit with status 1.
    """
    outcome: list[Any] = [None, False]
    try:
        if accelerator.is_main_process:
            outcome = [act(), True]
    finally:
        broadcast_object_list(outcome)
    if not outcome[1]:
        raise SystemExit(1)
    return outcome[0]


def agree(accelerator: Accelerator, figures: dict[str, Tensor], stop: bool) -> dict[str, float]:
    """The means of figures over the processes, in one transfer from the device.

    Returns:
        The figures' means, and "stop": above 0 if any process was asked to stop.
    """
    values = torch.stack([value.detach().float() for value in figures.values()])
    # Filled on the device: copying a number there would wait for it.
    values = torch.cat([values, values.new_full((1,), float(stop))])
    values = accelerator.reduce(values, "mean")
    return dict(zip([*figures, "stop"], values.tolist(), strict=True))


def share_buffers(model: nn.Module) -> None:
    """Give every process the main one's buffers: batch norm's statistics differ between them."""
    for buffer in model.buffers():
        broadcast(buffer)


class Whole:
    """A model for `ModelEmaV3` to read, with split weights gathered."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def state_dict(self) -> dict[str, Tensor]:
        """The model's state dict, of plain tensors; a collective operation of all processes."""
        return {name: gather_whole(value) for name, value in self.model.state_dict().items()}


def gather_whole(tensor: Tensor) -> Tensor:
    """A tensor, gathered if it is split over the processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
