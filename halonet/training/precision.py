"""What a type of numbers costs on this processor."""

import statistics
import sys
import time

import torch
from accelerate import Accelerator

from halonet.training.config import RunConfig

SIDE = 256  # of the matrices that are multiplied
TURNS = 5
NOTABLE = 1.5  # times as long as float32


def warn_of_slow_bfloat16(config: RunConfig, accelerator: Accelerator) -> None:
    """Say on standard error, in one line, where a run's bfloat16 takes longer than float32 would.

    Processors without instructions for it emulate them.
    """
    on_cpu = accelerator.device.type == "cpu"
    if not (config.mixed_precision == "bf16" and on_cpu and accelerator.is_main_process):
        return
    factor = compare_bfloat16()
    if factor >= NOTABLE:
        print(
            f"halonet: mixed_precision bf16 will be slow: on this processor a product in bfloat16 "
            f"takes {factor:.1f} times as long as in float32",
            file=sys.stderr,
        )


def compare_bfloat16() -> float:
    """Time of a matrix product in bfloat16 on the CPU, as a multiple of the time in float32."""
    one = torch.ones(SIDE, SIDE)
    return _time_product(one.bfloat16()) / _time_product(one)


def _time_product(one: torch.Tensor) -> float:
    """Median seconds of a product with itself, the first one not counted."""
    seconds = []
    for _ in range(TURNS + 1):
        started = time.perf_counter()
        one @ one
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])
