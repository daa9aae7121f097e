"""Expect the Triton kernels' time on GPUs that are not at hand, from what their binaries hold.

    python benchmarks/gpu_model.py

For H1's stages at batch 128 in bfloat16 it prints what the loops hold, which resource of the device
holds each pass, and the expected time beside timm's layer counted the same way. Nothing is
measured: docs/gpu.md says what the model leaves out.
"""

import argparse
from dataclasses import dataclass
from functools import cache

import torch
from gpu_compile import describe_work

from halonet.check.stages import Stage, list_stages
from halonet.ops.triton_backend import Work
from halonet.ops.triton_compilation import SHARED_BYTES, Binary, choose_tiles
from halonet.ops.triton_tuning import Tiles

MODEL = "halonet_h1"
BATCH = 128
SIZE = 2  # bytes of a number
# Clocks from one turn of a loop, or one program's rest, to what depends on it: assumed.
TURN_LATENCY = 600
REST_LATENCY = 3000


@dataclass(frozen=True)
class Device:
    """A GPU by its data sheet, and by the CUDA programming guide's table of throughputs.

    Attributes:
        name: as it is sold.
        architecture: as the compiler names it.
        processors: streaming multiprocessors, of four schedulers each.
        clock: boost, in Hz.
        bandwidth: of its memory, bytes a second.
        tensor_rate: dense bfloat16 products with float32 sums, operations a second.
        multipliers: float32 additions and multiplications, a clock and processor.
        warps: that a processor holds at most.
    """

    name: str
    architecture: str
    processors: int
    clock: float
    bandwidth: float
    tensor_rate: float
    multipliers: int
    warps: int


DEVICES = (
    Device("A100 SXM 80 GB", "sm_80", 108, 1.41e9, 2.04e12, 312e12, 64, 64),
    Device("H100 SXM", "sm_90", 132, 1.83e9, 3.35e12, 989e12, 128, 64),
    Device("RTX 4090", "sm_89", 128, 2.52e9, 1.01e12, 165e12, 128, 48),
)
# The other throughputs, a clock and processor, are the same on all three.
EXPONENTIALS = 16
INTEGERS = 64  # and comparisons, selections, conversions
ISSUED = 4  # instructions of a warp
CACHE_BYTES = 40  # from the second-level cache; 47 by the A100's white paper
REGISTERS = 1 << 16


@dataclass(frozen=True)
class Expected:
    """A pass over a stage: seconds that each resource needs, and what keeps the device busy."""

    bounds: dict[str, float]

    @property
    def seconds(self) -> float:
        """The longest; the others overlap with it."""
        return max(self.bounds.values())

    @property
    def held_by(self) -> str:
        """The resource that takes longest."""
        return max(self.bounds, key=self.bounds.__getitem__)


@cache
def compile_for(stage: Stage, kernel: str, architecture: str) -> tuple[Binary, Tiles, Work]:
    """A kernel's binary, with the tiles that run where none are timed."""
    works = describe_work(stage, torch.bfloat16, BATCH)
    work = next(work for work in works if work.name == kernel)
    tiles, binary = choose_tiles(work, architecture)
    return binary, tiles, work


def count_residents(binary: Binary, tiles: Tiles, device: Device) -> int:
    """Programs that a processor holds at once."""
    threads = 32 * tiles.warps
    by_registers = REGISTERS // (max(binary.registers, 1) * threads)
    # A program takes a kilobyte of the shared memory for itself.
    by_memory = SHARED_BYTES[device.architecture] // (binary.shared + 1024)
    return max(1, min(by_registers, by_memory, device.warps // tiles.warps, 32))


def count_turns(stage: Stage, kernel: str, tiles: Tiles) -> tuple[float, int]:
    """Turns of the loop over all programs, and how often the rest of the kernel runs."""
    keys = tiles.key_rows * tiles.key_columns
    side = stage.block_size // stage.stride
    tiles_of_block = -(-side * side // tiles.queries)
    starts = range(0, stage.map_size, stage.block_size)
    if kernel == "key gradient":
        programs = met = 0
        tile, halo, block = tiles.key_rows, stage.halo_size, stage.block_size
        shift = tile // 2 if stage.map_size > block else 0
        for start in range(-shift, stage.map_size, tile):
            first, last = max(start, 0), min(start + tile, stage.map_size) - 1
            low = -(-max(first - halo - block + 1, 0) // block)
            high = min((last + halo) // block, len(starts) - 1)
            met += high - low + 1
            programs += 1
        whole = BATCH * stage.heads
        return float(whole * met * met * tiles_of_block), whole * programs * programs
    seen = [
        min(stage.map_size, start + stage.block_size + stage.halo_size)
        - max(0, start - stage.halo_size)
        for start in starts
    ]
    turns = sum(-(-rows * columns // keys) for rows in seen for columns in seen)
    whole = BATCH * stage.heads * tiles_of_block
    return float(whole * turns), whole * len(seen) ** 2


def expect_kernel(stage: Stage, kernel: str, device: Device) -> Expected:
    """Seconds that one kernel's first choice of tiles needs of each resource."""
    binary, tiles, work = compile_for(stage, kernel, device.architecture)
    turns, rests = count_turns(stage, kernel, tiles)
    rest = binary.whole - binary.loop
    warps = tiles.warps

    def total(kind: str) -> float:
        return warps * (turns * binary.loop[kind] + rests * rest[kind])

    everything = warps * (turns * binary.loop.total() + rests * rest.total())
    clocks = device.processors * device.clock
    constants = work.plan.constants
    channels, value_channels = constants["BLOCK_C"], constants["BLOCK_D"]
    keys = tiles.key_rows * tiles.key_columns
    places = work.arrange(tiles)[2]["BLOCK_P"]
    # Widths of the products in a turn.
    widths = {
        "forward": channels + places + value_channels,
        "query gradient": 2 * channels + 2 * places + value_channels,
        "key gradient": 2 * channels + places + 2 * value_channels,
    }[kernel]
    products = 2.0 * turns * tiles.queries * keys * widths
    moved = count_bytes(stage, kernel)
    if kernel == "key gradient":
        read = SIZE * (tiles.queries * (channels + value_channels + places) + keys * places)
    else:
        read = SIZE * keys * (channels + value_channels + places)
    if kernel != "forward":
        # One kernel leaves the relative logits for the other.
        small = -(-stage.map_size // stage.stride)
        moved += SIZE * BATCH * small**2 * stage.heads * places
    chain = TURN_LATENCY * turns + REST_LATENCY * rests
    residents = count_residents(binary, tiles, device)
    return Expected(
        {
            "memory": moved / device.bandwidth,
            "cache": turns * read / (CACHE_BYTES * clocks),
            "tensor": products / device.tensor_rate,
            "exponential": 32 * (total("exponential") + total("special")) / (EXPONENTIALS * clocks),
            "integer": 32 * total("integer") / (INTEGERS * clocks),
            "multiply": 32 * total("multiply") / (device.multipliers * clocks),
            "issue": everything / (ISSUED * clocks),
            "latency": chain / (residents * clocks),
        }
    )


def count_bytes(stage: Stage, kernel: str) -> float:
    """Bytes from and to memory: each map once, as neighbouring windows meet in the cache."""
    small = -(-stage.map_size // stage.stride)
    queries, keys = BATCH * small**2 * stage.width, BATCH * stage.map_size**2 * stage.width
    results = BATCH * small**2 * stage.value_width
    values = BATCH * stage.map_size**2 * stage.value_width
    statistics = 4 * BATCH * small**2 * stage.heads
    if kernel == "forward":
        return SIZE * (queries + keys + values + results) + statistics
    if kernel == "query gradient":
        return SIZE * (2 * queries + keys + values + 2 * results) + 2 * statistics
    return SIZE * (queries + 2 * keys + 2 * values + results) + 2 * statistics


def expect_floor(stage: Stage, device: Device, *, backward: bool) -> float:
    """The roofline: inputs and outputs once, or the operator's products at the full rate."""
    kernels = ("query gradient", "key gradient") if backward else ("forward",)
    moved = sum(count_bytes(stage, kernel) for kernel in kernels)
    operations = stage.count_operations(BATCH)
    if backward:
        operations = stage.count_operations(BATCH, backward=True) - operations
    return max(moved / device.bandwidth, operations / device.tensor_rate)


def expect_timm(stage: Stage, device: Device, *, backward: bool) -> float:
    """timm's HaloAttn without its projections, each step at its own bound, one after another.

    The steps are those of its forward pass as compiled: windows written out, products of matrices
    (q.k and its two tables, weights and values), the logits widened and added in the softmax, the
    blocks put back. A backward pass reads what the step read and the result's gradient, and writes
    a gradient for each input.
    """
    small, block = -(-stage.map_size // stage.stride), stage.block_size
    window = block + 2 * stage.halo_size
    blocks = BATCH * (-(-stage.map_size // block)) ** 2
    queries = float(BATCH * small**2 * stage.width)
    results = float(BATCH * small**2 * stage.value_width)
    maps = float(BATCH * stage.map_size**2 * (stage.width + stage.value_width))
    key_windows = float(blocks * window**2 * stage.width)
    value_windows = float(blocks * window**2 * stage.value_width)
    scores = float(BATCH * small**2 * stage.heads * window**2)
    head, value_head = stage.width // stage.heads, stage.value_width // stage.heads
    logits = float(BATCH * small**2 * stage.heads * 2 * (2 * window - 1))
    steps: list[tuple[list[float], float, float, float]] = [
        # inputs, output, products, exponentials
        ([queries], queries, 0, 0),
        ([maps], key_windows + value_windows, 0, 0),
        ([queries, key_windows], scores, 2 * scores * head, 0),
        ([queries], logits, 2 * logits * head, 0),
        ([scores, logits], scores, 0, scores),
        ([scores, value_windows], results, 2 * scores * value_head, 0),
        ([results], results, 0, 0),
    ]
    total = 0.0
    for inputs, output, products, exponentials in steps:
        moved = sum(inputs) + output
        if backward:
            # A product's inputs are read for each other's gradients; so are the softmax's weights.
            read = sum(inputs) if products else output if exponentials else 0.0
            moved, products, exponentials = output + read + sum(inputs), 2 * products, 0
        total += max(
            SIZE * moved / device.bandwidth,
            products / device.tensor_rate,
            exponentials / (EXPONENTIALS * device.processors * device.clock),
        )
    return total


def print_loops(stages: dict[str, Stage], devices: tuple[Device, ...]) -> None:
    """What the binaries hold."""
    print(
        "| stage | kernel | device | tiles | registers | programs | tensor | exponential "
        "| multiply | integer | memory | other | rest |"
    )
    print("|---|---|---|---|" + "---:|" * 9)
    for name, stage in stages.items():
        for kernel in ("forward", "query gradient", "key gradient"):
            for device in devices:
                binary, tiles, _ = compile_for(stage, kernel, device.architecture)
                loop = binary.loop
                kinds = ("tensor", "exponential", "multiply", "integer", "memory")
                cells = [
                    name,
                    kernel,
                    device.name.split(" SXM")[0],
                    f"{tiles.queries} x {tiles.key_rows * tiles.key_columns}, {tiles.warps} warps",
                    binary.registers,
                    count_residents(binary, tiles, device),
                    *(loop[kind] for kind in kinds),
                    loop.total() - sum(loop[kind] for kind in kinds),
                    binary.whole.total() - loop.total(),
                ]
                print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def print_times(stages: dict[str, Stage], devices: tuple[Device, ...]) -> None:
    """What is expected of both passes, and of timm's."""
    print("| stage | device | pass | microseconds | held by | of the roofline | timm's | times |")
    print("|---|---|---|---:|---|---:|---:|---:|")
    for name, stage in stages.items():
        for device in devices:
            for label, kernels in (
                ("forward", ("forward",)),
                ("backward", ("query gradient", "key gradient")),
            ):
                parts = [expect_kernel(stage, kernel, device) for kernel in kernels]
                seconds = sum(part.seconds for part in parts)
                held = ", ".join(dict.fromkeys(part.held_by for part in parts))
                backward = label == "backward"
                floor = expect_floor(stage, device, backward=backward)
                timm = expect_timm(stage, device, backward=backward)
                print(
                    f"| {name} | {device.name.split(' SXM')[0]} | {label} | {1e6 * seconds:.0f} | "
                    f"{held} | {100 * floor / seconds:.0f} % | {1e6 * timm:.0f} | "
                    f"{timm / seconds:.1f} |",
                    flush=True,
                )


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description="Expect the Triton kernels' time on paper.")
    parser.add_argument("--device", nargs="*", choices=[device.architecture for device in DEVICES])
    parser.add_argument("--stage", nargs="*", choices=[*list_stages(MODEL)])
    arguments = parser.parse_args()
    devices = tuple(
        device
        for device in DEVICES
        if arguments.device is None or device.architecture in arguments.device
    )
    stages = {
        name: stage
        for name, stage in list_stages(MODEL).items()
        if arguments.stage is None or name in arguments.stage
    }
    print_loops(stages, devices)
    print()
    print_times(stages, devices)


if __name__ == "__main__":
    main()
