// The forward pass of one block: scores, softmax and weighted sum, a chunk of cells at a time. The
// maximum and the sum of the weights so far are kept, and what was added up before is rescaled when
// the maximum grows, so that a window of any size needs the scores of one chunk only.
#pragma once

#include "tile.h"

namespace {

template <class T>
class Forward {
public:
    Forward(const HaloProblem &p, const Shape &shape, Arena &arena)
        : p(p),
          shape(shape),
          cells(p, shape, arena),
          key_offsets(shape, arena),
          value_offsets(shape, arena),
          relative(p, shape, arena),
          queries(arena.take<float>(p.channels * most_queries)),
          sums(arena.take<float>(p.value_channels * most_queries)),
          scores(arena.take<float>(chunk_cells * most_queries)),
          converted_keys(arena.take<float>(chunk_cells * p.channels)),
          converted_values(arena.take<float>(chunk_cells * p.value_channels)) {}

    // `next` is the block that will be run behind this one.
    void run(const Block &block, const Block &next) {
        for_tiles(p, block, tile, [&] { run_tile(block, next); });
    }

private:
    const HaloProblem &p;
    const Shape &shape;
    Tile tile;
    Cells cells;
    CellOffsets key_offsets, value_offsets;
    RelativeLogits relative;
    float *queries;  // [channels][width]
    float *sums;     // [value_channels][width]
    float *scores;   // [cells][width], then their exponentials
    float *converted_keys, *converted_values;
    float highest[most_queries], before[most_queries];  // the second without this chunk
    float total[most_queries], rescale[most_queries];

    void run_tile(const Block &block, const Block &next) {
        const long width = tile.width;
        T *results[most_queries];
        addresses(p.output, block, tile, results);
        for (long q = 0; q < tile.count; q++)
            for (long c = 0; c < p.value_channels; c += 64 / long(sizeof(T)))
                __builtin_prefetch(results[q] + c, 1);
        transpose_queries<T>(p.query, block, tile, p.channels, float(p.scale), queries);
        relative.compute(p, shape, tile, queries);
        for (long i = 0; i < p.value_channels * width; i++) sums[i] = 0.0f;
        for (long q = 0; q < width; q++) {
            highest[q] = -INFINITY;
            total[q] = 0.0f;
        }
        cells.place(block);
        key_offsets.place<T>(cells, p.key);
        value_offsets.place<T>(cells, p.value);
        relative.place(cells);
        cells.for_chunks([&](const Chunk &chunk) {
            const float *rows[chunk_rows];
            gather_rows(p.key, key_offsets, block, chunk, p.channels, converted_keys, T(), rows);
            const Ahead ahead = behind(block, chunk, next);
            find_weights(chunk, rows, p.channels, &ahead);
            gather_rows(p.value, value_offsets, block, chunk, p.value_channels, converted_values, T(),
                        rows);
            weighted_sums(rows, chunk.count, p.value_channels, scores, width, rescale, sums);
        });
        cells.for_chunks(cells.inside, cells.count, chunk_cells, [&](const Chunk &chunk) {
            find_weights(chunk, nothing, 0, nullptr);
            weighted_sums(nothing, 0, p.value_channels, scores, width, rescale, sums);
        });
        for (long q = 0; q < width; q++) rescale[q] = 1.0f / total[q];
        scatter_queries<T>(sums, rescale, p.output, block, tile, p.value_channels);
        if (!p.log_sum.data) return;
        float *log_sums[most_queries];
        addresses(p.log_sum, block, tile, log_sums);
        for (long q = 0; q < tile.count; q++) *log_sums[q] = highest[q] + logf(total[q]);
    }

    // Exponentials of a chunk's scores, from `length` channels of its keys.
    void find_weights(const Chunk &chunk, const float *const *keys, long length, const Ahead *ahead) {
        const float *first[chunk_rows], *second[chunk_rows];
        relative.rows_of(chunk, first, second);
        for (long q = 0; q < tile.width; q++) before[q] = highest[q];
        dot_products(keys, chunk.count, length, queries, tile.width, first, second, scores, highest,
                     ahead);
        exponentials(chunk.count, tile.width);
    }

    // The cells behind a chunk: of the same block, or the first ones of the next, if it has the same.
    Ahead behind(const Block &block, const Chunk &chunk, const Block &next) const {
        const long end = chunk.first + chunk.count;
        const bool last = end == cells.inside;
        const Block &then = last ? next : block;
        Ahead ahead = {};
        ahead.keys = &key_offsets;
        ahead.values = &value_offsets;
        ahead.key_origin = reinterpret_cast<int64_t>(first_cell<T>(p.key, then));
        ahead.value_origin = reinterpret_cast<int64_t>(first_cell<T>(p.value, then));
        ahead.key_bytes = p.channels * long(sizeof(T));
        ahead.value_bytes = p.value_channels * long(sizeof(T));
        ahead.first = last ? 0 : end;
        ahead.end = cells.are_those_of(then) ? cells.inside : 0;
        return ahead;
    }

    // Turns scores into exponentials relative to the highest score so far.
    void exponentials(long count, long width) {
        for (long q = 0; q < width; q += lanes) {
            const Vector top = load(highest + q), factor = exp(load(before + q) - top);
            // A chunk by itself: added one by one to a large total, equal weights (as of padding's
            // cells without a relative position) would all be rounded the same way.
            Vector sum = {};
            for (long k = 0; k < count; k++) {
                const Vector weight = exp(load(scores + k * width + q) - top);
                store(scores + k * width + q, weight);
                sum += weight;
            }
            store(rescale + q, factor);
            store(total + q, load(total + q) * factor + sum);
        }
    }
};

}  // namespace
