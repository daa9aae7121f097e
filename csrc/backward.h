// The backward pass of a strip of blocks: weights are recomputed from the saved log-sum-exp, a chunk of
// cells at a time, and never stored beyond it. Gradients of a block's queries are complete at its end;
// those of keys and values are summed in the strip and then added to the maps, so strips whose windows
// overlap must not run at once (see variant.cpp).
#pragma once

#include "strip.h"
#include "tile.h"

namespace {

template <class T>
class Backward {
public:
    // Blocks of a strip: by the problem alone, since sums depend on it, and so many that a strip's
    // windows overlap the next one's, but none beyond.
    static long blocks_of_strip(const HaloProblem &p, const Shape &shape) {
        const long cell_floats =
            2 * (round_up(p.channels, slice_channels) + round_up(p.value_channels, slice_channels));
        const long apart = ceil_div(shape.window, p.block_size);
        return larger(apart - 1, blocks_that_fit(p, shape, cell_floats, larger(1, apart - 1)));
    }

    Backward(const HaloProblem &p, const Shape &shape, long blocks, Arena &arena)
        : p(p),
          shape(shape),
          padded_channels(round_up(p.channels, lanes)),
          padded_values(round_up(p.value_channels, lanes)),
          keys(p, shape, p.key, p.channels, blocks, arena),
          values(p, shape, p.value, p.value_channels, blocks, arena),
          key_gradients(p, shape, p.key_gradient, p.channels, blocks, arena),
          value_gradients(p, shape, p.value_gradient, p.value_channels, blocks, arena),
          relative(p, shape, arena),
          queries(arena.take<float>(p.channels * most_queries)),
          // The last row's slice for the column table may be read a vector beyond its end.
          query_rows(arena.take<float>(padded_channels * most_queries + lanes)),
          output_gradients(arena.take<float>(p.value_channels * most_queries)),
          output_gradient_rows(arena.take<float>(padded_values * most_queries)),
          query_gradients(arena.take<float>(p.channels * most_queries)),
          weights{arena.take<float>(chunk_cells * most_queries), chunk_cells * lanes},
          score_gradients{arena.take<float>(chunk_cells * most_queries), chunk_cells * lanes},
          row_gradients(arena.take<float>(shape.window * most_queries)),
          column_gradients(arena.take<float>(shape.window * most_queries)),
          offset_gradients{arena.take<float>(shape.offsets * most_queries), shape.offsets * lanes} {}

    // The first strip to be run.
    void begin(const Strip &strip) {
        keys.begin(strip);
        values.begin(strip);
        keys.finish();
        values.finish();
    }

    // Adds the tables' gradients to `row_table` and `column_table`, [offsets][table_width]. `next` is
    // the strip that will be run after this one, if there is one.
    void run(const Strip &strip, const Strip *next, float *row_table, float *column_table) {
        if (next) {
            keys.begin(*next);
            values.begin(*next);
        }
        cells_at_once = cells_between_products(shape, next ? *next : strip, strip);
        key_gradients.clear(strip);
        value_gradients.clear(strip);
        for (long i = strip.first_block; i < strip.end_block; i++) {
            const Block block = strip.block(p, shape, i);
            for_tiles(p, block, tile, [&] { run_tile(strip, block, row_table, column_table); });
        }
        keys.finish();
        values.finish();
        key_gradients.turn(strip);
        value_gradients.turn(strip);
    }

    // Adds the last strip's gradients to the maps.
    void finish() {
        key_gradients.step(LONG_MAX);
        value_gradients.step(LONG_MAX);
    }

private:
    const HaloProblem &p;
    const Shape &shape;
    long padded_channels, padded_values;
    Tile tile;
    Copies<T> keys, values;
    Sums key_gradients, value_gradients;
    long cells_at_once = 0;  // of the strips before and after, moved between two products
    RelativeLogits relative;
    float *queries;                           // [channels][width], scaled, for powers of 2
    float *query_rows;                        // [queries][padded_channels], scaled
    float *output_gradients;                  // [value_channels][width]
    float *output_gradient_rows;              // [queries][padded_values]
    float *query_gradients;                   // [channels][width]
    Scores weights, score_gradients;          // of a chunk's cells
    float *row_gradients, *column_gradients;  // [window][width]
    Scores offset_gradients;                  // of a table's entries
    float log_sum[most_queries], minus_delta[most_queries], scales[most_queries];

    void run_tile(const Strip &strip, const Block &block, float *row_table, float *column_table) {
        load_queries(block);
        relative.compute(p, shape, tile, queries);
        for (long i = 0; i < p.channels * tile.width; i++) query_gradients[i] = 0.0f;
        for (long i = 0; i < shape.window * tile.width; i++)
            row_gradients[i] = column_gradients[i] = 0.0f;
        for_chunks(cells_inside(block), [&](const Cells &chunk) { run_chunk(strip, block, chunk); });
        if (!p.mask_padding)
            for_chunks_outside(shape, block,
                               [&](const Cells &chunk) { find_gradients(chunk, Rows{}, 0, Rows{}, 0); });
        if (p.table_width) {
            table_gradients(row_gradients, tile.row_runs, relative.row_entries, 0, row_table);
            table_gradients(column_gradients, tile.column_runs, relative.column_entries,
                            RelativeLogits::column_channel(p), column_table);
        }
        scatter_queries<T>(query_gradients, scales, p.query_gradient, block, tile, p.channels);
    }

    void load_queries(const Block &block) {
        transpose_queries<T>(p.query, block, tile, p.channels, float(p.scale * log2_of_e), queries);
        transpose_queries<T>(p.output_gradient, block, tile, p.value_channels, 1.0f, output_gradients);
        const T *query[most_queries], *gradient[most_queries], *output[most_queries];
        const float *log_sums[most_queries];
        addresses(p.query, block, tile, query);
        addresses(p.output_gradient, block, tile, gradient);
        addresses(p.output, block, tile, output);
        addresses(p.log_sum, block, tile, log_sums);
        for (long q = tile.count; q < tile.width; q++) log_sum[q] = 0.0f;
        for (long q = 0; q < tile.count; q++) {
            log_sum[q] = *log_sums[q] * float(log2_of_e);
            copy_row(query[q], p.channels, float(p.scale), query_rows + q * padded_channels);
            copy_row(gradient[q], p.value_channels, 1.0f, output_gradient_rows + q * padded_values);
        }
        for (long q = 0; q < tile.width; q += lanes) {
            Vector products[lanes] = {};
            for (long i = 0; i < smaller(lanes, tile.count - q); i++)
                products[i] = multiply(gradient[q + i], output[q + i], p.value_channels);
            transpose(products);
            Vector delta = {};
            for (int i = 0; i < lanes; i++) delta += products[i];
            store(minus_delta + q, -delta);
            store(scales + q, constant(float(p.scale)));
        }
    }

    // Products of numbers of a and b, whose sum over the lanes is a's product with b.
    static Vector multiply(const T *a, const T *b, long count) {
        Vector sums = {};
        long c = 0;
        for (; c + lanes <= count; c += lanes) sums += load(a + c) * load(b + c);
        for (; c < count; c++) sums[c % lanes] += load_one(a + c) * load_one(b + c);
        return sums;
    }

    // Behind the last channel, zeros fill a vector.
    static void copy_row(const T *row, long channels, float factor, float *out) {
        long c = 0;
        for (; c + lanes <= channels; c += lanes) store(out + c, load(row + c) * factor);
        for (; c < round_up(channels, lanes); c++)
            out[c] = c < channels ? load_one(row + c) * factor : 0.0f;
    }

    void run_chunk(const Strip &strip, const Block &block, const Cells &chunk) {
        const auto rows_in = [&](const StripCells &of) { return of.rows(strip, block, chunk); };
        const Rows key = rows_in(keys.cells()), value = rows_in(values.cells());
        find_gradients(chunk, key, p.channels, value, p.value_channels);
        weighted_sums(key, chunk.count(), p.channels, score_gradients, tile.width, query_gradients);
        weight_gradients(score_gradients, chunk.count(), tile.count, query_rows, padded_channels,
                         rows_in(key_gradients.cells()), padded_channels);
        weight_gradients(weights, chunk.count(), tile.count, output_gradient_rows, padded_values,
                         rows_in(value_gradients.cells()), padded_values);
    }

    // A chunk's weights, and the gradients of its scores, from as many channels as given.
    void find_gradients(const Cells &chunk, Rows key, long channels, Rows value, long value_channels) {
        dot_products(key, chunk.rows, chunk.columns, channels, queries, tile.width,
                     relative.biases(chunk), weights, [&] {
                         keys.step(cells_at_once);
                         values.step(cells_at_once);
                     });
        dot_products(value, chunk.rows, chunk.columns, value_channels, output_gradients, tile.width,
                     Biases{minus_delta, relative.zeros, 0, 0}, score_gradients, [&] {
                         key_gradients.step(cells_at_once);
                         value_gradients.step(cells_at_once);
                     });
        softmax_gradients(chunk);
    }

    // weights: scores -> weights. score_gradients: gradients of the weights less delta -> gradients
    // of the scores, whose sums over rows and columns of the window are the gradients of the relative
    // logits. The log-sum-exp is not folded into the start of the scores' sums: being larger than
    // they are, it would cost them digits at each step.
    void softmax_gradients(const Cells &chunk) {
        for (long q = 0; q < tile.width; q += lanes)
            for (long v = 0; v < chunk.columns; v++) {
                Vector column = {};
                for_row_groups<4>(chunk.rows, [&](auto row_count, long u) {
                    constexpr int count = decltype(row_count)::number;
                    float *weight = weights.at(v * chunk.rows + u, q);
                    float *gradient = score_gradients.at(v * chunk.rows + u, q);
                    float *row = row_gradients + (chunk.row + u) * tile.width + q;
                    Vector some[count];
#pragma GCC unroll 4
                    for (int i = 0; i < count; i++)
                        some[i] = load(weight + i * lanes) - load(log_sum + q);
                    exp2(some);
#pragma GCC unroll 4
                    for (int i = 0; i < count; i++, row += tile.width) {
                        store(weight + i * lanes, some[i]);
                        some[i] *= load(gradient + i * lanes);
                        store(gradient + i * lanes, some[i]);
                        store(row, load(row) + some[i]);
                        column += some[i];
                    }
                });
                float *sum = column_gradients + (chunk.column + v) * tile.width + q;
                store(sum, load(sum) + column);
            }
    }

    // `gradients` [window][width] are of the logits that `channel` and those after it had with the
    // table's entries; adds to the table's gradients and to those of the queries.
    void table_gradients(const float *gradients, const Runs *runs, Rows entries, long channel,
                         float *table) {
        const long width = tile.width;
        for (long i = 0; i < shape.offsets * width; i += lanes)
            store(offset_gradients.first + i, Vector{});
        for (long q = 0; q < width; q += lanes)
            for (long r = 0; r < runs[q / lanes].count; r++) {
                const Run &run = runs[q / lanes].run[r];
                for (long u = 0; u < shape.window; u++) {
                    float *entry = offset_gradients.at(u + run.offset, q);
                    store(entry,
                          run.mask ? load(gradients + u * width + q) * relative.factor : load(entry));
                }
            }
        weighted_sums(entries, shape.offsets, p.table_width, offset_gradients, width,
                      query_gradients + channel * width);
        weight_gradients(offset_gradients, shape.offsets, tile.count, query_rows + channel,
                         padded_channels, GradientRows{table, p.table_width, slice_channels},
                         p.table_width);
    }
};

}  // namespace
