// The forward pass of one block: each cell's weights are found and its values added up by them before
// the next cells are looked at. Nothing is subtracted from the scores at first: a softmax is the same
// without, and float32 holds the exponentials of all but extreme scores. Where their sum shows that it
// doesn't, the block is done once more, with the highest scores subtracted.
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
    float *scores;   // [cells][width], where they are extreme
    float *converted_keys, *converted_values;
    float total[most_queries];    // of the weights
    float highest[most_queries];  // what was subtracted from the scores

    void run_tile(const Block &block, const Block &next) {
        const long width = tile.width;
        T *results[most_queries];
        addresses(p.output, block, tile, results);
        for (long q = 0; q < tile.count; q++)
            for (long c = 0; c < p.value_channels; c += 64 / long(sizeof(T)))
                __builtin_prefetch(results[q] + c, 1);
        transpose_queries<T>(p.query, block, tile, p.channels, float(p.scale * log2_of_e), queries);
        relative.compute(p, shape, tile, queries);
        cells.place(block);
        key_offsets.place<T>(cells, p.key);
        value_offsets.place<T>(cells, p.value);
        relative.place(cells);
        attend_fast(block, next);
        if (!totals_fit(total, width)) attend_lowered(block);
        write_outputs<T>(p, block, tile, sums, total, highest);
    }

    // The totals of the weights, and the sums of the values by them, with nothing subtracted.
    void attend_fast(const Block &block, const Block &next) {
        clear(0.0f);
        for_cells(block, [&](const Chunk &chunk, const float *const *keys, long channels,
                             const float *const *values, long value_channels) {
            const float *first[chunk_rows], *second[chunk_rows];
            relative.rows_of(chunk, first, second);
            // A chunk by itself: added one by one to a large total, equal weights (as of padding's
            // cells without a relative position) would all be rounded the same way.
            float part[most_queries] = {};
            attend(keys, chunk.count, channels, queries, tile.width, first, second, values,
                   value_channels, part, sums, behind(block, chunk, next));
            add_to_total(part);
        });
    }

    // The same with the highest scores subtracted. From scores as the backward pass finds them, to
    // the last bit: it multiplies their exponentials' error by the keys.
    void attend_lowered(const Block &block) {
        clear(-INFINITY);
        for_cells(block, [&](const Chunk &chunk, const float *const *keys, long channels,
                             const float *const *, long) {
            find_scores(chunk, keys, channels);
            for (long i = 0; i < chunk.count * tile.width; i += lanes) {
                float *top = highest + i % tile.width;
                store(top, maximum(load(scores + i), load(top)));
            }
        });
        for_cells(block, [&](const Chunk &chunk, const float *const *keys, long channels,
                             const float *const *values, long value_channels) {
            find_scores(chunk, keys, channels);
            float part[most_queries] = {};
            for (long i = 0; i < chunk.count * tile.width; i += lanes) {
                const long q = i % tile.width;
                const Vector weight = exp2(load(scores + i) - load(highest + q));
                store(scores + i, weight);
                store(part + q, load(part + q) + weight);
            }
            weighted_sums(values, chunk.count, value_channels, scores, tile.width, sums);
            add_to_total(part);
        });
    }

    void clear(float top) {
        for (long i = 0; i < p.value_channels * tile.width; i += lanes) store(sums + i, Vector{});
        for (long q = 0; q < tile.width; q += lanes) {
            store(total + q, Vector{});
            store(highest + q, constant(top));
        }
    }

    void add_to_total(const float *part) {
        for (long q = 0; q < tile.width; q += lanes)
            store(total + q, load(total + q) + load(part + q));
    }

    void find_scores(const Chunk &chunk, const float *const *keys, long channels) {
        const float *first[chunk_rows], *second[chunk_rows];
        relative.rows_of(chunk, first, second);
        dot_products(keys, chunk.count, channels, queries, tile.width, first, second, scores);
    }

    // Calls body(chunk, keys, channels, values, value channels) for all cells that take part; of those
    // outside the map it has no channels.
    template <class Body>
    void for_cells(const Block &block, Body body) {
        cells.for_chunks([&](const Chunk &chunk) {
            const float *keys[chunk_rows], *values[chunk_rows];
            gather_rows(p.key, key_offsets, block, chunk, p.channels, converted_keys, T(), keys);
            gather_rows(p.value, value_offsets, block, chunk, p.value_channels, converted_values, T(),
                        values);
            body(chunk, keys, p.channels, values, p.value_channels);
        });
        cells.for_chunks(cells.inside, cells.count, chunk_cells,
                         [&](const Chunk &chunk) { body(chunk, nothing, 0, nothing, 0); });
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
};

}  // namespace
