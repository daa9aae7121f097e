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

    def inputs(self, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        """Random inputs by name, the same numbers in every type."""
        generator = torch.Generator().manual_seed(0)
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


# Few, as a GPU's kernels are compiled for each.
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

# Every backend runs all of them in the tests. Height and width differ, neither is a multiple of the
# block where the name doesn't say so; batch, heads and value channels are primes.
CASES = (
    Case("plain", 7, 10, {"block_size": 4, "halo_size": 2}),
    Case("block_divides_the_map", 8, 12, {"block_size": 4, "halo_size": 1}),
    Case("no_halo", 7, 5, {"block_size": 3, "halo_size": 0}),
    Case("halo_larger_than_block", 7, 5, {"block_size": 2, "halo_size": 5}),
    Case("one_pixel_blocks", 5, 4, {"block_size": 1, "halo_size": 2}),
    Case("one_block", 6, 5, {"block_size": 6, "halo_size": 1}),
    Case("one_pixel", 1, 1, {"block_size": 4, "halo_size": 1}),
    Case("long_map", 2, 17, {"block_size": 4, "halo_size": 3}),
    Case("full_width_tables", 7, 6, {"block_size": 4, "halo_size": 2}, tables="full"),
    Case("no_tables", 7, 6, {"block_size": 4, "halo_size": 2}, tables="none"),
    Case("padding_counts", 7, 10, {"block_size": 4, "halo_size": 2, "mask_padding": False}),
    Case(
        "padding_counts_no_tables",
        7,
        6,
        {"block_size": 4, "halo_size": 2, "mask_padding": False},
        tables="none",
    ),
    Case("stride_even_map", 8, 12, {"block_size": 4, "halo_size": 3, "stride": 2}),
    Case("stride_smallest_block", 5, 7, {"block_size": 2, "halo_size": 1, "stride": 2}),
    Case(
        "stride_padding_counts",
        7,
        10,
        {"block_size": 4, "halo_size": 2, "stride": 2, "mask_padding": False},
    ),
    Case(
        "stride_as_timm",
        7,
        10,
        {
            "block_size": 4,
            "halo_size": 2,
            "stride": 2,
            "position_stride": 1,
            "position_scale": 1.0,
            "mask_padding": False,
        },
        tables="full",
    ),
    Case("scale", 7, 6, {"block_size": 4, "halo_size": 2, "scale": 0.25}),
    Case("position_scale", 7, 6, {"block_size": 4, "halo_size": 2, "position_scale": 1.5}),
    Case("one_head", 7, 6, {"block_size": 4, "halo_size": 2}, batch=1, heads=1),
    Case("wide_heads", 9, 7, {"block_size": 4, "halo_size": 2}, channels=34, value_channels=37),
    *AWKWARD_CASES,
)

KERNEL_CASES = (
    Case("kernel", 7, 10, {"block_size": 4, "halo_size": 2, "kernel_size": 3}),
    Case("kernel_of_one", 5, 6, {"block_size": 4, "halo_size": 1, "kernel_size": 1}),
    Case("kernel_fills_the_halo", 7, 5, {"block_size": 4, "halo_size": 3, "kernel_size": 7}),
    Case("kernel_stride", 7, 10, {"block_size": 4, "halo_size": 2, "kernel_size": 3, "stride": 2}),
    Case(
        "kernel_padding_counts",
        5,
        6,
        {"block_size": 4, "halo_size": 2, "kernel_size": 5, "mask_padding": False},
        tables="none",
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
