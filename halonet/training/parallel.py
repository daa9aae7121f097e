"""Processes that train together: how they start, agree, share what they know, and end."""

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
    broadcast,
    broadcast_object_list,
)
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from halonet.layers.bottleneck import Bottleneck
from halonet.training.config import RunConfig

Result = TypeVar("Result")


class ProcessLost(Exception):
    """Another process of the run ended before its time."""


def make_accelerator(config: RunConfig) -> Accelerator:
    """Join the processes that torchrun or `accelerate launch` started, or train alone.

    Args:
        config: says the precision, and whether weights are split over the processes, which put
            those of one bottleneck together at a time.

    Raises:
        ValueError: what the configuration asks for isn't possible on this device, or with this
            number of processes.
    """
    # Of an earlier run of this process, which may have had another precision.
    AcceleratorState._reset_state()
    plugin = None
    if config.shard_weights:
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=[Bottleneck.__name__],
        )
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # else it doesn't join processes on a CPU
        mixed_precision=config.mixed_precision,
        fsdp_plugin=plugin,
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True)],
    )
    count = accelerator.num_processes
    # accelerate goes on in float32 without a word.
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
        # 1x1 weights have two sets of strides that mean the same.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    return accelerator


def _leave() -> None:
    if distributed.is_initialized():
        distributed.destroy_process_group()


@contextmanager
def naming_lost_process(
    accelerator: Accelerator, resume_command: str, folder: Callable[[], Path | None]
) -> Iterator:
    """Raise ProcessLost where the processes can't reach one another any more.

    Args:
        accelerator: knows how many there are.
        resume_command: what goes on with the run, but for its folder.
        folder: gives the run's folder, once there is one.
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
    """Whether an error comes from the connection; gloo has no class of its own for it."""
    if isinstance(error, distributed.DistError):
        return True
    text = str(error).lower()
    return any(word in text for word in ("gloo", "connection closed", "connection reset"))


def do_once(accelerator: Accelerator, act: Callable[[], Result]) -> Result:
    """Let the main process act, and tell the result to all.

    Raises:
        What `act` raises, in the main process; the others leave quietly.
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
    """Means over the processes of figures that each has; `stop` is above 0 if anyone wants to."""
    values = torch.stack([*(value.detach().float() for value in figures.values())])
    values = torch.cat([values, values.new_tensor([float(stop)])])
    values = accelerator.reduce(values, "mean")
    return dict(zip([*figures, "stop"], values.tolist(), strict=True))


def share_buffers(model: nn.Module) -> None:
    """Give every process the main one's buffers: batch norm's statistics are each one's own."""
    for buffer in model.buffers():
        broadcast(buffer)


class Whole:
    """A model as `ModelEmaV3` reads it: its state with split weights put together."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def state_dict(self) -> dict[str, Tensor]:
        """The model's state dict, of plain tensors; every process must ask for it."""
        return {name: put_together(value) for name, value in self.model.state_dict().items()}


def put_together(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be split over the processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
