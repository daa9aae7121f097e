"""halonet check: what it finds of right and wrong backends, and what it prints."""

import json

import pytest
import torch

from halonet import cli
from halonet.check import backends, stages
from halonet.check.backends import check_device
from halonet.check.cases import CASES
from halonet.check.stages import Stage, list_stages
from halonet.cli.check import describe_result
from halonet.ops import cpu, cpu_norm, halo_attention, sdpa
from halonet.ops.halo_attention import Backend

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No time for speeds, and a matrix rate of 100 GFLOP/s."""
    monkeypatch.setattr(backends, "LIMIT", -1.0)
    monkeypatch.setattr(backends, "measure_matrix_rate", lambda *_, **__: 100e9)
    monkeypatch.setenv("HALONET_AUTOTUNE", "0")


@pytest.fixture
def replace_sdpa(monkeypatch):
    """Puts another function in sdpa's place."""

    def replace(run):
        changed = tuple(
            Backend(one.name, one.why_not, run) if one.name == "sdpa" else one
            for one in halo_attention.BACKENDS
        )
        monkeypatch.setattr(halo_attention, "BACKENDS", changed)

    return replace


def test_right_backends_have_no_faults():
    found = check_device(CPU)
    assert found.faults == []
    # Four cases, with a result and five gradients each, in two types.
    assert found.compared["sdpa"] == 4 * 6 * 2
    assert found.untimed[-1] == "sdpa stage4"


def test_all_cases_of_the_tests_are_compared_if_asked(capsys):
    # A result, and a gradient of each input.
    count = sum(len(case.inputs()) + 1 for case in CASES)
    assert count > 100
    cli.main(["check", "--device", "cpu", "--thorough"])
    shown = capsys.readouterr().out
    assert "in float32, bfloat16 and float16" in shown
    assert f"equals the reference in {3 * count} results and gradients" in shown
    assert shown.endswith("\nno faults\n")


@pytest.mark.skipif(cpu.MISSING is not None, reason=str(cpu.MISSING))
def test_a_wrong_activation_is_found(monkeypatch):
    def spoil(name, change):
        right = getattr(cpu_norm, name)
        monkeypatch.setattr(cpu_norm, name, lambda *a, **given: change(right(*a, **given)))

    spoil("affine_silu", lambda found: 1.2 * found)
    spoil("pool_silu", lambda found: found + 0.1)
    spoil("norm_silu_gradient", lambda found: (*found[:3], 1.1 * found[3]))
    found = check_device(CPU)
    assert found.compared["cpu"] == 4 * 6 * 2 + 2 * 7
    assert [fault.partition(":")[0] for fault in found.faults] == [
        f"cpu on cpu, {dtype}, norm and SiLU, {key}"
        for dtype in ("float32", "bfloat16")
        for key in ("result", "gradient of bias", "pooled")
    ]
    spoil("norm_statistics", lambda found: (found[0], 1.1 * found[1]))
    assert any("variance" in fault for fault in check_device(CPU).faults)


def shift_gradient(problem):
    """sdpa's result, with gradients that are a thousandth too large."""
    result = sdpa.run(problem)
    return result + 0.001 * (result - result.detach())


def test_wrong_gradients_are_found(replace_sdpa):
    replace_sdpa(shift_gradient)
    faults = check_device(CPU).faults
    assert all("gradient of" in fault for fault in faults)
    assert "sdpa on cpu, float32, stride, gradient of key: error" in "\n".join(faults)


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_a_fault_exits_with_1(replace_sdpa, capsys, words):
    def fail(problem):
        raise RuntimeError("no kernel\nimage")

    replace_sdpa(fail)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["check", "--device", "cpu", *words])
    assert stopped.value.code == 1
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "sdpa on cpu, float32, stride: RuntimeError: no kernel image" in shown.out
    if words:
        assert len(json.loads(shown.out)["faults"]) == 4 * 2
    else:
        assert "\n8 faults\n" in shown.out
        assert "WRONG in 8 of 8 results" in shown.out


def test_a_library_that_is_there_and_unusable_is_a_fault(monkeypatch, capsys):
    monkeypatch.setattr(cpu, "MISSING", "the native library can't be loaded: odd")
    monkeypatch.setattr(cpu, "find_library", lambda name: name)
    with pytest.raises(SystemExit):
        cli.main(["check", "--device", "cpu"])
    shown = capsys.readouterr().out
    assert shown.endswith("1 faults\n  the native library can't be loaded: odd\n")
    assert "cpu        doesn't run: the native library can't be loaded: odd\n" in shown


def test_what_is_printed(monkeypatch, capsys):
    monkeypatch.setattr(backends, "LIMIT", 60.0)
    monkeypatch.setattr(backends, "MODEL", "halonet_tiny")
    monkeypatch.setattr(backends, "time_step", lambda step, *_, **__: step() is None or 0.002)
    cli.main(["check", "--device", "cpu"])
    shown = capsys.readouterr().out
    assert shown.startswith("halonet ")
    assert shown.endswith("\nno faults\n")
    rows = [line.split() for line in shown.splitlines() if line.startswith("stage1 ")]
    rate = list_stages("halonet_tiny")["stage1"].count_operations(4) / 0.002 / 1e9
    assert ["stage1", "sdpa", "2.00", f"{rate:.1f}", f"{rate:.1f}", "%"] in [
        row[:6] for row in rows
    ]
    cli.main(["check", "--device", "cpu", "--json"])
    (device,) = json.loads(capsys.readouterr().out)["devices"]
    assert {speed["backend"] for speed in device["speeds"]} == set(device["compared"])


def test_triton_that_is_right_may_come_first():
    reasons = {"cpu": "no", "sdpa": None, "reference": None, "triton": None}
    result = {
        "device": "cuda", "name": "a GPU", "choice": {"chosen": "sdpa", "reasons": reasons},
        "types": ["float32", "bfloat16"],
        "compared": {"sdpa": 48, "triton": 48}, "faults": [], "matrix_rate": 1.0, "batch": 64,
        "dtype": "bfloat16", "speeds": [], "untimed": [],
    }  # fmt: skip
    assert "HALONET_BACKEND=triton in the environment" in describe_result(result)
    wrong = describe_result(result | {"faults": ["triton on cuda, float32, stride: odd"]})
    assert "HALONET_BACKEND" not in wrong
    assert "triton     WRONG in 1 of 48" in wrong


def test_operations_are_counted_cell_by_cell():
    stage = Stage(7, 2, 6, 10, 1, 4, 1)
    pairs = 0
    for query in range(0, 7, 2):
        block = query // 4 * 4
        pairs += sum(block - 1 <= cell < block + 5 for cell in range(7))
    assert stage.count_operations(3) == 2 * 3 * pairs**2 * (6 + 10)
    assert stage.count_operations(3, backward=True) == 2 * 3 * pairs**2 * (4 * 6 + 3 * 10)


def test_stages_of_h1():
    assert stages.list_stages("halonet_h1")["stage2_down"] == Stage(64, 2, 128, 128, 8, 8, 3)
