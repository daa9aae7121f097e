"""Triton kernels of halo attention: windows are read straight from the maps.

No window is copied and no matrix of scores is stored. Maps are contiguous, channels last:
queries [B, H', W', N, C], keys [B, H, W, N, C], values [B, H, W, N, D]; the two tables follow
each other, one half each of BLOCK_T entries, with zeros where they have no entry and for channels
that they don't take, [BLOCK_T, BLOCK_C]. Letters: see `window.py`. Names: p_ pointer, b_ block
value, i_ index, o_ offset, m_ mask, first_ the least index of a range.

Relative position costs two small products. `q @ tables^T`, [queries, BLOCK_T], has the logits of
all offsets; a gather along its rows picks those of the window's rows and columns ("places"),
[queries, places]; their product with a matrix of zeros and ones, [places, cells], with ones at each
cell's row and column, adds row and column logit to q.k on the tensor cores. The gradients take the
same steps backwards.

In narrow types weights are powers of 2, and `scale` holds the factor log2(e). In float32 that
factor's rounding would show.
"""

import triton
import triton.language as tl

# These vary from one map or batch to the next: a kernel for each value would be compiled anew.
SIZES = ["height", "width", "query_height", "query_width", "heads", "block_rows", "block_columns"]


@triton.jit
def load_pixels(
    p_map, o_pixel, m_pixel, heads, CHANNELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr
):
    """Channels of one head at some pixels; `p_map` points at the head's first channel.

    Zeros where the mask is off and beyond the channels.
    """
    o_channel = tl.arange(0, BLOCK_CHANNELS)
    m_channel = o_channel < CHANNELS
    # [pixels, BLOCK_CHANNELS]
    p_pixel = p_map + (o_pixel * heads * CHANNELS)[:, None] + o_channel[None, :]
    return tl.load(p_pixel, mask=m_pixel[:, None] & m_channel[None, :], other=0.0)


@triton.jit
def store_pixels(
    p_map, b_pixels, o_pixel, m_pixel, heads, CHANNELS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr
):
    """The counterpart of `load_pixels`."""
    o_channel = tl.arange(0, BLOCK_CHANNELS)
    m_channel = o_channel < CHANNELS
    p_pixel = p_map + (o_pixel * heads * CHANNELS)[:, None] + o_channel[None, :]
    b_pixels = b_pixels.to(p_map.dtype.element_ty)
    tl.store(p_pixel, b_pixels, mask=m_pixel[:, None] & m_channel[None, :])


@triton.jit
def table_offsets(BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr):
    """Where the number of each table entry and query channel lies, [BLOCK_T, BLOCK_C]."""
    return tl.arange(0, BLOCK_T)[:, None] * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]


@triton.jit
def place_logits(
    b_query, b_tables, o_row, o_column, first_row, first_column, POSITION_STRIDE: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_P: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Logits of each query at the rows of cells, one half of the places, and at the columns.

    `first_row` is the table's entry for row 0 and the block's first row of queries.
    """
    QUERIES: tl.constexpr = b_query.shape[0]
    # [queries, 2, entries]: a gather that finds rows and columns apart looks at half as many.
    b_logits = tl.dot(b_query, tl.trans(b_tables), input_precision=PRECISION)
    b_logits = tl.reshape(b_logits.to(b_query.dtype), [QUERIES, 2, BLOCK_T // 2])
    m_column = (tl.arange(0, 2) == 1)[None, :]
    # [queries, 2]
    o_first = tl.where(
        m_column,
        first_column - (o_column * POSITION_STRIDE)[:, None],
        first_row - (o_row * POSITION_STRIDE)[:, None],
    )
    # [queries, 2, places]
    o_entry = o_first[:, :, None] + tl.arange(0, BLOCK_P // 2)[None, None, :]
    # Places beyond the last, and queries beyond the block, are not used: any entry will do.
    o_entry = tl.minimum(tl.maximum(o_entry, 0), BLOCK_T // 2 - 1)
    return tl.reshape(tl.gather(b_logits, o_entry, 2), [QUERIES, BLOCK_P])


@triton.jit
def hide_place(b_logits, scale, WINDOW: tl.constexpr, HIDDEN: tl.constexpr, BLOCK_P: tl.constexpr):
    """The logits; with `HIDDEN`, the place after the rows leaves its cells no weight."""
    if HIDDEN:
        m_place = tl.arange(0, BLOCK_P) == WINDOW
        # For the other cells it is multiplied by 0, and must be finite.
        lowest = tl.where(scale > 0, -1e30, 1e30)
        b_logits = tl.where(m_place[None, :], lowest, b_logits).to(b_logits.dtype)
    return b_logits


@triton.jit
def load_places(
    p_places, o_window_cell, m_cell, WINDOW: tl.constexpr, HIDDEN: tl.constexpr,
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    """The matrix of zeros and ones for cells of a window, which costs less to read than to make.

    With `HIDDEN`, cells that take no part have the row after the last cell's, whose place is the
    hidden one: the product with the logits masks them, on the tensor cores.
    """
    if HIDDEN:
        o_window_cell = tl.where(m_cell, o_window_cell, WINDOW * WINDOW)
        m_cell = m_cell | True
    p_cell = p_places + (o_window_cell * BLOCK_P)[:, None] + tl.arange(0, BLOCK_P)[None, :]
    return tl.load(p_cell, mask=m_cell[:, None], other=0.0)


@triton.jit
def exponential(b_scores, dtype: tl.constexpr):
    """Of scores, to the base of their scale; `dtype` is that of the maps."""
    if dtype == tl.float32:
        return tl.exp(b_scores)
    return tl.exp2(b_scores)


@triton.jit
def locate_queries(
    i_item, query_height, query_width, heads, block_rows, block_columns, SIDE: tl.constexpr,
    TILES: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """The block, head and queries of an item of work.

    Heads and tiles of one block are items in a row: they read the same lines of memory.
    """
    i_tile = i_item % TILES
    i_head = i_item // TILES % heads
    i_block = i_item // TILES // heads
    i_block_column = i_block % block_columns
    i_block_row = i_block // block_columns % block_rows
    i_batch = (i_block // block_columns // block_rows).to(tl.int64)
    # [BLOCK_Q]
    o_query = i_tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    o_row = o_query // SIDE
    o_column = o_query % SIDE
    map_row = i_block_row * SIDE + o_row
    map_column = i_block_column * SIDE + o_column
    m_query = (o_row < SIDE) & (map_row < query_height) & (map_column < query_width)
    o_pixel = map_row * query_width + map_column
    return i_batch, i_head, i_block_row, i_block_column, o_row, o_column, o_pixel, m_query


@triton.jit
def visible_range(
    first_pixel, map_size, HALO_SIZE: tl.constexpr, WINDOW: tl.constexpr, MASK: tl.constexpr
):
    """The first visible cell of a window along an axis, and how many there are."""
    if MASK:
        first = tl.maximum(HALO_SIZE - first_pixel, 0)
        count = tl.minimum(map_size + HALO_SIZE - first_pixel, WINDOW) - first
    else:
        first = first_pixel * 0
        count = first + WINDOW
    return first, count


@triton.jit
def locate_cells(
    start, first_row, first_column, rows, columns, first_pixel_row, first_pixel_column, height,
    width, HALO_SIZE: tl.constexpr, WINDOW: tl.constexpr, MASK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Where in the window the next visible cells are, their pixels, and two masks.

    The first mask is of what takes part, the second of what lies on the map.
    """
    # [BLOCK_K]
    o_cell = start + tl.arange(0, BLOCK_K)
    # Many times as fast as a division of whole numbers, and exact: (o_cell + 1/2) / columns is at
    # least 1 / (2 columns) from a whole number, more than it can be off by in a window of less
    # than a million cells.
    o_row = ((o_cell + 0.5) * (1.0 / columns)).to(tl.int32)
    o_column = first_column + o_cell - o_row * columns
    o_row += first_row
    map_row = first_pixel_row - HALO_SIZE + o_row
    map_column = first_pixel_column - HALO_SIZE + o_column
    m_cell = o_cell < rows * columns
    m_map = m_cell
    if not MASK:
        m_map = m_map & (map_row >= 0) & (map_row < height)
        m_map = m_map & (map_column >= 0) & (map_column < width)
    return o_row * WINDOW + o_column, map_row * width + map_column, m_cell, m_map


@triton.jit
def score_cells(
    p_key, p_value, p_places, b_query, b_logits, start, window, CHANNELS: tl.constexpr,
    VALUE_CHANNELS: tl.constexpr, HAS_TABLES: tl.constexpr, HALO_SIZE: tl.constexpr,
    WINDOW: tl.constexpr, MASK: tl.constexpr, HIDDEN: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Keys, values and places of the next cells, their scores, and the mask of what takes part.

    With `HIDDEN` the scores of the others are low enough without the mask.
    """
    (
        first_row, first_column, rows, columns, first_pixel_row, first_pixel_column, height, width,
        heads,
    ) = window  # fmt: skip
    o_window_cell, o_cell_pixel, m_cell, m_map = locate_cells(
        start, first_row, first_column, rows, columns, first_pixel_row, first_pixel_column,
        height, width, HALO_SIZE, WINDOW, MASK, BLOCK_K,
    )  # fmt: skip
    # [BLOCK_K, BLOCK_C], [BLOCK_K, BLOCK_D]
    b_key = load_pixels(p_key, o_cell_pixel, m_map, heads, CHANNELS, BLOCK_C)
    b_value = load_pixels(p_value, o_cell_pixel, m_map, heads, VALUE_CHANNELS, BLOCK_D)
    # [BLOCK_Q, BLOCK_K]
    b_scores = tl.dot(b_query, tl.trans(b_key), input_precision=PRECISION)
    b_places = b_key
    if HAS_TABLES:
        b_places = load_places(p_places, o_window_cell, m_cell, WINDOW, HIDDEN, BLOCK_P)
        b_scores = tl.dot(b_logits, tl.trans(b_places), b_scores, input_precision=PRECISION)
    return b_key, b_value, b_places, b_scores, m_cell


@triton.jit
def attend_window(
    p_key, p_value, p_places, b_query, b_logits, scale, window, SUBTRACT: tl.constexpr,
    CHANNELS: tl.constexpr, VALUE_CHANNELS: tl.constexpr, HAS_TABLES: tl.constexpr,
    HALO_SIZE: tl.constexpr, WINDOW: tl.constexpr, MASK: tl.constexpr, HIDDEN: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """What is subtracted from the scores, the weights' sums, and the values' sums by the weights.

    With `SUBTRACT` that is the highest score, found on the way, without it nothing.
    """
    rows, columns = window[2], window[3]
    b_max = tl.full([BLOCK_Q], float("-inf") if SUBTRACT else 0.0, tl.float32)
    b_sum = tl.zeros([BLOCK_Q], tl.float32)
    b_result = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    for start in range(0, rows * columns, BLOCK_K):
        _key, b_value, _places, b_scores, m_cell = score_cells(
            p_key, p_value, p_places, b_query, b_logits, start, window, CHANNELS, VALUE_CHANNELS,
            HAS_TABLES, HALO_SIZE, WINDOW, MASK, HIDDEN, PRECISION, BLOCK_C, BLOCK_D, BLOCK_P,
            BLOCK_K,
        )  # fmt: skip
        if not HIDDEN:
            b_scores = tl.where(m_cell[None, :], b_scores, float("-inf"))
        if SUBTRACT:
            # The first tile has a visible cell, so the maximum is finite from there on.
            b_new_max = tl.maximum(b_max, tl.max(b_scores, 1) * scale)
            b_decay = exponential(b_max - b_new_max, b_query.dtype)
            b_weights = exponential(b_scores * scale - b_new_max[:, None], b_query.dtype)
            b_sum *= b_decay
            b_result *= b_decay[:, None]
            b_max = b_new_max
        else:
            b_weights = exponential(b_scores * scale, b_query.dtype)
        b_sum += tl.sum(b_weights, 1)
        b_result = tl.dot(b_weights.to(b_value.dtype), b_value, b_result, input_precision=PRECISION)
    return b_max, b_sum, b_result


@triton.jit(do_not_specialize=SIZES)
def forward_kernel(
    p_query, p_key, p_value, p_tables, p_places, p_result, p_shift, p_factor, scale, height, width,
    query_height, query_width, heads, block_rows, block_columns, CHANNELS: tl.constexpr,
    VALUE_CHANNELS: tl.constexpr, HAS_TABLES: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    HALO_SIZE: tl.constexpr, STRIDE: tl.constexpr, POSITION_STRIDE: tl.constexpr,
    MASK: tl.constexpr, HIDDEN: tl.constexpr, PRECISION: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A program has BLOCK_Q queries of one block and head and goes over their window.

    Writes the result [B, H', W', N, D] and each softmax's shift and factor [B, N, H', W']:
    weight = exponential(score - shift) * factor. In narrow types the shift is the log-sum-exp and
    there is no factor. The scale is above 0, so that it can follow the search for the maximum.
    """
    SIDE: tl.constexpr = BLOCK_SIZE // STRIDE
    TILES: tl.constexpr = (SIDE * SIDE + BLOCK_Q - 1) // BLOCK_Q
    WINDOW: tl.constexpr = BLOCK_SIZE + 2 * HALO_SIZE

    (
        i_batch, i_head, i_block_row, i_block_column, o_row, o_column, o_pixel, m_query,
    ) = locate_queries(
        tl.program_id(0), query_height, query_width, heads, block_rows, block_columns,
        SIDE, TILES, BLOCK_Q,
    )  # fmt: skip
    i_query_map = i_batch * query_height * query_width * heads + i_head
    i_key_map = i_batch * height * width * heads + i_head
    p_query += i_query_map * CHANNELS
    p_key += i_key_map * CHANNELS
    p_value += i_key_map * VALUE_CHANNELS
    p_result += i_query_map * VALUE_CHANNELS
    i_plane = (i_batch * heads + i_head) * query_height * query_width
    p_shift += i_plane
    p_factor += i_plane

    # [BLOCK_Q, BLOCK_C]
    b_query = load_pixels(p_query, o_pixel, m_query, heads, CHANNELS, BLOCK_C)
    if HAS_TABLES:
        b_tables = tl.load(p_tables + table_offsets(BLOCK_T, BLOCK_C))
        # [BLOCK_Q, BLOCK_P]
        b_logits = place_logits(
            b_query, b_tables, o_row, o_column, BLOCK_SIZE - 1, BLOCK_SIZE - 1,
            POSITION_STRIDE, BLOCK_T, BLOCK_P, PRECISION,
        )  # fmt: skip
        b_logits = hide_place(b_logits, scale, WINDOW, HIDDEN, BLOCK_P)
    else:
        b_logits = b_query

    first_pixel_row = i_block_row * BLOCK_SIZE
    first_pixel_column = i_block_column * BLOCK_SIZE
    first_row, rows = visible_range(first_pixel_row, height, HALO_SIZE, WINDOW, MASK)
    first_column, columns = visible_range(first_pixel_column, width, HALO_SIZE, WINDOW, MASK)

    window = (
        first_row, first_column, rows, columns, first_pixel_row, first_pixel_column, height, width,
        heads,
    )  # fmt: skip
    # A softmax is the same whatever is subtracted. Nothing costs the least, and float32 and
    # bfloat16 hold the exponentials of all but extreme scores; float16 doesn't.
    b_max, b_sum, b_result = attend_window(
        p_key, p_value, p_places, b_query, b_logits, scale, window, b_query.dtype == tl.float16,
        CHANNELS, VALUE_CHANNELS, HAS_TABLES, HALO_SIZE, WINDOW, MASK, HIDDEN, PRECISION,
        BLOCK_C, BLOCK_D, BLOCK_P, BLOCK_Q, BLOCK_K,
    )  # fmt: skip
    if b_query.dtype != tl.float16:
        fits = (tl.min(b_sum, 0) > 2.0**-64) & (tl.max(b_sum, 0) < 2.0**64)
        if fits == 0:
            b_max, b_sum, b_result = attend_window(
                p_key, p_value, p_places, b_query, b_logits, scale, window, True, CHANNELS,
                VALUE_CHANNELS, HAS_TABLES, HALO_SIZE, WINDOW, MASK, HIDDEN, PRECISION, BLOCK_C,
                BLOCK_D, BLOCK_P, BLOCK_Q, BLOCK_K,
            )  # fmt: skip

    b_result *= (1.0 / b_sum)[:, None]
    store_pixels(p_result, b_result, o_pixel, m_query, heads, VALUE_CHANNELS, BLOCK_D)
    # In float32 the rounding of a log-sum-exp, which is as large as a score, would show.
    if b_query.dtype == tl.float32:
        tl.store(p_factor + o_pixel, 1.0 / b_sum, mask=m_query)
    else:
        b_max += tl.log2(b_sum)
    tl.store(p_shift + o_pixel, b_max, mask=m_query)
