"""Blocks, windows and offsets: the geometry that every backend shares.

Letters of shapes, here and in the backends:

    B  batch                         I J  rows and columns of queries in a block
    H W  rows and columns of a map   U V  rows and columns of cells in a window
    Y X  rows and columns of blocks  N    heads
    C  channels of a head            D    value channels of a head
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from halonet.ops.problem import Window


def split_into_blocks(query: Tensor, window: Window, rows: int, columns: int) -> Tensor:
    """Cut a query map [B, H', W', N, C] into `rows` x `columns` blocks [B, Y, X, I, J, N, C]."""
    side = window.block_queries
    batch, height, width, heads, channels = query.shape
    padded = F.pad(query, (0, 0, 0, 0, 0, columns * side - width, 0, rows * side - height))
    blocks = padded.view(batch, rows, side, columns, side, heads, channels)
    return blocks.transpose(2, 3)


def merge_blocks(blocks: Tensor, height: int, width: int) -> Tensor:
    """Undo `split_into_blocks`: [B, Y, X, I, J, N, D] to [B, height, width, N, D]."""
    merged = blocks.transpose(2, 3).flatten(1, 2).flatten(2, 3)
    return merged[:, :height, :width]


def gather_windows(pixels: Tensor, window: Window, rows: int, columns: int) -> Tensor:
    """Copy the window of each block out of a map [B, H, W, N, C], zeros outside the map.

    Returns [B, Y, X, U, V, N, C]. A window is pieced together from neighbouring blocks of the
    padded map: the gradient is then a few large sums, where that of `unfold` is many small ones.
    """
    _, height, width, _, _ = pixels.shape
    halo, block = window.halo_size, window.block_size
    pieces = -(-window.size // block)
    below = (rows + pieces - 1) * block - halo - height
    right = (columns + pieces - 1) * block - halo - width
    padded = F.pad(pixels, (0, 0, 0, 0, halo, right, halo, below))
    strips = padded.unflatten(1, (-1, block))  # [B, Y + pieces - 1, b, W', N, C]
    strips = torch.cat([strips[:, piece : piece + rows] for piece in range(pieces)], 2)
    strips = strips[:, :, : window.size].unflatten(3, (-1, block))  # [B, Y, U, X', b, N, C]
    windows = torch.cat([strips[:, :, :, piece : piece + columns] for piece in range(pieces)], 4)
    return windows[:, :, :, :, : window.size].transpose(2, 3)


def offset_index(window: Window, device: torch.device) -> Tensor:
    """The tables' entry of each query and cell along one axis, [I, U].

    The query at index i of its block counts as pixel i * position_stride of it, cell u of the
    window as pixel u - h; the entry for offset 0 is b + h - 1.
    """
    queries = torch.arange(window.block_queries, device=device) * window.position_stride
    cells = torch.arange(window.size, device=device)
    return cells[None, :] - queries[:, None] + window.block_size - 1


def visible_cells(
    window: Window, height: int, width: int, device: torch.device
) -> tuple[Tensor, Tensor] | None:
    """Rows and columns of the window that a query may attend to, bool [Y, I, U] and [X, J, V].

    A cell is visible where both its row and its column are. None where every cell is.
    """
    if not window.mask_padding and not window.kernel_size:
        return None
    return _visible_axis(window, height, device), _visible_axis(window, width, device)


def _visible_axis(window: Window, map_size: int, device: torch.device) -> Tensor:
    blocks = window.blocks(map_size)
    shape = (blocks, window.block_queries, window.size)
    visible = torch.ones(shape, dtype=torch.bool, device=device)
    cells = torch.arange(window.size, device=device) - window.halo_size
    if window.mask_padding:
        pixels = torch.arange(blocks, device=device)[:, None] * window.block_size + cells
        visible &= ((pixels >= 0) & (pixels < map_size))[:, None, :]
    if window.kernel_size:
        queries = torch.arange(window.block_queries, device=device) * window.stride
        visible &= (cells - queries[:, None]).abs() <= window.kernel_size // 2
    return visible
