"""Halo attention's Triton kernels compiled for a GPU that need not be there, and what came out.

Triton brings all that it takes: the assemblers and disassemblers of NVIDIA, and LLVM's for AMD.
"""

import functools
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from halonet.ops.triton_backend import Work
from halonet.ops.triton_tuning import Tiles, first_that_fits

# The most bytes of shared memory that a program may have, by architecture: CUDA's programming
# guide, table of technical specifications; AMD's CDNA 3 guide.
SHARED_BYTES = {
    "sm_80": 163 << 10,
    "sm_86": 99 << 10,
    "sm_89": 99 << 10,
    "sm_90": 227 << 10,
    "sm_100": 227 << 10,
    "gfx942": 64 << 10,
}

# What instructions' names begin with, of NVIDIA and AMD; the first that fits counts.
_KINDS = {
    "tensor": ("HMMA", "HGMMA", "UTCHMMA", "v_mfma"),
    "exponential": ("MUFU.EX2", "v_exp"),
    "special": ("MUFU", "I2F", "F2I", "v_rcp", "v_log", "v_cvt_f32_u32", "v_cvt_u32_f32"),
    "memory": (
        "LD", "ST", "UTMA", "UBLKCP", "RED", "ATOM",
        "global_", "buffer_", "ds_", "flat_", "scratch_", "s_load",
    ),
    "exchange": ("SHFL", "BAR", "SYNCS", "WARPGROUP", "UTC", "s_barrier"),
    "multiply": ("FADD", "FMUL", "FFMA", "HADD2", "HMUL2", "HFMA2", "IMAD", "v_fma", "v_mul"),
    "control": ("BRA", "BSSY", "BSYNC", "NOP", "EXIT", "CALL", "RET", "s_"),
}  # fmt: skip
_TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Binary:
    """What a compiled kernel takes of the device, and what a thread does.

    Attributes:
        registers: of a thread.
        spilled: bytes of a thread that found no place in registers.
        shared: bytes of a program.
        loop: instructions of one turn of the innermost loop, by kind.
        whole: instructions of the whole kernel, each counted once, by kind. Of loops after each
            other, the first is counted: the second, and what is skipped with it, is for scores that
            the first can't hold.
    """

    registers: int
    spilled: int
    shared: int
    loop: Counter[str]
    whole: Counter[str]


def compile_work(work: Work, tiles: Tiles, architecture: str) -> Binary:
    """Compile a kernel as a launch on this architecture would.

    Args:
        work: from `triton_backend.list_work`, of meta tensors for example.
        tiles: one of its candidates.
        architecture: "sm_90" and the like, or "gfx942".
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    _, arguments, constants = work.arrange(tiles)
    names = work.kernel.arg_names
    signature = dict(zip(names, map(_describe_type, arguments), strict=False))
    # Fresh tensors begin at multiples of 16 bytes, which a launch tells the compiler.
    aligned: dict[Any, Any] = {
        (place,): [["tt.divisibility", 16]]
        for place, argument in enumerate(arguments)
        if isinstance(argument, Tensor)
    }
    signature |= dict.fromkeys(constants, "constexpr")
    nvidia = architecture.startswith("sm_")
    target = (
        GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
        if nvidia
        else GPUTarget("hip", architecture, 64)
    )
    source = ASTSource(work.kernel, {name: signature[name] for name in names}, constants, aligned)
    compiled: Any = triton.compile(source, target=target, options=tiles.options)
    if nvidia:
        registers, spilled, lines = _read_nvidia(compiled.asm["cubin"])
    else:
        registers, spilled, lines = _read_amd(compiled.asm["amdgcn"])
    loop, whole = _count_instructions(lines)
    return Binary(registers, spilled, compiled.metadata.shared, loop, whole)


def choose_tiles(
    work: Work, architecture: str, compile_tiles: Callable[[Tiles], Binary] | None = None
) -> tuple[Tiles, Binary]:
    """The candidate that runs on this architecture where none is timed, and its binary.

    Args:
        work: from `triton_backend.list_work`.
        architecture: as of `compile_work`.
        compile_tiles: gives the binary of some tiles, if not `compile_work`.
    """
    from triton.runtime.errors import OutOfResources

    def compile_here(tiles: Tiles) -> Binary:
        return compile_work(work, tiles, architecture)

    compile_once = functools.cache(compile_tiles or compile_here)

    def launch(tiles: Tiles) -> int:
        binary = compile_once(tiles)
        if binary.shared > SHARED_BYTES[architecture]:
            raise OutOfResources(binary.shared, SHARED_BYTES[architecture], "shared memory")
        return binary.spilled

    tiles = first_that_fits(work.candidates, launch)
    return tiles, compile_once(tiles)


def find_faults(
    binary: Binary, tiles: Tiles, architecture: str, *, on_tensor_cores: bool
) -> list[str]:
    """What keeps a binary from being a good first choice, a line each.

    Args:
        binary: from `compile_work`.
        tiles: those it was compiled with.
        architecture: likewise.
        on_tensor_cores: whether its products are to run there.
    """
    faults = []
    if binary.spilled:
        faults.append(f"{binary.spilled} bytes of a thread are spilled")
    if binary.shared > SHARED_BYTES[architecture]:
        faults.append(f"{binary.shared} bytes of shared memory are too many")
    if on_tensor_cores and not binary.loop["tensor"]:
        faults.append("the loop has no tensor-core instruction")
    return [f"{architecture}, {tiles}: {fault}" for fault in faults]


def _describe_type(argument: Tensor | float) -> str:
    if isinstance(argument, Tensor):
        return f"*{_TYPES[argument.dtype]}"
    return "i32" if isinstance(argument, int) else "fp32"


def _read_nvidia(binary: bytes) -> tuple[int, int, list[str]]:
    """Registers, bytes on the stack, and the disassembly."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        usage, listing = (
            subprocess.run(
                [tool.path, option, file.name], check=True, capture_output=True, text=True
            ).stdout
            for tool, option in (
                (knobs.nvidia.cuobjdump, "-res-usage"),
                (knobs.nvidia.nvdisasm, "-c"),
            )
        )
    found = {name: int(number) for name, number in re.findall(r"(\w+):(\d+)", usage)}
    return found["REG"], found["STACK"] + found["LOCAL"], listing.splitlines()


def _read_amd(assembly: str) -> tuple[int, int, list[str]]:
    """The same of AMD's; its registers are those of vectors."""
    found = {
        name: int(number)
        for name, number in re.findall(
            r"\.(vgpr_count|private_segment_fixed_size):\s+(\d+)", assembly
        )
    }
    return found["vgpr_count"], found["private_segment_fixed_size"], assembly.splitlines()


def _count_instructions(lines: list[str]) -> tuple[Counter[str], Counter[str]]:
    """By kind, those of the innermost loop with exponentials, and all."""
    kinds: list[str] = []
    labels: dict[str, int] = {}
    branches: list[tuple[int, str]] = []  # each the number of instructions up to it, and its label
    for line in lines:
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(kinds)
            continue
        # Beside its address NVIDIA's has a predicate, "@!P0".
        found = re.match(r"\s+(?:/\*[0-9a-f]+\*/\s+)?(?:@!?U?P\w+\s+)?([A-Za-z][\w.]*)\s", line)
        if found is None:
            continue
        kinds.append(_kind_of(found[1]))
        target = re.search(r"(?:BRA.*`\(|s_c?branch\w*\s+)(\.L\w+)", line)
        if target:
            branches.append((len(kinds), target[1]))
    jumps = [(place, labels[label]) for place, label in branches if label in labels]
    loops = {
        (target, place): Counter(kinds[target:place]) for place, target in jumps if target < place
    }
    # An outer loop has those of the inner one too, and perhaps some of its first turn.
    least = max((loop["exponential"] for loop in loops.values()), default=0) / 2
    weighing = sorted(span for span, loop in loops.items() if loop["exponential"] >= max(least, 1))
    inner = [
        (first, end)
        for first, end in weighing
        if not any(
            first <= other[0] and other[1] <= end for other in weighing if other != (first, end)
        )
    ]
    whole = Counter(kinds)
    if not inner:
        return Counter(), whole
    counted = inner[0][1]
    for first, end in inner[1:]:
        if first < counted:
            continue
        # A later loop goes with what a branch skips together with it.
        skipped = [
            (place, target)
            for place, target in jumps
            if counted <= place <= first and end <= target
        ]
        first, end = max([(first, end), *skipped], key=lambda span: span[1] - span[0])
        whole -= Counter(kinds[first:end])
        counted = end
    return loops[inner[0]], whole


def _kind_of(instruction: str) -> str:
    for kind, beginnings in _KINDS.items():
        if instruction.startswith(beginnings):
            return kind
    return "integer"
