"""Everything that a GPU must show, in one run of less than ten minutes.

    python benchmarks/gpu.py --output benchmarks/results/NAME

First every job runs once in a process of its own, several at a time: compiling takes most of the
time, and leaves its results in the caches of Triton and torch. Of these runs the checks count: the
shared table of cases, all H models forward and backward, torch.compile in one graph, CUDA graphs.
Then the figures, one after another, beside timm's layer and models. Whatever fails is written down
and counted in the exit status. `--dry-run` goes through the same on a CPU, tiny, with
TRITON_INTERPRET=1 in the environment; its times mean nothing.
"""

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cases import Stage, stages
from contestants import put_in_timms_layer

import halonet

# Bandwidth in bytes and dense bfloat16 rate in operations a second, by the data sheets.
DEVICES = {"H100": (3.35e12, 989e12), "H200": (4.8e12, 989e12), "A100": (2.0e12, 312e12)}
MODELS = [f"halonet_h{index}" for index in range(8)]
PARTS = 8  # of the table of cases
PROCESSES = 8


class Run:
    """The device, the sizes, and what was found so far."""

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
        """Run a check or a measurement, keep what it gave or how it failed, and write all."""
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
        """results.json and results.md, as far as they go."""
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
        """Bytes that a step needs above what is there before it; its result counts."""
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


def check_table(run: Run, part: int) -> dict[str, Any]:
    """A part of the shared table of cases in every type, by the rule of the tests."""
    from tests.comparison import assert_as_exact
    from tests.ops.cases import CASES

    failures, count = [], 0
    dtypes = [torch.float32] if run.dry else [torch.float32, torch.bfloat16, torch.float16]
    for case in CASES[7:8] if run.dry else CASES[part::PARTS]:
        for dtype in dtypes:
            inputs = {name: tensor.to(run.device) for name, tensor in case.inputs(dtype).items()}
            wide = {name: tensor.double() for name, tensor in inputs.items()}
            exact = _with_gradients(wide, case.options, "reference")
            plain = _with_gradients(inputs, case.options, "reference")
            found = _with_gradients(inputs, case.options, "triton")
            again = _with_gradients(inputs, case.options, "triton")
            for name, tensor in found.items():
                count += 1
                try:
                    assert_as_exact(name, tensor, exact[name], plain[name])
                    assert torch.equal(tensor, again[name]), "two runs differ"
                except AssertionError as error:
                    failures.append(f"{case.name} {dtype} {name}: {error}")
    return {"compared": count, "failed": len(failures), "failures": failures}


def _with_gradients(
    inputs: dict[str, Any], options: dict[str, Any], backend: str
) -> dict[str, Tensor]:
    leaves: dict[str, Any] = {
        name: tensor.clone().requires_grad_() for name, tensor in inputs.items()
    }
    result = halonet.halo_attention(**leaves, **options, backend=backend)
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(result.shape, generator=generator, dtype=torch.float64)
    gradients = torch.autograd.grad(result, list(leaves.values()), weights.to(result))
    found = {"result": result.detach(), **dict(zip(leaves, gradients, strict=True))}
    return {name: tensor.cpu() for name, tensor in found.items()}


def check_model(run: Run, name: str) -> dict[str, Any]:
    """One model, forward and backward, the kernels beside sdpa on the same weights."""
    # TF32 compiles in a quarter of the time of exact float32, which the table checks.
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    size = 32 if run.dry else halonet.get_variant(name).image_size
    images = torch.randn(1 if run.dry else 2, 3, size, size, device=run.device)
    gradients = {}
    torch.manual_seed(0)
    network = halonet.create_model(name, num_classes=10).to(run.device).eval()
    for backend in ("triton", "sdpa"):
        _set_backend(network, backend)
        network.zero_grad()
        network(images).square().sum().backward()
        gradients[backend] = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    pairs = list(zip(gradients["triton"], gradients["sdpa"], strict=True))
    distance = max(((a - b).norm() / b.norm().clamp_min(1e-12)).item() for a, b in pairs)
    finite = all(bool(torch.isfinite(gradient).all()) for gradient, _ in pairs)
    return {"image": size, "largest_relative_distance_of_gradients": distance, "finite": finite}


def check_compile(run: Run) -> dict[str, Any]:
    """torch.compile in one graph, and a CUDA graph, give what eager gives."""
    network = halonet.create_model(
        "halonet_tiny" if run.dry else "halonet_h0", num_classes=10, backend="triton"
    )
    network = network.to(run.device).eval()
    images = torch.randn(1, 3, 32 if run.dry else 256, 32 if run.dry else 256, device=run.device)
    compiler = "aot_eager" if run.dry else "inductor"
    with torch.no_grad():
        eager = network(images)
        compiled = torch.compile(network, fullgraph=True, backend=compiler)(images)
        found = {"compiled_is_off_by": (compiled - eager).abs().max().item()}
        if run.dry:
            return found
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = network(images)
        graph.replay()
        found["graph_is_off_by"] = (captured - eager).abs().max().item()
    torch.compiler.reset()
    reduced = torch.compile(network, fullgraph=True, mode="reduce-overhead")
    for _ in range(3):
        torch.compiler.cudagraph_mark_step_begin()
        reduced(images).sum().backward()
    return found | {"reduce_overhead": "forward and backward ran"}


def measure_stage(run: Run, stage: Stage) -> dict[str, Any]:
    """Our operator beside timm's layer (with its projections taken off), both compiled."""
    size = 8 if run.dry else stage.map_size
    ours = _operator_step(run, stage, size)
    theirs = _timm_step(run, stage, size)
    found: dict[str, Any] = {}
    times = {}
    for label, (forward, both, *_) in (("ours", ours), ("timm", theirs)):
        times[label] = run.milliseconds(forward), run.milliseconds(both)
        found[f"{label}_forward_ms"], found[f"{label}_both_ms"] = times[label]
        found[f"{label}_bytes"] = run.peak(both)
    outputs = ours[2]
    for label in ("ours", "timm"):
        # Above inputs, outputs and their gradients: the inputs are there before.
        found[f"{label}_bytes_above"] = found.pop(f"{label}_bytes") - outputs
    if not run.dry:
        found["forward_times_faster"] = times["timm"][0] / times["ours"][0]
        found["both_times_faster"] = times["timm"][1] / times["ours"][1]
        floor = _floor_milliseconds(run, stage)
        if floor is not None:
            found["share_of_forward_floor"] = floor / times["ours"][0]
    return found


def _operator_step(run: Run, stage: Stage, size: int) -> tuple:
    small, heads = -(-size // stage.stride), stage.heads
    channels, value_channels = stage.width // heads, stage.value_width // heads
    length = 2 * (stage.block_size + stage.halo_size) - 1
    shapes = [
        (run.batch, small, small, heads, channels),
        (run.batch, size, size, heads, channels),
        (run.batch, size, size, heads, value_channels),
        (length, channels // 2),
        (length, channels // 2),
    ]
    options = {"device": run.device, "dtype": run.dtype, "requires_grad": True}
    inputs = [torch.randn(shape, **options) for shape in shapes]
    gradient = torch.randn(
        run.batch, small, small, heads, value_channels, device=run.device, dtype=run.dtype
    )

    def forward() -> Tensor:
        return halonet.halo_attention(
            *inputs, block_size=stage.block_size, halo_size=stage.halo_size,
            stride=stage.stride, backend="triton",
        )  # fmt: skip

    def alone() -> Tensor:
        with torch.no_grad():
            return forward()

    # The result and the gradients of all inputs live at the end of a step.
    size_of = torch.finfo(run.dtype).bits // 8
    outputs = size_of * (gradient.numel() + sum(tensor.numel() for tensor in inputs))
    return alone, lambda: torch.autograd.grad(forward(), inputs, gradient), outputs


def _timm_step(run: Run, stage: Stage, size: int) -> tuple:
    """timm's layer without its projections: they get maps of queries, keys and values."""
    from timm.layers.halo_attn import HaloAttn

    layer: Any = HaloAttn(
        stage.width, stage.value_width, stride=stage.stride, num_heads=stage.heads,
        block_size=stage.block_size, halo_size=stage.halo_size,
    )  # fmt: skip
    layer = layer.to(run.device, run.dtype).to(memory_format=torch.channels_last)
    layer.q = _Pick(0)
    layer.kv = _Pick(1)
    small = -(-size // stage.stride)
    options = {"device": run.device, "dtype": run.dtype}
    queries = torch.randn(run.batch, stage.width, small, small, **options)
    pairs = torch.randn(run.batch, stage.width + stage.value_width, size, size, **options)
    maps = [
        tensor.to(memory_format=torch.channels_last).requires_grad_() for tensor in (queries, pairs)
    ]
    layer.q.map, layer.kv.map = maps
    shape = torch.empty(run.batch, stage.width, size, size, device="meta")
    compiled = layer if run.dry else torch.compile(layer)
    blank = torch.empty_like(shape, device=run.device, dtype=run.dtype)
    with torch.no_grad():
        gradient = torch.randn_like(compiled(blank))

    def alone() -> Tensor:
        with torch.no_grad():
            return compiled(blank)

    leaves = [*maps, *layer.parameters()]
    return alone, lambda: torch.autograd.grad(compiled(blank), leaves, gradient)


class _Pick(nn.Module):
    """Stands in for a projection and gives a map that is there already."""

    map: Tensor

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def forward(self, maps: Tensor) -> Tensor:
        return self.map


def _floor_milliseconds(run: Run, stage: Stage) -> float | None:
    """The larger of bytes / bandwidth and operations / rate, of the forward operator."""
    known = [rates for name, rates in DEVICES.items() if name in torch.cuda.get_device_name()]
    if not known:
        return None
    bandwidth, rate = known[0]
    queries = -((-stage.map_size // stage.stride) ** 2)
    pixels = stage.map_size**2
    elements = queries * (stage.width + stage.value_width)
    elements += pixels * (stage.width + stage.value_width)
    # Cells inside the map that each row of blocks sees.
    seen = sum(
        (min(start + stage.block_size, stage.map_size) - start)
        // stage.stride
        * (
            min(start + stage.block_size + stage.halo_size, stage.map_size)
            - max(start - stage.halo_size, 0)
        )
        for start in range(0, stage.map_size, stage.block_size)
    )
    operations = 2 * seen**2 * (stage.width + stage.value_width)
    return 1e3 * run.batch * max(2 * elements / bandwidth, operations / rate)


def measure_step(run: Run, name: str, size: int) -> dict[str, Any]:
    """Milliseconds of a compiled training step, channels-last, autocast to bfloat16."""
    network = _network(name).to(run.device).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
    size = 64 if run.dry else size
    images = torch.randn(run.batch, 3, size, size, device=run.device)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.zeros(run.batch, dtype=torch.long, device=run.device)
    network.train(not run.dry)
    compiled = network if run.dry else torch.compile(network)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(run.device.type, torch.bfloat16):
            loss = nn.functional.cross_entropy(compiled(images), labels)
        loss.backward()
        optimizer.step()

    milliseconds = run.milliseconds(step, 2.0)
    images_a_second = run.batch / milliseconds * 1e3 if milliseconds else 0.0
    torch.compiler.reset()
    return {"image": size, "ms": milliseconds, "images_a_second": images_a_second}


def _network(name: str) -> nn.Module:
    if name.startswith("timm:"):
        import timm

        return timm.create_model(name.removeprefix("timm:"), num_classes=1000)
    return halonet.create_model(name.removesuffix(", timm's layer"), backend="triton")


def measure_largest_batch(run: Run, timm_layer: bool) -> dict[str, Any]:
    """The largest batch of H4 at 384 px that a training step fits in, to a sixteenth."""
    network = halonet.create_model("halonet_h4", backend="triton")
    if timm_layer:
        put_in_timms_layer(network)
    network = network.to(run.device).to(memory_format=torch.channels_last).train()

    # The first tiles that fit: tuning the tiles of one more model would take minutes.
    os.environ["HALONET_AUTOTUNE"] = "0"

    def fits(batch: int) -> bool:
        run.free()
        try:
            images = torch.randn(batch, 3, 384, 384, device=run.device)
            images = images.to(memory_format=torch.channels_last)
            with torch.autocast("cuda", torch.bfloat16):
                loss = network(images).float().sum()
            loss.backward()
            network.zero_grad()
        except torch.OutOfMemoryError:
            return False
        return True

    if run.dry:
        return {"batch": 0}
    low, high = 0, 16
    while fits(high):
        low, high = high, 2 * high
    while high - low > max(1, low // 16):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return {"batch": low}


def _set_backend(network: nn.Module, backend: str) -> None:
    for module in network.modules():
        if isinstance(module, halonet.HaloAttention):
            module.backend = backend


def jobs(run: Run) -> dict[str, Callable[[], dict[str, Any]]]:
    """Everything by name, the checks first."""
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    for part in range(1 if run.dry else PARTS):
        found[f"check: shared table, part {part + 1}"] = lambda part=part: check_table(run, part)
    found["check: compile and CUDA graphs"] = lambda: check_compile(run)
    for name in ["halonet_tiny"] if run.dry else MODELS:
        found[f"check: {name}"] = lambda name=name: check_model(run, name)
    for name, stage in stages("halonet_h1").items():
        if not run.dry or name == "stage4":
            found[f"operator: H1 {name}"] = lambda stage=stage: measure_stage(run, stage)
    steps = [("timm:halonet_h1", 256), ("timm:efficientnet_b1", 240), ("halonet_h1", 256)]
    for name, size in steps[1:2] if run.dry else steps:
        found[f"training step: {name}"] = lambda name=name, s=size: measure_step(run, name, s)
    found["largest batch: H4 at 384"] = lambda: measure_largest_batch(run, False)
    found["largest batch: H4 at 384, timm's layer"] = lambda: measure_largest_batch(run, True)
    return found


def run_apart(name: str) -> list[dict[str, Any]]:
    """What a job gives in a process of its own."""
    tuning = {"HALONET_AUTOTUNE": "0"} if name.startswith("check") else {}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--output", folder, "--only", name]
        done = subprocess.run(command, env=os.environ | tuning, capture_output=True, text=True)
        try:
            return json.loads((Path(folder) / "results.json").read_text())["results"]
        except OSError:
            return [{"name": name, "error": done.stderr[-300:]}]


def main() -> int:
    """Run everything; the exit status counts what failed."""
    parser = argparse.ArgumentParser(description="Check and measure the Triton backend on a GPU.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--only", help="the one job to run, by its name")
    arguments = parser.parse_args()
    run = Run(arguments.output, arguments.dry_run)
    torch.manual_seed(0)
    todo = jobs(run)
    if arguments.only is not None:
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
