"""Triton kernels of halo attention's gradients; see `triton_kernels.py` for shapes and names.

Weights are recomputed from the shifts and factors that the forward kernel left. Every number is
written by one program and summed in a fixed order: no atomic additions, so each run gives the same
bits.
"""

import triton
import triton.language as tl

from halonet.ops.triton_kernels import (
    SIZES,
    exponential,
    hide_place,
    load_pixels,
    load_places,
    locate_queries,
    place_logits,
    score_cells,
    store_pixels,
    table_offsets,
    visible_range,
)

PART_ENTRIES = tl.constexpr(64)  # of tables that are taken in parts


@triton.jit
def read_softmax(p_shift, p_factor, m_query, dtype: tl.constexpr):
    """Shift and factor of a softmax, as the forward kernel left them."""
    b_shift = tl.load(p_shift, mask=m_query, other=0.0)
    if dtype == tl.float32:
        return b_shift, tl.load(p_factor, mask=m_query, other=1.0)
    return b_shift, tl.full(b_shift.shape, 1.0, tl.float32)


@triton.jit
def place_pointers(p_logits, o_softmax, BLOCK_P: tl.constexpr):
    """Where the relative logits of some softmaxes lie, [queries, BLOCK_P]."""
    return p_logits + (o_softmax * BLOCK_P)[:, None] + tl.arange(0, BLOCK_P)[None, :]


@triton.jit
def weigh_cells(
    p_key, p_value, p_places, b_query, b_logits, b_result_gradient, b_shift, b_factor, scale, start,
    window, CHANNELS: tl.constexpr, VALUE_CHANNELS: tl.constexpr, HAS_TABLES: tl.constexpr,
    HALO_SIZE: tl.constexpr, WINDOW: tl.constexpr, MASK: tl.constexpr, HIDDEN: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Keys and places of the next cells, their weights, and the weights' gradients.

    The weight of a cell that takes no part is zero.
    """
    b_key, b_value, b_places, b_scores, m_cell = score_cells(
        p_key, p_value, p_places, b_query, b_logits, start, window, CHANNELS, VALUE_CHANNELS,
        HAS_TABLES, HALO_SIZE, WINDOW, MASK, HIDDEN, PRECISION, BLOCK_C, BLOCK_D, BLOCK_P,
        BLOCK_K,
    )  # fmt: skip
    b_weights = exponential(b_scores * scale - b_shift[:, None], b_query.dtype) * b_factor[:, None]
    if not HIDDEN:
        b_weights = tl.where(m_cell[None, :], b_weights, 0.0)
    b_weights_gradient = tl.dot(b_result_gradient, tl.trans(b_value), input_precision=PRECISION)
    return b_key, b_places, b_weights, b_weights_gradient


@triton.jit(do_not_specialize=[*SIZES, "items", "programs"])
def backward_query_kernel(
    p_query, p_key, p_value, p_tables, p_places, p_result, p_result_gradient, p_shift, p_factor,
    p_delta, p_logits, p_query_gradient, p_table_parts, scale, gradient_scale, items, programs,
    height, width, query_height, query_width, heads, block_rows, block_columns,
    CHANNELS: tl.constexpr, VALUE_CHANNELS: tl.constexpr, HAS_TABLES: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, HALO_SIZE: tl.constexpr, STRIDE: tl.constexpr,
    POSITION_STRIDE: tl.constexpr, MASK: tl.constexpr, HIDDEN: tl.constexpr,
    PRECISION: tl.constexpr, EXACT: tl.constexpr, IN_PARTS: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A program takes every `programs`-th tile of queries, as `forward_kernel` has them.

    Writes the queries' gradient, the sums "delta" of result times its gradient [B, N, H', W'],
    the relative logits at the places of the window [B, N, H', W', BLOCK_P], for the keys' gradient,
    and the program's own part of the tables' gradient [programs, BLOCK_T, BLOCK_C]: the parts are
    added up in a fixed order later, so that every run gives the same.
    """
    SIDE: tl.constexpr = BLOCK_SIZE // STRIDE
    TILES: tl.constexpr = (SIDE * SIDE + BLOCK_Q - 1) // BLOCK_Q
    WINDOW: tl.constexpr = BLOCK_SIZE + 2 * HALO_SIZE
    # The last place has no cells, so no gradient, if there are more than the window has.
    SPARE: tl.constexpr = BLOCK_P // 2 > WINDOW
    WHOLE_TABLES: tl.constexpr = HAS_TABLES and not IN_PARTS
    PARTS_OF_TABLES: tl.constexpr = HAS_TABLES and IN_PARTS

    if HAS_TABLES:
        o_table = table_offsets(BLOCK_T, BLOCK_C)
        p_part = p_table_parts + tl.program_id(0) * (BLOCK_T * BLOCK_C) + o_table

    for i_item in range(tl.program_id(0), items, programs):
        (
            i_batch, i_head, i_block_row, i_block_column, o_row, o_column, o_pixel, m_query,
        ) = locate_queries(
            i_item, query_height, query_width, heads, block_rows, block_columns,
            SIDE, TILES, BLOCK_Q,
        )  # fmt: skip
        i_query_map = i_batch * query_height * query_width * heads + i_head
        i_key_map = i_batch * height * width * heads + i_head
        i_plane = (i_batch * heads + i_head) * query_height * query_width

        # [BLOCK_Q, BLOCK_C]
        b_query = load_pixels(
            p_query + i_query_map * CHANNELS, o_pixel, m_query, heads, CHANNELS, BLOCK_C
        )
        # [BLOCK_Q, BLOCK_D]
        b_result_gradient = load_pixels(
            p_result_gradient + i_query_map * VALUE_CHANNELS,
            o_pixel, m_query, heads, VALUE_CHANNELS, BLOCK_D,
        )  # fmt: skip
        b_shift, b_factor = read_softmax(
            p_shift + i_plane + o_pixel, p_factor + i_plane + o_pixel, m_query, b_query.dtype
        )

        if HAS_TABLES:
            b_tables = tl.load(p_tables + o_table)
            # [BLOCK_Q, BLOCK_P]
            b_logits = place_logits(
                b_query, b_tables, o_row, o_column, BLOCK_SIZE - 1, BLOCK_SIZE - 1,
                POSITION_STRIDE, BLOCK_T, BLOCK_P, PRECISION,
            )  # fmt: skip
            b_logits = hide_place(b_logits, scale, WINDOW, HIDDEN, BLOCK_P)
            p_place = place_pointers(p_logits, i_plane + o_pixel, BLOCK_P)
            tl.store(p_place, b_logits, mask=m_query[:, None])
        else:
            b_logits = b_query

        first_pixel_row = i_block_row * BLOCK_SIZE
        first_pixel_column = i_block_column * BLOCK_SIZE
        first_row, rows = visible_range(first_pixel_row, height, HALO_SIZE, WINDOW, MASK)
        first_column, columns = visible_range(first_pixel_column, width, HALO_SIZE, WINDOW, MASK)
        window = (
            first_row, first_column, rows, columns, first_pixel_row, first_pixel_column, height,
            width, heads,
        )  # fmt: skip

        # [BLOCK_Q]
        if EXACT:
            # The same sum as below, and the same roundings, which then cancel.
            b_delta = tl.zeros([BLOCK_Q], tl.float32)
            for start in range(0, rows * columns, BLOCK_K):
                _, _, b_weights, b_weights_gradient = weigh_cells(
                    p_key + i_key_map * CHANNELS, p_value + i_key_map * VALUE_CHANNELS, p_places,
                    b_query, b_logits, b_result_gradient, b_shift, b_factor, scale, start, window,
                    CHANNELS, VALUE_CHANNELS, HAS_TABLES, HALO_SIZE,
                    WINDOW, MASK, HIDDEN, PRECISION, BLOCK_C, BLOCK_D, BLOCK_P, BLOCK_K,
                )  # fmt: skip
                b_delta += tl.sum(b_weights * b_weights_gradient, 1)
        else:
            b_result = load_pixels(
                p_result + i_query_map * VALUE_CHANNELS,
                o_pixel, m_query, heads, VALUE_CHANNELS, BLOCK_D,
            )  # fmt: skip
            b_delta = tl.sum(b_result.to(tl.float32) * b_result_gradient.to(tl.float32), 1)
        tl.store(p_delta + i_plane + o_pixel, b_delta, mask=m_query)

        b_query_gradient = tl.zeros([BLOCK_Q, BLOCK_C], tl.float32)
        b_logits_gradient = tl.zeros([BLOCK_Q, BLOCK_P], tl.float32)
        for start in range(0, rows * columns, BLOCK_K):
            b_key, b_places, b_weights, b_weights_gradient = weigh_cells(
                p_key + i_key_map * CHANNELS, p_value + i_key_map * VALUE_CHANNELS, p_places,
                b_query, b_logits, b_result_gradient, b_shift, b_factor, scale, start, window,
                CHANNELS, VALUE_CHANNELS, HAS_TABLES, HALO_SIZE, WINDOW, MASK,
                HIDDEN, PRECISION, BLOCK_C, BLOCK_D, BLOCK_P, BLOCK_K,
            )  # fmt: skip
            b_scores_gradient = b_weights * (b_weights_gradient - b_delta[:, None])
            b_scores_gradient = b_scores_gradient.to(b_key.dtype)
            b_query_gradient = tl.dot(
                b_scores_gradient, b_key, b_query_gradient, input_precision=PRECISION
            )
            if HAS_TABLES:
                b_logits_gradient = tl.dot(
                    b_scores_gradient, b_places, b_logits_gradient, input_precision=PRECISION
                )

        if WHOLE_TABLES:
            # The backward pass of `place_logits`: each table entry takes its place's gradient.
            m_column = (tl.arange(0, 2) == 1)[None, :]
            # [BLOCK_Q, 2]
            o_first = tl.where(m_column, o_column[:, None], o_row[:, None]) * POSITION_STRIDE
            # [BLOCK_Q, 2, BLOCK_T // 2]
            o_place = tl.arange(0, BLOCK_T // 2)[None, None, :] - (BLOCK_SIZE - 1)
            o_place += o_first[:, :, None]
            b_places_gradient = tl.reshape(b_logits_gradient, [BLOCK_Q, 2, BLOCK_P // 2])
            # What is below 0 is the largest without a sign.
            o_spared = tl.minimum(o_place.to(tl.uint32), BLOCK_P // 2 - 1).to(tl.int32)
            b_entries_gradient = tl.gather(b_places_gradient, o_spared, 2)
            if not SPARE:
                b_entries_gradient = tl.where(o_place == o_spared, b_entries_gradient, 0.0)
            b_entries_gradient = b_entries_gradient.to(b_query.dtype)
            b_entries_gradient = tl.reshape(b_entries_gradient, [BLOCK_Q, BLOCK_T])
            b_query_gradient = tl.dot(
                b_entries_gradient, b_tables, b_query_gradient, input_precision=PRECISION
            )
        if PARTS_OF_TABLES:
            # The same for the entries of one table at a time.
            for first_entry in range(0, BLOCK_T, PART_ENTRIES):
                of_columns = first_entry >= BLOCK_T // 2
                o_first = tl.where(of_columns, o_column, o_row) * POSITION_STRIDE
                first_place = first_entry % (BLOCK_T // 2) - (BLOCK_SIZE - 1)
                # [BLOCK_Q, PART_ENTRIES]
                o_place = tl.arange(0, PART_ENTRIES)[None, :] + first_place + o_first[:, None]
                o_spared = tl.minimum(o_place.to(tl.uint32), BLOCK_P // 2 - 1).to(tl.int32)
                first_column = tl.where(of_columns, BLOCK_P // 2, 0)
                b_entries_gradient = tl.gather(b_logits_gradient, first_column + o_spared, 1)
                if not SPARE:
                    b_entries_gradient = tl.where(o_place == o_spared, b_entries_gradient, 0.0)
                b_entries_gradient = b_entries_gradient.to(b_query.dtype)
                o_part = first_entry * BLOCK_C + table_offsets(PART_ENTRIES, BLOCK_C)
                b_query_gradient = tl.dot(
                    b_entries_gradient, tl.load(p_tables + o_part), b_query_gradient,
                    input_precision=PRECISION,
                )  # fmt: skip
                p_entries = p_table_parts + tl.program_id(0) * (BLOCK_T * BLOCK_C) + o_part
                b_part = gradient_scale * tl.dot(
                    tl.trans(b_entries_gradient), b_query, input_precision=PRECISION
                )
                if i_item >= programs:
                    b_part += tl.load(p_entries)
                tl.store(p_entries, b_part)
        store_pixels(
            p_query_gradient + i_query_map * CHANNELS, b_query_gradient * gradient_scale,
            o_pixel, m_query, heads, CHANNELS, BLOCK_C,
        )  # fmt: skip
        if WHOLE_TABLES:
            # [BLOCK_T, BLOCK_C]
            b_part = gradient_scale * tl.dot(
                tl.trans(b_entries_gradient), b_query, input_precision=PRECISION
            )
            if i_item >= programs:
                b_part += tl.load(p_part)
            tl.store(p_part, b_part)


@triton.jit
def divide(number, divisor):
    """Quotient and remainder, neither number below 0: signs would double the instructions."""
    quotient = (tl.cast(number, tl.uint32) // tl.cast(divisor, tl.uint32)).to(tl.int32)
    return quotient, number - quotient * divisor


@triton.jit
def covering_blocks(
    first_pixel, pixels, map_size, blocks, BLOCK_SIZE: tl.constexpr, HALO_SIZE: tl.constexpr
):
    """The first block along an axis whose window has some of the pixels, and how many do."""
    last_pixel = tl.minimum(first_pixel + pixels, map_size) - 1
    first_pixel = tl.maximum(first_pixel, 0)
    first = (tl.maximum(first_pixel - HALO_SIZE - BLOCK_SIZE + 1, 0) + BLOCK_SIZE - 1) // BLOCK_SIZE
    last = tl.minimum((last_pixel + HALO_SIZE) // BLOCK_SIZE, blocks - 1)
    return first, last - first + 1


@triton.jit(do_not_specialize=[*SIZES, "tile_rows", "tile_columns", "row_shift", "column_shift"])
def backward_key_kernel(
    p_query, p_key, p_value, p_places, p_result_gradient, p_shift, p_factor, p_delta, p_logits,
    p_key_gradient, p_value_gradient, scale, gradient_scale, tile_rows, tile_columns, row_shift,
    column_shift, height, width, query_height, query_width, heads, block_rows, block_columns,
    CHANNELS: tl.constexpr, VALUE_CHANNELS: tl.constexpr, HAS_TABLES: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, HALO_SIZE: tl.constexpr, STRIDE: tl.constexpr, HIDDEN: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_Q: tl.constexpr, KEY_ROWS: tl.constexpr, KEY_COLUMNS: tl.constexpr,
):  # fmt: skip
    """A program has KEY_ROWS x KEY_COLUMNS pixels of a head and goes over all queries that see any.

    Writes the gradients of keys and values, each by one program: nothing is added in memory. The
    grid of tiles begins `row_shift` and `column_shift` pixels outside the map, since a tile
    across the border of two blocks is seen by fewer queries than one that fills a block.
    """
    SIDE: tl.constexpr = BLOCK_SIZE // STRIDE
    TILES: tl.constexpr = (SIDE * SIDE + BLOCK_Q - 1) // BLOCK_Q
    WINDOW: tl.constexpr = BLOCK_SIZE + 2 * HALO_SIZE
    BLOCK_K: tl.constexpr = KEY_ROWS * KEY_COLUMNS

    i_program = tl.program_id(0)
    i_tile, i_head = divide(i_program, heads)
    i_tile, i_tile_column = divide(i_tile, tile_columns)
    i_batch, i_tile_row = divide(i_tile, tile_rows)
    i_batch = i_batch.to(tl.int64)
    first_pixel_row = i_tile_row * KEY_ROWS - row_shift
    first_pixel_column = i_tile_column * KEY_COLUMNS - column_shift
    i_query_map = i_batch * query_height * query_width * heads + i_head
    i_key_map = i_batch * height * width * heads + i_head
    i_plane = (i_batch * heads + i_head) * query_height * query_width
    p_query += i_query_map * CHANNELS
    p_result_gradient += i_query_map * VALUE_CHANNELS

    # [BLOCK_K]
    o_cell = tl.arange(0, BLOCK_K)
    o_cell_row = o_cell // KEY_COLUMNS
    o_cell_column = o_cell % KEY_COLUMNS
    map_row = first_pixel_row + o_cell_row
    map_column = first_pixel_column + o_cell_column
    m_map = (map_row >= 0) & (map_row < height) & (map_column >= 0) & (map_column < width)
    o_key_pixel = map_row * width + map_column
    # [BLOCK_K, BLOCK_C], [BLOCK_K, BLOCK_D]
    b_key = load_pixels(p_key + i_key_map * CHANNELS, o_key_pixel, m_map, heads, CHANNELS, BLOCK_C)
    b_value = load_pixels(
        p_value + i_key_map * VALUE_CHANNELS, o_key_pixel, m_map, heads, VALUE_CHANNELS, BLOCK_D
    )

    first_block_row, rows = covering_blocks(
        first_pixel_row, KEY_ROWS, height, block_rows, BLOCK_SIZE, HALO_SIZE
    )
    first_block_column, columns = covering_blocks(
        first_pixel_column, KEY_COLUMNS, width, block_columns, BLOCK_SIZE, HALO_SIZE
    )
    b_key_gradient = tl.zeros([BLOCK_K, BLOCK_C], tl.float32)
    b_value_gradient = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    for i_item in range(rows * columns * TILES):
        i_row, i_column = divide(i_item // TILES, columns)
        i_block_row = first_block_row + i_row
        i_block_column = first_block_column + i_column
        # [BLOCK_Q]
        o_query = i_item % TILES * BLOCK_Q + tl.arange(0, BLOCK_Q)
        o_row = o_query // SIDE
        o_column = o_query % SIDE
        query_row = i_block_row * SIDE + o_row
        query_column = i_block_column * SIDE + o_column
        m_query = (o_row < SIDE) & (query_row < query_height) & (query_column < query_width)
        o_pixel = query_row * query_width + query_column
        # [BLOCK_Q, BLOCK_C], [BLOCK_Q, BLOCK_D]
        b_query = load_pixels(p_query, o_pixel, m_query, heads, CHANNELS, BLOCK_C)
        b_result_gradient = load_pixels(
            p_result_gradient, o_pixel, m_query, heads, VALUE_CHANNELS, BLOCK_D
        )
        b_shift, b_factor = read_softmax(
            p_shift + i_plane + o_pixel, p_factor + i_plane + o_pixel, m_query, b_query.dtype
        )
        b_delta = tl.load(p_delta + i_plane + o_pixel, mask=m_query, other=0.0)

        # [BLOCK_K], in this block's window
        window_row = first_pixel_row - i_block_row * BLOCK_SIZE + HALO_SIZE + o_cell_row
        window_column = first_pixel_column - i_block_column * BLOCK_SIZE + HALO_SIZE + o_cell_column
        m_cell = (window_row >= 0) & (window_row < WINDOW)
        m_cell = m_cell & (window_column >= 0) & (window_column < WINDOW)
        # [BLOCK_K, BLOCK_Q]
        b_scores = tl.dot(b_key, tl.trans(b_query), input_precision=PRECISION)
        if HAS_TABLES:
            o_window_cell = window_row * WINDOW + window_column
            b_places = load_places(p_places, o_window_cell, m_cell, WINDOW, HIDDEN, BLOCK_P)
            p_place = place_pointers(p_logits, i_plane + o_pixel, BLOCK_P)
            b_logits = tl.load(p_place, mask=m_query[:, None], other=0.0)
            b_scores = tl.dot(b_places, tl.trans(b_logits), b_scores, input_precision=PRECISION)
        b_weights = (
            exponential(b_scores * scale - b_shift[None, :], b_key.dtype) * b_factor[None, :]
        )
        if not HIDDEN:
            b_weights = tl.where(m_cell[:, None], b_weights, 0.0)
        b_value_gradient = tl.dot(
            b_weights.to(b_result_gradient.dtype), b_result_gradient, b_value_gradient,
            input_precision=PRECISION,
        )  # fmt: skip
        b_weights_gradient = tl.dot(b_value, tl.trans(b_result_gradient), input_precision=PRECISION)
        b_scores_gradient = b_weights * (b_weights_gradient - b_delta[None, :])
        b_key_gradient = tl.dot(
            b_scores_gradient.to(b_query.dtype), b_query, b_key_gradient,
            input_precision=PRECISION,
        )  # fmt: skip

    store_pixels(
        p_key_gradient + i_key_map * CHANNELS, b_key_gradient * gradient_scale,
        o_key_pixel, m_map, heads, CHANNELS, BLOCK_C,
    )  # fmt: skip
    store_pixels(
        p_value_gradient + i_key_map * VALUE_CHANNELS, b_value_gradient,
        o_key_pixel, m_map, heads, VALUE_CHANNELS, BLOCK_D,
    )  # fmt: skip
