"""Devices by name, on a machine that may have none but its CPU."""

import time

import pytest
import torch

import halonet
from halonet import devices
from halonet.check.cases import CASES
from halonet.devices import find_device, list_devices, time_step


@pytest.fixture
def machine(monkeypatch):
    """Pretends that the machine has so many GPUs of a kind."""

    def have(kind, count):
        device = torch.device(kind) if count else None
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: device)
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)

    return have


@pytest.mark.parametrize(
    ("kind", "count", "names", "automatic"),
    [
        ("cuda", 0, ["cpu"], "cpu"),
        ("cuda", 2, ["cpu", "cuda", "cuda:0", "cuda:1"], "cuda"),
        ("mps", 1, ["cpu", "mps", "mps:0"], "mps"),
    ],
)
def test_devices_of_a_machine(machine, kind, count, names, automatic):
    machine(kind, count)
    assert list_devices() == names
    assert find_device("auto") == torch.device(automatic)
    assert [find_device(name) for name in names] == [torch.device(name) for name in names]


@pytest.mark.parametrize("name", ["cuda:2", "mps", "gpu", ""])
def test_a_device_that_is_not_there_is_named(machine, name):
    machine("cuda", 2)
    expected = f"device must be one of auto, cpu, cuda, cuda:0, cuda:1, which .* got {name!r}"
    with pytest.raises(ValueError, match=expected):
        find_device(name)


def test_off_the_cpu_and_cuda_sdpa_runs():
    # Of an MPS device there is no tensor here; the choice sees it as any other that is neither.
    inputs = {name: tensor.to("meta") for name, tensor in CASES[0].inputs(torch.float32).items()}
    choice = halonet.explain_backend(**inputs, **CASES[0].options)
    assert choice.chosen == "sdpa"
    assert choice.reasons["cpu"] == "it runs on the CPU only, the tensors are on meta"


def test_time_of_a_step_is_the_median_of_its_turns(monkeypatch):
    # Each call takes 2 ms by this clock, one of them a second.
    clock, calls = [0.0], []

    def step():
        calls.append(clock[0])
        clock[0] += 1.0 if len(calls) == 5 else 0.002

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    assert time_step(step, torch.device("cpu"), seconds=0.02) == pytest.approx(0.002)
    assert len(calls) == 2 + 5 * 2
    del calls[:]
    assert time_step(step, torch.device("cpu"), seconds=0.001) == pytest.approx(0.002)
    assert len(calls) == 2


def test_matrix_rate_counts_a_multiply_add_as_two(monkeypatch):
    monkeypatch.setattr(devices, "MATRIX_SIDE", 10)
    monkeypatch.setattr(devices, "time_step", lambda step, device, seconds: step().sum().item())
    # Each of the product's 100 numbers is 10.
    assert devices.measure_matrix_rate(torch.device("cpu")) == 2 * 10**3 / 1000
