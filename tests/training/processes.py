"""Processes of the command line, one of which may be killed; and how to compare runs."""

import subprocess
import sys

import torch
from safetensors.torch import load_file

# A run whose process 1 kills itself in a step, if one is given.
PROGRAM = """
import os, signal, sys
from halonet import cli
from halonet.training import loop

step = int(sys.argv[1])
original = loop.Trainer._step

def stop_in_step(trainer, *arguments):
    if trainer.progress["step"] + 1 == step and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return original(trainer, *arguments)

loop.Trainer._step = stop_in_step
cli.main(sys.argv[2:])
"""


def launch(tmp_path, words, *, kill_in_step=0, processes=2):
    """Run a command in several processes."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(processes), str(program), str(kill_in_step), *words),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def assert_close_runs(run, other):
    one, two = load_file(run / "last.safetensors"), load_file(other / "last.safetensors")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-6, msg=name)


def assert_equal_runs(run, other):
    one, two = load_file(run / "last.safetensors"), load_file(other / "last.safetensors")
    assert all(torch.equal(one[name], two[name]) for name in one)
