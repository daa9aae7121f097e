"""One call of the operator, checked and complete: what every backend is given."""

from typing import NamedTuple

from torch import Tensor


class Window(NamedTuple):
    """How queries meet keys: the options of the operator, in whole numbers."""

    block_size: int  # b
    halo_size: int  # h
    stride: int
    kernel_size: int  # 0 where a query may attend to all of the window
    position_stride: int
    mask_padding: int  # 0 or 1

    @property
    def size(self) -> int:
        """Cells on a side of the window, b + 2h."""
        return self.block_size + 2 * self.halo_size

    @property
    def block_queries(self) -> int:
        """Queries on a side of a block, b / stride."""
        return self.block_size // self.stride

    @property
    def table_length(self) -> int:
        """Entries of a relative table, 2(b + h) - 1."""
        return 2 * (self.block_size + self.halo_size) - 1

    def blocks(self, map_size: int) -> int:
        """Blocks along an axis of `map_size` pixels; the last one may reach beyond the map."""
        return (map_size - 1) // self.block_size + 1


class Problem(NamedTuple):
    """Tensors with the shapes that `halonet.halo_attention` documents, the window, and the scales.

    The tensors have one type and one device. Both tables are there, or both are None.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    row_table: Tensor | None
    column_table: Tensor | None
    window: Window
    scale: float
    position_scale: float


TENSORS = 5  # the first fields of a problem

# A problem's fields as the arguments of a torch operator.
SCHEMA = (
    "Tensor query, Tensor key, Tensor value, Tensor? row_table, Tensor? column_table, "
    "int[] window, float scale, float position_scale"
)
