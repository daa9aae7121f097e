"""Halo attention as a layer: projections around the operator."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from halonet.layers.pointwise import PointwiseConvolution
from halonet.ops.attention_weights import AttentionWeights, attention_weights
from halonet.ops.halo_attention import check_backend_name, check_geometry, halo_attention

POSITIONS = ("relative", "absolute", "none")
# Parameters by the end of their names.
RELATIVE_TABLES = ("row_table", "column_table")
ABSOLUTE_VECTORS = ("absolute_rows", "absolute_columns")


class HaloAttention(nn.Module):
    """Multi-head halo attention on maps, in place of a 3x3 convolution (paper section 2).

    Takes and returns maps [batch, channels, height, width], of any size: the block needn't divide
    it. Maps in channels-last order are read and written without a copy.

    Args:
        in_channels: channels of the input map.
        out_channels: channels of the result; None means `in_channels`.
        heads: number of heads; divides the query-key and the value width.
        query_key_channels: width of queries and keys over all heads; None means `in_channels`.
        value_channels: width of the values over all heads; None means `out_channels`. Another
            width than `out_channels` needs `output_projection`.
        block_size: pixels on a side of a block, b.
        halo_size: pixels of the band around a block, h.
        stride: 1, or 2 to downsample by attention (paper section 2.3).
        kernel_size: attend only to the kernel_size x kernel_size pixels around each query (SASA).
        position: "relative" (learned tables, factorised into rows and columns, shared by the
            heads), "absolute" (learned row and column vectors added to the input map), or "none".
        map_size: height and width, in pixels, of the map that the absolute vectors are sized for;
            they are interpolated on other maps. Needed for "absolute" only.
        mask_padding: cells outside the map get no weight; otherwise they count with key and
            value 0.
        output_projection: end with a 1x1 projection; the paper has none.
        backend: name of the operator's backend; None takes the fastest.

    Raises:
        TypeError: a width or number of heads that isn't whole.
        ValueError: widths, sizes or names that don't fit; the message names the argument.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        *,
        heads: int = 8,
        query_key_channels: int | None = None,
        value_channels: int | None = None,
        block_size: int = 8,
        halo_size: int = 3,
        stride: int = 1,
        kernel_size: int | None = None,
        position: str = "relative",
        map_size: tuple[int, int] | None = None,
        mask_padding: bool = True,
        output_projection: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        query_key_channels = in_channels if query_key_channels is None else query_key_channels
        value_channels = out_channels if value_channels is None else value_channels
        check_geometry(block_size, halo_size, stride, kernel_size)
        check_backend_name(backend)
        for name, number in (
            ("in_channels", in_channels),
            ("out_channels", out_channels),
            ("heads", heads),
            ("query_key_channels", query_key_channels),
            ("value_channels", value_channels),
        ):
            if not isinstance(number, Integral):
                raise TypeError(f"{name} must be an integer, got {number!r}")
        if heads < 1:
            raise ValueError(f"heads must be positive, got {heads}")
        for name, width in (
            ("query_key_channels", query_key_channels),
            ("value_channels", value_channels),
        ):
            if width < 1 or width % heads:
                raise ValueError(f"{name} must be a multiple of heads {heads}, got {width}")
        if value_channels != out_channels and not output_projection:
            raise ValueError(
                f"value_channels {value_channels} other than out_channels {out_channels} needs "
                "output_projection=True"
            )
        if position not in POSITIONS:
            raise ValueError(f"position must be one of {', '.join(POSITIONS)}, got {position!r}")
        if position == "relative" and query_key_channels // heads % 2:
            raise ValueError(
                "query_key_channels must be even in each head for relative position, "
                f"got {query_key_channels} for {heads} heads"
            )

        self.in_channels = in_channels
        self.out_channels = out_channels
        self.heads = heads
        self.query_key_channels = query_key_channels
        self.value_channels = value_channels
        self.block_size = block_size
        self.halo_size = halo_size
        self.stride = stride
        self.kernel_size = kernel_size
        self.position = position
        self.mask_padding = mask_padding
        self.backend = backend

        # Queries, keys and values, in this order, in one product; with a stride the queries, which
        # are of fewer pixels, have their own.
        self.query: nn.Conv2d | None = None
        projected = 2 * query_key_channels + value_channels
        if stride > 1:
            self.query = PointwiseConvolution(in_channels, query_key_channels, stride=stride)
            projected -= query_key_channels
        self.projection: nn.Conv2d = PointwiseConvolution(in_channels, projected)
        self.output = (
            PointwiseConvolution(value_channels, out_channels)
            if output_projection
            else nn.Identity()
        )
        self.row_table: nn.Parameter | None = None
        self.column_table: nn.Parameter | None = None
        self.absolute_rows: nn.Parameter | None = None
        self.absolute_columns: nn.Parameter | None = None
        if position == "relative":
            shape = (2 * (block_size + halo_size) - 1, query_key_channels // heads // 2)
            self.row_table = nn.Parameter(torch.empty(shape))
            self.column_table = nn.Parameter(torch.empty(shape))
        elif position == "absolute":
            sizes = map_size if isinstance(map_size, tuple | list) else ()
            if len(sizes) != 2 or not all(isinstance(one, Integral) and one > 0 for one in sizes):
                raise ValueError(f"map_size must be two positive sizes, got {map_size}")
            self.absolute_rows = nn.Parameter(torch.empty(sizes[0], in_channels))
            self.absolute_columns = nn.Parameter(torch.empty(sizes[1], in_channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialize the weights: inputs of unit variance give scores of unit variance."""
        for projection in (self.query, self.projection, self.output):
            if isinstance(projection, nn.Conv2d):
                nn.init.normal_(projection.weight, std=projection.in_channels**-0.5)
        head_channels = self.query_key_channels // self.heads
        for table in (self.row_table, self.column_table):
            if table is not None:
                nn.init.normal_(table, std=head_channels**-0.5)
        for vectors in (self.absolute_rows, self.absolute_columns):
            if vectors is not None:
                nn.init.normal_(vectors, std=0.02)

    def forward(self, maps: Tensor) -> Tensor:
        """[batch, in_channels, height, width] to
        [batch, out_channels, ceil(height / stride), ceil(width / stride)]."""
        attended = halo_attention(**self.operator_arguments(maps), backend=self.backend)
        return self.output(attended.flatten(3).permute(0, 3, 1, 2))

    def operator_arguments(self, maps: Tensor) -> dict[str, Any]:
        """What `halonet.halo_attention` is called with for a map, but for the backend."""
        if not isinstance(maps, Tensor):
            raise TypeError(f"maps must be a tensor, got {type(maps).__name__}")
        if maps.dim() != 4 or maps.shape[1] != self.in_channels:
            raise ValueError(
                f"maps must have shape [batch, {self.in_channels}, height, width], "
                f"got {list(maps.shape)}"
            )
        if self.absolute_rows is not None and self.absolute_columns is not None:
            rows = interpolate_vectors(self.absolute_rows, maps.shape[2]).to(maps.dtype)
            columns = interpolate_vectors(self.absolute_columns, maps.shape[3]).to(maps.dtype)
            maps = maps + rows.T[:, :, None] + columns.T[:, None]
        query, key, value = self.project(maps)
        return {
            "query": query,
            "key": key,
            "value": value,
            "row_table": self.row_table,
            "column_table": self.column_table,
            "block_size": self.block_size,
            "halo_size": self.halo_size,
            "stride": self.stride,
            "kernel_size": self.kernel_size,
            "mask_padding": self.mask_padding,
        }

    def attention_weights(
        self, maps: Tensor, pixels: Sequence[tuple[int, int]]
    ) -> AttentionWeights:
        """The weights by which pixels of the result attend to a map; see `AttentionWeights`.

        Args:
            maps: as for `forward`.
            pixels: rows and columns in the result's map.

        Raises:
            ValueError: a pixel outside the map.
        """
        arguments = self.operator_arguments(maps)
        del arguments["value"]
        return attention_weights(**arguments, pixels=pixels)

    def project(self, maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The queries, keys and values of a map, each [batch, height, width, heads, channels]."""
        widths = [self.query_key_channels, self.value_channels]
        if self.query is None:
            widths.insert(0, self.query_key_channels)
        parts = self.projection(maps).split(widths, dim=1)
        if self.query is not None:
            parts = (self.query(maps), *parts)
        query, key, value = (
            part.permute(0, 2, 3, 1).unflatten(3, (self.heads, -1)) for part in parts
        )
        return query, key, value

    def extra_repr(self) -> str:
        kernel = "" if self.kernel_size is None else f", kernel_size={self.kernel_size}"
        return (
            f"{self.in_channels}, {self.out_channels}, heads={self.heads}, "
            f"block_size={self.block_size}, halo_size={self.halo_size}, stride={self.stride}"
            f"{kernel}, position={self.position!r}, mask_padding={self.mask_padding}"
        )


def interpolate_table(table: Tensor, length: int) -> Tensor:
    """Resample a relative table [2 (b + h) - 1, channels] linearly to `length` offsets.

    Offset 0 stays offset 0, and the largest offsets stay the largest (`align_corners=True`): a row
    stands for a distance, not for a pixel of a map as in `interpolate_vectors`.
    """
    resampled = F.interpolate(table.T[None].float(), size=length, mode="linear", align_corners=True)
    return resampled[0].T.to(table.dtype)


def interpolate_vectors(vectors: Tensor, length: int) -> Tensor:
    """Resample absolute vectors [length before, channels] linearly to [length, channels].

    Each stands for the center of a pixel, so that the borders of the map stay where they are, not
    the centers of the outermost pixels (`align_corners=False`): another image size shows the same
    extent in pixels of another size.
    """
    if vectors.shape[0] == length:
        return vectors
    return F.interpolate(vectors.T[None], size=length, mode="linear", align_corners=False)[0].T
