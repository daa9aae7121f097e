"""Time and memory of the Triton backend on a GPU: the operator, training steps, largest batches."""

import os
from dataclasses import replace
from typing import Any

import torch
from contestants import put_in_timms_layer
from gpu_run import Run
from torch import Tensor, nn

import halonet
from halonet.check.stages import Stage

# Bandwidth in bytes and dense bfloat16 rate in operations a second, by the data sheets.
DEVICES = {"H100": (3.35e12, 989e12), "H200": (4.8e12, 989e12), "A100": (2.0e12, 312e12)}


def measure_stage(run: Run, stage: Stage) -> dict[str, Any]:
    """Our operator, and timm's layer without its projections, both compiled."""
    if run.dry:
        stage = replace(stage, map_size=8)
    ours = _operator_step(run, stage)
    theirs = _timm_step(run, stage)
    found: dict[str, Any] = {}
    times = {}
    for label, (forward, both, *_) in (("ours", ours), ("timm", theirs)):
        times[label] = run.milliseconds(forward), run.milliseconds(both)
        found[f"{label}_forward_ms"], found[f"{label}_both_ms"] = times[label]
        found[f"{label}_bytes"] = run.peak(both)
    outputs = ours[2]
    for label in ("ours", "timm"):
        # Beyond inputs, outputs and their gradients; the inputs were there before the step.
        found[f"{label}_bytes_above"] = found.pop(f"{label}_bytes") - outputs
    if not run.dry:
        found["forward_times_faster"] = times["timm"][0] / times["ours"][0]
        found["both_times_faster"] = times["timm"][1] / times["ours"][1]
        floor = _floor_milliseconds(run, stage)
        if floor is not None:
            found["share_of_forward_floor"] = floor / times["ours"][0]
    return found


def _operator_step(run: Run, stage: Stage) -> tuple:
    inputs = stage.make_inputs(run.batch, device=run.device, dtype=run.dtype, requires_grad=True)
    leaves = list(inputs.values())

    def forward() -> Tensor:
        return halonet.halo_attention(**inputs, **stage.options, backend="triton")

    with torch.no_grad():
        gradient = torch.randn_like(forward())

    def alone() -> Tensor:
        with torch.no_grad():
            return forward()

    # Bytes of the output and of all inputs' gradients, which are there at the end of a step.
    size_of = torch.finfo(run.dtype).bits // 8
    outputs = size_of * (gradient.numel() + sum(tensor.numel() for tensor in leaves))
    return alone, lambda: torch.autograd.grad(forward(), leaves, gradient), outputs


def _timm_step(run: Run, stage: Stage) -> tuple:
    """timm's layer without its projections, on maps of queries, keys and values."""
    from timm.layers.halo_attn import HaloAttn

    layer: Any = HaloAttn(
        stage.width, stage.value_width, stride=stage.stride, num_heads=stage.heads,
        block_size=stage.block_size, halo_size=stage.halo_size,
    )  # fmt: skip
    layer = layer.to(run.device, run.dtype).to(memory_format=torch.channels_last)
    layer.q = _Pick(0)
    layer.kv = _Pick(1)
    size, small = stage.map_size, -(-stage.map_size // stage.stride)
    options = {"device": run.device, "dtype": run.dtype}
    queries = torch.randn(run.batch, stage.width, small, small, **options)
    pairs = torch.randn(run.batch, stage.width + stage.value_width, size, size, **options)
    maps = [
        tensor.to(memory_format=torch.channels_last).requires_grad_() for tensor in (queries, pairs)
    ]
    layer.q.map, layer.kv.map = maps
    compiled = layer if run.dry else torch.compile(layer)
    blank = torch.empty(run.batch, stage.width, size, size, **options)  # of the projections' input
    with torch.no_grad():
        gradient = torch.randn_like(compiled(blank))

    def alone() -> Tensor:
        with torch.no_grad():
            return compiled(blank)

    leaves = [*maps, *layer.parameters()]
    return alone, lambda: torch.autograd.grad(compiled(blank), leaves, gradient)


class _Pick(nn.Module):
    """Stands in for a projection and returns a map that was made before."""

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
    queries = (-(-stage.map_size // stage.stride)) ** 2
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
