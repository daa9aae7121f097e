"""libgomp as torch loads it: how its threads wait under the command line, and elsewhere."""

import os
import subprocess
import sys
from unittest.mock import Mock, call

import pytest

from halonet.openmp import SETTINGS, SleepingThreads, Watch, is_command_line

LIBRARY = ["-c", "import halonet"]
COMMAND = ["-m", "halonet", "--version"]


@pytest.mark.skipif(sys.platform != "linux", reason="torch brings libgomp on Linux only")
@pytest.mark.parametrize(
    ("words", "own", "policy", "spins"),
    [
        (COMMAND, {}, "PASSIVE", None),
        (COMMAND, {"OMP_WAIT_POLICY": "active"}, "ACTIVE", None),
        (COMMAND, {"GOMP_SPINCOUNT": "7"}, "PASSIVE", "7"),
        (LIBRARY, {}, "PASSIVE", None),
    ],
    ids=["command line", "its user's policy", "its user's spins", "library"],
)
def test_what_libgomp_reads(words, own, policy, spins):
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    found = subprocess.run(
        [sys.executable, *words],
        env=environment | own | {"OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stderr
    assert f"OMP_WAIT_POLICY = '{policy}'" in found
    shown = next(line for line in found.splitlines() if "GOMP_SPINCOUNT" in line)
    # Without a setting it spins hundreds of thousands of times.
    number = int(shown.split("'")[1])
    assert number == int(spins) if spins is not None else number > 1000


@pytest.mark.parametrize(
    ("arguments", "original", "expected"),
    [
        (["/usr/bin/halonet", "train"], ["python", "/usr/bin/halonet", "train"], True),
        ([r"halonet.exe"], ["python", "halonet.exe"], True),
        (["-m", "train"], ["python", "-u", "-m", "halonet", "train"], True),
        (["train.py"], ["python", "train.py", "--model", "halonet"], False),
        (["-c"], ["python", "-c"], False),
        ([""], ["python"], False),
    ],
)
def test_command_line_is_recognized(arguments, original, expected):
    assert is_command_line(arguments, original) == expected


def test_threads_sleep_from_the_first_contended_look_until_five_calm_ones():
    sleeping = Mock(spec=SleepingThreads)
    watch = Watch(sleeping)
    watch.look(0.02)
    assert sleeping.mock_calls == []
    for waited in (0.5, 0.0, 0.0, 0.0, 0.0, 0.9, 0.0, 0.0, 0.0, 0.0):
        watch.look(waited)
    assert sleeping.mock_calls == [call.start()]
    watch.look(0.0)
    assert sleeping.mock_calls == [call.start(), call.stop()]
    watch.look(0.5)
    assert sleeping.mock_calls == [call.start(), call.stop(), call.start()]


SPINNING = """
import os, sys, time
from pathlib import Path
import torch
from halonet.openmp import SleepingThreads

torch.set_num_threads(2)
sleeping = SleepingThreads(2, len(os.sched_getaffinity(0)))

def processor_seconds():
    torch.zeros(1 << 18).add_(1)
    spent = 0.0
    for _ in range(20):
        torch.zeros(1 << 16).add_(1)
        before = time.process_time()
        time.sleep(0.01)
        spent += time.process_time() - before
    return spent

first = processor_seconds()
sleeping.start()
asleep = processor_seconds()
sleeping.stop()
print(first, asleep, processor_seconds())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="torch brings libgomp on Linux only")
@pytest.mark.skipif(os.cpu_count() == 1, reason="on one core libgomp never spins")
def test_a_sleeping_thread_takes_no_processor_time_and_wakes_to_spin_again():
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in SETTINGS and name != "OMP_NUM_THREADS"
    }
    found = subprocess.run(
        [sys.executable, "-c", SPINNING],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    spinning, asleep, again = map(float, found.split())
    assert asleep < spinning / 4
    assert asleep < again / 4
