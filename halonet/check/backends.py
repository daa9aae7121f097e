"""Every backend on a device: why it doesn't run, whether it is right, and how fast it is."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from halonet.check.cases import AWKWARD_CASES, CASES, Case, run_with_gradients
from halonet.check.comparison import why_wrong
from halonet.check.stages import Stage, list_stages
from halonet.devices import measure_matrix_rate, time_step
from halonet.ops import cpu_norm, triton_backend
from halonet.ops.halo_attention import BackendChoice, explain_backend, halo_attention

DTYPES = (torch.float32, torch.bfloat16)
MODEL = "halonet_h1"
REFERENCE = "reference"
SECONDS = 0.1  # of each figure
LIMIT = 20.0  # seconds of all speeds of a device


@dataclass
class Speed:
    """A backend's times on one stage, in milliseconds, and rates in GFLOP/s."""

    stage: str
    backend: str
    forward: float
    forward_rate: float
    both: float
    both_rate: float


@dataclass
class DeviceCheck:
    """What was found on a device.

    Attributes:
        device: its name.
        choice: which backend runs there in float32, and why not the others.
        types: in which results were compared.
        compared: numbers of results that were compared, by backend.
        faults: what is wrong, a line each.
        dtype: of the speeds.
        batch: images of the speeds.
        matrix_rate: GFLOP/s of torch's matrix product in this type.
        speeds: of each backend on each stage.
        untimed: backends and stages for which there was no time.
    """

    device: str
    choice: BackendChoice
    types: list[str]
    compared: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    dtype: str = ""
    batch: int = 0
    matrix_rate: float = 0.0
    speeds: list[Speed] = field(default_factory=list)
    untimed: list[str] = field(default_factory=list)


def check_device(device: torch.device, *, thorough: bool = False) -> DeviceCheck:
    """Compare and time all backends that run on a device.

    Args:
        device: with a few cases, in float32 and bfloat16.
        thorough: with all that the tests have, in float16 too.
    """
    dtypes = (*DTYPES, torch.float16) if thorough else DTYPES
    found = DeviceCheck(
        str(device), _explain(device, torch.float32), types=[_name_type(dtype) for dtype in dtypes]
    )
    for dtype in dtypes:
        for name, reason in _explain(device, dtype).reasons.items():
            if reason is None and name != REFERENCE:
                faults = [*_compare(name, device, dtype, CASES if thorough else AWKWARD_CASES)]
                if name == "cpu":
                    faults += _compare_activation(dtype)
                found.compared[name] = found.compared.get(name, 0) + len(faults)
                found.faults += [fault for fault in faults if fault is not None]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    # A GPU has nothing to do with a few images.
    found.batch = 4 if device.type == "cpu" else 64
    found.dtype = _name_type(dtype)
    found.matrix_rate = measure_matrix_rate(device, dtype, seconds=0.5) / 1e9
    end = time.perf_counter() + LIMIT
    for name, reason in _explain(device, dtype).reasons.items():
        interpreted = name == "triton" and triton_backend.INTERPRETING
        if reason is not None or name == REFERENCE or interpreted:
            continue
        for stage_name, stage in list_stages(MODEL).items():
            if time.perf_counter() > end:
                found.untimed.append(f"{name} {stage_name}")
                continue
            try:
                speed = _time_stage(stage_name, stage, name, found.batch, device, dtype)
            except Exception as error:  # of a compiler, a driver, ...
                found.faults.append(f"{name} on {device}, {stage_name}: {_describe(error)}")
                break
            found.speeds.append(speed)
    return found


def _name_type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _explain(device: torch.device, dtype: torch.dtype) -> BackendChoice:
    case = AWKWARD_CASES[0]
    inputs: dict[str, Any] = {
        name: tensor.to(device) for name, tensor in case.inputs(dtype).items()
    }
    return explain_backend(**inputs, **case.options)


def _compare(
    name: str, device: torch.device, dtype: torch.dtype, cases: Sequence[Case]
) -> Iterator[str | None]:
    """For each case's result and gradients: what is wrong with it, or None."""
    for case in cases:
        inputs = case.inputs(dtype)
        there = {key: tensor.to(device) for key, tensor in inputs.items()}
        # In float64 on the CPU, as not every device has it.
        wide = {key: tensor.double() for key, tensor in inputs.items()}
        reference = case.options | {"backend": REFERENCE}
        where = f"{name} on {device}, {_name_type(dtype)}, {case.name}"
        try:
            exact = run_with_gradients(halo_attention, wide, reference)
            plain = run_with_gradients(halo_attention, there, reference)
            found = run_with_gradients(halo_attention, there, case.options | {"backend": name})
        except Exception as error:  # of a compiler, a driver, ...
            yield f"{where}: {_describe(error)}"
            continue
        for key, tensor in found.items():
            reason = why_wrong(tensor.cpu(), exact[key], plain[key].cpu())
            yield None if reason is None else f"{where}, {key}: {reason}"


def _compare_activation(dtype: torch.dtype) -> Iterator[str | None]:
    """The same for the native library's batch norm, SiLU and pooling."""
    generator = torch.Generator().manual_seed(0)
    maps, added, gradient = (
        torch.randn(2, 37, 5, 7, generator=generator).to(dtype, memory_format=torch.channels_last)
        for _ in range(3)
    )
    weight, bias = torch.randn(2, 37, generator=generator)
    wide = _norm_and_silu(maps.double(), added.double(), gradient.double(), weight, bias)
    narrow = _norm_and_silu(maps, added, gradient, weight, bias)
    try:
        found = _native_norm_and_silu(maps, added, gradient, weight, bias)
    except RuntimeError as error:  # of the library
        yield f"cpu on cpu, {_name_type(dtype)}, norm and SiLU: {_describe(error)}"
        return
    for key, tensor in found.items():
        reason = why_wrong(tensor, wide[key], narrow[key])
        where = f"cpu on cpu, {_name_type(dtype)}, norm and SiLU, {key}"
        yield None if reason is None else f"{where}: {reason}"


def _norm_and_silu(
    maps: torch.Tensor,
    added: torch.Tensor,
    gradient: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """By torch: what `_native_norm_and_silu` computes."""
    numbers = torch.float64 if maps.dtype is torch.float64 else torch.float32
    inputs = {"maps": maps, "added": added, "weight": weight.to(numbers), "bias": bias.to(numbers)}
    leaves = [one.clone().requires_grad_() for one in inputs.values()]
    normed = F.batch_norm(leaves[0], None, None, *leaves[2:], training=True)
    result = F.silu(normed + leaves[1])
    gradients = torch.autograd.grad(result, leaves, gradient)
    return {
        "variance": maps.to(numbers).var((0, 2, 3), correction=0),
        "result": result.detach(),
        **{f"gradient of {name}": one for name, one in zip(inputs, gradients, strict=True)},
        "pooled": F.max_pool2d(F.silu(maps), kernel_size=3, stride=2, padding=1),
    }


@torch.no_grad()
def _native_norm_and_silu(
    maps: torch.Tensor,
    added: torch.Tensor,
    gradient: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
) -> dict[str, torch.Tensor]:
    mean, variance = cpu_norm.norm_statistics(maps)
    inverse_deviation = (variance + 1e-5).rsqrt()
    statistics = mean, inverse_deviation
    scale, shift = cpu_norm.norm_affine(weight, bias, *statistics)
    of_maps, of_added, of_weight, of_bias = cpu_norm.norm_silu_gradient(
        *(maps, added, gradient, weight, bias, *statistics), batch_statistics=True
    )
    assert of_added is not None
    return {
        "variance": variance,
        "result": cpu_norm.affine_silu(maps, scale, shift, added),
        "gradient of maps": of_maps,
        "gradient of added": of_added,
        "gradient of weight": of_weight,
        "gradient of bias": of_bias,
        "pooled": cpu_norm.pool_silu(maps),
    }


def _time_stage(
    stage_name: str, stage: Stage, name: str, batch: int, device: torch.device, dtype: torch.dtype
) -> Speed:
    inputs = stage.make_inputs(batch, device=device, dtype=dtype, requires_grad=True)

    def run() -> torch.Tensor:
        return halo_attention(**inputs, **stage.options, backend=name)

    with torch.no_grad():
        forward = time_step(run, device, seconds=SECONDS)
    leaves = list(inputs.values())
    channels = inputs["value"].shape[-1]
    gradient = torch.randn_like(inputs["query"][..., :1].expand(-1, -1, -1, -1, channels))
    both = time_step(lambda: torch.autograd.grad(run(), leaves, gradient), device, seconds=SECONDS)
    rates = [
        stage.count_operations(batch, backward=backward) / seconds / 1e9
        for backward, seconds in ((False, forward), (True, both))
    ]
    return Speed(stage_name, name, 1e3 * forward, rates[0], 1e3 * both, rates[1])


def _describe(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
