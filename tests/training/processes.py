"""How runs are stopped: processes of the command line, one of which may be killed; how to compare."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from halonet.training.loop import Trainer, TrainingInterrupted


@contextmanager
def interrupt_after(step: int, said: str) -> Iterator[None]:
    """Ctrl-C reaches the run in here in the step after this one, and is all that ends it."""
    original = Trainer._step

    def interrupt(run, *arguments):
        if run.progress["step"] == step:
            signal.raise_signal(signal.SIGINT)
        return original(run, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", interrupt)
        with pytest.raises(TrainingInterrupted, match=said):
            yield


@contextmanager
def start_launcher(folder: Path) -> Iterator[Callable[..., subprocess.CompletedProcess]]:
    """Yields a function that runs a command in several processes.

    Args:
        folder: for what they print.
    """
    words = [sys.executable, "-m", "tests.training.launcher"]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as launcher:

        def launch(words, *, kill_in_step=0, processes=2):
            files = {name: folder / name for name in ("stdout", "stderr")}
            for path in files.values():
                path.write_text("")
            request = {name: str(path) for name, path in files.items()} | {
                "words": words,
                "kill_in_step": kill_in_step,
                "processes": processes,
            }
            print(json.dumps(request), file=launcher.stdin, flush=True)
            status = int(launcher.stdout.readline())
            said = {name: path.read_text() for name, path in files.items()}
            return subprocess.CompletedProcess(words, status, **said)

        yield launch
        launcher.stdin.close()


def assert_close_runs(run, other):
    one, two = load_file(run / "last.safetensors"), load_file(other / "last.safetensors")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-6, msg=name)


def assert_equal_runs(run, other):
    one, two = load_file(run / "last.safetensors"), load_file(other / "last.safetensors")
    assert all(torch.equal(one[name], two[name]) for name in one)
