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
        const long cell_floats = round_up(p.channels, lanes) + round_up(p.value_channels, lanes);
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
          cells(p, shape, true, arena),
          relative(p, shape, arena),
          queries(arena.take<float>(p.channels * most_queries)),
          sums(arena.take<float>(p.value_channels * most_queries)),
          scores(arena.take<float>(chunk_cells * most_queries)) {}

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
            cells.place(block);
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
    Cells cells;
    RelativeLogits relative;
    float *queries;               // [channels][width]
    float *sums;                  // [value_channels][width]
    float *scores;                // [cells][width]
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
        relative.place(cells);
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
                  [&](const Chunk &chunk, Rows key, long channels, Rows value, long value_channels,
                      Biases biases) {
                      attend(key, chunk.count, channels, queries, tile.width, biases, subtracted, value,
                             value_channels, scores, total, sums, [&] {
                                 keys.step(cells_at_once);
                                 values.step(cells_at_once);
                             });
                  });
    }

    // Of scores as the backward pass finds them, to the last bit: it multiplies their exponentials' error
    // by the keys.
    void find_highest(const Strip &strip, const Block &block) {
        for (long q = 0; q < tile.width; q += lanes) store(highest + q, constant(-INFINITY));
        for_cells(
            strip, block, [&](const Chunk &chunk, Rows key, long channels, Rows, long, Biases biases) {
                dot_products(key, chunk.count, channels, queries, tile.width, biases, scores, [] {});
                for (long i = 0; i < chunk.count * tile.width; i += lanes) {
                    float *top = highest + i % tile.width;
                    store(top, maximum(load(scores + i), load(top)));
                }
            });
    }

    // Calls body(chunk, keys, channels, values, value channels, logits of the relative position) for
    // all cells that take part; of those outside the map it has no channels.
    template <class Body>
    void for_cells(const Strip &strip, const Block &block, Body body) {
        const float *first[chunk_rows], *second[chunk_rows];
        const Rows key = keys.cells().window(strip, block), value = values.cells().window(strip, block);
        cells.for_chunks([&](const Chunk &chunk) {
            relative.rows_of(chunk, first, second);
            body(chunk, key.from(chunk.first), p.channels, value.from(chunk.first), p.value_channels,
                 Biases{first, second});
        });
        cells.for_chunks(cells.inside, cells.count, chunk_cells, [&](const Chunk &chunk) {
            relative.rows_of(chunk, first, second);
            body(chunk, key, 0, value, 0, Biases{first, second});
        });
    }
};

}  // namespace
