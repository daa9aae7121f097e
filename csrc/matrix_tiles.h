// Matrix tiles (AMX): a tile is 16 rows of 64 bytes; one instruction multiplies 16 x 32 by 32 x 16
// bfloat16 numbers and adds the product to 16 x 16 float32 sums.
#pragma once

#include <immintrin.h>

#include "vectors.h"

namespace {

constexpr int tile_rows = 16;
constexpr int tile_depth = 32;  // numbers summed by one multiplication

// Takes all tiles as 16 x 64 bytes while it lives. Another library may set them otherwise between
// our calls, so no call may rely on the one before.
struct TileSetup {
    TileSetup() {
        struct {
            uint8_t palette = 1, start = 0, reserved[14] = {};
            uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
        } configuration;
        // Written out, since GCC 12's intrinsic declares only the first bytes as read.
        __asm__ volatile("ldtilecfg %0" ::"m"(configuration));
    }
    ~TileSetup() { _tile_release(); }
};

// The compiler doesn't know what memory a tile's load and store touch.
inline void finish_memory() { __asm__ volatile("" ::: "memory"); }

// sums[i][j] (+)= sum over k of left[i][k] * right[k][j] for 16 rows i and 16 * `columns` columns j.
// left: rows of bfloat16, left_bytes apart; depth a multiple of 32. right: pairs of numbers of rows 2k
// and 2k + 1 side by side in one word, rows of words right_words apart. sums: rows sum_floats apart.
template <int columns>
inline void multiply_tiles(const Bfloat16 *left, long left_bytes, long depth, const uint32_t *right,
                           long right_words, float *sums, long sum_floats, bool add) {
    const long sum_bytes = sum_floats * 4, right_bytes = right_words * 4;
    if (add) {
        _tile_loadd(0, sums, sum_bytes);
        if (columns > 1) _tile_loadd(1, sums + 16, sum_bytes);
        if (columns > 2) _tile_loadd(2, sums + 32, sum_bytes);
        if (columns > 3) _tile_loadd(3, sums + 48, sum_bytes);
    } else {
        _tile_zero(0);
        if (columns > 1) _tile_zero(1);
        if (columns > 2) _tile_zero(2);
        if (columns > 3) _tile_zero(3);
    }
    for (long k = 0; k < depth; k += tile_depth) {
        const uint32_t *row = right + k / 2 * right_words;
        _tile_loadd(4, left + k, left_bytes);
        _tile_loadd(5, row, right_bytes);
        _tile_dpbf16ps(0, 4, 5);
        if (columns > 1) {
            _tile_loadd(6, row + 16, right_bytes);
            _tile_dpbf16ps(1, 4, 6);
        }
        if (columns > 2) {
            _tile_loadd(5, row + 32, right_bytes);
            _tile_dpbf16ps(2, 4, 5);
        }
        if (columns > 3) {
            _tile_loadd(6, row + 48, right_bytes);
            _tile_dpbf16ps(3, 4, 6);
        }
    }
    _tile_stored(0, sums, sum_bytes);
    if (columns > 1) _tile_stored(1, sums + 16, sum_bytes);
    if (columns > 2) _tile_stored(2, sums + 32, sum_bytes);
    if (columns > 3) _tile_stored(3, sums + 48, sum_bytes);
}

// The same for any multiples of 16 rows; width is a multiple of 16, at most 64.
inline void multiply_tiles(const Bfloat16 *left, long left_numbers, long rows, long depth,
                           const uint32_t *right, long width, float *sums, bool add) {
    finish_memory();
    for (long i = 0; i < rows; i += tile_rows) {
        const Bfloat16 *row = left + i * left_numbers;
        float *sum = sums + i * width;
        switch (width / 16) {
            case 1:
                multiply_tiles<1>(row, left_numbers * 2, depth, right, width, sum, width, add);
                break;
            case 2:
                multiply_tiles<2>(row, left_numbers * 2, depth, right, width, sum, width, add);
                break;
            case 3:
                multiply_tiles<3>(row, left_numbers * 2, depth, right, width, sum, width, add);
                break;
            default:
                multiply_tiles<4>(row, left_numbers * 2, depth, right, width, sum, width, add);
                break;
        }
    }
    finish_memory();
}

}  // namespace
