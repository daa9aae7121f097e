"""The weights behind the operator's result, for a few of its pixels: what they looked at."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from halonet.ops import reference
from halonet.ops.halo_attention import resolve_arguments


@dataclass(frozen=True)
class AttentionWeights:
    """Attention weights of a few pixels over their windows.

    Attributes:
        weights: [batch, pixels, heads, b + 2h, b + 2h]; they sum to 1 over a window's rows and
            columns. Those of cells that a pixel may not attend to are 0.
        corners: row and column of each window's first cell in the key's map, [pixels, 2]; below 0
            where the window reaches beyond the map.
    """

    weights: Tensor
    corners: Tensor


def attention_weights(
    query: Tensor,
    key: Tensor,
    row_table: Tensor | None = None,
    column_table: Tensor | None = None,
    *,
    pixels: Sequence[tuple[int, int]],
    block_size: int,
    halo_size: int,
    stride: int = 1,
    kernel_size: int | None = None,
    position_stride: int | None = None,
    scale: float | Tensor | None = None,
    position_scale: float | Tensor | None = None,
    mask_padding: bool = True,
) -> AttentionWeights:
    """The weights with which `halo_attention` sums the values, by the operator's definition.

    Takes the operator's arguments without `value` and `backend`, and raises as it does. Every
    backend computes the same within rounding, but stores no weights. The weights of the whole map
    are computed on the way, batch x heads x pixels x (b + 2h)^2 of them.

    Args:
        query: as `halo_attention` takes it.
        key: likewise.
        row_table: likewise.
        column_table: likewise.
        pixels: rows and columns in the query's map, which is the result's: at stride 2, the pixel
            (i, j) is that of (2i, 2j) in the key's map.
        block_size: as `halo_attention` takes it, and so all that follow.
        halo_size: likewise.
        stride: likewise.
        kernel_size: likewise.
        position_stride: likewise.
        scale: likewise.
        position_scale: likewise.
        mask_padding: likewise.

    Raises:
        ValueError: a pixel outside the query's map.
    """
    problem, _ = resolve_arguments(
        query, key, key, row_table, column_table,
        block_size, halo_size, stride, kernel_size, position_stride, scale, position_scale,
        mask_padding,
    )  # fmt: skip
    height, width = query.shape[1:3]
    for row, column in pixels:
        if not (0 <= row < height and 0 <= column < width):
            raise ValueError(
                f"pixels must lie in the query's map of {height} x {width}, got {(row, column)}"
            )
    window = problem.window
    places = torch.tensor(list(pixels), dtype=torch.long, device=query.device).view(-1, 2)
    blocks, inner = places // window.block_queries, places % window.block_queries
    with torch.autocast(query.device.type, enabled=False):
        weights = reference.weigh_cells(problem)  # [B, Y, X, N, I, J, U, V]
    weights = weights.transpose(3, 5)[:, blocks[:, 0], blocks[:, 1], inner[:, 1], inner[:, 0]]
    return AttentionWeights(weights, blocks * window.block_size - window.halo_size)
