"""torchrun for tests: processes are forked from one that has imported all, which takes seconds.

Run as a program. A line of standard input is the request; the answer is the exit status.
"""

import json
import os
import signal
import sys
import traceback
import uuid
from collections.abc import Sequence

from torch import distributed
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import halonet.classification.training
import halonet.detection.training  # noqa: F401 - what commands import, so that no process has to
from halonet import cli
from halonet.training.loop import Trainer


def work(words: Sequence[str], kill_in_step: int) -> None:
    """A command in one of the processes; process 1 kills itself in a step, if one is given."""
    original = Trainer._step

    def stop_in_step(trainer, *arguments):
        if trainer.progress["step"] + 1 == kill_in_step and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return original(trainer, *arguments)

    Trainer._step = stop_in_step
    try:
        cli.main(words)
    finally:  # multiprocessing ends without what is registered for the end
        if distributed.is_initialized():
            distributed.destroy_process_group()


def launch(words: Sequence[str], kill_in_step: int, processes: int) -> int:
    """As `torchrun --standalone --nproc-per-node PROCESSES`; returns the exit status."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="fork",
    )
    try:
        elastic_launch(config, work)(words, kill_in_step)
    except ChildFailedError:
        traceback.print_exc()
        return 1
    return 0


def answer(request: dict) -> int:
    """Launch in a fork of this process, whose output goes to files, and wait for it."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        for number, name in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), number)
        status = launch(request["words"], request["kill_in_step"], request["processes"])
        sys.stdout.flush()
    finally:
        os._exit(status)


if __name__ == "__main__":
    for line in sys.stdin:
        print(answer(json.loads(line)), flush=True)
