"""Compile the Triton kernels for GPUs that need not be there, and say what doesn't fit them.

    python benchmarks/gpu_compile.py --architecture sm_90 --dtype bfloat16

Without options: all kernels, architectures, types, and kinds of attention in the family, with the
tiles that run where none are timed, which may spill no registers; a few seconds of a core for each.
`--candidates` compiles the others too. Half and full tables take the same kernels. A line is
printed for each kind, type and architecture. `--record FILE` adds a row for each binary to a CSV
file, and takes from there what it has of kernels that are still the same; `--show` compiles nothing
and says what the file has. The exit status is 1 if something is wrong, or missing with `--show`.
"""

import argparse
import csv
import functools
import hashlib
import io
import os
import sys
import tempfile
import tokenize
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from halonet.check.stages import Stage, list_stages
from halonet.files import write_text
from halonet.models.variants import VARIANTS
from halonet.ops import triton_backend
from halonet.ops.halo_attention import resolve_arguments
from halonet.ops.triton_backend import Work, list_work
from halonet.ops.triton_compilation import (
    SHARED_BYTES,
    Binary,
    choose_tiles,
    compile_work,
    find_faults,
)
from halonet.ops.triton_tuning import Tiles

KERNELS = ("forward", "query gradient", "key gradient")
DTYPES = ("bfloat16", "float16", "float32", "tf32")  # the last: float32 on tensor cores


class Job(NamedTuple):
    """A kernel for a kind of attention on an architecture."""

    dtype: str
    kind: str
    work: Work
    architecture: str


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


def list_jobs(options: argparse.Namespace) -> Iterator[Job]:
    """What the options ask for, in the order in which it is compiled."""
    for dtype in options.dtype:
        tensor_cores = dtype == "tf32"
        torch.backends.cuda.matmul.fp32_precision = "tf32" if tensor_cores else "ieee"
        numbers = torch.float32 if tensor_cores else getattr(torch, dtype)
        works = [
            (kind, work)
            for kind, stage in list_kinds().items()
            if stage.stride in options.stride and kind.startswith(tuple(options.kind))
            for work in describe_work(stage, numbers)
            if work.name in options.kernel
        ]
        for architecture in options.architecture:
            for kind, work in works:
                yield Job(dtype, kind, work, architecture)


@functools.cache
def hash_source(*names: str) -> str:
    """A digest of the code of modules of `halonet.ops`, less comments and docstrings."""
    folder = Path(triton_backend.__file__).parent
    kept = []
    for name in names:
        code = (folder / f"{name}.py").read_text()
        for token in tokenize.generate_tokens(io.StringIO(code).readline):
            said = token.type in (tokenize.COMMENT, tokenize.NL) or token.string.startswith('"""')
            if not said:
                kept.append(token.string)
    return hashlib.sha256(" ".join(kept).encode()).hexdigest()


def hash_kernel(work: Work, tiles: Tiles) -> str:
    """Of the source and of all that a launch tells the compiler: with another, a row is stale."""
    modules = ("triton_kernels",)
    if work.name != "forward":
        modules += ("triton_gradients",)
    _, arguments, constants = work.arrange(tiles)
    types = [str(one.dtype) if isinstance(one, Tensor) else type(one).__name__ for one in arguments]
    text = f"{hash_source(*modules)} {types} {sorted(constants.items())}"
    return hashlib.sha256(text.encode()).hexdigest()[:8]


class Row(NamedTuple):
    """A binary in the record: what it is of, as text, and what it takes of the device."""

    dtype: str
    kind: str
    kernel: str
    architecture: str
    tiles: str
    source: str
    registers: int = 0
    spilled: int = 0
    shared: int = 0
    tensor: int = 0  # instructions on tensor cores in a turn of the loop
    error: str = ""

    @property
    def binary(self) -> Binary:
        """As far as the record has it."""
        if self.error:
            raise RuntimeError(self.error)
        loop = Counter(tensor=self.tensor)
        return Binary(self.registers, self.spilled, self.shared, loop, loop)


def name_row(job: Job, tiles: Tiles) -> Row:
    """Without figures."""
    limit = "" if tiles.registers is None else f", at most {tiles.registers} registers"
    described = (
        f"{tiles.queries} x {tiles.key_rows * tiles.key_columns}, {tiles.warps} warps, "
        f"{tiles.stages} stages{limit}"
    )
    if job.work.name == "key gradient":
        described = described.replace("x ", f"x {tiles.key_rows} x ", 1)
    return Row(
        job.dtype, job.kind, job.work.name, job.architecture, described,
        hash_kernel(job.work, tiles),
    )  # fmt: skip


def compile_apart(work: Work, tiles: Tiles, architecture: str) -> Binary:
    """Without Triton's cache, which would grow by gigabytes."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        return compile_work(work, tiles, architecture)


class Record:
    """Binaries of before, and the file that gets new ones; closed, it gets none."""

    def __init__(self, path: Path | None, *, closed: bool) -> None:
        self.path = path
        self.closed = closed
        self.rows: dict[tuple, Row] = {}
        if path is None or not path.exists():
            return
        with path.open(newline="") as file:
            for texts in list(csv.reader(file))[1:]:
                row = Row._make([*texts[:6], *map(int, texts[6:10]), texts[10]])
                self.rows[row[:6]] = row

    def drop_stale(self, kept: set[tuple]) -> int:
        """Keep these rows alone, in the file too; how many were others."""
        count = len(self.rows)
        self.rows = {key: row for key, row in self.rows.items() if key in kept}
        if self.path is not None and not self.closed:
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows([Row._fields, *self.rows.values()])
            write_text(self.path, text.getvalue())
        return count - len(self.rows)

    def compile(self, job: Job, tiles: Tiles) -> Binary:
        """The recorded binary or a new one.

        Raises:
            RuntimeError: as the compiler refuses it.
            LookupError: it has no row, and the record is closed.
        """
        row = name_row(job, tiles)
        if row[:6] in self.rows:
            return self.rows[row[:6]].binary
        if self.closed:
            raise LookupError(row)
        try:
            binary = compile_apart(job.work, tiles, job.architecture)
            row = row._replace(
                registers=binary.registers, spilled=binary.spilled, shared=binary.shared,
                tensor=binary.loop["tensor"],
            )  # fmt: skip
        except Exception as error:  # of the compiler, the assembler, ...
            said = " ".join(f"{type(error).__name__}: {error}".split())
            row = row._replace(error=said[:200])
        self.rows[row[:6]] = row
        if self.path is not None:
            with self.path.open("a", newline="") as file:
                csv.writer(file, lineterminator="\n").writerow(row)
        return row.binary


def check_job(record: Record, job: Job, candidates: bool) -> Iterator[str]:
    """What is wrong with the tiles that run, or with any."""
    on_tensor_cores = job.dtype != "float32"
    compile_tiles = functools.partial(record.compile, job)
    where = f"{job.dtype}, {job.kind}, {job.work.name}"
    try:
        chosen, binary = choose_tiles(job.work, job.architecture, compile_tiles)
        for fault in find_faults(binary, chosen, job.architecture, on_tensor_cores=on_tensor_cores):
            yield f"{where}, {fault}"
        for tiles in job.work.candidates if candidates else ():
            # They may spill, and may need more shared memory than this device has.
            if on_tensor_cores and not compile_tiles(tiles).loop["tensor"] and tiles != chosen:
                yield f"{where}, {job.architecture}, {tiles}: no tensor-core instruction"
    except RuntimeError as error:
        yield f"{where}, {job.architecture}: {error}"


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description="Compile the Triton kernels without a GPU.")
    parser.add_argument("--architecture", nargs="*", choices=SHARED_BYTES, default=[*SHARED_BYTES])
    parser.add_argument("--dtype", nargs="*", choices=DTYPES, default=DTYPES)
    parser.add_argument("--kernel", nargs="*", choices=KERNELS, default=KERNELS)
    parser.add_argument("--stride", nargs="*", type=int, choices=(1, 2), default=(1, 2))
    parser.add_argument(
        "--kind", nargs="*", default=[""], help="begin with one of these, as they are printed"
    )
    parser.add_argument(
        "--candidates", action="store_true", help="all tiles, not those that run alone"
    )
    parser.add_argument("--record", type=Path, help="a file that gets a row for each binary")
    parser.add_argument("--show", action="store_true", help="what it has; nothing is compiled")
    return parser


def main() -> int:
    """Compile what the options ask for; return 1 if something is wrong."""
    parser = make_parser()
    options = parser.parse_args()
    if options.show and not (options.record and options.record.exists()):
        parser.error(f"--show needs a --record that is there, got {options.record}")
    record = Record(options.record, closed=options.show)
    if options.record:
        known = {
            name_row(job, tiles)._replace(architecture=architecture)[:6]
            for job in list_jobs(parser.parse_args(["--architecture", "sm_80"]))
            for tiles in job.work.candidates
            for architecture in SHARED_BYTES
        }
        if stale := record.drop_stale(known):
            print(f"{stale} rows of {options.record} are of other kernels and don't count")
    wrong = False
    for (dtype, architecture), jobs in groupby(list_jobs(options), itemgetter(0, 3)):
        kernels = missing = faults = binaries = 0
        for kind, group in groupby(jobs, itemgetter(1)):
            found = []
            for job in group:
                kernels += 1
                try:
                    found += check_job(record, job, options.candidates)
                except LookupError:
                    missing += 1
                binaries += sum(
                    name_row(job, tiles)[:6] in record.rows for tiles in job.work.candidates
                )
            if not options.show:
                print(f"{dtype}, {kind}, {architecture}: {len(found)} faults", flush=True)
            print("".join(f"  {fault}\n" for fault in found), end="", flush=True)
            faults += len(found)
        print(
            f"{dtype}, {architecture}: {kernels - missing} of {kernels} kernels, "
            f"{binaries} binaries, {faults} faults",
            flush=True,
        )
        wrong = wrong or faults > 0 or missing > 0
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
