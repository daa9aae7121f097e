"""Halo attention in plain torch: the definition by which every backend is judged.

It follows section 2.2 and equation 3 of the paper step by step, copies every window and stores all
scores. Letters of shapes: see `window.py`.
"""

import torch
from torch import Tensor

from halonet.ops.problem import Problem, Window
from halonet.ops.window import (
    gather_windows,
    merge_blocks,
    offset_index,
    split_into_blocks,
    visible_cells,
)


def why_not(problem: Problem) -> str | None:
    """The reference runs everything."""
    return None


def run(problem: Problem) -> Tensor:
    """The output, [B, H', W', N, D]."""
    query, key, value, window = problem.query, problem.key, problem.value, problem.window
    rows, columns = window.blocks(key.shape[1]), window.blocks(key.shape[2])
    values = gather_windows(value, window, rows, columns)  # [B, Y, X, U, V, N, D]
    weights = weigh_cells(problem)
    blocks = torch.einsum("byxnijuv,byxuvnd->byxijnd", weights, values)
    return merge_blocks(blocks, *query.shape[1:3])


def weigh_cells(problem: Problem) -> Tensor:
    """The attention weights, [B, Y, X, N, I, J, U, V]; they sum to 1 over the window's cells.

    Those of queries that only fill up the last blocks have no meaning.
    """
    query, key, _, row_table, column_table, window, scale, position_scale = problem
    height, width = key.shape[1:3]
    rows, columns = window.blocks(height), window.blocks(width)

    queries = split_into_blocks(query, window, rows, columns)  # [B, Y, X, I, J, N, C]
    keys = gather_windows(key, window, rows, columns)  # [B, Y, X, U, V, N, C]

    scores = torch.einsum("byxijnc,byxuvnc->byxnijuv", queries, keys) * scale
    if row_table is not None and column_table is not None:
        row_logits, column_logits = relative_logits(queries, row_table, column_table, window)
        logits = row_logits[..., :, None] + column_logits[..., None, :]
        scores = scores + logits * position_scale

    visible = visible_cells(window, height, width, query.device)
    if visible is not None:
        visible_rows, visible_columns = visible
        mask = (
            visible_rows[:, None, None, :, None, :, None]
            & visible_columns[:, None, None, :, None, :]
        )
        # Not -inf: a padded query may see no cell, and its NaN would reach the gradients.
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.flatten(-2).softmax(-1).view_as(scores)


def relative_logits(
    queries: Tensor, row_table: Tensor, column_table: Tensor, window: Window
) -> tuple[Tensor, Tensor]:
    """q.row[dy] as [B, Y, X, N, I, J, U] and q.column[dx] as [B, Y, X, N, I, J, V], unscaled.

    Tables of half width are multiplied with one half of the query's channels each (paper section
    2.1, as in SASA), tables of full width with all of them (timm).
    """
    index = offset_index(window, queries.device)
    half = row_table.shape[1] != queries.shape[-1]
    row_queries, column_queries = queries.chunk(2, -1) if half else (queries, queries)
    row_logits = torch.einsum("byxijnc,iuc->byxniju", row_queries, row_table[index])
    column_logits = torch.einsum("byxijnc,jvc->byxnijv", column_queries, column_table[index])
    return row_logits, column_logits
