"""Halo attention through torch's fused `scaled_dot_product_attention`.

The windows are gathered and the relative logits written out as the attention's bias; scores and
weights stay inside torch's kernel where it has a fused one. Letters of shapes: see `window.py`.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from halonet.ops import reference
from halonet.ops.operators import differentiates_by_rules
from halonet.ops.problem import Problem, Window
from halonet.ops.reference import relative_logits
from halonet.ops.window import (
    gather_windows,
    merge_blocks,
    split_into_blocks,
    visible_cells,
)


def why_not(problem: Problem) -> str | None:
    """None: where torch has no fused kernel, its function falls back to plain operations."""
    return None


def run(problem: Problem) -> Tensor:
    """The output, [B, H', W', N, D]."""
    query, key, value, row_table, column_table, window, scale, position_scale = problem
    if query.shape[0] == 0:
        # For an empty batch torch's function leaves the bias, and so the tables, without gradients.
        return reference.run(problem)
    height, width = key.shape[1:3]
    rows, columns = window.blocks(height), window.blocks(width)

    queries = split_into_blocks(query, window, rows, columns)  # [B, Y, X, I, J, N, C]
    batch, _, _, _, _, heads, _ = queries.shape
    scaled = queries * scale
    position_queries = scaled if position_scale == scale else queries * position_scale
    bias = attention_bias(position_queries, row_table, column_table, window, height, width)
    if bias is not None:
        bias = bias.expand(batch, rows, columns, heads, -1, -1, -1, -1)
        bias = bias.flatten(-2).flatten(-3, -2).flatten(0, 2)  # [B Y X, N, I J, U V]

    # torch's fused kernels have no forward-mode derivative, and no rule for vmap.
    with sdpa_kernel(SDPBackend.MATH) if differentiates_by_rules() else nullcontext():
        result = F.scaled_dot_product_attention(
            scaled.flatten(3, 4).transpose(3, 4).flatten(0, 2),
            flatten_windows(gather_windows(key, window, rows, columns)),
            flatten_windows(gather_windows(value, window, rows, columns)),
            attn_mask=bias,
            scale=1.0,
        )  # [B Y X, N, I J, D]
    blocks = result.transpose(1, 2).unflatten(0, (batch, rows, columns))
    blocks = blocks.unflatten(3, (window.block_queries, window.block_queries))
    return merge_blocks(blocks, *query.shape[1:3])


def flatten_windows(windows: Tensor) -> Tensor:
    """[B, Y, X, U, V, N, C] to [B Y X, N, U V, C], heads and channels last in memory."""
    return windows.flatten(3, 4).flatten(0, 2).transpose(1, 2)


def attention_bias(
    queries: Tensor,
    row_table: Tensor | None,
    column_table: Tensor | None,
    window: Window,
    height: int,
    width: int,
) -> Tensor | None:
    """What is added to q.k before the softmax, [B or 1, Y, X, N or 1, I, J, U, V].

    `queries` are scaled blocks [B, Y, X, I, J, N, C]. The mask is applied to the row and the
    column logits, which are small, before their sum is written out.
    """
    visible = visible_cells(window, height, width, queries.device)
    if row_table is not None and column_table is not None:
        row_logits, column_logits = relative_logits(queries, row_table, column_table, window)
    elif visible is not None:
        row_logits = column_logits = queries.new_zeros(1)
    else:
        return None
    if visible is not None:
        visible_rows, visible_columns = visible
        # Half of the least number: a sum of two must stay finite.
        hidden = torch.finfo(queries.dtype).min / 2
        row_logits = row_logits.masked_fill(~visible_rows[:, None, None, :, None, :], hidden)
        column_logits = column_logits.masked_fill(~visible_columns[:, None, None, :, :], hidden)
    return row_logits[..., :, None] + column_logits[..., None, :]
