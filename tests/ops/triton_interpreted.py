"""What `test_triton.py` runs in processes of their own, where Triton interprets its kernels.

    TRITON_INTERPRET=1 python -m tests.ops.triton_interpreted GROUP

Fresh memory is filled with NaN, and the inputs lie between NaNs: a number that is read before it is
written, or outside its map, shows.
"""

import dataclasses
import sys
import time

import pytest
import torch
from torch import Tensor
from triton.runtime import interpreter

import halonet
from halonet import halo_attention
from halonet.check.cases import CASES, KERNEL_CASES, Case, run_with_gradients
from halonet.ops import triton_backend
from halonet.ops.triton_tuning import Tiles
from tests.comparison import assert_as_exact
from tests.ops.test_derivatives import of_query, penalty

# One map and head have every border that more have; these keep their batch and heads.
WHOLE = {"one_block", "one_pixel"}
# The largest error of one head alone hangs on a single query here.
TWO_HEADS = {"halo_larger_than_block"}
OWN_CASES = (
    # Its places need more than 32 columns, its tables more than 64.
    Case("window_of_18", 9, 5, {"block_size": 16, "halo_size": 1}, batch=1, heads=1),
    # Tables of 65 entries, whose gradient is taken in parts; the second has all rows of its window,
    # no place beyond them, and more blocks than programs.
    Case("window_of_62", 5, 4, {"block_size": 4, "halo_size": 29, "stride": 2}, 1, 1),
    Case("window_of_64", 33, 1, {"block_size": 2, "halo_size": 31}, batch=1, heads=1),
    # Sums of exponentials that float32 doesn't hold: the window is gone through again.
    Case("extreme_scores", 5, 4, {"block_size": 4, "halo_size": 1, "scale": 40.0}, 1, 1),
    # No logit is low enough for the cells outside the map.
    Case("scale_of_0", 5, 4, {"block_size": 4, "halo_size": 1, "scale": 0.0}, 1, 1),
    Case("negative_scale", 5, 4, {"block_size": 4, "halo_size": 1, "scale": -0.7}, 1, 1),
    Case("odd_channels", 5, 4, {"block_size": 4, "halo_size": 1}, 1, 2, 19, 33, "full"),
)
NARROW_TYPES = ("plain", "stride_as_timm", "padding_counts_no_tables")


def shrink(case: Case) -> Case:
    """The same case, quick enough for the interpreter."""
    if case.name in WHOLE:
        return case
    return case._replace(batch=1, heads=2 if case.name in TWO_HEADS else 1)


def between_nans(tensor: Tensor) -> Tensor:
    """A copy whose neighbours in memory are NaN, beginning where a tensor would begin."""
    memory = tensor.new_full((tensor.numel() + 128,), torch.nan)
    memory[64:-64] = tensor.flatten()
    return memory[64:-64].view(tensor.shape)


def check(case: Case, dtype: torch.dtype) -> None:
    """Result and gradients are the reference's."""
    inputs = case.inputs(dtype)
    wide = {name: tensor.double() for name, tensor in inputs.items()}
    exact = run_with_gradients(halo_attention, wide, case.options | {"backend": "reference"})
    plain = run_with_gradients(halo_attention, inputs, case.options | {"backend": "reference"})

    def between(**arguments: object) -> Tensor:
        tensors = {n: between_nans(t) for n, t in arguments.items() if isinstance(t, Tensor)}
        return halo_attention(**arguments | tensors, backend="triton")

    found = run_with_gradients(between, inputs, case.options)
    for name, tensor in found.items():
        assert tensor.dtype == dtype
        assert_as_exact(f"{case.name}, {dtype}: {name}", tensor, exact[name], plain[name])


def run_table(part: int, parts: int) -> None:
    """The shared table in float32."""
    for case in (*CASES, *OWN_CASES)[part::parts]:
        started = time.perf_counter()
        check(shrink(case), torch.float32)
        print(f"{case.name}: {time.perf_counter() - started:.1f} s")


def run_types() -> None:
    """bfloat16 and float16, other tiles, and batches."""
    for name in NARROW_TYPES:
        case = next(case for case in CASES if case.name == name)
        for dtype in (torch.bfloat16, torch.float16):
            check(shrink(case), dtype)
    triton_backend.INTERPRETED_TILES = Tiles(32, 2, 16, 4, 1)
    check(shrink(CASES[0]), torch.float32)
    check(Case("batch", 5, 3, {"block_size": 4, "halo_size": 1}, batch=3), torch.float32)


def run_operator() -> None:
    """What torch asks of an operator, and what this one refuses."""
    options = {"block_size": 4, "halo_size": 1, "backend": "triton"}
    case = Case("", 3, 4, {"block_size": 4, "halo_size": 1}, batch=1, heads=1)
    inputs = case.inputs(torch.float32)
    assert halonet.explain_backend(**inputs, **case.options).reasons["triton"] is None

    first = run_with_gradients(halo_attention, inputs, options)
    again = run_with_gradients(halo_attention, inputs, options)
    compiled = torch.compile(halo_attention, fullgraph=True, backend="aot_eager")
    traced = run_with_gradients(compiled, inputs, options)
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name]), f"two runs differ in {name}"
        assert torch.equal(tensor, traced[name]), f"compiled, {name} differs"

    strided = {name: tensor.mT.contiguous().mT for name, tensor in inputs.items()}
    found = run_with_gradients(halo_attention, strided, options)
    torch.testing.assert_close(found["gradient of key"], first["gradient of key"])

    tensors = [tensor.clone().requires_grad_() for tensor in inputs.values()]
    arguments = (*tensors, [4, 1, 1, 0, 1, 1], 0.5, 0.25)
    torch.library.opcheck(torch.ops.halonet.triton_forward.default, arguments)
    plain = [tensor.detach() for tensor in tensors]
    torch.library.opcheck(torch.ops.halonet.triton_inference.default, (*plain, *arguments[5:]))

    leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
    with torch.autocast("cpu", torch.bfloat16):
        result = halo_attention(**leaves, **options)
    assert result.dtype == torch.bfloat16
    result.float().sum().backward()
    assert all(leaf.grad.dtype == torch.float32 for leaf in leaves.values())

    penalties = [penalty(*of_query(backend, torch.float32)) for backend in ("triton", "reference")]
    torch.testing.assert_close(*penalties, rtol=1e-3, atol=1e-2)
    operator, query = of_query("triton", torch.float32)
    with pytest.raises(NotImplementedError, match=r"no rules for torch\.func"):
        torch.func.jvp(operator, (query,), (query,))

    empty = case._replace(batch=0).inputs(torch.float32)
    for tensor in run_with_gradients(halo_attention, empty, options).values():
        assert tensor.numel() == 0 or not tensor.any()

    refuse(case.inputs(torch.float64), options, "float64")
    refuse(inputs, options | {"kernel_size": 3}, "kernel_size")
    refuse(case._replace(channels=130).inputs(torch.float32), options, "128 channels")
    refuse(case._replace(value_channels=257).inputs(torch.float32), options, "256 value channels")
    kernel = KERNEL_CASES[0]
    choice = halonet.explain_backend(**kernel.inputs(torch.float32), **kernel.options)
    assert choice.reasons["triton"] == "it has no kernel_size"


def refuse(inputs: dict[str, Tensor], options: dict, reason: str) -> None:
    """Fail unless the backend refuses, for the reason."""
    with pytest.raises(NotImplementedError, match=reason):
        halo_attention(**inputs, **options)


GROUPS = {
    "table_1": lambda: run_table(0, 2),
    "table_2": lambda: run_table(1, 2),
    "types": run_types,
    "operator": run_operator,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    # This fills fresh memory with NaN.
    torch.use_deterministic_algorithms(True)
    # The interpreter's checks for overflow of integers double its time, and these are small.
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
    GROUPS[sys.argv[1]]()
