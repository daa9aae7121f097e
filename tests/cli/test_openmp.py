"""libgomp as torch loads it: its threads sleep under the command line, and nowhere else unasked."""

import os
import subprocess
import sys

import pytest

from halonet.openmp import SETTINGS, is_command_line

LIBRARY = ["-c", "import halonet"]
COMMAND = ["-m", "halonet", "--version"]


@pytest.mark.skipif(sys.platform != "linux", reason="torch brings libgomp on Linux only")
@pytest.mark.parametrize(
    ("words", "own", "policy", "spins"),
    [
        (COMMAND, {}, "PASSIVE", "0"),
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
