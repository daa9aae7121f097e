"""The devices of this machine: by name, and how fast they multiply matrices."""

import statistics
import time
from collections.abc import Callable

import torch

AUTO = "auto"
MATRIX_SIDE = 1024  # of the square matrices whose product gives a CPU's rate
ACCELERATOR_MATRIX_SIDE = 4096
TURNS = 5


def list_devices() -> list[str]:
    """The devices that torch finds, by name: cpu, and for two GPUs cuda, cuda:0 and cuda:1."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return ["cpu"]
    kind, count = accelerator.type, torch.accelerator.device_count()
    return ["cpu", kind, *(f"{kind}:{index}" for index in range(count))]


def find_device(name: str) -> torch.device:
    """The device of this name; auto is the GPU (or Apple's MPS) where there is one, else the CPU.

    Raises:
        ValueError: no such device; the message lists those that there are.
    """
    found = list_devices()
    if name == AUTO:
        return torch.device(found[min(1, len(found) - 1)])
    if name not in found:
        raise ValueError(
            f"device must be one of {', '.join([AUTO, *found])}, which torch {torch.__version__} "
            f"finds here; got {name!r}"
        )
    return torch.device(name)


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def time_step(step: Callable[[], object], device: torch.device, *, seconds: float) -> float:
    """Median seconds of a step, of five turns that take about `seconds` together.

    The first two calls aren't among them; where one takes all of the time, there is only that one.
    """

    def time_calls(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            step()
        synchronize(device)
        return (time.perf_counter() - started) / count

    time_calls(1)
    once = time_calls(1)
    if once >= seconds:
        return once
    count = max(1, round(seconds / TURNS / once))
    return statistics.median(time_calls(count) for _ in range(TURNS))


def measure_matrix_rate(
    device: torch.device, dtype: torch.dtype = torch.float32, *, seconds: float = 0.1
) -> float:
    """Operations a second of torch's product of two square matrices, in about `seconds`."""
    side = MATRIX_SIDE if device.type == "cpu" else ACCELERATOR_MATRIX_SIDE
    matrix = torch.ones(side, side, device=device, dtype=dtype)
    return 2 * side**3 / time_step(lambda: matrix @ matrix, device, seconds=seconds)
