"""The one rule by which results are compared, for each type."""

import torch
from torch import Tensor


def assert_as_exact(name: str, actual: Tensor, exact: Tensor, plain: Tensor | None = None) -> None:
    """Fail unless `actual` is as near to `exact` (float64) as its type allows.

    float64: an absolute error of 1e-10. Narrower types (flash-attention's rule): at most twice the
    error that plain torch makes in the same type (`plain`), plus a floor: one rounding of the
    largest number in its type, and sixteen in float32, in which every backend adds up, of numbers
    as large as the inputs, which are about 1.
    """
    assert actual.shape == exact.shape, f"{name}: shape {list(actual.shape)}, {list(exact.shape)}"
    assert exact.dtype == torch.float64
    assert bool(torch.isfinite(actual).all()), f"{name} has numbers that aren't finite"
    if actual.numel() == 0:
        return
    error = (actual.double() - exact).abs().max().item()
    if actual.dtype == torch.float64:
        allowed = 1e-10
    else:
        assert plain is not None, "a narrow type is compared with plain torch in that type"
        assert plain.dtype == actual.dtype, f"{name}: {actual.dtype}, plain torch {plain.dtype}"
        plain_error = (plain.double() - exact).abs().max().item()
        largest = exact.abs().max().item()
        sums = 16 * torch.finfo(torch.float32).eps * max(1.0, largest)
        allowed = 2 * plain_error + torch.finfo(actual.dtype).eps * largest + sums
    assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"
