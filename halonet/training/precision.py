"""What a type of numbers costs on this processor."""

import sys

import torch
from accelerate import Accelerator

from halonet.devices import time_step
from halonet.training.config import RunConfig

SIDE = 256  # of the matrices that are multiplied
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
    bfloat16, float32 = (
        time_step(lambda matrix=matrix: matrix @ matrix, one.device, seconds=0.01)
        for matrix in (one.bfloat16(), one)
    )
    return bfloat16 / float32
