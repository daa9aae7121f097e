"""The operator as a model's stages call it: shapes, inputs, and numbers of operations."""

from dataclasses import dataclass
from typing import Any

import torch

from halonet.models.variants import get_variant


@dataclass(frozen=True)
class Stage:
    """The maps that one attention layer of a model sees."""

    map_size: int
    stride: int
    width: int
    value_width: int
    heads: int
    block_size: int
    halo_size: int

    @property
    def options(self) -> dict[str, Any]:
        """The operator's."""
        return {
            "block_size": self.block_size,
            "halo_size": self.halo_size,
            "stride": self.stride,
        }

    def make_inputs(
        self,
        batch: int,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        requires_grad: bool = False,
    ) -> dict[str, Any]:
        """Random tensors for the operator, by the names of its arguments."""
        small = -(-self.map_size // self.stride)
        channels, value_channels = self.width // self.heads, self.value_width // self.heads
        length = 2 * (self.block_size + self.halo_size) - 1
        shapes = {
            "query": (batch, small, small, self.heads, channels),
            "key": (batch, self.map_size, self.map_size, self.heads, channels),
            "value": (batch, self.map_size, self.map_size, self.heads, value_channels),
            "row_table": (length, channels // 2),
            "column_table": (length, channels // 2),
        }
        made: dict[str, Any] = {"device": device, "dtype": dtype, "requires_grad": requires_grad}
        return {name: torch.randn(shape, **made) for name, shape in shapes.items()}

    def count_operations(self, batch: int, *, backward: bool = False) -> int:
        """Operations on cells inside the map: those of the products, and nothing else.

        Forward there are two products, q.k and p.v. The backward pass has five: q.k again, the
        output's gradient with the values, and the gradients of queries, keys and values.

        Args:
            batch: images.
            backward: count the backward pass together with the forward pass.
        """
        cells = 0  # that the queries of a row see in it
        for start in range(0, self.map_size, self.block_size):
            first = max(0, start - self.halo_size)
            last = min(self.map_size, start + self.block_size + self.halo_size)
            end = min(start + self.block_size, self.map_size)
            cells += len(range(start, end, self.stride)) * (last - first)
        of_keys, of_values = (4, 3) if backward else (1, 1)
        return 2 * batch * cells**2 * (of_keys * self.width + of_values * self.value_width)


def list_stages(model: str) -> dict[str, Stage]:
    """The attention layers of a model at its image size: one for each stage and stride."""
    variant = get_variant(model)
    found = {}
    side = -(-variant.image_size // 4)
    for stage in range(4):
        width = variant.base_width * 2**stage
        for stride in (2, 1) if stage else (1,):
            name = f"stage{stage + 1}{'_down' if stride == 2 else ''}"
            found[name] = Stage(
                side,
                stride,
                width,
                round(width * variant.value_ratio),
                variant.heads[stage],
                variant.block_size,
                variant.halo_size,
            )
            side = -(-side // stride)
    return found
