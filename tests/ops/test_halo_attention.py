"""The operator: oracle = reference = every backend, and what it means."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

import halonet
import halonet.ops.halo_attention as operator_module
from halonet import halo_attention
from halonet.check.cases import CASES, KERNEL_CASES, Case, run_with_gradients
from tests.comparison import assert_as_exact
from tests.oracle import oracle

BACKENDS = ["sdpa"]  # that run every case in every type; test_cpu.py has the native kernel
ALL_CASES = [*CASES, *KERNEL_CASES]
NARROW = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_reference_is_the_oracle(case: Case) -> None:
    inputs = case.inputs()
    result = halo_attention(**inputs, **case.options, backend="reference")
    assert_as_exact("result", result, oracle(**inputs, **case.options))


@pytest.mark.parametrize(
    "case",
    [
        Case("plain", 3, 4, {"block_size": 2, "halo_size": 1}, heads=1, channels=2),
        Case("stride", 3, 4, {"block_size": 2, "halo_size": 1, "stride": 2}, heads=1, channels=2),
        Case(
            "padding_counts",
            3,
            2,
            {"block_size": 2, "halo_size": 1, "mask_padding": False},
            heads=1,
        ),
        Case("kernel", 3, 2, {"block_size": 2, "halo_size": 1, "kernel_size": 3}, heads=1),
        Case("full", 3, 2, {"block_size": 2, "halo_size": 0}, heads=1, tables="full"),
    ],
    ids=str,
)
@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_gradients_are_the_derivatives(case: Case, backend: str) -> None:
    inputs = [tensor.requires_grad_() for tensor in case.inputs().values()]
    torch.autograd.gradcheck(
        lambda *tensors: halo_attention(*tensors, **case.options, backend=backend), inputs
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_backend_is_the_reference(case: Case, backend: str) -> None:
    inputs = case.inputs()
    exact = run_with_gradients(halo_attention, inputs, case.options | {"backend": "reference"})
    found = run_with_gradients(halo_attention, inputs, case.options | {"backend": backend})
    for name, tensor in found.items():
        assert_as_exact(name, tensor, exact[name])


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_backend_in_narrow_types(case: Case, backend: str, dtype: torch.dtype) -> None:
    inputs = case.inputs(dtype)
    wide = {name: tensor.double() for name, tensor in inputs.items()}
    exact = run_with_gradients(halo_attention, wide, case.options | {"backend": "reference"})
    plain = run_with_gradients(halo_attention, inputs, case.options | {"backend": "reference"})
    found = run_with_gradients(halo_attention, inputs, case.options | {"backend": backend})
    for name, tensor in found.items():
        assert tensor.dtype == dtype
        assert_as_exact(name, tensor, exact[name], plain[name])


EVERY_BACKEND = pytest.mark.parametrize("backend", ["reference", *BACKENDS])


@EVERY_BACKEND
@pytest.mark.parametrize("stride", [1, 2])
def test_constant_values_stay_constant_in_corners_too(backend: str, stride: int) -> None:
    inputs = Case("", 7, 10, {"block_size": 4, "halo_size": 2, "stride": stride}).inputs()
    inputs["value"] = torch.full_like(inputs["value"], 3.0)
    result = halo_attention(**inputs, block_size=4, halo_size=2, stride=stride, backend=backend)
    torch.testing.assert_close(result, torch.full_like(result, 3.0))


@EVERY_BACKEND
def test_counted_padding_darkens_a_corner_by_the_share_of_cells_outside(backend: str) -> None:
    # b = 8, h = 3, zero logits: a corner sees 11 of 14 cells along each axis.
    query = key = torch.zeros(1, 16, 16, 1, 2, dtype=torch.float64)
    value = torch.ones(1, 16, 16, 1, 1, dtype=torch.float64)
    result = halo_attention(
        query, key, value, block_size=8, halo_size=3, mask_padding=False, backend=backend
    )
    assert result[0, 0, 0, 0, 0].item() == pytest.approx((11 / 14) ** 2)


@EVERY_BACKEND
def test_a_shift_by_a_block_shifts_the_output(backend: str) -> None:
    case = Case("", 20, 24, {"block_size": 4, "halo_size": 2})
    inputs = case.inputs()
    moved = inputs | {name: inputs[name].roll((4, 4), (1, 2)) for name in ("query", "key", "value")}
    before = halo_attention(**inputs, **case.options, backend=backend)
    after = halo_attention(**moved, **case.options, backend=backend)
    # Blocks whose windows lie inside the map both before and after.
    torch.testing.assert_close(after[:, 8:16, 8:20], before[:, 4:12, 4:16])


@EVERY_BACKEND
def test_queries_matter(backend: str) -> None:
    case = CASES[0]
    inputs = case.inputs()
    result = halo_attention(**inputs, **case.options, backend=backend)
    changed = inputs["query"].clone()
    changed[0, 2, 3] += 1
    difference = (
        halo_attention(**inputs | {"query": changed}, **case.options, backend=backend) - result
    )
    assert difference[0, 2, 3].abs().min() > 0
    difference[0, 2, 3] = 0
    assert difference.abs().max() == 0


@EVERY_BACKEND
@pytest.mark.parametrize("mask_padding", [True, False])
def test_relative_position_reaches_the_right_pixel(backend: str, mask_padding: bool) -> None:
    # A row offset of +1 and a column offset of -1 win every softmax: each query copies that pixel.
    height, width, block, halo = 6, 6, 2, 1
    query = torch.ones(1, height, width, 1, 2, dtype=torch.float64)
    key = torch.zeros(1, height, width, 1, 2, dtype=torch.float64)
    value = torch.arange(36.0, dtype=torch.float64).view(1, height, width, 1, 1)
    row_table = torch.zeros(5, 1, dtype=torch.float64)
    column_table = torch.zeros(5, 1, dtype=torch.float64)
    row_table[2 + 1] = column_table[2 - 1] = 1000
    result = halo_attention(
        query, key, value, row_table, column_table,
        block_size=block, halo_size=halo, mask_padding=mask_padding, backend=backend,
    )  # fmt: skip
    torch.testing.assert_close(result[:, :-1, 1:], value[:, 1:, :-1])


@EVERY_BACKEND
def test_empty_batch(backend: str) -> None:
    case = Case("", 7, 10, {"block_size": 4, "halo_size": 2}, batch=0)
    for tensor in run_with_gradients(
        halo_attention, case.inputs(), case.options | {"backend": backend}
    ).values():
        assert tensor.numel() == 0 or bool((tensor == 0).all())


@EVERY_BACKEND
def test_layout_of_the_inputs_does_not_matter(backend: str) -> None:
    case = CASES[0]
    inputs = case.inputs()
    strided = {name: tensor.mT.contiguous().mT for name, tensor in inputs.items()}
    result = halo_attention(**inputs, **case.options, backend=backend)
    torch.testing.assert_close(halo_attention(**strided, **case.options, backend=backend), result)


@EVERY_BACKEND
def test_autocast_casts_the_inputs_and_nothing_else(backend: str) -> None:
    case = CASES[0]
    with torch.autocast("cpu", torch.bfloat16):
        result = halo_attention(**case.inputs(torch.float32), **case.options, backend=backend)
        wide = halo_attention(**case.inputs(), **case.options, backend=backend)
    narrow = case.inputs(torch.bfloat16)
    assert torch.equal(result, halo_attention(**narrow, **case.options, backend=backend))
    assert torch.equal(wide, halo_attention(**case.inputs(), **case.options, backend=backend))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_gives_its_type_and_gradients_of_the_inputs_type(dtype: torch.dtype) -> None:
    case = CASES[0]
    inputs = {name: tensor.requires_grad_() for name, tensor in case.inputs(torch.float32).items()}
    with torch.autocast("cpu", dtype):
        result = halo_attention(**inputs, **case.options)
    assert result.dtype == dtype
    result.float().sum().backward()
    assert all(
        tensor.grad is not None and tensor.grad.dtype == torch.float32 for tensor in inputs.values()
    )


@pytest.mark.parametrize(
    ("backend", "name"), [("reference", "plain"), ("sdpa", "stride"), ("sdpa", "kernel")]
)
def test_compiles_without_a_graph_break(backend: str, name: str) -> None:
    case = next(case for case in ALL_CASES if case.name == name)
    inputs = case.inputs(torch.float32)
    compiled = torch.compile(halo_attention, fullgraph=True, backend="aot_eager")
    found = run_with_gradients(compiled, inputs, case.options | {"backend": backend})
    eager = run_with_gradients(halo_attention, inputs, case.options | {"backend": backend})
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, eager[name])


@EVERY_BACKEND
def test_exports(backend: str) -> None:
    class Module(torch.nn.Module):
        def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return halo_attention(query, key, value, block_size=4, halo_size=2, backend=backend)

    case = Case("", 7, 10, {"block_size": 4, "halo_size": 2}, tables="none")
    inputs = tuple(case.inputs().values())
    exported = torch.export.export(Module(), inputs).module()
    torch.testing.assert_close(exported(*inputs), Module()(*inputs))


def test_explains_the_choice() -> None:
    inputs = CASES[0].inputs()
    choice = halonet.explain_backend(**inputs, **CASES[0].options)
    assert list(choice.reasons) == halonet.list_backends()
    assert choice.reasons[choice.chosen] is None
    assert f"{choice.chosen}: runs" in str(choice)
    assert "reference: could run, but" in str(choice)


def test_unknown_backend_is_named() -> None:
    with pytest.raises(ValueError, match=r"backend must be one of .*sdpa.*, got 'fast'"):
        halo_attention(**CASES[0].inputs(), **CASES[0].options, backend="fast")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_size": 0}, "block_size must be a positive multiple of stride 1, got 0"),
        ({"block_size": 5, "stride": 2}, "block_size must be a positive multiple of stride 2, got 5"),
        ({"block_size": 4.0}, "block_size must be an integer, got 4.0"),
        ({"halo_size": -1}, "halo_size must be 0 or more, got -1"),
        ({"stride": 3}, "stride must be 1 or 2, got 3"),
        ({"kernel_size": 4}, "kernel_size must be odd and at most 2 halo_size \\+ 1 = 5, got 4"),
        ({"kernel_size": 7}, "kernel_size must be odd and at most .* got 7"),
        ({"position_stride": 2}, "position_stride must be from 1 to stride 1, got 2"),
        ({"query": torch.zeros(2, 7, 9, 3, 4)}, "query must have shape \\[2, 7, 10, 3, 4\\].*got"),
        ({"query": torch.zeros(2, 7, 10, 12)}, "query must have 5 dimensions"),
        ({"query": "query"}, "query must be a tensor, got str"),
        ({"key": torch.zeros(2, 7, 10, 3, 4).int()}, "key must be float64, .* got torch.int32"),
        ({"key": torch.zeros(2, 7, 0, 3, 4)}, "key must have no empty dimension but batch, got"),
        ({"key": torch.zeros(2, 7, 10, 3, 4, device="meta")}, "key must be on the query's device cpu"),
        ({"value": torch.zeros(2, 7, 10, 2, 5)}, "value must have shape .* like key, got"),
        ({"value": torch.zeros(2, 7, 10, 3, 5).half()}, "value must have the query's type"),
        ({"column_table": None}, "row_table and column_table: give both or neither"),
        ({"row_table": torch.zeros(10, 2)}, "row_table must have shape \\[11, 4 or 4 / 2\\]"),
        ({"row_table": torch.zeros(11, 4)}, "must have one shape"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    arguments = CASES[0].inputs(torch.float32) | CASES[0].options | change
    with pytest.raises((ValueError, TypeError), match=message):
        halo_attention(**arguments)


def test_the_environments_backend_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    # By way of a process, once: the variable is read on import.
    code = "import halonet; print(halonet.list_backends()[0])"
    environment = os.environ | {"HALONET_BACKEND": "reference"}
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert shown.stdout.strip() == b"reference"
    monkeypatch.setattr(operator_module, "PREFERRED", "triton")
    choice = halonet.explain_backend(**CASES[0].inputs(), **CASES[0].options)
    assert next(iter(choice.reasons)) == "triton"
    assert choice.chosen == "sdpa"  # as triton can't run
    monkeypatch.setattr(operator_module, "PREFERRED", "fast")
    with pytest.raises(ValueError, match=r"HALONET_BACKEND must be one of .*sdpa.*, got 'fast'"):
        halo_attention(**CASES[0].inputs(), **CASES[0].options)
