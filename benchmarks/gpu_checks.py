"""Checks of the Triton backend on a GPU, against the reference, sdpa, and eager mode."""

from typing import Any

import torch
from gpu_run import Run
from torch import nn

import halonet
from halonet.check.cases import CASES, run_with_gradients
from halonet.check.comparison import why_wrong

PARTS = 8  # of the table of cases


def check_table(run: Run, part: int) -> dict[str, Any]:
    """One of PARTS parts of the table of cases, in every type, by the tests' rule."""
    failures, count = [], 0
    dtypes = [torch.float32] if run.dry else [torch.float32, torch.bfloat16, torch.float16]
    for case in (
        [case for case in CASES if case.name == "one_pixel"] if run.dry else CASES[part::PARTS]
    ):
        for dtype in dtypes:
            inputs = {name: tensor.to(run.device) for name, tensor in case.inputs(dtype).items()}
            wide = {name: tensor.double() for name, tensor in inputs.items()}
            of = {name: case.options | {"backend": name} for name in ("reference", "triton")}
            exact = run_with_gradients(halonet.halo_attention, wide, of["reference"])
            plain = run_with_gradients(halonet.halo_attention, inputs, of["reference"])
            found = run_with_gradients(halonet.halo_attention, inputs, of["triton"])
            again = run_with_gradients(halonet.halo_attention, inputs, of["triton"])
            for name, tensor in found.items():
                count += 1
                reason = why_wrong(tensor, exact[name], plain[name])
                if reason is None and not torch.equal(tensor, again[name]):
                    reason = "two runs differ"
                if reason is not None:
                    failures.append(f"{case.name} {dtype} {name}: {reason}")
    return {"compared": count, "failed": len(failures), "failures": failures}


def check_model(run: Run, name: str) -> dict[str, Any]:
    """One model forward and backward, with the kernels and with sdpa on the same weights."""
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
    """Compare torch.compile in one graph, and a CUDA graph, with eager mode."""
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


def _set_backend(network: nn.Module, backend: str) -> None:
    for module in network.modules():
        if isinstance(module, halonet.HaloAttention):
            module.backend = backend
