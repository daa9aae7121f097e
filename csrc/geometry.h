// Which queries a block holds, which cells its window, and where both lie in the maps.
#pragma once

#include "halonet_cpu.h"
#include "vectors.h"

namespace {

// Queries that are taken at once: scores of a chunk of cells must stay in the first cache.
constexpr int most_queries = 64;
constexpr int chunk_cells = 66;  // whole groups of rows, see products.h

struct Shape {
    long output_height, output_width;
    long block_rows, block_columns;  // blocks in the map
    long block_queries;              // queries along a side of a block
    long window;                     // cells along a side of a window
    long offsets;                    // entries of a relative table

    explicit Shape(const HaloProblem &p)
        : output_height(ceil_div(p.height, p.stride)),
          output_width(ceil_div(p.width, p.stride)),
          block_rows(ceil_div(p.height, p.block_size)),
          block_columns(ceil_div(p.width, p.block_size)),
          block_queries(p.block_size / p.stride),
          window(p.block_size + 2 * p.halo_size),
          offsets(2 * (p.block_size + p.halo_size) - 1) {}

    long blocks() const { return block_rows * block_columns; }
};

// One block of one image and head.
struct Block {
    long image, head;
    long query_row, query_column;        // of its first query, in the query map
    long query_rows, query_columns;      // queries inside the map
    long cell_row, cell_column;          // of its window's cell (0, 0), in the key map; may be negative
    long first_row, end_row;             // rows of the window that take part
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
        first_row = first_column = 0;
        end_row = end_column = shape.window;
        if (p.mask_padding) {
            first_row = larger(0, -cell_row);
            first_column = larger(0, -cell_column);
            end_row = smaller(shape.window, p.height - cell_row);
            end_column = smaller(shape.window, p.width - cell_column);
        }
    }

    long queries() const { return query_rows * query_columns; }
    long cells() const { return (end_row - first_row) * (end_column - first_column); }
};

template <class T>
inline T *at(const HaloMap &map, long image, long row, long column, long head) {
    return static_cast<T *>(map.data) + image * map.batch + row * map.row + column * map.column +
           head * map.head;
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
    long row[most_queries], column[most_queries];       // in the block
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

// Rows and columns of a few cells in the window.
struct Chunk {
    long first, count;
    long row[chunk_cells], column[chunk_cells];

    Chunk(const Block &block, long first, long count) : first(first), count(count) {
        const long columns = block.end_column - block.first_column;
        long u = block.first_row + first / columns, v = block.first_column + first % columns;
        for (long k = 0; k < count; k++) {
            row[k] = u;
            column[k] = v;
            if (++v == block.end_column) {
                v = block.first_column;
                u++;
            }
        }
    }
};

// Cells of a block's chunks, as even as whole groups of rows allow.
inline long chunk_size(const Block &block) {
    const long cells = block.cells();
    return smaller(cells, round_up(ceil_div(cells, ceil_div(cells, chunk_cells)), 6));
}

// Splits a window's cells into chunks of `size`.
template <class Body>
inline void for_chunks(const Block &block, long size, Body body) {
    const long cells = block.cells();
    for (long first = 0; first < cells; first += size)
        body(Chunk(block, first, smaller(size, cells - first)));
}

// Addresses in a map of a chunk's cells, `outside` for those beyond the map (unmasked padding).
template <class T>
inline void addresses(const HaloProblem &p, const HaloMap &map, const Block &block, const Chunk &chunk,
                      T *outside, T **rows) {
    T *origin = at<T>(map, block.image, block.cell_row, block.cell_column, block.head);
    if (p.mask_padding) {
        for (long k = 0; k < chunk.count; k++)
            rows[k] = origin + chunk.row[k] * map.row + chunk.column[k] * map.column;
        return;
    }
    for (long k = 0; k < chunk.count; k++) {
        const long i = block.cell_row + chunk.row[k], j = block.cell_column + chunk.column[k];
        const bool inside = i >= 0 && i < p.height && j >= 0 && j < p.width;
        rows[k] = inside ? origin + chunk.row[k] * map.row + chunk.column[k] * map.column : outside;
    }
}

// Cells that the next products will read: fetched into the cache a few at a time, while products of
// other cells are computed, since a window's rows are too short for the processor to foresee them.
struct Ahead {
    const char *rows[2][chunk_cells];  // of keys and of values; null beyond the map
    long bytes[2];
    long count = 0;

    template <class T>
    void point_at(const HaloProblem &p, const Block &block, const Chunk &chunk) {
        const T *keys[chunk_cells], *values[chunk_cells];
        addresses<const T>(p, p.key, block, chunk, nullptr, keys);
        addresses<const T>(p, p.value, block, chunk, nullptr, values);
        for (long k = 0; k < chunk.count; k++) {
            rows[0][k] = reinterpret_cast<const char *>(keys[k]);
            rows[1][k] = reinterpret_cast<const char *>(values[k]);
        }
        bytes[0] = p.channels * long(sizeof(T));
        bytes[1] = p.value_channels * long(sizeof(T));
        count = chunk.count;
    }

    void fetch(long first, long number) const {
        for (long k = first; k < smaller(first + number, count); k++)
            for (int map = 0; map < 2; map++)
                for (long byte = 0; rows[map][k] && byte < bytes[map]; byte += 64)
                    __builtin_prefetch(rows[map][k] + byte);
    }
};

// Rows of numbers of a chunk's cells as float32: where they lie in the map, or converted into
// `scratch` [chunk_cells][channels].
inline void gather_rows(const HaloProblem &p, const HaloMap &map, const Block &block,
                        const Chunk &chunk, long, const float *zeros, float *, float,
                        const float **rows) {
    addresses<const float>(p, map, block, chunk, zeros, rows);
}

inline void gather_rows(const HaloProblem &p, const HaloMap &map, const Block &block,
                        const Chunk &chunk, long channels, const float *zeros, float *scratch,
                        Bfloat16, const float **rows) {
    const Bfloat16 *halves[chunk_cells];
    addresses<const Bfloat16>(p, map, block, chunk, nullptr, halves);
    for (long k = 0; k < chunk.count; k++) {
        rows[k] = halves[k] ? scratch + k * channels : zeros;
        if (!halves[k]) continue;
        long c = 0;
        for (; c + lanes <= channels; c += lanes)
            store(scratch + k * channels + c, load(halves[k] + c));
        for (; c < channels; c++) scratch[k * channels + c] = load_one(halves[k] + c);
    }
}

}  // namespace
