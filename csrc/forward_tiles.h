// The forward pass in bfloat16 with matrix tiles: the same steps as forward.h, with both products of
// a chunk of cells on tiles. Sums, softmax and relative position stay in float32.
#pragma once

#include "matrix_tiles.h"
#include "tile.h"

namespace {

class ForwardTiles {
public:
    ForwardTiles(const HaloProblem &p, const Shape &shape, Arena &arena)
        : p(p),
          shape(shape),
          key_depth(round_up(p.channels, tile_depth)),
          value_rows(round_up(p.value_channels, tile_rows)),
          cells(p, shape, arena),
          key_offsets(shape, arena),
          value_offsets(shape, arena),
          relative(p, shape, arena),
          scaled_queries(arena.take<float>(p.channels * most_queries)),
          queries(arena.take<uint32_t>(key_depth / 2 * most_queries)),
          keys(arena.take<Bfloat16>(tile_cells * key_depth)),
          values(arena.take<Bfloat16>(value_rows * tile_cells)),
          scores(arena.take<float>(tile_cells * most_queries)),
          weights(arena.take<uint32_t>(tile_cells / 2 * most_queries)),
          sums(arena.take<float>(value_rows * most_queries)),
          zeros(arena.take<Bfloat16>(round_up(p.value_channels, lanes))) {
        if (!arena.base) return;
        for (long i = 0; i < tile_cells * key_depth; i++) keys[i] = Bfloat16{0};
        for (long i = 0; i < key_depth / 2 * most_queries; i++) queries[i] = 0;
        for (long i = 0; i < round_up(p.value_channels, lanes); i++) zeros[i] = Bfloat16{0};
    }

    void run(const Block &block, const Block &) {
        for_tiles(p, block, tile, [&] { run_tile(block); });
    }

private:
    static constexpr long tile_cells = chunk_cells / tile_depth * tile_depth;

    const HaloProblem &p;
    const Shape &shape;
    long key_depth, value_rows;
    TileSetup setup;
    Tile tile;
    Cells cells;
    CellOffsets key_offsets, value_offsets;
    RelativeLogits relative;
    float *scaled_queries;  // [channels][width], for the relative position
    uint32_t *queries;      // [key_depth / 2][width], pairs of channels
    Bfloat16 *keys;         // [tile_cells][key_depth], zero behind the last channel
    Bfloat16 *values;       // [value_rows][tile_cells]
    float *scores;          // [tile_cells][width]
    uint32_t *weights;      // [chunk_cells / 2][width], pairs of cells
    float *sums;            // [value_rows][width]
    Bfloat16 *zeros;        // values of the cells behind a chunk's last
    float highest[most_queries], total[most_queries], rescale[most_queries];

    void run_tile(const Block &block) {
        const long width = tile.width;
        load_queries(block);
        for (long i = 0; i < value_rows * width; i++) sums[i] = 0.0f;
        for (long q = 0; q < width; q++) {
            highest[q] = -INFINITY;
            total[q] = 0.0f;
        }
        cells.place(block);
        key_offsets.place<Bfloat16>(cells, p.key);
        value_offsets.place<Bfloat16>(cells, p.value);
        relative.place(cells);
        cells.for_chunks(0, cells.inside, tile_cells, [&](const Chunk &chunk) {
            const long depth = round_up(chunk.count, tile_depth);
            load_keys(block, chunk);
            multiply_tiles(keys, key_depth, round_up(chunk.count, tile_rows), key_depth, queries, width,
                           scores, false);
            exponentials(chunk, depth);
            load_values(block, chunk, depth);
            if (chunk.first) rescale_sums();
            multiply_tiles(values, tile_cells, value_rows, depth, weights, width, sums, true);
        });
        cells.for_chunks(cells.inside, cells.count, tile_cells, [&](const Chunk &chunk) {
            for (long i = 0; i < chunk.count * width; i++) scores[i] = 0.0f;
            exponentials(chunk, chunk.count);
            rescale_sums();
        });
        for (long q = 0; q < width; q++) rescale[q] = 1.0f / total[q];
        scatter_queries<Bfloat16>(sums, rescale, p.output, block, tile, p.value_channels);
        if (!p.log_sum.data) return;
        float *log_sums[most_queries];
        addresses(p.log_sum, block, tile, log_sums);
        for (long q = 0; q < tile.count; q++)
            *log_sums[q] = highest[q] / float(log2_of_e) + logf(total[q]);
    }

    void load_queries(const Block &block) {
        const long width = tile.width;
        if (p.table_width)
            transpose_queries<Bfloat16>(p.query, block, tile, p.channels, float(p.scale * log2_of_e), scaled_queries);
        relative.compute(p, shape, tile, scaled_queries);
        const Bfloat16 *rows[most_queries];
        addresses(p.query, block, tile, rows);
        for (long q = tile.count; q < width; q++) rows[q] = rows[0];
        for (long q = 0; q < width; q += lanes) {
            long c = 0;
            for (; c + 2 * lanes <= p.channels; c += 2 * lanes) {
                Vector square[lanes];  // of pairs, moved as if they were float32
#pragma GCC unroll 16
                for (int i = 0; i < lanes; i++) __builtin_memcpy(&square[i], rows[q + i] + c, sizeof(Vector));
                transpose(square);
#pragma GCC unroll 16
                for (int i = 0; i < lanes; i++)
                    __builtin_memcpy(queries + (c / 2 + i) * width + q, &square[i], sizeof(Vector));
            }
            for (; c < p.channels; c += 2)
                for (int i = 0; i < lanes; i++) {
                    const uint32_t next = c + 1 < p.channels ? rows[q + i][c + 1].bits : 0;
                    queries[c / 2 * width + q + i] = rows[q + i][c].bits | next << 16;
                }
        }
    }

    void rescale_sums() {
        for (long c = 0; c < p.value_channels; c++)
            for (long q = 0; q < tile.width; q += lanes) {
                float *sum = sums + c * tile.width + q;
                store(sum, load(sum) * load(rescale + q));
            }
    }

    void load_keys(const Block &block, const Chunk &chunk) {
        const Bfloat16 *rows[chunk_rows];
        key_offsets.rows<const Bfloat16>(p.key, block, chunk, rows);
        for (long k = 0; k < chunk.count; k++) {
            Bfloat16 *key = keys + k * key_depth;
            long c = 0;
            for (; c + lanes <= p.channels; c += lanes) __builtin_memcpy(key + c, rows[k] + c, lanes * 2);
            for (; c < p.channels; c++) key[c] = rows[k][c];
        }
    }

    // Values of a chunk with cells along the rows: pairs of cells are interleaved, then moved as words.
    void load_values(const Block &block, const Chunk &chunk, long depth) {
        const Bfloat16 *rows[chunk_rows];
        value_offsets.rows<const Bfloat16>(p.value, block, chunk, rows);
        for (long k = chunk.count; k < depth; k++) rows[k] = zeros;
        for (long k = 0; k < depth; k += 2 * lanes)
            for (long c = 0; c < p.value_channels; c += lanes) {
                Vector square[lanes];
                const long count = smaller(lanes, p.value_channels - c);
#pragma GCC unroll 16
                for (int i = 0; i < lanes; i++)
                    square[i] = bits_of<Vector>(words(rows[k + 2 * i] + c, count) |
                                                words(rows[k + 2 * i + 1] + c, count) << 16);
                transpose(square);
#pragma GCC unroll 16
                for (int i = 0; i < lanes; i++)
                    __builtin_memcpy(values + (c + i) * tile_cells + k, &square[i], sizeof(Vector));
            }
    }

    static Words words(const Bfloat16 *row, long count) {
        Halves halves = {};
        if (count == lanes)
            __builtin_memcpy(&halves, row, sizeof(halves));
        else
            __builtin_memcpy(&halves, row, size_t(count) * 2);
        return __builtin_convertvector(halves, Words);
    }

    // Scores -> exponentials relative to the highest score so far, as pairs of cells in bfloat16.
    void exponentials(const Chunk &chunk, long depth) {
        const long width = tile.width;
        const Vector scale = constant(float(p.scale * log2_of_e));
        for (long q = 0; q < width; q += lanes) {
            const Vector before = load(highest + q);
            Vector top = before;
            for (long k = 0; k < chunk.count; k++) {
                const Vector score = load(scores + k * width + q) * scale +
                                     (load(relative.row + chunk.row[k] * relative.step + q) +
                                      load(relative.column + chunk.column[k] * relative.step + q));
                store(scores + k * width + q, score);
                top = maximum(score, top);
            }
            const Vector factor = exp2(before - top);
            Vector sum = load(total + q) * factor;
            for (long k = 0; k < depth; k += 2) {
                Vector even = {}, odd = {};
                if (k < chunk.count) even = exp2(load(scores + k * width + q) - top);
                if (k + 1 < chunk.count) odd = exp2(load(scores + (k + 1) * width + q) - top);
                sum += even + odd;
                // To the nearest; a NaN stays one.
                const Words pair = ((bits_of<Words>(even) + 0x8000u) >> 16) |
                                   ((bits_of<Words>(odd) + 0x8000u) & 0xffff0000u);
                __builtin_memcpy(weights + k / 2 * width + q, &pair, sizeof(pair));
            }
            store(highest + q, top);
            store(rescale + q, factor);
            store(total + q, sum);
        }
    }
};

}  // namespace
