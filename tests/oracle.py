"""Halo attention by loops over pixels, in float64: slow, and easy to check by reading."""

import math

import torch
from torch import Tensor


def oracle(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row_table: Tensor | None = None,
    column_table: Tensor | None = None,
    *,
    block_size: int,
    halo_size: int,
    stride: int = 1,
    kernel_size: int | None = None,
    position_stride: int | None = None,
    scale: float | None = None,
    position_scale: float | None = None,
    mask_padding: bool = True,
) -> Tensor:
    """The operator's definition, one query and one cell at a time."""
    batch, height, width, heads, channels = key.shape
    step = stride if position_stride is None else position_stride
    factor = channels**-0.5 if scale is None else scale
    position_factor = factor if position_scale is None else position_scale
    result = query.new_zeros(*query.shape[:4], value.shape[-1])
    for n in range(batch):
        for i in range(query.shape[1]):
            for j in range(query.shape[2]):
                for head in range(heads):
                    q = query[n, i, j, head]
                    block_top = i * stride // block_size * block_size
                    block_left = j * stride // block_size * block_size
                    seen_row = block_top + (i * stride - block_top) // stride * step
                    seen_column = block_left + (j * stride - block_left) // stride * step
                    scores, values = [], []
                    for y in range(block_top - halo_size, block_top + block_size + halo_size):
                        for x in range(block_left - halo_size, block_left + block_size + halo_size):
                            inside = 0 <= y < height and 0 <= x < width
                            if mask_padding and not inside:
                                continue
                            if kernel_size is not None and (
                                abs(y - i * stride) > kernel_size // 2
                                or abs(x - j * stride) > kernel_size // 2
                            ):
                                continue
                            k = key[n, y, x, head] if inside else torch.zeros_like(q)
                            score = factor * (q @ k)
                            if row_table is not None and column_table is not None:
                                middle = block_size + halo_size - 1
                                row = row_table[middle + y - seen_row]
                                column = column_table[middle + x - seen_column]
                                if len(row) == channels:
                                    relative = q @ row + q @ column
                                else:
                                    relative = q @ torch.cat([row, column])
                                score = score + position_factor * relative
                            scores.append(float(score))
                            values.append(
                                value[n, y, x, head]
                                if inside
                                else torch.zeros_like(value[0, 0, 0, 0])
                            )
                    highest = max(scores)
                    weights = [math.exp(score - highest) for score in scores]
                    total = sum(weights)
                    for weight, v in zip(weights, values, strict=True):
                        result[n, i, j, head] += weight / total * v
    return result
