"""Measure halonet and its peers in one run.

    python benchmarks/run.py --cases 'operator/halonet_h1/*' --output benchmarks/results/NAME

Every contestant of a case has a process of its own, where it is built and checked. Then they take
turns, so that what disturbs the machine disturbs all of them. Ratios are of medians.
"""

import argparse
import fnmatch
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from cases import available, count_operations, list_cases

from halonet.check.machine import name_processor
from halonet.devices import MATRIX_SIDE

HERE = Path(__file__).resolve().parent
# A processor with AVX-512 as one that has AVX2 only: torch's own kernels, oneDNN and MKL.
AVX2_ONLY = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    # What is compiled for all instructions is kept under the same name, and gives no numbers here.
    "TORCHINDUCTOR_CACHE_DIR": str(Path(tempfile.gettempdir(), "halonet_avx2")),
}
# Tell glibc to return no pages to the system, and to allocate from the heap only.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 32)}


class Entrant(NamedTuple):
    """A contestant in one of its settings."""

    label: str
    name: str
    compiled: bool = False
    package: Path | None = None  # another halonet's
    keeps_memory: bool = False


class Worker:
    """A contestant's process."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "worker.py")],
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, **order: Any) -> dict[str, Any]:
        """Send an order and wait for the reply."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(order), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        return json.loads(line) if line else {"error": "the process died"}

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()


def measure(
    case: str, entrants: list[Entrant], seconds: float, threads: int
) -> list[dict[str, Any]]:
    """Build the contestants of a case, then time them in turn for about `seconds` each."""
    entries, operations = [], {}
    with ExitStack() as stack:
        running = []
        for entrant in entrants:
            worker = Worker(KEEP_MEMORY if entrant.keeps_memory else {})
            stack.callback(worker.close)
            order = {
                "case": case,
                "contestant": entrant.name,
                "compiled": entrant.compiled,
                "package": entrant.package and str(entrant.package),
            }
            reply = worker.ask(do="build", threads=threads, **order)
            entry: dict[str, Any] = {"case": case, "contestant": entrant.label, **reply}
            operations[entrant.label] = count_operations(case, entrant.name)
            entries.append(entry)
            if "error" in reply:
                worker.close()
                continue
            once = worker.ask(do="time", repeats=1)["seconds"]
            running.append((worker, entry, max(1, round(0.05 / once)), [], []))
        started = time.perf_counter()
        rounds = 0
        while running and (rounds < 5 or time.perf_counter() - started < seconds * len(running)):
            for worker, _, repeats, times, layer_times in running:
                reply = worker.ask(do="time", repeats=repeats)
                times.append(reply["seconds"])
                layer_times += [reply["layer_seconds"]] if "layer_seconds" in reply else []
            rounds += 1
        for worker, entry, _, times, layer_times in running:
            peak = worker.ask(do="memory")["peak"]
            quantiles = statistics.quantiles(times, n=10)
            entry |= {
                "milliseconds": 1e3 * statistics.median(times),
                "percentile_10": 1e3 * quantiles[0],
                "percentile_90": 1e3 * quantiles[-1],
                "layer_milliseconds": 1e3 * statistics.median(layer_times) if layer_times else None,
                "rounds": rounds,
                "peak_mebibytes": peak - entry.pop("idle"),
            }
    times = {entry["contestant"]: entry.get("milliseconds") for entry in entries}
    product = times.get("matrix-product")
    for entry in entries:
        counted = operations[entry["contestant"]]
        if counted and product and "milliseconds" in entry:
            entry["gigaflops_per_second"] = counted / entry["milliseconds"] / 1e6
            entry["matrix_rate_gigaflops"] = 2 * MATRIX_SIDE**3 / product / 1e6
    return entries


def header(threads: int, avx2: bool) -> dict[str, Any]:
    """The machine and the versions that were measured."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for package in ("halonet", "torch", "timm", "halonet-pytorch"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "date": date.today().isoformat(),
        "processor": name_processor(),
        "threads": threads,
        "instructions": "AVX2 only" if avx2 else "all",
        "python": platform.python_version(),
        "versions": versions,
        "memory_kept": all(os.environ.get(name) == KEEP_MEMORY[name] for name in KEEP_MEMORY),
    }


def table(head: dict[str, Any], entries: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    versions = ", ".join(f"{name} {number}" for name, number in head["versions"].items())
    lines = [
        f"{head['date']}, {head['processor']}, {head['instructions']} instructions, "
        f"{head['threads']} threads, Python {head['python']}; "
        f"{versions}.",
        *(["Freed memory kept."] if head["memory_kept"] else []),
        "",
        "Medians of turns taken side by side; ratio to the first contestant of the case; GFLOP/s "
        "and their share of those of torch's product of float32 matrices, "
        f"{MATRIX_SIDE} x {MATRIX_SIDE}; peak memory above the process before the model was built.",
        "",
        "| case | contestant | ms | 10-90 % | ratio | rate, share | peak, MiB | check |",
        "|---|---|---|---|---|---|---|---|",
    ]
    first: dict[str, float] = {}
    for entry in entries:
        if "error" in entry:
            lines.append(
                f"| {entry['case']} | {entry['contestant']} | {entry['error']} | | | | | |"
            )
            continue
        base = first.setdefault(entry["case"], entry["milliseconds"])
        rate = entry.get("gigaflops_per_second")
        share = (
            ""
            if rate is None
            else f"{rate:.0f}, {100 * rate / entry['matrix_rate_gigaflops']:.0f} %"
        )
        lines.append(
            f"| {entry['case']} | {entry['contestant']} | {entry['milliseconds']:.2f} | "
            f"{entry['percentile_10']:.2f}-{entry['percentile_90']:.2f} | "
            f"{entry['milliseconds'] / base:.2f} | {share} | {entry['peak_mebibytes']:.0f} | "
            f"{entry['checked']} |"
        )
    return "\n".join(lines) + "\n" + layer_table(entries)


def layer_table(entries: list[dict[str, Any]]) -> str:
    """Of timm's models: their halo layers alone, and what attention adds to the floor's."""
    layers: dict[str, dict[str, float]] = {}
    for entry in entries:
        if entry.get("layer_milliseconds") is not None:
            layers.setdefault(entry["case"], {})[entry["contestant"]] = entry["layer_milliseconds"]
    lines = [
        "",
        "| case | halo layers: ours, ms | timm's | projections alone | attention, ours / timm's |",
        "|---|---|---|---|---|",
    ]
    for case, times in layers.items():
        if {"cpu", "timm", "floor"} <= set(times):
            ours, theirs, floor = times["cpu"], times["timm"], times["floor"]
            share = (ours - floor) / (theirs - floor)
            lines.append(f"| {case} | {ours:.1f} | {theirs:.1f} | {floor:.1f} | {share:.2f} |")
    return "\n".join(lines) + "\n" if len(lines) > 3 else ""


def picture(path: Path, entries: list[dict[str, Any]]) -> None:
    """The ratios to the first contestant as bars."""
    from matplotlib.figure import Figure

    first: dict[str, float] = {}
    bars = []
    for entry in entries:
        if "milliseconds" in entry:
            base = first.setdefault(entry["case"], entry["milliseconds"])
            bars.append((f"{entry['case']}  {entry['contestant']}", entry["milliseconds"] / base))
    figure = Figure((9, 1 + 0.22 * len(bars)), dpi=100, layout="constrained")
    axes = figure.subplots()
    names, ratios = [name for name, _ in bars], [ratio for _, ratio in bars]
    colors = ["#2563a8" if ratio == 1 else "#d9772b" for ratio in ratios]
    axes.barh(range(len(bars)), ratios, color=colors)
    axes.set_yticks(range(len(bars)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("time relative to the first contestant of the case")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


@contextmanager
def installed_at(reference: str | None) -> Iterator[Path | None]:
    """Another commit of this repository, installed into a folder that is gone afterwards."""
    if reference is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source", Path(folder) / "package"
        subprocess.run(
            ["git", "worktree", "add", "--detach", source, reference], cwd=HERE, check=True
        )
        try:
            install = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "-q",
                "--no-deps",
                "--target",
                target,
            ]
            subprocess.run([*install, source], check=True)
            yield target
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", source], cwd=HERE, check=True)


def main() -> None:
    """Run the cases asked for and write results.json, results.md and results.png."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=["*"], help="patterns of case names")
    parser.add_argument("--list", action="store_true", help="list the cases and end")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each contestant")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--compile", action="store_true", help="each model through torch.compile too"
    )
    parser.add_argument(
        "--keep-memory", action="store_true", help="let processes keep freed memory (glibc)"
    )
    parser.add_argument("--compare-memory", action="store_true", help="each of them that way too")
    parser.add_argument(
        "--avx2", action="store_true", help="use no instructions beyond AVX2, in torch and in ours"
    )
    parser.add_argument("--contestants", nargs="+", help="only these, where a case has them")
    parser.add_argument("--base", help="a commit of ours to compare with, as HEAD~1")
    parser.add_argument("--output", type=Path, help="folder for the results")
    options = parser.parse_args()
    if options.keep_memory:
        os.environ |= KEEP_MEMORY  # for the contestants' processes
    if options.avx2:
        os.environ |= AVX2_ONLY
    chosen = {
        case: contestants
        for case, contestants in list_cases().items()
        if any(fnmatch.fnmatch(case, pattern) for pattern in options.cases)
    }
    if not chosen:
        parser.error(f"no case fits {options.cases}; --list shows all")
    if options.list:
        for case, contestants in chosen.items():
            print(f"{case}: {', '.join(contestants)}")
        return
    head, entries = header(options.threads, options.avx2), []
    with installed_at(options.base) as package:
        for case, names in chosen.items():
            group: list[Entrant] = []
            for name in names:
                if options.contestants and name not in options.contestants:
                    continue
                if not available(name):
                    print(f"{case}: {name} is not installed", file=sys.stderr)
                    continue
                group.append(Entrant(name, name))
                if options.compare_memory:
                    group.append(Entrant(f"{name}, memory kept", name, keeps_memory=True))
                if options.compile and not case.startswith("operator"):
                    group.append(Entrant(f"{name}, compiled", name, compiled=True))
            if package is not None:
                group.append(Entrant(f"{names[0]} at {options.base}", names[0], package=package))
            found = measure(case, group, options.seconds, options.threads)
            entries += found
            for entry in found:
                took = (
                    f"{entry['milliseconds']:9.2f} ms"
                    if "milliseconds" in entry
                    else entry["error"]
                )
                print(f"{case:45} {entry['contestant']:28} {took}", flush=True)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"header": head, "results": entries}, indent=1)
        (options.output / "results.json").write_text(content + "\n")
        (options.output / "results.md").write_text(table(head, entries))
        picture(options.output / "results.png", entries)
    print(table(head, entries))


if __name__ == "__main__":
    main()
