"""The Triton kernels compiled for GPUs that are not there: what they take, and what their loops do.

`benchmarks/gpu_compile.py` does the same for the whole family.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from halonet.check.cases import Case
from halonet.ops import triton_backend
from halonet.ops.halo_attention import resolve_arguments
from halonet.ops.triton_backend import Work, list_work
from halonet.ops.triton_tuning import Tiles

pytestmark = [
    pytest.mark.skipif(not triton_backend.INSTALLED, reason="triton is not installed"),
    pytest.mark.skipif(triton_backend.INTERPRETING, reason="the kernels are interpreted"),
]

FLOAT32, BFLOAT16, FLOAT16 = torch.float32, torch.bfloat16, torch.float16


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path, monkeypatch):
    """Compiles anew, and leaves nothing behind."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def describe_work(
    block_size: int,
    halo_size: int,
    stride: int,
    channels: int,
    value_channels: int,
    tables: str,
    dtype: torch.dtype,
) -> dict[str, Work]:
    """The three kernels, by name, for maps without memory."""
    options = {"block_size": block_size, "halo_size": halo_size, "stride": stride}
    case = Case("", 64, 64, options, 1, 2, channels, value_channels, tables)
    inputs = {name: tensor.to("meta") for name, tensor in case.inputs(dtype).items()}
    without: dict[str, Any] = {"row_table": None, "column_table": None}
    problem, _ = resolve_arguments(**without | inputs, **options)
    return {work.name: work for work in list_work(problem)}


# Every kernel on every architecture, and the family's blocks, heads, strides, types and tables.
@pytest.mark.parametrize("kernel", ["forward", "query gradient", "key gradient"])
@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        ("sm_80", (8, 3, 1, 16, 16, "half", BFLOAT16)),  # H1's first stage
        ("sm_86", (12, 2, 1, 64, 64, "half", BFLOAT16)),
        ("sm_86", (10, 3, 2, 16, 64, "half", FLOAT16)),
        ("sm_89", (10, 3, 1, 32, 32, "half", BFLOAT16)),
        ("sm_90", (8, 3, 1, 64, 64, "full", FLOAT16)),
        ("sm_90", (14, 2, 2, 16, 16, "half", FLOAT32)),
        ("sm_100", (8, 4, 1, 32, 96, "none", BFLOAT16)),
    ],
    ids=str,
)
def test_what_runs_fits_the_device(kernel: str, architecture: str, kind: tuple) -> None:
    from halonet.ops.triton_compilation import choose_tiles, find_faults

    work = describe_work(*kind)[kernel]
    tiles, binary = choose_tiles(work, architecture)
    narrow = kind[-1] != FLOAT32
    assert find_faults(binary, tiles, architecture, narrow=narrow) == []
    assert binary.loop["exponential"] > 0
    assert binary.registers <= 255


def test_spilling_tiles_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    from collections import Counter

    from halonet.ops import triton_compilation
    from halonet.ops.triton_compilation import Binary, choose_tiles

    work = describe_work(8, 3, 1, 16, 16, "half", BFLOAT16)["forward"]
    first, second, third = work.candidates[:3]
    binaries = {first: (8, 0), second: (0, 200 << 10), third: (0, 1 << 10)}

    def compile_work(work: Work, tiles: Tiles, architecture: str) -> Binary:
        spilled, shared = binaries.get(tiles, (16, 1 << 10))
        return Binary(255, spilled, shared, Counter(), Counter())

    monkeypatch.setattr(triton_compilation, "compile_work", compile_work)
    assert choose_tiles(work, "sm_86")[0] == third
    assert choose_tiles(work, "sm_90")[0] == second
    del binaries[third], binaries[second]
    assert choose_tiles(work, "sm_90")[0] == first


@pytest.mark.parametrize("kernel", ["forward", "query gradient", "key gradient"])
def test_other_candidates_compile(kernel: str) -> None:
    from halonet.ops.triton_compilation import SHARED_BYTES, compile_work

    work = describe_work(8, 3, 1, 16, 16, "half", BFLOAT16)[kernel]
    for tiles in work.candidates[1:]:
        binary = compile_work(work, tiles, "sm_90")
        assert binary.shared <= SHARED_BYTES["sm_90"], tiles
        assert binary.loop["tensor"] > 0, tiles


def test_compiles_for_amd() -> None:
    backends = pytest.importorskip("triton.backends").backends
    if "amd" not in backends:
        pytest.skip("this Triton has no compiler for AMD")
    from halonet.ops.triton_compilation import SHARED_BYTES, compile_work

    work = describe_work(8, 3, 1, 16, 16, "half", BFLOAT16)["forward"]
    binary = compile_work(work, work.candidates[0], "gfx942")
    assert binary.spilled == 0
    assert binary.shared <= SHARED_BYTES["gfx942"]
    assert binary.loop["tensor"] > 0


def test_model_of_the_time_to_expect() -> None:
    benchmarks = Path(__file__).parents[2] / "benchmarks"
    finished = subprocess.run(
        [sys.executable, benchmarks / "gpu_model.py", "--stage", "stage4", "--device", "sm_90"],
        check=True,
        capture_output=True,
        text=True,
    )
    forward, backward = (
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in finished.stdout.splitlines()[-2:]
    )
    assert [row[:3] for row in (forward, backward)] == [
        ["stage4", "H100", "forward"],
        ["stage4", "H100", "backward"],
    ]
    # One map of 8 x 8 pixels and 8 heads of 64 channels in 128 images, of queries, keys, values and
    # results, and a number of 4 bytes for each softmax, at 3.35 TB/s.
    numbers = 128 * 8 * 8 * 8
    assert int(forward[3]) == round(numbers * (4 * 64 * 2 + 4) / 3.35e12 * 1e6)
    assert forward[4] == "memory"
    assert int(backward[3]) > int(forward[3])


def test_faults_are_found() -> None:
    from collections import Counter

    from halonet.ops.triton_compilation import Binary, find_faults
    from halonet.ops.triton_tuning import SMALLEST

    bad = Binary(255, 8, 100 << 10, Counter(integer=3), Counter(integer=9))
    found = find_faults(bad, SMALLEST, "sm_86", narrow=True)
    assert len(found) == 3
    assert "sm_86" in found[0]
    assert "8 bytes of a thread are spilled" in found[0]
    # On a device with more shared memory, for products without tensor cores, only the spill counts.
    assert len(find_faults(bad, SMALLEST, "sm_90", narrow=False)) == 1


def test_what_a_branch_skips_with_a_later_loop_is_not_counted() -> None:
    from halonet.ops.triton_compilation import _count_instructions

    loop = ["        MUFU.EX2 R1, R1 ;", "        FADD R1, R1, R2 ;"]
    lines = [
        "        IADD3 R0, R0, R1 ;",
        ".L_first:", *loop, "        BRA `(.L_first) ;",
        "        BRA `(.L_end) ;",
        "        LDG.E R3, [R2] ;",
        ".L_second:", *loop, "        BRA `(.L_second) ;",
        "        STS [R2], R3 ;",
        ".L_end:", "        EXIT ;",
    ]  # fmt: skip
    turn, whole = _count_instructions(lines)
    assert turn == {"exponential": 1, "multiply": 1, "control": 1}
    assert whole == {"integer": 1, "exponential": 1, "multiply": 1, "control": 3}
