"""The comparison rule itself: it must let rounding pass and nothing else."""

import pytest
import torch

from tests.comparison import assert_as_exact

EXACT = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)


def test_float64_passes_below_1e_10_and_fails_above() -> None:
    assert_as_exact("result", EXACT + 9e-11, EXACT)
    with pytest.raises(AssertionError, match="result: error"):
        assert_as_exact("result", EXACT + 2e-10, EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_types_may_err_twice_as_much_as_plain_torch(dtype: torch.dtype) -> None:
    step = 1000 * torch.finfo(dtype).eps
    exact = torch.zeros(3, dtype=torch.float64)
    plain = torch.tensor([step, 0, 0], dtype=dtype)
    assert_as_exact("result", torch.tensor([0, 2 * step, 0], dtype=dtype), exact, plain)
    with pytest.raises(AssertionError, match="result: error"):
        assert_as_exact("result", torch.tensor([0, 2.1 * step, 0], dtype=dtype), exact, plain)


def test_zeros_do_not_pass_for_a_result() -> None:
    plain = EXACT.to(torch.bfloat16)
    with pytest.raises(AssertionError, match="error"):
        assert_as_exact("result", torch.zeros(3, dtype=torch.bfloat16), EXACT, plain)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_fail(wrong: float) -> None:
    with pytest.raises(AssertionError, match="finite"):
        assert_as_exact("result", torch.tensor([1.0, wrong, 3.0], dtype=torch.float64), EXACT)


def test_another_shape_or_type_fails() -> None:
    with pytest.raises(AssertionError, match="shape"):
        assert_as_exact("result", EXACT[None], EXACT)
    with pytest.raises(AssertionError, match="plain torch"):
        assert_as_exact("result", EXACT.float(), EXACT, EXACT.half())
