"""Whether a run is about as fast as its device allows, and what it waits for where it isn't."""

import statistics
import time
from collections.abc import Mapping

import torch
from torch import nn

from halonet.devices import measure_matrix_rate, synchronize

# Steps that count; the ones before them allocate, compile and start the workers.
FIRST, LAST = 6, 25
FACTOR = 10
# What forward and backward reach at least of the rate of float32 matrices: on CPUs HaloNets reach
# 0.2 to 0.6, on GPUs norms and activations wait for memory.
CPU_SHARE, ACCELERATOR_SHARE = 0.2, 0.05
# What a layer takes at least, in seconds, forward and backward: with small maps, all of the time.
LAYER_SECONDS = 150e-6
DATA, COMPUTING, UPDATING = "data", "forward and backward", "the optimizer"


class Pace:
    """Measures a run's first steps, and tells once what they wait for if they are far too slow.

    Args:
        model: that is trained.
        device: that it is on.
        operations: of the forward pass of all images of a step in this process.
        batches: forward passes of a step.
    """

    def __init__(
        self, model: nn.Module, device: torch.device, *, operations: float, batches: int
    ) -> None:
        self.device = device
        self.operations = operations
        layers = sum(not [*module.children()] for module in model.modules())
        self.overhead = layers * batches * LAYER_SECONDS
        self.computed = 0.0
        self.steps = 0
        self.times: dict[str, list[float]] = {DATA: [], COMPUTING: [], UPDATING: []}

    def mark_computed(self) -> None:
        """Forward and backward are done, on the device too."""
        self.computed = time.perf_counter()

    def end_step(self, started: float, waited: float) -> str | None:
        """After the update: a line to show, once at most.

        Args:
            started: when the step began to wait for its data, by `time.perf_counter`.
            waited: seconds until they were there.
        """
        self.steps += 1
        if not FIRST <= self.steps <= LAST:
            return None
        synchronize(self.device)
        self.times[DATA].append(waited)
        self.times[COMPUTING].append(self.computed - started - waited)
        self.times[UPDATING].append(time.perf_counter() - self.computed)
        if self.steps < LAST:
            return None
        medians = {name: statistics.median(times) for name, times in self.times.items()}
        return describe_wait(medians, self._expect())

    def _expect(self) -> float:
        """Seconds that forward and backward should take at most."""
        share = CPU_SHARE if self.device.type == "cpu" else ACCELERATOR_SHARE
        rate = measure_matrix_rate(self.device, seconds=0.05)
        # The backward pass has twice the operations of the forward pass.
        return 3 * self.operations / (rate * share) + self.overhead


def describe_wait(times: Mapping[str, float], expected: float) -> str | None:
    """What a step waits for, if it takes `FACTOR` times as long as it should; else None.

    It should take as long as its own forward and backward pass, or as that is expected to take
    where it takes longer.

    Args:
        times: median seconds of a step's parts.
        expected: seconds that forward and backward should take at most.
    """
    total, should = sum(times.values()), min(times[COMPUTING], expected)
    if total <= FACTOR * should:
        return None
    slowest = max(times, key=lambda name: times[name])
    parts = ", ".join(f"{name} {1e3 * seconds:.0f} ms" for name, seconds in times.items())
    return (
        f"halonet: slow, less than a tenth of what this device should give: a step of "
        f"{1e3 * total:.0f} ms waits for {slowest} ({parts})"
    )
