"""Check and measure the Triton backend on a GPU, in one run of less than ten minutes.

    python benchmarks/gpu.py --output benchmarks/results/NAME

First every job runs once in a process of its own, several at a time: compiling takes most of the
time, and leaves its results in the caches of Triton and torch. The checks' results come from these
processes: the tests' table of cases, all H models forward and backward, torch.compile in one graph,
CUDA graphs. Then the measurements run one after another, timm's layer and models among them. The
exit status is the number of jobs that failed. `--dry-run` does the same on a CPU in tiny sizes,
with TRITON_INTERPRET=1 in the environment; its times mean nothing.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from gpu_checks import PARTS, check_compile, check_model, check_table
from gpu_measurements import measure_largest_batch, measure_stage, measure_step
from gpu_run import Run

from halonet.check.stages import list_stages

MODELS = [f"halonet_h{index}" for index in range(8)]
PROCESSES = 8


def jobs(run: Run) -> dict[str, Callable[[], dict[str, Any]]]:
    """All checks and measurements by name, checks first."""
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    for part in range(1 if run.dry else PARTS):
        found[f"check: shared table, part {part + 1}"] = lambda part=part: check_table(run, part)
    found["check: compile and CUDA graphs"] = lambda: check_compile(run)
    for name in ["halonet_tiny"] if run.dry else MODELS:
        found[f"check: {name}"] = lambda name=name: check_model(run, name)
    for name, stage in list_stages("halonet_h1").items():
        if not run.dry or name == "stage4":
            found[f"operator: H1 {name}"] = lambda stage=stage: measure_stage(run, stage)
    steps = [("timm:halonet_h1", 256), ("timm:efficientnet_b1", 240), ("halonet_h1", 256)]
    for name, size in steps[1:2] if run.dry else steps:
        found[f"training step: {name}"] = lambda name=name, s=size: measure_step(run, name, s)
    found["largest batch: H4 at 384"] = lambda: measure_largest_batch(run, False)
    found["largest batch: H4 at 384, timm's layer"] = lambda: measure_largest_batch(run, True)
    return found


def run_apart(name: str) -> list[dict[str, Any]]:
    """A job's results from a process of its own."""
    tuning = {"HALONET_AUTOTUNE": "0"} if name.startswith("check") else {}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--output", folder, "--only", name]
        done = subprocess.run(command, env=os.environ | tuning, capture_output=True, text=True)
        try:
            return json.loads((Path(folder) / "results.json").read_text())["results"]
        except OSError:
            return [{"name": name, "error": done.stderr[-300:]}]


def main() -> int:
    """Run all jobs, or one; return how many failed."""
    parser = argparse.ArgumentParser(description="Check and measure the Triton backend on a GPU.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--only", help="the one job to run, by its name")
    arguments = parser.parse_args()
    if arguments.dry_run and os.environ.get("TRITON_INTERPRET") != "1":
        parser.error("--dry-run needs TRITON_INTERPRET=1 in the environment")
    if not arguments.dry_run and not torch.cuda.is_available():
        parser.error("torch finds no GPU; --dry-run needs none")
    run = Run(arguments.output, arguments.dry_run)
    torch.manual_seed(0)
    todo = jobs(run)
    if arguments.only is not None:
        if arguments.only not in todo:
            parser.error(f"--only must be one of {', '.join(todo)}; got {arguments.only}")
        todo = {arguments.only: todo[arguments.only]}
    elif not run.dry:
        apart = [name for name in todo if not name.startswith("largest")]
        with ThreadPoolExecutor(PROCESSES) as pool:
            for name, results in zip(apart, pool.map(run_apart, apart), strict=True):
                if name.startswith("check"):
                    print(results, flush=True)
                    run.results += results
                    del todo[name]
    for name, measure in todo.items():
        run.record(name, measure)
    return sum("error" in result or result.get("failed", 0) > 0 for result in run.results)


if __name__ == "__main__":
    sys.exit(main())
