"""One run of `gpu.py`: its device and sizes, its clock, and its results on disk."""

import gc
import json
import platform
import time
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


class Run:
    """The device, the sizes, and the results so far."""

    def __init__(self, output: Path, dry: bool) -> None:
        self.output = output
        self.dry = dry
        self.device = torch.device("cpu" if dry else "cuda")
        self.dtype = torch.float32 if dry else torch.bfloat16
        self.batch = 1 if dry else 128
        self.started = time.perf_counter()
        self.results: list[dict[str, Any]] = []
        output.mkdir(parents=True, exist_ok=True)

    def record(self, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Run a check or a measurement, keep its result or its error, and write all results."""
        begin = time.perf_counter()
        found: dict[str, Any]
        try:
            found = measure()
        except Exception as error:
            traceback.print_exc()
            found = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        found["seconds"] = round(time.perf_counter() - begin, 1)
        self.results.append({"name": name, **found})
        print(f"{name}: {found}", flush=True)
        self.write()
        self.free()

    def free(self) -> None:
        """Give memory back between measurements."""
        gc.collect()
        if not self.dry:
            torch.cuda.empty_cache()

    def write(self) -> None:
        """Write results.json and results.md, with the results so far."""
        header: dict[str, str] = {
            "device": "dry run" if self.dry else torch.cuda.get_device_name(),
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "triton", "timm", "halonet")},
        }
        header["seconds"] = str(round(time.perf_counter() - self.started))
        document = {"header": header, "results": self.results}
        (self.output / "results.json").write_text(json.dumps(document, indent=2) + "\n")
        lines = [f"# {header['device']}", ""]
        lines += [", ".join(f"{key} {value}" for key, value in header.items()), ""]
        lines += ["| what | figures |", "|---|---|"]
        for result in self.results:
            figures = {k: v for k, v in result.items() if k not in ("name", "seconds")}
            text = ", ".join(f"{key} {_short(value)}" for key, value in figures.items())
            lines.append(f"| {result['name']} | {text} |")
        (self.output / "results.md").write_text("\n".join(lines) + "\n")

    def milliseconds(self, step: Callable[[], object], seconds: float = 0.5) -> float:
        """The median time of a step on the device, after a warm-up."""
        for _ in range(1 if self.dry else 3):
            step()
        if self.dry:
            return 0.0
        torch.cuda.synchronize()
        times: list[float] = []
        begin = time.perf_counter()
        while len(times) < 5 or time.perf_counter() - begin < seconds:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            step()
            last.record()
            last.synchronize()
            times.append(first.elapsed_time(last))
        return sorted(times)[len(times) // 2]

    def peak(self, step: Callable[[], object]) -> int:
        """Bytes that a step allocates at its peak beyond those before it, its result included."""
        if self.dry:
            step()
            return 1
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        kept = step()
        torch.cuda.synchronize()
        del kept
        return torch.cuda.max_memory_allocated() - before


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
