"""The rule of `halonet.check.comparison`, as an assertion."""

import torch
from torch import Tensor

from halonet.check.comparison import why_wrong


def assert_as_exact(name: str, actual: Tensor, exact: Tensor, plain: Tensor | None = None) -> None:
    """Fail unless `actual` is as near to `exact` (float64) as its type allows."""
    assert exact.dtype == torch.float64
    reason = why_wrong(actual, exact, plain)
    assert reason is None, f"{name}: {reason}"
