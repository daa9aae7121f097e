"""The line about a run that is far slower than its device, and its absence."""

import time

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from halonet.classification.training import train
from halonet.data.dataset import ImageDataset
from halonet.detection.dataset import DetectionDataset
from halonet.detection.training import train_detector
from halonet.training import pace
from halonet.training.pace import COMPUTING, DATA, LAST, UPDATING, Pace, describe_wait
from tests.detection.pictures import draw_coco
from tests.detection.test_training import make_trial
from tests.pictures import small_config


@pytest.mark.parametrize(
    ("data", "computing", "updating", "expected", "slowest"),
    [
        (0.002, 0.110, 0.007, 0.1, None),
        (0.002, 0.110, 1.946, 0.1, UPDATING),  # Muon in bfloat16
        (0.002, 3.028, 0.007, 0.1, COMPUTING),  # threads that spin for each other
        (0.300, 0.025, 0.001, 0.1, DATA),  # a GPU, and images of a slow disk
        (0.200, 0.025, 0.001, 0.1, None),  # half as slow
        (0.002, 0.300, 0.020, 0.1, None),  # a busy neighbour
        (0.000, 0.004, 0.001, 1e-6, COMPUTING),
    ],
)
def test_what_a_step_waits_for(data, computing, updating, expected, slowest):
    line = describe_wait({DATA: data, COMPUTING: computing, UPDATING: updating}, expected)
    if slowest is None:
        assert line is None
    else:
        assert f"waits for {slowest} (data {1e3 * data:.0f} ms, " in line
        assert "\n" not in line


def run_steps(monkeypatch, durations, *, rate=1e9, count=LAST + 10):
    """The lines of a run whose steps take these seconds of data, computing and updating."""
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(pace, "measure_matrix_rate", lambda *_, **__: rate)
    watched = Pace(nn.Linear(2, 2), torch.device("cpu"), operations=1e6, batches=1)
    lines = []
    for step in range(count):
        waited, computing, updating = durations(step)
        started = clock[0]
        clock[0] += waited + computing
        watched.mark_computed()
        clock[0] += updating
        lines.append(watched.end_step(started, waited))
    return lines


def test_it_is_told_once_and_not_at_once(monkeypatch):
    lines = run_steps(monkeypatch, lambda step: (0.5, 0.02, 0.01))
    (line,) = [line for line in lines if line is not None]
    assert lines.index(line) == LAST - 1
    assert "530 ms waits for data (data 500 ms, forward and backward 20 ms" in line


@pytest.mark.parametrize(
    "durations",
    [
        lambda step: (9.0, 9.0, 9.0) if step < 5 else (0.001, 0.02, 0.01),  # a slow start
        lambda step: (9.0 if step % 5 == 0 else 0.001, 0.02, 0.01),  # now and then
    ],
)
def test_no_false_alarm(monkeypatch, durations):
    assert not any(run_steps(monkeypatch, durations))


def test_operations_make_the_expectation(monkeypatch):
    # 3 Mflop at a fifth of 1 GFLOP/s are 15 ms, and at 10 GFLOP/s 1.5 ms.
    assert not any(run_steps(monkeypatch, lambda step: (0.0, 0.1, 0.0), rate=1e9))
    assert any(run_steps(monkeypatch, lambda step: (0.0, 0.1, 0.0), rate=1e10))


@pytest.fixture
def delay(monkeypatch):
    """A function that takes 1000 seconds by the clock; the third step is the last that counts."""
    skew, clock = [0.0], time.perf_counter

    def wait(*_):
        skew[0] += 1000

    monkeypatch.setattr(time, "perf_counter", lambda: clock() + skew[0])
    monkeypatch.setattr(pace, "FIRST", 1)
    monkeypatch.setattr(pace, "LAST", 3)
    return wait


def read_slow(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if "slow" in line]


def test_a_slow_optimizer_of_a_run_is_named(images, tmp_path, capsys, delay):
    handle = register_optimizer_step_pre_hook(delay)
    try:
        train(small_config(images, epochs=1, log_with="none"), output=str(tmp_path / "run"))
    finally:
        handle.remove()
    (line,) = read_slow(capsys)
    assert "waits for the optimizer (data " in line


@pytest.mark.parametrize("slow", [False, True])
def test_slow_images_of_a_run_are_named(images, tmp_path, monkeypatch, capsys, delay, slow):
    make = ImageDataset._make_item
    if slow:
        monkeypatch.setattr(
            ImageDataset, "_make_item", lambda self, *place: delay() or make(self, *place)
        )
    else:  # nor is there a line where a step takes all of its time to compute, as it may
        monkeypatch.setattr(pace, "LAYER_SECONDS", 100.0)
    train(small_config(images, epochs=1, log_with="none"), output=str(tmp_path / "run"))
    lines = read_slow(capsys)
    assert len(lines) == slow
    assert all("waits for data (data " in line for line in lines)


def test_slow_images_of_a_detector_are_named(tmp_path, monkeypatch, capsys, delay):
    read = DetectionDataset.__getitem__
    monkeypatch.setattr(
        DetectionDataset, "__getitem__", lambda self, place: delay() or read(self, place)
    )
    folder = draw_coco(tmp_path / "coco")
    train_detector(make_trial(folder), output=str(tmp_path / "run"))
    (line,) = read_slow(capsys)
    assert "waits for data (data " in line
