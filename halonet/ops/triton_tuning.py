"""Which shape of tiles a Triton kernel runs with: a few candidates, timed once for a problem.

The candidates were chosen by what the compiler reports for Ampere to Blackwell (registers, spills,
shared memory: `benchmarks/gpu_compile.py`) and by the time to be expected of it
(`benchmarks/gpu_model.py`), not by timings: no GPU was at hand.
"""

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch


class Tiles(NamedTuple):
    """The shape of one program's work."""

    queries: int  # at a time
    key_rows: int  # keys at a time are key_rows * key_columns; only their product counts where
    key_columns: int  # the keys are those of a window
    warps: int
    stages: int  # of the software pipeline
    registers: int | None = None  # the most that a thread may have; None is up to the compiler

    @property
    def options(self) -> dict[str, int]:
        """Triton's launch options."""
        options = {"num_warps": self.warps, "num_stages": self.stages}
        return options if self.registers is None else options | {"maxnreg": self.registers}


# Of both tables. Larger ones are taken in parts, with fewer queries: their logits and the addresses
# of their products fill the registers.
MOST_ENTRIES = 128
FEW_QUERIES = 32

# The last resort: these fit every device that Triton supports, at any width.
SMALLEST = Tiles(16, 4, 4, 4, 1)

# Runs a kernel; what comes back is how many registers of a thread it had to keep in memory.
Launch = Callable[[Tiles], int]

# Kept for the life of the process. A race of two threads costs a second timing, no more.
_chosen: dict[tuple, Tiles] = {}


def wanted() -> bool:
    """Whether candidates are timed; if not, the first that fits the device's registers is taken.

    HALONET_AUTOTUNE=0 turns it off, and so does torch.use_deterministic_algorithms: timings
    differ from one process to the next, and the order of sums differs with the tiles.
    """
    return (
        os.environ.get("HALONET_AUTOTUNE", "1") != "0"
        and not torch.are_deterministic_algorithms_enabled()
    )


def list_candidates(
    kernel: str, dtype: torch.dtype, precision: str, channels: int, queries: int, entries: int
) -> list[Tiles]:
    """Tiles worth a try, the best by the model first and the last resort last.

    Args:
        kernel: "forward", "query gradient" or "key gradient".
        dtype: of the maps.
        precision: of products of float32; "ieee" is without tensor cores and takes small tiles.
        channels: the larger of the padded numbers of channels and value channels.
        queries: of a block, padded; no more make sense.
        entries: of both tables, padded.
    """
    if dtype == torch.float32 and precision == "ieee":
        candidates = _EXACT[kernel]
    elif channels > 128 or (dtype == torch.float32 and channels > 64):
        candidates = _WIDE[kernel]
    else:
        # Of float32 the registers hold half as much.
        broad = channels > 32 or dtype == torch.float32
        tables = _BROAD if broad else _MIDDLE if channels > 16 else _NARROW
        candidates = tables[kernel]
    if kernel == "query gradient" and entries > MOST_ENTRIES:
        queries = min(queries, FEW_QUERIES)
    least = _least_warps(kernel, dtype, channels)
    fitted = [_fit(tiles, queries, least) for tiles in candidates]
    # Smaller tiles of queries can have become the same.
    return [*(tiles for tiles in dict.fromkeys(fitted) if tiles != SMALLEST), SMALLEST]


def _least_warps(kernel: str, dtype: torch.dtype, channels: int) -> int:
    """Below these a program's sums don't fit its registers."""
    if dtype == torch.float32 or (kernel != "forward" and channels > 32):
        return 8  # no tiles have more
    return 2 if kernel == "key gradient" and channels > 16 else 1


def _fit(tiles: Tiles, queries: int, least_warps: int) -> Tiles:
    """For a block of few queries: as many a warp as before, since fewer would be no less work."""
    if queries >= tiles.queries:
        return tiles
    warps = max(tiles.warps * queries // tiles.queries, least_warps)
    return tiles._replace(queries=queries, warps=min(warps, tiles.warps))


# Warps of 32 rows read keys, values and places half as often as warps of 16, if registers last.
_NARROW = {
    "forward": (
        Tiles(64, 4, 8, 2, 2),
        Tiles(64, 4, 8, 4, 2),
        Tiles(64, 8, 8, 4, 2),
        Tiles(64, 4, 8, 4, 3),
        Tiles(64, 8, 16, 8, 2),
    ),
    "query gradient": (
        Tiles(32, 4, 8, 1, 1),
        Tiles(32, 4, 8, 2, 1),
        Tiles(32, 4, 8, 2, 2, registers=168),
        Tiles(64, 8, 8, 4, 1),
        Tiles(64, 8, 8, 4, 2, registers=168),
    ),
    "key gradient": (
        Tiles(64, 8, 8, 2, 1),
        Tiles(32, 8, 8, 1, 1),
        Tiles(32, 8, 8, 2, 2),
        Tiles(64, 8, 8, 4, 2),
        Tiles(16, 8, 8, 1, 2),
    ),
}
_MIDDLE = {
    "forward": _NARROW["forward"],
    "query gradient": (
        Tiles(32, 4, 8, 1, 1),
        Tiles(32, 4, 8, 2, 1),
        Tiles(64, 4, 8, 4, 1),
        Tiles(64, 4, 4, 4, 1),
        Tiles(64, 8, 8, 4, 1),
        Tiles(64, 4, 4, 8, 1),
    ),
    "key gradient": (
        Tiles(32, 8, 8, 2, 2),
        Tiles(32, 8, 8, 2, 1),
        Tiles(32, 8, 8, 4, 2),
        Tiles(32, 8, 8, 4, 1),
        Tiles(64, 8, 8, 4, 1),
    ),
}
_BROAD = {
    "forward": (
        Tiles(64, 4, 8, 4, 2),
        Tiles(64, 8, 8, 4, 2),
        Tiles(64, 4, 8, 4, 3),
        Tiles(64, 8, 16, 8, 2),
        Tiles(32, 4, 8, 2, 2),
    ),
    "query gradient": (
        Tiles(64, 4, 4, 4, 1),
        Tiles(64, 4, 8, 4, 1),
        Tiles(64, 8, 8, 4, 1),
        Tiles(32, 4, 8, 4, 1),
        Tiles(64, 4, 4, 8, 1),
        Tiles(32, 4, 4, 4, 1),
        Tiles(32, 4, 4, 8, 1),
    ),
    "key gradient": (
        Tiles(32, 8, 8, 4, 1),
        Tiles(32, 8, 8, 4, 2),
        Tiles(64, 8, 8, 4, 1),
        Tiles(16, 8, 8, 4, 2),
        Tiles(16, 8, 8, 4, 1),
        Tiles(16, 4, 8, 4, 1),
    ),
}
_WIDE = {
    "forward": (
        Tiles(64, 4, 8, 8, 2),
        Tiles(64, 8, 8, 8, 2),
        Tiles(32, 4, 8, 4, 2),
        Tiles(32, 4, 8, 8, 2),
    ),
    "query gradient": (
        Tiles(32, 4, 8, 4, 1),
        Tiles(64, 4, 8, 8, 1),
        Tiles(64, 8, 8, 8, 1),
        Tiles(16, 4, 8, 8, 1),
    ),
    "key gradient": (
        Tiles(32, 8, 8, 8, 1),
        Tiles(64, 8, 8, 8, 1),
        Tiles(32, 4, 8, 4, 1),
        Tiles(16, 4, 8, 4, 1),
    ),
}
_EXACT = {
    "forward": (Tiles(32, 4, 8, 8, 1), Tiles(16, 4, 8, 4, 1), Tiles(16, 4, 4, 8, 1)),
    "query gradient": (Tiles(32, 4, 8, 8, 1), Tiles(16, 4, 8, 4, 1), Tiles(16, 4, 4, 8, 1)),
    "key gradient": (Tiles(32, 4, 8, 8, 1), Tiles(16, 4, 8, 4, 1)),
}


def run_tuned(problem: tuple, candidates: Sequence[Tiles], launch: Launch) -> None:
    """Launch with the best candidate for this problem; a launch may be repeated at will.

    Nothing is timed while a CUDA graph is captured. `problem` is whatever the best candidate
    depends on.
    """
    tune = wanted() and not torch.cuda.is_current_stream_capturing()
    chosen = _chosen.get((*problem, tune))
    if chosen is not None:
        launch(chosen)
    elif tune:
        _chosen[*problem, tune] = chosen = _fastest(candidates, launch)
        launch(chosen)
    else:
        _chosen[*problem, tune] = first_that_fits(candidates, launch)


def first_that_fits(candidates: Sequence[Tiles], launch: Launch) -> Tiles:
    """The first that keeps everything in registers; if none does, the one that lacks the fewest."""
    from triton.runtime.errors import OutOfResources

    refusal, spilled = None, {}
    for tiles in candidates:
        try:
            spilled[tiles] = launch(tiles)
        except OutOfResources as error:
            refusal = error
            continue
        if not spilled[tiles]:
            return tiles
    if not spilled:
        raise RuntimeError(f"no tiles of {list(candidates)} fit this device: {refusal}")
    least = min(spilled, key=spilled.__getitem__)
    launch(least)
    return least


def _fastest(candidates: Sequence[Tiles], launch: Launch) -> Tiles:
    from triton.runtime.errors import OutOfResources

    times = {}
    for tiles in candidates[:-1]:
        try:
            launch(tiles)
        except OutOfResources:
            # What doesn't fit is no candidate; if none does, the last resort runs, and may raise.
            continue
        times[tiles] = _time(lambda tiles=tiles: launch(tiles))
    return min(times, key=times.__getitem__) if times else candidates[-1]


def _time(launch: Callable[[], object], repetitions: int = 8, rounds: int = 3) -> float:
    """Milliseconds of a launch, the least of a few means; nothing is allocated for it."""
    best = float("inf")
    for _ in range(rounds):
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(repetitions):
            launch()
        end.record()
        end.synchronize()
        best = min(best, begin.elapsed_time(end) / repetitions)
    return best
