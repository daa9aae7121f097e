"""Cases of the operator: shapes and options, inputs for them, and results with all gradients."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Case(NamedTuple):
    """Shapes of the inputs and options of the operator."""

    name: str
    height: int
    width: int
    options: dict[str, Any]
    batch: int = 2
    heads: int = 3
    channels: int = 4
    value_channels: int = 5
    tables: str = "half"  # or "full", "none"

    def __str__(self) -> str:
        return self.name

    def inputs(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, Tensor]:
        """Random inputs by name, the same numbers in every type."""
        generator = torch.Generator().manual_seed(seed)
        stride = self.options.get("stride", 1)
        length = 2 * (self.options["block_size"] + self.options["halo_size"]) - 1
        table_width = self.channels if self.tables == "full" else self.channels // 2
        queries = (-(-self.height // stride), -(-self.width // stride))
        shapes = {
            "query": (self.batch, *queries, self.heads, self.channels),
            "key": (self.batch, self.height, self.width, self.heads, self.channels),
            "value": (self.batch, self.height, self.width, self.heads, self.value_channels),
            "row_table": (length, table_width),
            "column_table": (length, table_width),
        }
        if self.tables == "none":
            del shapes["row_table"], shapes["column_table"]
        return {
            name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            for name, shape in shapes.items()
        }


# Few, as a GPU's kernels are compiled for each; the tests' table has more.
AWKWARD_CASES = (
    Case("block_larger_than_map", 5, 3, {"block_size": 8, "halo_size": 3}),
    Case("stride", 7, 10, {"block_size": 4, "halo_size": 2, "stride": 2}),
    Case(
        "padding_counts_full_width_tables",
        7,
        6,
        {"block_size": 4, "halo_size": 2, "mask_padding": False},
        tables="full",
    ),
    Case(
        "paper_window",
        11,
        9,
        {"block_size": 8, "halo_size": 3},
        batch=1,
        heads=2,
        channels=16,
        value_channels=17,
    ),
)


def run_with_gradients(
    operator: Callable[..., Tensor], inputs: dict[str, Tensor], options: dict[str, Any]
) -> dict[str, Tensor]:
    """The result and the gradient of every input, by name."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in inputs.items()}
    result = operator(**leaves, **options)
    weights = torch.randn(
        result.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    # The type first: not every device has float64.
    weights = weights.to(result.dtype).to(result.device)
    gradients = torch.autograd.grad(result, list(leaves.values()), weights)
    named = {
        f"gradient of {name}": gradient for name, gradient in zip(leaves, gradients, strict=True)
    }
    return {"result": result.detach(), **named}
