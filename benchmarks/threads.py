"""How two threads wait for each other: spinning, sleeping, or as the command line has them.

    python benchmarks/threads.py             # on an idle machine
    python benchmarks/threads.py --busy 1    # beside one busy neighbour

A training step of halonet_tiny (32 images of 64 px), and inference with four images of 96 px. Each
contestant is a process; they take turns.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager

CONTESTANTS = {
    "spinning, libgomp's default": {},
    "sleeping": {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"},
    "as the command line": {},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
SECONDS = 4.0


def serve(contestant: str, case: str) -> None:
    """Time steps for some seconds at each line of standard input."""
    if contestant == "as the command line":
        sys.argv[0] = "halonet"
    import torch

    import halonet
    from halonet.openmp import watch_neighbours

    watch_neighbours()
    network = halonet.create_model("halonet_tiny", num_classes=5)
    network = network.to(memory_format=torch.channels_last)
    step: Callable[[], object]
    if case == "training":
        images = torch.randn(32, 3, 64, 64).to(memory_format=torch.channels_last)

        def step() -> None:
            network.zero_grad()
            network(images).square().mean().backward()
    else:
        images = torch.randn(4, 3, 96, 96).to(memory_format=torch.channels_last)
        fused = network.eval().fuse()

        @torch.inference_mode()
        def step() -> None:
            fused(images)

    step()
    print("ready", flush=True)
    for _ in sys.stdin:
        seconds = []
        started = time.perf_counter()
        while (before := time.perf_counter()) < started + SECONDS:
            step()
            seconds.append(time.perf_counter() - before)
        print(statistics.median(seconds), flush=True)


@contextmanager
def process(words: list[str], environment: dict[str, str]) -> Generator[subprocess.Popen[str]]:
    """A Python process, with a session of its own as another user's has; it ends with the block."""
    own = {
        name: value for name, value in os.environ.items() if not name.startswith(("OMP", "GOMP"))
    }
    with subprocess.Popen(
        [sys.executable, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=own | environment,
        start_new_session=True,  # which Linux schedules as one, beside other sessions
    ) as running:
        yield running
        running.kill()


def main() -> None:
    """Print a table of medians."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--busy", type=int, default=0, help="busy processes beside it")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve)
        return
    print(f"{options.busy} busy neighbours, {os.cpu_count()} cores\n")
    print("| | training step, ms | inference, ms |\n|---|---|---|")
    medians: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for case in ("training", "inference"):
        with ExitStack() as stack:
            workers = {
                name: stack.enter_context(process([__file__, "--serve", name, case], environment))
                for name, environment in CONTESTANTS.items()
            }
            for worker in workers.values():
                assert worker.stdout is not None
                worker.stdout.readline()
            for _ in range(options.busy):
                stack.enter_context(process(["-c", "while True: pass"], {}))
            times: dict[str, list[float]] = {name: [] for name in workers}
            for _ in range(options.rounds):
                for name, worker in workers.items():
                    assert worker.stdin is not None
                    assert worker.stdout is not None
                    print(file=worker.stdin, flush=True)
                    times[name].append(float(worker.stdout.readline()))
        for name, found in times.items():
            medians[name].append(statistics.median(found))
    for name, found in medians.items():
        base = medians["spinning, libgomp's default"]
        cells = [f"{1e3 * one:.1f} ({one / of:.2f})" for one, of in zip(found, base, strict=True)]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
