"""The Triton backend: its kernels through Triton's interpreter on a CPU, and its choice of tiles.

Triton decides when a kernel is defined whether to interpret it: hence processes of their own.
"""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import halonet
from halonet.check.cases import CASES
from halonet.ops import triton_backend, triton_tuning
from halonet.ops.problem import Window
from halonet.ops.triton_tuning import SMALLEST, Tiles

needs_triton = pytest.mark.skipif(not triton_backend.INSTALLED, reason="triton is not installed")


@needs_triton
@pytest.mark.parametrize("group", ["table_1", "table_2", "types", "operator"])
def test_in_the_interpreter(group: str) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.ops.triton_interpreted", group],
        env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@needs_triton
def test_is_refused_on_a_cpu() -> None:
    inputs = CASES[0].inputs(torch.float32)
    choice = halonet.explain_backend(**inputs, **CASES[0].options)
    assert choice.reasons["triton"] == "it needs a CUDA device, got cpu"
    with pytest.raises(NotImplementedError, match="it needs a CUDA device, got cpu"):
        halonet.halo_attention(**inputs, **CASES[0].options, backend="triton")


def test_tiles_of_keys_across_blocks_meet_the_fewest() -> None:
    window = Window(8, 3, 1, 0, 1, 1)
    # Tiles of a block, shifted by 3 to 5 pixels, meet two blocks each and not three.
    shift, count = triton_backend._key_tiles(64, window, 8)
    assert (shift, count) == (3, 9)
    # Without a halo, tiles on the blocks meet one.
    assert triton_backend._key_tiles(64, window._replace(halo_size=0), 8) == (0, 8)
    # On a map of one block there is nothing to gain.
    assert triton_backend._key_tiles(8, window, 8) == (0, 1)


@pytest.mark.parametrize("kernel", ["forward", "query gradient", "key gradient"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", [16, 128, 256])
def test_candidates_fit_the_block_and_end_with_the_smallest(
    kernel: str, dtype: torch.dtype, channels: int
) -> None:
    for precision in ("ieee", "tf32"):
        candidates = triton_tuning.list_candidates(kernel, dtype, precision, channels, 16, 64)
        assert len(candidates) == len(set(candidates)) >= 2
        assert all(tiles.queries == 16 for tiles in candidates)
        assert candidates[-1] == SMALLEST


@pytest.mark.parametrize(
    ("kernel", "dtype", "channels", "warps"),
    [
        ("forward", torch.bfloat16, 16, 1),
        ("forward", torch.bfloat16, 64, 1),
        ("forward", torch.float32, 16, 4),
        ("query gradient", torch.bfloat16, 16, 1),
        ("query gradient", torch.bfloat16, 64, 4),
        ("key gradient", torch.bfloat16, 32, 2),
    ],
    ids=str,
)
def test_few_queries_take_as_few_warps_as_hold_the_sums(
    kernel: str, dtype: torch.dtype, channels: int, warps: int
) -> None:
    first = triton_tuning.list_candidates(kernel, dtype, "tf32", channels, 16, 64)[0]
    assert first.warps == warps


def test_large_tables_take_fewer_queries() -> None:
    for kernel, most in {"forward": 64, "query gradient": 32, "key gradient": 64}.items():
        candidates = triton_tuning.list_candidates(kernel, torch.bfloat16, "ieee", 64, 1024, 256)
        assert max(tiles.queries for tiles in candidates) == most


@pytest.fixture
def fake_device(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A device on which tiles of 128 queries don't fit, and those of 32 are the fastest."""
    errors = pytest.importorskip("triton.runtime.errors")
    device = SimpleNamespace(launched=[], capturing=False, spilled={})

    def launch(tiles: Tiles) -> int:
        if tiles.queries == 128:
            raise errors.OutOfResources(2, 1, "shared memory")
        device.launched.append(tiles.queries)
        return device.spilled.get(tiles.queries, 0)

    def time(launch_it) -> float:
        launch_it()
        return abs(device.launched[-1] - 32)

    device.launch = launch
    device.candidates = [Tiles(queries, 8, 8, 4, 1) for queries in (128, 64, 32, 16)]
    monkeypatch.setattr(triton_tuning, "_time", time)
    monkeypatch.setattr(triton_tuning, "_chosen", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: device.capturing)
    monkeypatch.delenv("HALONET_AUTOTUNE", raising=False)
    return device


def test_tuning_takes_the_fastest_once(fake_device: SimpleNamespace) -> None:
    for _ in range(2):
        triton_tuning.run_tuned(("problem",), fake_device.candidates, fake_device.launch)
    assert fake_device.launched == [64, 64, 32, 32, 32, 32]


@pytest.mark.parametrize("reason", ["environment", "deterministic", "capturing"])
def test_without_tuning_the_first_that_fits_runs(
    fake_device: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    if reason == "environment":
        monkeypatch.setenv("HALONET_AUTOTUNE", "0")
    elif reason == "deterministic":
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    else:
        fake_device.capturing = True
    for _ in range(2):
        triton_tuning.run_tuned(("problem",), fake_device.candidates, fake_device.launch)
    assert fake_device.launched == [64, 64]


@pytest.mark.parametrize(
    ("spilled", "launched"),
    [({64: 2}, [64, 32, 32]), ({64: 2, 32: 1, 16: 3}, [64, 32, 16, 32, 32])],
    ids=["some", "all"],
)
def test_without_tuning_registers_are_not_spilled(
    fake_device: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
    spilled: dict[int, int],
    launched: list[int],
) -> None:
    monkeypatch.setenv("HALONET_AUTOTUNE", "0")
    fake_device.spilled = spilled
    for _ in range(2):
        triton_tuning.run_tuned(("problem",), fake_device.candidates, fake_device.launch)
    assert fake_device.launched == launched


def test_what_fits_no_device_is_said(fake_device: SimpleNamespace) -> None:
    with pytest.raises(RuntimeError, match=r"fit this device: .*shared memory"):
        triton_tuning.first_that_fits(fake_device.candidates[:1], fake_device.launch)
