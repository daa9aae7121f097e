"""The one rule by which results are compared, for each type."""

import torch
from torch import Tensor


def why_wrong(actual: Tensor, exact: Tensor, plain: Tensor | None = None) -> str | None:
    """What is wrong with `actual`; None where it is as near to `exact` as its type allows.

    float64: an absolute error of 1e-10. Narrower types (flash-attention's rule): at most twice the
    error that plain torch makes in the same type, plus a floor: one rounding of the largest number
    in its type, and sixteen in float32, in which every backend adds up, of numbers as large as the
    inputs, which are about 1.

    Args:
        actual: the result to judge.
        exact: the same, computed in float64.
        plain: the same, computed by the reference in `actual`'s type, where that is narrower.
    """
    if actual.shape != exact.shape:
        return f"shape {list(actual.shape)}, expected {list(exact.shape)}"
    if not bool(torch.isfinite(actual).all()):
        return "it has numbers that aren't finite"
    if actual.numel() == 0:
        return None
    error = (actual.double() - exact).abs().max().item()
    if actual.dtype == torch.float64:
        allowed = 1e-10
    else:
        if plain is None or plain.dtype != actual.dtype:
            return f"{actual.dtype}, plain torch has {None if plain is None else plain.dtype}"
        plain_error = (plain.double() - exact).abs().max().item()
        largest = exact.abs().max().item()
        sums = 16 * torch.finfo(torch.float32).eps * max(1.0, largest)
        allowed = 2 * plain_error + torch.finfo(actual.dtype).eps * largest + sums
    return None if error <= allowed else f"error {error:.3g}, allowed {allowed:.3g}"
