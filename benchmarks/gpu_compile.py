"""Compile the Triton kernels for GPUs that need not be there, and say what doesn't fit them.

    python benchmarks/gpu_compile.py --architecture sm_90 --dtype bfloat16

Without options: all kernels, architectures, types, and kinds of attention in the family, with the
tiles that run where none are timed, which may spill no registers; a second of a core for each.
`--candidates` compiles the others too, and `--tables full` takes timm's tables, of a head's whole
width, in place of the paper's. A line is printed for each kind and type. `--record FILE` adds the
lines to a file and passes over the kinds that it has. The exit status is 1 if something is wrong.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

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
DTYPES = ("bfloat16", "float16", "float32", "tf32")  # the last: float32 on tensor cores


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


def describe_work(
    stage: Stage, dtype: torch.dtype, batch: int = 1, *, full_tables: bool = False
) -> list[Work]:
    """The three kernels on a stage's maps, which have no memory."""
    inputs = stage.make_inputs(batch, device=torch.device("meta"), dtype=dtype)
    if full_tables:
        for name in ("row_table", "column_table"):
            table = inputs[name]
            inputs[name] = table.new_empty(len(table), inputs["query"].shape[-1])
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
    parser.add_argument("--tables", choices=("half", "full"), default="half")
    parser.add_argument("--kind", nargs="*", help="begin with one of these, as they are printed")
    parser.add_argument(
        "--candidates", action="store_true", help="all tiles, not those that run alone"
    )
    parser.add_argument("--record", type=Path, help="add to this file, and go on where it ends")
    arguments = parser.parse_args()
    record = arguments.record
    recorded = record.read_text().splitlines() if record and record.exists() else []
    found_before = {
        line.rpartition(": ")[0]: int(line.split()[-2])
        for line in recorded
        if line.endswith(" faults")
    }
    count = faults = 0
    for dtype in arguments.dtype:
        tensor_cores = dtype == "tf32"
        torch.backends.cuda.matmul.fp32_precision = "tf32" if tensor_cores else "ieee"
        numbers = torch.float32 if tensor_cores else getattr(torch, dtype)
        for label, stage in list_kinds().items():
            if stage.stride not in arguments.stride or not label.startswith(
                tuple(arguments.kind or [""])
            ):
                continue
            title = (
                f"{dtype}, {label}, {arguments.tables} tables, {' '.join(arguments.architecture)}"
            )
            if arguments.candidates:
                title += ", all tiles"
            if len(arguments.kernel) < len(KERNELS):
                title += f", {' and '.join(arguments.kernel)} alone"
            if title in found_before:
                faults += found_before[title]
                continue
            works = describe_work(stage, numbers, full_tables=arguments.tables == "full")
            pairs = [
                (work, architecture)
                for work in works
                for architecture in arguments.architecture
                if work.name in arguments.kernel
            ]
            found = [
                f"{title}, {work.name}: {fault}"
                for work, architecture in pairs
                for fault in check_work(work, architecture, arguments.candidates)
            ]
            lines = [*found, f"{title}: {len(pairs)} kernels, {len(found)} faults"]
            print(*lines, sep="\n", flush=True)
            if record:
                with record.open("a") as file:
                    file.writelines(f"{line}\n" for line in lines)
            count += len(pairs)
            faults += len(found)
    print(f"{count} kernels compiled, {faults} faults in all")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
