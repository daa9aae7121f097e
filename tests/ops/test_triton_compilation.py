"""The Triton kernels compiled for GPUs that are not there: what they take, and what their loops do.

`benchmarks/gpu_compile.py` does the same for the whole family.
"""

import functools
import importlib.util
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
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

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
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
    assert find_faults(binary, tiles, architecture, on_tensor_cores=narrow) == []
    assert binary.loop["exponential"] > 0
    assert binary.registers <= 255


def test_gradient_of_large_tables_is_taken_in_parts() -> None:
    from halonet.ops.triton_compilation import choose_tiles, find_faults

    work = describe_work(32, 3, 1, 64, 64, "half", BFLOAT16)["query gradient"]
    tiles, binary = choose_tiles(work, "sm_80")
    assert tiles == work.candidates[0]
    assert find_faults(binary, tiles, "sm_80", on_tensor_cores=True) == []


def test_half_and_full_tables_take_the_same_kernels() -> None:
    half, full, none = (
        describe_work(8, 3, 1, 16, 16, tables, BFLOAT16) for tables in ("half", "full", "none")
    )

    def describe(work: Work) -> tuple:
        _, arguments, constants = work.arrange(work.candidates[0])
        types = [getattr(one, "shape", type(one)) for one in arguments]
        return types, constants, work.candidates

    for name, work in half.items():
        assert describe(work) == describe(full[name])
        assert describe(work) != describe(none[name])


def test_spilling_tiles_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
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
    words = ["--stage", "stage1", "stage4", "--device", "sm_90"]
    finished = subprocess.run(
        [sys.executable, BENCHMARKS / "gpu_model.py", *words],
        check=True,
        capture_output=True,
        text=True,
    )
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in finished.stdout.splitlines()[-4:]
    ]
    assert [row[:3] for row in rows] == [
        [stage, "H100", name] for stage in ("stage1", "stage4") for name in ("forward", "backward")
    ]
    # Half of the roofline, where the most is to do for each byte too.
    assert all(int(row[5].removesuffix(" %")) >= 50 for row in rows)
    forward, backward = rows[2:]
    # One map of 8 x 8 pixels and 8 heads of 64 channels in 128 images, of queries, keys, values and
    # results, and a number of 4 bytes for each softmax, at 3.35 TB/s.
    numbers = 128 * 8 * 8 * 8
    assert int(forward[3]) == round(numbers * (4 * 64 * 2 + 4) / 3.35e12 * 1e6)
    assert forward[4] == "memory"
    assert int(backward[3]) > int(forward[3])


def test_faults_are_found() -> None:
    from halonet.ops.triton_compilation import Binary, find_faults
    from halonet.ops.triton_tuning import SMALLEST

    bad = Binary(255, 8, 100 << 10, Counter(integer=3), Counter(integer=9))
    found = find_faults(bad, SMALLEST, "sm_86", on_tensor_cores=True)
    assert len(found) == 3
    assert "sm_86" in found[0]
    assert "8 bytes of a thread are spilled" in found[0]
    # On a device with more shared memory, for products without tensor cores, only the spill counts.
    assert len(find_faults(bad, SMALLEST, "sm_90", on_tensor_cores=False)) == 1


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


@pytest.fixture
def gpu_compile(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script that compiles the whole family, with a compiler that only counts."""
    from halonet.ops.triton_compilation import Binary

    spec = importlib.util.spec_from_file_location("gpu_compile", BENCHMARKS / "gpu_compile.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_compile", script)
    spec.loader.exec_module(script)
    kinds = dict([*script.list_kinds().items()][:1])
    monkeypatch.setattr(script, "list_kinds", lambda: kinds)

    def compile_work(work: Work, tiles: Tiles, architecture: str) -> Binary:
        script.compiled.append((work.name, tiles))
        if work.name in script.failing:
            raise ValueError("no\nregisters")
        spilled = 8 if tiles.queries > script.most_queries else 0
        loop = Counter(tensor=4)
        return Binary(200, spilled, 1 << 10, loop, loop)

    script.compiled, script.failing, script.most_queries = [], (), 64  # type: ignore[attr-defined]
    monkeypatch.setattr(script, "compile_work", compile_work)
    return script


def run_script(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, record: Path, *words: str
) -> int:
    """On one kind of attention, in bfloat16, for one architecture."""
    given = ["--record", str(record), "--dtype", "bfloat16", "--architecture", "sm_90", *words]
    script.compiled.clear()
    monkeypatch.setattr(sys, "argv", ["gpu_compile.py", *given])
    return script.main()


def test_record_is_gone_on_with(gpu_compile, monkeypatch, tmp_path, capsys) -> None:
    record = tmp_path / "record.csv"
    run = functools.partial(run_script, gpu_compile, monkeypatch, record)
    gpu_compile.most_queries = 32  # the first choices of two kernels spill
    assert run() == 0
    first = len(gpu_compile.compiled)
    assert first > 3
    assert "bfloat16, sm_90: 3 of 3 kernels, " in capsys.readouterr().out
    written = record.read_text()
    assert len(written.splitlines()) == 1 + first
    # What is recorded isn't compiled again, and shown without a compiler.
    assert run() == run("--show") == 0
    assert gpu_compile.compiled == []
    assert run("--candidates", "--show") == 1
    assert run("--candidates") == 0
    assert 0 < len(gpu_compile.compiled) == len(record.read_text().splitlines()) - 1 - first
    assert record.read_text().startswith(written)
    assert run("--candidates", "--show") == 0


def test_record_of_other_kernels_does_not_count(gpu_compile, monkeypatch, tmp_path, capsys) -> None:
    record = tmp_path / "record.csv"
    run = functools.partial(run_script, gpu_compile, monkeypatch, record)
    assert run() == 0
    count = len(gpu_compile.compiled)
    hash_source = gpu_compile.hash_source

    def change_gradients(*names: str) -> str:
        return hash_source(*names) + ("changed" if "triton_gradients" in names else "")

    monkeypatch.setattr(gpu_compile, "hash_source", change_gradients)
    written = record.read_text()
    capsys.readouterr()
    assert run("--show") == 1
    shown = capsys.readouterr().out
    assert "2 rows of" in shown
    assert "1 of 3 kernels" in shown
    assert record.read_text() == written
    assert run() == 0
    assert {name for name, _ in gpu_compile.compiled} == {"query gradient", "key gradient"}
    assert len(record.read_text().splitlines()) == 1 + count


def test_what_the_compiler_refuses_is_a_fault(gpu_compile, monkeypatch, tmp_path, capsys) -> None:
    record = tmp_path / "record.csv"
    gpu_compile.failing = ("forward",)
    gpu_compile.most_queries = 0
    for words in ([], ["--show"]):
        assert run_script(gpu_compile, monkeypatch, record, *words) == 1
        shown = capsys.readouterr().out
        assert "forward, sm_90: ValueError: no registers\n" in shown
        assert "key gradient, sm_90, Tiles(" in shown
        assert "8 bytes of a thread are spilled" in shown
        assert "3 of 3 kernels" in shown
        assert "3 faults\n" in shown


def test_comments_are_no_part_of_a_kernel(gpu_compile, monkeypatch, tmp_path) -> None:
    code = '''"""Said."""\nx = 1\n\n\ndef f():\n    """Said."""\n    return "kept"\n'''
    monkeypatch.setattr(gpu_compile.triton_backend, "__file__", str(tmp_path / "a.py"))
    (tmp_path / "one.py").write_text(code)
    (tmp_path / "same.py").write_text(code.replace("Said.", "Said otherwise.") + "# and\n")
    (tmp_path / "other.py").write_text(code.replace("x = 1", "x = 2"))
    one, same, other = (gpu_compile.hash_source(name) for name in ("one", "same", "other"))
    assert one == same != other


def test_committed_record_is_of_these_kernels() -> None:
    record = BENCHMARKS / "results" / "gpu_compile" / "record.csv"
    finished = subprocess.run(
        [sys.executable, BENCHMARKS / "gpu_compile.py", "--record", record, "--show"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert finished.stderr == ""
    shown = finished.stdout.splitlines()
    faults = [line for line in shown if line.startswith("  ")]
    # Of products without tensor cores the operands lie in registers: too many with tables of such
    # blocks, or with such heads.
    kinds = "(b 32|b 8, h 2, stride 2, 128 and 128 channels)"
    known = rf"  float32, {kinds}, .*query gradient, .* bytes of a thread are spilled"
    assert [line for line in faults if not re.fullmatch(known, line)] == []
    assert len(shown) == 6 * 4 + len(faults), finished.stdout  # architectures, types; nothing stale
