"""Compile the Triton kernels for GPUs that need not be there, and say what doesn't fit them.

    python benchmarks/gpu_compile.py --architecture sm_90 --dtype bfloat16

Without options: all kernels, architectures, types, and kinds of attention in the family, with the
tiles that run where none are timed, which may spill no registers; a second of a core for each.
`--candidates` compiles the others too. The exit status is 1 if something is wrong.
"""

import argparse
import sys
from collections.abc import Iterator

import torch

from halonet.check.stages import Stage, list_stages
from halonet.models.variants import VARIANTS
from halonet.ops.halo_attention import resolve_arguments
from halonet.ops.triton_backend import Work, list_work
from halonet.ops.triton_compilation import (
    SHARED_BYTES,
    choose_tiles,
    compile_work,
    find_faults,
)

KERNELS = ("forward", "query gradient", "key gradient")
DTYPES = ("bfloat16", "float16", "float32")


def list_kinds() -> dict[str, Stage]:
    """One stage of the family for each kernel that its attention needs."""
    found = {}
    for model, variant in VARIANTS.items():
        for name, stage in list_stages(model).items():
            channels, value_channels = stage.width // stage.heads, stage.value_width // stage.heads
            label = (
                f"b {stage.block_size}, h {stage.halo_size}, stride {stage.stride}, "
                f"{channels} and {value_channels} channels"
            )
            if variant.spatial[int(name[5]) - 1] == "attention":
                found.setdefault(label, stage)
    return found


def describe_work(stage: Stage, dtype: torch.dtype, batch: int = 1) -> list[Work]:
    """The three kernels on a stage's maps, which have no memory."""
    inputs = stage.make_inputs(batch, device=torch.device("meta"), dtype=dtype)
    problem, _ = resolve_arguments(**inputs, **stage.options)
    return list_work(problem)


def check_work(work: Work, architecture: str, candidates: bool) -> Iterator[str]:
    """Compile a kernel with the tiles that run, or with all; yield what is wrong."""
    narrow = work.query.dtype != torch.float32
    try:
        chosen, binary = choose_tiles(work, architecture)
        yield from find_faults(binary, chosen, architecture, narrow=narrow)
        for tiles in work.candidates if candidates else ():
            compile_work(work, tiles, architecture)
    except Exception as error:  # of the compiler, the assembler, ...
        yield f"{architecture}: {type(error).__name__}: {str(error)[:200]}"


def main() -> int:
    """Compile what the options ask for; return 1 if something is wrong."""
    parser = argparse.ArgumentParser(description="Compile the Triton kernels without a GPU.")
    parser.add_argument("--architecture", nargs="*", choices=SHARED_BYTES, default=[*SHARED_BYTES])
    parser.add_argument("--dtype", nargs="*", choices=DTYPES, default=DTYPES)
    parser.add_argument("--kernel", nargs="*", choices=KERNELS, default=KERNELS)
    parser.add_argument("--stride", nargs="*", type=int, choices=(1, 2), default=(1, 2))
    parser.add_argument(
        "--candidates", action="store_true", help="all tiles, not those that run alone"
    )
    arguments = parser.parse_args()
    count = faults = 0
    for label, stage in list_kinds().items():
        if stage.stride not in arguments.stride:
            continue
        for dtype in arguments.dtype:
            for work in describe_work(stage, getattr(torch, dtype)):
                if work.name not in arguments.kernel:
                    continue
                for architecture in arguments.architecture:
                    count += 1
                    for fault in check_work(work, architecture, arguments.candidates):
                        faults += 1
                        print(f"{work.name}, {dtype}, {label}: {fault}", flush=True)
    print(f"{count} kernels, {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
