// The forward pass in bfloat16 with matrix tiles: the same steps as forward.h, with both products of
// a chunk of cells on tiles. Sums, softmax and relative position stay in float32.
#pragma once

#include "cell_list.h"
#include "matrix_tiles.h"
#include "strip.h"
#include "tile.h"

namespace {

class ForwardTiles {
public:
    // Cells are read from the map, whose lines hold several heads: blocks of all heads take turns.
    static long blocks_of_strip(const HaloProblem &, const Shape &) { return 1; }

    ForwardTiles(const HaloProblem &p, const Shape &shape, long, Arena &arena)
        : p(p),
          shape(shape),
          key_depth(round_up(p.channels, tile_depth)),
          value_rows(round_up(p.value_channels, tile_rows)),
          cells(p, shape, arena),
          key_offsets(shape, arena),
          value_offsets(shape, arena),
          row_offsets(shape, arena),
          column_offsets(shape, arena),
          relative(p, shape, arena),
          scaled_queries(arena.take<float>(p.channels * most_queries)),
          queries(arena.take<uint32_t>(key_depth / 2 * most_queries)),
          keys(arena.take<Bfloat16>(listed_cells * key_depth)),
          values(arena.take<Bfloat16>(value_rows * listed_cells)),
          scores(arena.take<float>(tile_depth * most_queries)),
          weights(arena.take<uint32_t>(tile_depth / 2 * most_queries)),
          sums(arena.take<float>(value_rows * most_queries)),
          zeros(arena.take<Bfloat16>(round_up(p.value_channels, lanes))) {
        if (!arena.base) return;
        for (long i = 0; i < listed_cells * key_depth; i++) keys[i] = Bfloat16{0};
        for (long i = 0; i < key_depth / 2 * most_queries; i++) queries[i] = 0;
        for (long i = 0; i < round_up(p.value_channels, lanes); i++) zeros[i] = Bfloat16{0};
    }

    void begin(const Strip &) {}

    void run(const Strip &strip, const Strip *) {
        const Block block = strip.block(p, shape, strip.first_block);
        for_tiles(p, block, tile, [&] { run_tile(block); });
    }

private:
    const HaloProblem &p;
    const Shape &shape;
    long key_depth, value_rows;
    TileSetup setup;
    Tile tile;
    CellList cells;
    CellOffsets key_offsets, value_offsets, row_offsets, column_offsets;
    RelativeLogits relative;
    float *scaled_queries;        // [channels][width], for the relative position
    uint32_t *queries;            // [key_depth / 2][width], pairs of channels
    Bfloat16 *keys;               // [listed_cells][key_depth], zero beyond the last channel
    Bfloat16 *values;             // [value_rows][listed_cells]
    float *scores;                // [tile_depth][width], of the last cells
    uint32_t *weights;            // [tile_depth / 2][width], of pairs of the last cells
    float *sums;                  // [value_rows][width]
    Bfloat16 *zeros;              // values of the cells beyond a chunk's last
    float total[most_queries];    // of the weights
    float highest[most_queries];  // what was subtracted from the scores

    void run_tile(const Block &block) {
        const long width = tile.width;
        load_queries(block);
        cells.place(block);
        key_offsets.place<Bfloat16>(cells, p.key);
        value_offsets.place<Bfloat16>(cells, p.value);
        row_offsets.place(cells, relative.step * long(sizeof(float)), 0);
        column_offsets.place(cells, 0, relative.step * long(sizeof(float)));
        for (long q = 0; q < width; q += lanes) store(highest + q, Vector{});
        attend(block);
        if (!totals_fit(total, width)) {
            find_highest(block);
            relative.lower(shape, tile, highest);
            attend(block);
        }
        write_outputs<Bfloat16>(p, block, tile, sums, total, highest);
    }

    // The totals of the weights, and the sums of the values by them.
    void attend(const Block &block) {
        for (long i = 0; i < value_rows * tile.width; i += lanes) store(sums + i, Vector{});
        for (long q = 0; q < tile.width; q += lanes) store(total + q, Vector{});
        const auto load_chunk = [&](const ListedCells &chunk) { load_values(block, chunk); };
        for_steps(block, load_chunk, [&](const ProductScores &found, long k, bool inside) {
            find_weights(found, k);
            if (!inside) return;
            if (k % tile_depth == 0) {
                if (k + tile_rows < found.count) return;
                k += tile_rows;
                find_weights(found, k);  // zeros
            }
            multiply_tiles(values + k + tile_rows - tile_depth, listed_cells, value_rows, tile_depth,
                           weights, tile.width, sums, true);
        });
    }

    void find_highest(const Block &block) {
        for (long q = 0; q < tile.width; q += lanes) store(highest + q, constant(-INFINITY));
        const auto no_values = [](const ListedCells &) {};
        for_steps(block, no_values, [&](const ProductScores &found, long first, bool) {
            for (long k = first; k < smaller(first + tile_rows, found.count); k++)
                for (long q = 0; q < tile.width; q += lanes)
                    store(highest + q, maximum(found.of(k, q), load(highest + q)));
        });
    }

    // Calls body(scores, first of 16 cells, whether they lie inside the map) for all cells that take part, after
    // load_chunk(chunk) for each chunk of them inside. Tiles and vectors take turns: the tiles' unit falls asleep
    // within some 1000 cycles, and as many pass until it is awake.
    template <class LoadChunk, class Body>
    void for_steps(const Block &block, LoadChunk load_chunk, Body body) {
        cells.for_chunks(0, cells.inside, listed_cells, [&](const ListedCells &chunk) {
            load_keys(block, chunk);
            load_chunk(chunk);
            const ProductScores found(*this, chunk);
            multiply_keys(0);
            for (long k = 0; k < chunk.count; k += tile_rows) {
                if (k + tile_rows < chunk.count) multiply_keys(k + tile_rows);
                body(found, k, true);
            }
        });
        if (cells.inside == cells.count) return;
        for (long i = 0; i < tile_depth * tile.width; i += lanes) store(scores + i, Vector{});
        cells.for_chunks(cells.inside, cells.count, listed_cells, [&](const ListedCells &chunk) {
            const ProductScores found(*this, chunk);
            for (long k = 0; k < chunk.count; k += tile_rows) body(found, k, false);
        });
    }

    // Products of 16 cells' keys and the queries.
    void multiply_keys(long k) {
        multiply_tiles(keys + k * key_depth, key_depth, tile_rows, key_depth, queries, tile.width,
                       scores + k % tile_depth * tile.width, false);
    }

    void load_queries(const Block &block) {
        const long width = tile.width;
        if (p.table_width)
            transpose_queries<Bfloat16>(p.query, block, tile, p.channels, float(p.scale * log2_of_e),
                                        scaled_queries);
        relative.compute(p, shape, tile, scaled_queries);
        const Bfloat16 *rows[most_queries];
        addresses(p.query, block, tile, rows);
        for (long q = tile.count; q < width; q++) rows[q] = rows[0];
        for (long q = 0; q < width; q += lanes) {
            long c = 0;
            for (; c + 2 * lanes <= p.channels; c += 2 * lanes) {
                Vector square[lanes];  // of pairs, moved as if they were float32
#pragma GCC unroll 16
                for (int i = 0; i < lanes; i++)
                    __builtin_memcpy(&square[i], rows[q + i] + c, sizeof(Vector));
                transpose(square);
#pragma GCC unroll 16
                for (int i = 0; i < lanes; i++)
                    __builtin_memcpy(queries + (c / 2 + i) * width + q, &square[i], sizeof(Vector));
            }
            if (c < p.channels) {
                const long left = p.channels - c;
                Vector square[lanes] = {};
                for (int i = 0; i < lanes; i++)
                    __builtin_memcpy(&square[i], rows[q + i] + c, size_t(left) * 2);
                transpose(square);
                for (int i = 0; i < ceil_div(left, 2); i++)
                    __builtin_memcpy(queries + (c / 2 + i) * width + q, &square[i], sizeof(Vector));
            }
        }
    }

    void load_keys(const Block &block, const ListedCells &chunk) {
        const Bfloat16 *rows[chunk_rows];
        key_offsets.rows<const Bfloat16>(p.key, block, chunk, rows);
        for (long k = 0; k < chunk.count; k++) {
            Bfloat16 *key = keys + k * key_depth;
            long c = 0;
            for (; c + lanes <= p.channels; c += lanes)
                __builtin_memcpy(key + c, rows[k] + c, lanes * 2);
            for (; c < p.channels; c++) key[c] = rows[k][c];
        }
    }

    // Values of a chunk with cells along the rows: pairs of cells are interleaved, then moved as words.
    void load_values(const Block &block, const ListedCells &chunk) {
        const long depth = round_up(chunk.count, tile_depth);
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
                    __builtin_memcpy(values + (c + i) * listed_cells + k, &square[i], sizeof(Vector));
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

    // Products -> scores, for powers of 2.
    struct ProductScores {
        const float *products, *rows[chunk_rows], *columns[chunk_rows];
        const long width, count;
        const Vector scale;

        ProductScores(const ForwardTiles &pass, const ListedCells &chunk)
            : products(pass.scores),
              width(pass.tile.width),
              count(chunk.count),
              scale(constant(float(pass.p.scale * log2_of_e))) {
            pass.row_offsets.rows<const float>(chunk, pass.relative.row, rows);
            pass.column_offsets.rows<const float>(chunk, pass.relative.column, columns);
        }

        Vector of(long k, long q) const {
            return load(products + k % tile_depth * width + q) * scale +
                   (load(rows[k] + q) + load(columns[k] + q));
        }
    };

    // To the nearest bfloat16, in the upper half of a word; a NaN stays one.
    static Words rounded(Vector v) { return (bits_of<Words>(v) + 0x8000u) & 0xffff0000u; }

    // The powers of 2 of 16 cells' scores, as pairs of cells in bfloat16; zeros after the last cell.
    void find_weights(const ProductScores &found, long first) {
        const long width = tile.width, count = smaller(first + tile_rows, found.count);
        uint32_t *const pairs = weights + first % tile_depth / 2 * width;
        for (long q = 0; q < width; q += lanes) {
            Vector sum = {};
            const auto put = [&](long k, Words even, Words odd) {
                // What is summed is what is multiplied with.
                sum += bits_of<Vector>(even) + bits_of<Vector>(odd);
                const Words pair = even >> 16 | odd;
                __builtin_memcpy(pairs + (k - first) / 2 * width + q, &pair, sizeof(pair));
            };
            long k = first;
            for (; k + 8 <= count; k += 8) {
                Vector some[8];
#pragma GCC unroll 8
                for (int i = 0; i < 8; i++) some[i] = found.of(k + i, q);
                exp2<true>(some);
#pragma GCC unroll 8
                for (int i = 0; i < 8; i += 2) put(k + i, rounded(some[i]), rounded(some[i + 1]));
            }
            for (; k < first + tile_rows; k += 2) {
                Vector pair[2] = {};
                for (int i = 0; i < 2; i++)
                    if (k + i < count) pair[i] = found.of(k + i, q);
                exp2<true>(pair);
                put(k, k < count ? rounded(pair[0]) : Words{},
                    k + 1 < count ? rounded(pair[1]) : Words{});
            }
            store(total + q, load(total + q) + sum);
        }
    }
};

}  // namespace
