// Which queries a block holds, which cells its window, and where both lie in the maps and in scratch
// memory.
#pragma once

#include "halonet_cpu.h"
#include "vectors.h"

namespace {

// Queries that are taken at once: scores of a chunk of cells must stay in the first cache.
constexpr int most_queries = 64;
constexpr int chunk_cells = 66;

// Addresses are computed eight at a time, so arrays of them have room for seven more. Those are computed
// from whatever memory holds there, hence unsigned: the sums may overflow.
typedef uint64_t Addresses __attribute__((vector_size(64)));
constexpr int addresses_at_once = sizeof(Addresses) / sizeof(uint64_t);
static_assert(most_queries % addresses_at_once == 0, "rows of queries have no room after the last");
static_assert(sizeof(void *) == sizeof(int64_t), "addresses of 64 bits");

// Hands out aligned pieces of one allocation. Without memory it only counts.
struct Arena {
    char *base;
    int64_t used = 0;

    explicit Arena(void *memory) : base(static_cast<char *>(memory)) {}

    template <class T>
    T *take(long count) {
        char *piece = base ? base + used : nullptr;
        used += round_up(count * long(sizeof(T)), 64);
        return reinterpret_cast<T *>(piece);
    }
};

struct Shape {
    long output_height, output_width;
    long block_rows, block_columns;  // blocks in the map
    long block_queries;              // queries along a side of a block
    long window;                     // cells along a side of a window
    long window_cells;               // that may take part
    long offsets;                    // entries of a relative table

    explicit Shape(const HaloProblem &p)
        : output_height(ceil_div(p.height, p.stride)),
          output_width(ceil_div(p.width, p.stride)),
          block_rows(ceil_div(p.height, p.block_size)),
          block_columns(ceil_div(p.width, p.block_size)),
          block_queries(p.block_size / p.stride),
          window(p.block_size + 2 * p.halo_size),
          window_cells(p.mask_padding ? smaller(window, p.height) * smaller(window, p.width)
                                      : window * window),
          offsets(2 * (p.block_size + p.halo_size) - 1) {}

    long blocks() const { return block_rows * block_columns; }
};

// One block of one image and head.
struct Block {
    long image, head;
    long query_row, query_column;    // of its first query, in the query map
    long query_rows, query_columns;  // queries inside the map
    long cell_row, cell_column;      // of its window's cell (0, 0), in the key map; may be negative
    long first_row, end_row;         // rows of the window that lie in the map
    long first_column, end_column;

    Block(const HaloProblem &p, const Shape &shape, long image, long block_row, long block_column,
          long head)
        : image(image), head(head) {
        query_row = block_row * shape.block_queries;
        query_column = block_column * shape.block_queries;
        query_rows = smaller(shape.block_queries, shape.output_height - query_row);
        query_columns = smaller(shape.block_queries, shape.output_width - query_column);
        cell_row = block_row * p.block_size - p.halo_size;
        cell_column = block_column * p.block_size - p.halo_size;
        first_row = larger(0, -cell_row);
        first_column = larger(0, -cell_column);
        end_row = smaller(shape.window, p.height - cell_row);
        end_column = smaller(shape.window, p.width - cell_column);
    }

    long queries() const { return query_rows * query_columns; }
};

template <class T>
inline T *at(const HaloMap &map, long image, long row, long column, long head) {
    return static_cast<T *>(map.data) + image * map.batch + row * map.row + column * map.column +
           head * map.head;
}

// Cell (0, 0) of a block's window, which may lie outside the map.
template <class T>
inline T *first_cell(const HaloMap &map, const Block &block) {
    return at<T>(map, block.image, block.cell_row, block.cell_column, block.head);
}

// Lanes of one vector that meet the same entry of a table: the window's row 0 meets entry `offset`.
struct Run {
    long offset;
    Integers mask;  // -1 in the run's lanes, elsewhere 0
};

struct Runs {
    long count = 0;
    Run run[lanes];

    void add(long lane, long offset) {
        long r = 0;
        while (r < count && run[r].offset != offset) r++;
        if (r == count) run[count++] = Run{offset, Integers{}};
        run[r].mask[lane] = -1;
    }
};

// Some of a block's queries, laid along the lanes: patches of 4 x 4 (fewer for short vectors), so that
// a vector meets few different entries of either table.
struct Tile {
    long query_rows = 0, query_columns = 0, first = 0;  // what it was made for
    long count, width;                                  // queries; the same rounded up to the lanes
    int64_t row[most_queries] = {}, column[most_queries] = {};  // in the block
    Runs row_runs[most_queries / lanes], column_runs[most_queries / lanes];

    // Does nothing where the tile before had the same shape, as most blocks of a map do.
    void place(const HaloProblem &p, const Block &block, long first_query, long queries) {
        if (query_rows == block.query_rows && query_columns == block.query_columns &&
            first == first_query)
            return;
        query_rows = block.query_rows;
        query_columns = block.query_columns;
        first = first_query;
        count = queries;
        width = round_up(queries, lanes);
        for (long w = 0; w < width / lanes; w++) row_runs[w].count = column_runs[w].count = 0;
        constexpr long patch_rows = lanes >= 8 ? lanes / 4 : 2, patch_columns = lanes / patch_rows;
        long q = -first;
        for (long top = 0; top < query_rows; top += patch_rows)
            for (long left = 0; left < query_columns; left += patch_columns)
                for (long i = top; i < smaller(top + patch_rows, query_rows); i++)
                    for (long j = left; j < smaller(left + patch_columns, query_columns); j++, q++)
                        if (q >= 0 && q < count) put(p, q, i, j);
    }

private:
    void put(const HaloProblem &p, long q, long i, long j) {
        row[q] = i;
        column[q] = j;
        row_runs[q / lanes].add(q % lanes, p.block_size - 1 - i * p.position_stride);
        column_runs[q / lanes].add(q % lanes, p.block_size - 1 - j * p.position_stride);
    }
};

// Splits a block's queries into tiles of even size.
template <class Body>
inline void for_tiles(const HaloProblem &p, const Block &block, Tile &tile, Body body) {
    const long vectors = ceil_div(block.queries(), lanes);
    const long tiles = ceil_div(vectors, most_queries / lanes);
    const long size = ceil_div(vectors, tiles) * lanes;
    for (long first = 0; first < block.queries(); first += size) {
        tile.place(p, block, first, smaller(size, block.queries() - first));
        body();
    }
}

// Some of a window's cells, a rectangle, column by column.
struct Cells {
    long row, rows, column, columns;

    long count() const { return rows * columns; }
};

// Those of a block's window that lie in the map.
inline Cells cells_inside(const Block &block) {
    return {block.first_row, block.end_row - block.first_row, block.first_column,
            block.end_column - block.first_column};
}

// Splits cells into chunks: a few whole columns, or a part of one that is long.
template <class Body>
inline void for_chunks(const Cells &cells, Body body) {
    if (!cells.count()) return;
    const auto even = [](long count, long most) { return ceil_div(count, ceil_div(count, most)); };
    const long rows = even(cells.rows, chunk_cells), columns = even(cells.columns, chunk_cells / rows);
    for (long v = 0; v < cells.columns; v += columns)
        for (long u = 0; u < cells.rows; u += rows)
            body(Cells{cells.row + u, smaller(rows, cells.rows - u), cells.column + v,
                       smaller(columns, cells.columns - v)});
}

// The chunks of a block's window that lie outside the map: to its left and right, above and below.
template <class Body>
inline void for_chunks_outside(const Shape &shape, const Block &block, Body body) {
    const Cells inside = cells_inside(block);
    const long right = shape.window - block.end_column, below = shape.window - block.end_row;
    for_chunks(Cells{0, shape.window, 0, inside.column}, body);
    for_chunks(Cells{0, shape.window, block.end_column, right}, body);
    for_chunks(Cells{0, inside.row, inside.column, inside.columns}, body);
    for_chunks(Cells{block.end_row, below, inside.column, inside.columns}, body);
}

}  // namespace
