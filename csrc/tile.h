// What the forward and the backward pass share: queries laid along the lanes, and the logits of the
// relative position.
#pragma once

#include "geometry.h"
#include "products.h"

namespace {

// Addresses in a map of a tile's queries.
template <class T>
inline void addresses(const HaloMap &map, const Block &block, const Tile &tile, T **rows) {
    const uint64_t origin = reinterpret_cast<uint64_t>(
        at<T>(map, block.image, block.query_row, block.query_column, block.head));
    const uint64_t row_step = uint64_t(map.row) * sizeof(T);
    const uint64_t column_step = uint64_t(map.column) * sizeof(T);
    for (long q = 0; q < tile.count; q += addresses_at_once) {
        Addresses row, column;
        __builtin_memcpy(&row, tile.row + q, sizeof(row));
        __builtin_memcpy(&column, tile.column + q, sizeof(column));
        row = row * row_step + column * column_step + origin;
        __builtin_memcpy(rows + q, &row, sizeof(row));
    }
}

// Fetches the numbers of a tile's queries into the cache, to be written where `write` is 1. Of those outside
// the map, nothing of use.
template <class T, int write>
inline void fetch_queries(const HaloMap &map, const Block &block, const Tile &tile, long channels) {
    const T *rows[most_queries];
    addresses(map, block, tile, rows);
    for (long q = 0; q < tile.count; q++)
        for (long c = 0; c < channels; c += 64 / long(sizeof(T))) __builtin_prefetch(rows[q] + c, write);
}

// out[c][q] = map[q][c] * factor; the lanes beyond the last query repeat the first.
template <class T>
__attribute__((noinline)) void transpose_queries(const HaloMap &map, const Block &block,
                                                 const Tile &tile, long channels, float factor,
                                                 float *out) {
    const T *rows[most_queries];
    addresses(map, block, tile, rows);
    for (long q = tile.count; q < tile.width; q++) rows[q] = rows[0];
    for (long q = 0; q < tile.width; q += lanes) {
        long c = 0;
        for (; c + lanes <= channels; c += lanes) {
            Vector square[lanes];
#pragma GCC unroll 16
            for (int i = 0; i < lanes; i++) square[i] = load(rows[q + i] + c) * factor;
            transpose(square);
#pragma GCC unroll 16
            for (int i = 0; i < lanes; i++) store(out + (c + i) * tile.width + q, square[i]);
        }
        for (; c < channels; c++)
            for (int i = 0; i < lanes; i++)
                out[c * tile.width + q + i] = load_one(rows[q + i] + c) * factor;
    }
}

// map[q][c] = in[c][q] * factor[q].
template <class T>
__attribute__((noinline)) void scatter_queries(const float *in, const float *factor, const HaloMap &map,
                                               const Block &block, const Tile &tile, long channels) {
    T *rows[most_queries];
    addresses(map, block, tile, rows);
    for (long q = 0; q < tile.width; q += lanes) {
        const int count = int(smaller(lanes, tile.count - q));
        const Vector factors = load(factor + q);
        long c = 0;
        for (; c + lanes <= channels; c += lanes) {
            Vector square[lanes];
#pragma GCC unroll 16
            for (int i = 0; i < lanes; i++) square[i] = load(in + (c + i) * tile.width + q) * factors;
            transpose(square);
            for (int i = 0; i < count; i++) store(rows[q + i] + c, square[i]);
        }
        for (; c < channels; c++)
            for (int i = 0; i < count; i++)
                store_one(rows[q + i] + c, in[c * tile.width + q + i] * factor[q + i]);
    }
}

// The outputs of a tile's queries, and the logarithms of their softmax's denominators where they are
// asked for: from the values' sums by weights, the weights' totals, and what was subtracted from the
// scores.
template <class T>
inline void write_outputs(const HaloProblem &p, const Block &block, const Tile &tile, const float *sums,
                          const float *total, const float *highest) {
    float factor[most_queries];
    for (long q = 0; q < tile.width; q += lanes) store(factor + q, 1.0f / load(total + q));
    scatter_queries<T>(sums, factor, p.output, block, tile, p.value_channels);
    if (!p.log_sum.data) return;
    float *log_sums[most_queries];
    addresses(p.log_sum, block, tile, log_sums);
    for (long q = 0; q < tile.count; q++) *log_sums[q] = highest[q] / float(log2_of_e) + logf(total[q]);
}

// Whether every weight that counts is far from the ends of float32, also when it is multiplied by a
// value, by the totals of the weights of `width` queries. Not where one is NaN.
inline bool totals_fit(const float *total, long width) {
    Integers fit = ~Integers{};
    for (long q = 0; q < width; q += lanes)
        fit &= (load(total + q) > 0x1p-64f) & (load(total + q) < 0x1p64f);
    for (int i = 0; i < lanes; i++)
        if (!fit[i]) return false;
    return true;
}

// One tile's logits of the relative position: for the window's row u and column v, the vectors of
// queries row + u * step and column + v * step. Without tables every row is the same: step is 0.
struct RelativeLogits {
    Rows row_entries, column_entries;
    Scores products;
    float *row, *column;
    float *zeros;
    float factor;  // of the products with scaled queries
    long step;

    RelativeLogits(const HaloProblem &p, const Shape &shape, Arena &arena)
        : row_entries(copy_table(p.row_table, p, shape, arena)),
          column_entries(copy_table(p.column_table, p, shape, arena)),
          products{arena.take<float>(shape.offsets * most_queries), shape.offsets * lanes},
          row(arena.take<float>(shape.window * most_queries)),
          column(arena.take<float>(shape.window * most_queries)),
          zeros(arena.take<float>(most_queries)),
          factor(p.position_scale == p.scale ? 1.0f : float(p.position_scale / p.scale)),
          step(0) {
        if (!arena.base) return;
        for (long q = 0; q < most_queries; q++) zeros[q] = 0.0f;
    }

    // First channel that the column table meets.
    static long column_channel(const HaloProblem &p) {
        return p.table_width == p.channels ? 0 : p.table_width;
    }

    // `queries` is [channels][width].
    void compute(const HaloProblem &p, const Shape &shape, const Tile &tile, const float *queries) {
        const long width = tile.width;
        if (!p.table_width) {
            step = 0;
            for (long q = 0; q < width; q++) row[q] = column[q] = 0.0f;
            return;
        }
        step = width;
        const auto multiply = [&](Rows entries, long channel) {
            dot_products(entries, shape.offsets, 1, p.table_width, queries + channel * width, width,
                         Biases{zeros, zeros, 0, 0}, products, [] {});
        };
        multiply(row_entries, 0);
        pick(shape, tile, tile.row_runs, row);
        multiply(column_entries, column_channel(p));
        pick(shape, tile, tile.column_runs, column);
    }

    // Subtracts `by` [width] from all logits.
    void lower(const Shape &shape, const Tile &tile, const float *by) {
        for (long u = 0; u < (step ? shape.window : 1); u++)
            for (long q = 0; q < tile.width; q += lanes)
                store(row + u * step + q, load(row + u * step + q) - load(by + q));
    }

    // What the scores of some cells begin with.
    Biases biases(const Cells &cells) const {
        return {row + cells.row * step, column + cells.column * step, step, step};
    }

private:
    static Rows copy_table(const float *table, const HaloProblem &p, const Shape &shape, Arena &arena) {
        const long slice_step = shape.offsets * slice_channels;
        float *copy = arena.take<float>(ceil_div(p.table_width, slice_channels) * slice_step);
        for (long t = 0; arena.base && t < shape.offsets; t++)
            for (long c = 0; c < p.table_width; c++)
                copy[c / slice_channels * slice_step + t * slice_channels + c % slice_channels] =
                    table[t * p.table_width + c];
        return {copy, slice_step};
    }

    // From a product with each of the table's entries to the entry that each query meets.
    void pick(const Shape &shape, const Tile &tile, const Runs *runs, float *logits) {
        const long width = tile.width;
        for (long q = 0; q < width; q += lanes) {
            const Runs &these = runs[q / lanes];
            for (long u = 0; u < shape.window; u++) {
                Vector logit = load(products.at(u + these.run[0].offset, q));
                for (long r = 1; r < these.count; r++) {
                    const Run &run = these.run[r];
                    logit = run.mask ? load(products.at(u + run.offset, q)) : logit;
                }
                store(logits + u * width + q, logit * factor);
            }
        }
    }
};

}  // namespace
