"""How the command line's threads wait for each other; imported before torch, which loads libgomp.

libgomp's threads spin for milliseconds while they wait, which is fastest on an idle machine. Beside
a busy neighbour a spinning thread takes the core that the thread it waits for needs, and two
threads are many times slower than one. So the command line watches how long its threads wait for a
core, and has them sleep instead while they do. A program that imports halonet as a library decides
for itself.
"""

import itertools
import math
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

# For libgomp, where the system doesn't tell how long a thread has waited: sleep at once.
SETTINGS = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
_TASKS = Path("/proc/self/task")
_INTERVAL = 0.2  # seconds from look to look
_CONTENDED = 0.1  # seconds that threads wait for a core, of each second
_CALM_LOOKS = 5  # until threads spin again


def is_command_line(arguments: Sequence[str], original: Sequence[str]) -> bool:
    """Whether this process is `halonet ...` or `python -m halonet ...`.

    Args:
        arguments: sys.argv.
        original: sys.orig_argv; a module's name isn't in sys.argv while it is imported.
    """
    if os.path.basename(arguments[0]) in ("halonet", "halonet.exe"):
        return True
    return any(pair == ("-m", "halonet") for pair in itertools.pairwise(original))


class SleepingThreads:
    """Turns libgomp's spinning off and on, in a running process.

    libgomp spins a hundred times in place of hundreds of thousands while it manages more threads
    than the process has cores (its env.c and wait.h). Teams that have nothing to do make them more.
    """

    def __init__(self, threads: int, cores: int) -> None:
        self._teams = max(0, math.ceil((cores - threads + 1) / (threads - 1)))
        self._end: threading.Event | None = None
        self._owners: list[threading.Thread] = []

    def start(self) -> None:
        """Have threads that wait sleep."""
        self._end = threading.Event()
        ready = threading.Barrier(self._teams + 1)
        self._owners = [
            threading.Thread(target=_own_team, args=(ready, self._end), daemon=True)
            for _ in range(self._teams)
        ]
        for owner in self._owners:
            owner.start()
        ready.wait()

    def stop(self) -> None:
        """Have them spin again."""
        if self._end is not None:
            self._end.set()
        for owner in self._owners:
            owner.join()


def _own_team(ready: threading.Barrier, end: threading.Event) -> None:
    """Be a thread with a team of its own, which libgomp keeps for as long as the thread lives."""
    import torch

    torch.zeros(1 << 18).add_(1)  # large enough for all threads
    ready.wait()
    end.wait()


class Watch:
    """Decides when threads sleep: at the first contended look, until some calm ones after it."""

    def __init__(self, sleeping: SleepingThreads) -> None:
        self._sleeping = sleeping
        self._calm_looks = _CALM_LOOKS

    def look(self, waited: float) -> None:
        """Take in for how many seconds of each second, summed over threads, they waited."""
        was_calm = self._calm_looks >= _CALM_LOOKS
        self._calm_looks = 0 if waited > _CONTENDED else self._calm_looks + 1
        is_calm = self._calm_looks >= _CALM_LOOKS
        if was_calm and not is_calm:
            self._sleeping.start()
        elif is_calm and not was_calm:
            self._sleeping.stop()


def _seconds_waited() -> float:
    """For how long this process's threads have been ready to run, and had no core."""
    nanoseconds = 0
    for task in _TASKS.iterdir():
        try:
            nanoseconds += int((task / "schedstat").read_text().split()[1])
        except OSError:  # the thread has ended
            continue
    return nanoseconds / 1e9


def _watch(watch: Watch) -> None:
    before = _seconds_waited()
    while True:
        time.sleep(_INTERVAL)
        now = _seconds_waited()
        watch.look((now - before) / _INTERVAL)
        before = now


def watch_neighbours() -> None:
    """Watch from now on, in a thread of its own, where the command line has several threads."""
    import torch

    threads = torch.get_num_threads()
    if _WATCHES and threads > 1:
        sleeping = SleepingThreads(threads, len(os.sched_getaffinity(0)))
        threading.Thread(target=_watch, args=(Watch(sleeping),), daemon=True).start()


_DECIDES = is_command_line(sys.argv, sys.orig_argv) and not SETTINGS.keys() & os.environ.keys()
_WATCHES = _DECIDES and (_TASKS / str(os.getpid()) / "schedstat").exists()
if _DECIDES and not _WATCHES:
    os.environ.update(SETTINGS)
