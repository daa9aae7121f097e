// The forward pass of a strip of blocks: each chunk of cells' weights are found and their values added up
// by them before the next cells are looked at. Nothing is subtracted from the scores at first: a softmax
// is the same without, and float32 holds the exponentials of all but extreme scores. Where their sum
// shows that it doesn't, the block is done once more, with the highest scores subtracted.
#pragma once

#include "strip.h"
#include "tile.h"

namespace {

template <class T>
class Forward {
public:
    // Blocks of a strip, so that there are strips enough for all threads.
    static long blocks_of_strip(const HaloProblem &p, const Shape &shape) {
        const long cell_floats =
            round_up(p.channels, slice_channels) + round_up(p.value_channels, slice_channels);
        const long rows = p.batch * shape.block_rows * p.heads;
        const long strips = ceil_div(4 * p.threads, rows);
        return smaller(blocks_that_fit(p, shape, cell_floats, 1),
                       larger(1, shape.block_columns / strips));
    }

    Forward(const HaloProblem &p, const Shape &shape, long blocks, Arena &arena)
        : p(p),
          shape(shape),
          keys(p, shape, p.key, p.channels, blocks, arena),
          values(p, shape, p.value, p.value_channels, blocks, arena),
          relative(p, shape, arena),
          queries(arena.take<float>(p.channels * most_queries)),
          sums(arena.take<float>(p.value_channels * most_queries)),
          scores{arena.take<float>(chunk_cells * most_queries), chunk_cells * lanes} {}

    // The first strip to be run.
    void begin(const Strip &strip) {
        keys.begin(strip);
        values.begin(strip);
        finish();
    }

    // `next` is the strip that will be run after this one, if there is one.
    void run(const Strip &strip, const Strip *next) {
        if (next) {
            keys.begin(*next);
            values.begin(*next);
            cells_at_once = cells_between_products(shape, *next, strip);
        }
        for (long i = strip.first_block; i < strip.end_block; i++) {
            const Block block = strip.block(p, shape, i);
            for_tiles(p, block, tile, [&] { run_tile(strip, block); });
        }
        finish();
    }

private:
    const HaloProblem &p;
    const Shape &shape;
    Tile tile;
    Copies<T> keys, values;
    long cells_at_once = 0;  // of the next strip, copied between two products
    RelativeLogits relative;
    float *queries;               // [channels][width]
    float *sums;                  // [value_channels][width]
    Scores scores;                // of a chunk's cells
    float total[most_queries];    // of the weights
    float highest[most_queries];  // what is subtracted from the scores

    void finish() {
        keys.finish();
        values.finish();
    }

    void run_tile(const Strip &strip, const Block &block) {
        const long width = tile.width;
        fetch_queries<T, 1>(p.output, block, tile, p.value_channels);
        Block next = block;
        next.query_column += shape.block_queries;
        fetch_queries<T, 0>(p.query, next, tile, p.channels);
        transpose_queries<T>(p.query, block, tile, p.channels, float(p.scale * log2_of_e), queries);
        relative.compute(p, shape, tile, queries);
        for (long q = 0; q < width; q += lanes) store(highest + q, Vector{});
        attend_to_cells(strip, block, nullptr);
        if (!totals_fit(total, width)) {
            find_highest(strip, block);
            attend_to_cells(strip, block, highest);
        }
        write_outputs<T>(p, block, tile, sums, total, highest);
    }

    // The totals of the weights, and the sums of the values by them.
    void attend_to_cells(const Strip &strip, const Block &block, const float *subtracted) {
        for (long i = 0; i < p.value_channels * tile.width; i += lanes) store(sums + i, Vector{});
        for (long q = 0; q < tile.width; q += lanes) store(total + q, Vector{});
        for_cells(strip, block,
                  [&](const Cells &chunk, Rows key, long channels, Rows value, long value_channels) {
                      attend(key, chunk.rows, chunk.columns, channels, queries, tile.width,
                             relative.biases(chunk), subtracted, value, value_channels, scores, total,
                             sums, [&] {
                                 keys.step(cells_at_once);
                                 values.step(cells_at_once);
                             });
                  });
    }

    // Of scores as the backward pass finds them, to the last bit: it multiplies their exponentials' error
    // by the keys.
    void find_highest(const Strip &strip, const Block &block) {
        for (long q = 0; q < tile.width; q += lanes) store(highest + q, constant(-INFINITY));
        for_cells(strip, block, [&](const Cells &chunk, Rows key, long channels, Rows, long) {
            dot_products(key, chunk.rows, chunk.columns, channels, queries, tile.width,
                         relative.biases(chunk), scores, [] {});
            for (long k = 0; k < chunk.count(); k++)
                for (long q = 0; q < tile.width; q += lanes)
                    store(highest + q, maximum(load(scores.at(k, q)), load(highest + q)));
        });
    }

    // Calls body(chunk, keys, channels, values, value channels) for all cells that take part; those outside
    // the map have no channels.
    template <class Body>
    void for_cells(const Strip &strip, const Block &block, Body body) {
        for_chunks(cells_inside(block), [&](const Cells &chunk) {
            const Rows key = keys.cells().rows(strip, block, chunk);
            const Rows value = values.cells().rows(strip, block, chunk);
            body(chunk, key, p.channels, value, p.value_channels);
        });
        if (p.mask_padding) return;
        for_chunks_outside(shape, block, [&](const Cells &chunk) { body(chunk, Rows{}, 0, Rows{}, 0); });
    }
};

}  // namespace
