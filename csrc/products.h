// The small matrix products that the attention is made of, each a block of sums in registers.
//
// Queries lie along the lanes: a "column" below is a vector of queries, `width` floats apart from one
// row to the next. Cells and channels come one number at a time, broadcast, straight from the map:
// neither keys nor values need packing, and neither windows nor channels waste lanes.
#pragma once

#include "geometry.h"

namespace {

// Vectors of queries that one call may take, and the rows that fill the registers beside them.
constexpr int most_vectors = registers == 32 ? 4 : 2;
constexpr int most_rows(int vectors) {
    return registers == 32 ? (vectors == 4 ? 6 : 8) : (vectors == 2 ? 6 : 8);
}

template <int value>
struct Count {
    static constexpr int number = value;
};

// Calls body(Count<rows>, first) for groups of `most` rows, then of 4, 2 and 1 for what is left.
template <int most, class Body>
inline void for_row_groups(long rows, Body body) {
    long first = 0;
    for (; first + most <= rows; first += most) body(Count<most>(), first);
    for (; first + 4 <= rows; first += 4) body(Count<4>(), first);
    for (; first + 2 <= rows; first += 2) body(Count<2>(), first);
    if (first < rows) body(Count<1>(), first);
}

// Calls body(Count<vectors>, first lane) for groups of vectors that cover `width` lanes.
template <class Body>
inline void for_vector_groups(long width, Body body) {
    for (long first = 0; first < width;) {
        const long left = (width - first) / lanes;
        const long size = ceil_div(left, ceil_div(left, most_vectors));
        switch (size) {
            case 1: body(Count<1>(), first); break;
            case 2: body(Count<2>(), first); break;
            case 3: body(Count<(most_vectors > 2 ? 3 : 1)>(), first); break;
            default: body(Count<(most_vectors > 2 ? 4 : 1)>(), first); break;
        }
        first += size * lanes;
    }
}

// Calls body(Count<rows>, Count<vectors>, first row, first lane, biases, biases) for groups of rows and
// vectors; the biases are those of the group's rows, from its first lane on.
template <class Body>
inline void for_groups(long width, long rows, const float *const *first_bias,
                       const float *const *second_bias, Body body) {
    for_vector_groups(width, [&](auto vectors, long q) {
        for_row_groups<most_rows(decltype(vectors)::number)>(rows, [&](auto row_count, long i) {
            constexpr int count = decltype(row_count)::number;
            const float *first[count], *second[count];
            for (int k = 0; k < count; k++) {
                first[k] = first_bias[i + k] + q;
                second[k] = second_bias[i + k] + q;
            }
            body(row_count, vectors, i, q, first, second);
        });
    });
}

// sums[i][q] = first_bias[i][q] + second_bias[i][q] + sum over c of left[i][c] * right[c][q].
template <int rows, int vectors>
__attribute__((always_inline)) inline void dot_sums(const float *const *left, long length,
                                                    const float *right, long width,
                                                    const float *const *first_bias,
                                                    const float *const *second_bias,
                                                    Vector (&sums)[rows][vectors]) {
    const float *row[rows];
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
        row[i] = left[i];
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++)
            sums[i][j] = load(first_bias[i] + j * lanes) + load(second_bias[i] + j * lanes);
    }
    for (long c = 0; c < length; c++) {
        Vector column[vectors];
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) column[j] = load(right + c * width + j * lanes);
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            const float factor = row[i][c];
#pragma GCC unroll 4
            for (int j = 0; j < vectors; j++) sums[i][j] += factor * column[j];
        }
    }
}

template <int rows, int vectors>
__attribute__((noinline)) void dot_group(const float *const *left, long length, const float *right, long width,
                      const float *const *first_bias, const float *const *second_bias, float *out) {
    Vector sums[rows][vectors];
    dot_sums(left, length, right, width, first_bias, second_bias, sums);
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) store(out + i * width + j * lanes, sums[i][j]);
}

// out[i][q] = first_bias[i][q] + second_bias[i][q] + sum over c of left[i][c] * right[c][q].
__attribute__((noinline)) void dot_products(const float *const *left, long rows, long length, const float *right,
                         long width, const float *const *first_bias,
                         const float *const *second_bias, float *out) {
    for_groups(width, rows, first_bias, second_bias,
               [&](auto row_count, auto vectors, long i, long q, auto first, auto second) {
                   dot_group<decltype(row_count)::number, decltype(vectors)::number>(
                       left + i, length, right + q, width, first, second, out + i * width + q);
               });
}

template <int rows, int vectors>
__attribute__((noinline)) void attend_group(const float *const *keys, long channels, const float *queries,
                         long width, const float *const *first_bias, const float *const *second_bias,
                         const float *const *values, long value_channels, float *totals, float *sums) {
    Vector weights[rows][vectors];
    dot_sums(keys, channels, queries, width, first_bias, second_bias, weights);
#pragma GCC unroll 4
    for (int j = 0; j < vectors; j++) {
        Vector total = load(totals + j * lanes);
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            weights[i][j] = exp2(weights[i][j]);
            total += weights[i][j];
        }
        store(totals + j * lanes, total);
    }
    const float *row[rows];
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) row[i] = values[i];
    for (long c = 0; c < value_channels; c++) {
        Vector sum[vectors];
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) sum[j] = load(sums + c * width + j * lanes);
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            const float value = row[i][c];
#pragma GCC unroll 4
            for (int j = 0; j < vectors; j++) sum[j] += value * weights[i][j];
        }
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) store(sums + c * width + j * lanes, sum[j]);
    }
}

// Attention to a chunk of cells; scores and weights never leave the registers:
// weight[i][q] = 2^(first_bias[i][q] + second_bias[i][q] + sum over c of keys[i][c] * queries[c][q]),
// totals[q] += sum over i of weight[i][q], sums[c][q] += sum over i of values[i][c] * weight[i][q].
__attribute__((noinline)) void attend(const float *const *keys, long rows, long channels,
                   const float *queries, long width, const float *const *first_bias,
                   const float *const *second_bias, const float *const *values, long value_channels,
                   float *totals, float *sums, const Ahead &ahead) {
    for_groups(width, rows, first_bias, second_bias,
               [&](auto row_count, auto vectors, long i, long q, auto first, auto second) {
                   constexpr int count = decltype(row_count)::number;
                   if (!q) ahead.fetch(i, count);
                   attend_group<count, decltype(vectors)::number>(keys + i, channels, queries + q, width,
                                                                  first, second, values + i,
                                                                  value_channels, totals + q, sums + q);
               });
}

template <int rows, int vectors>
__attribute__((noinline)) void weighted_group(const float *const *left, long column, long length, const float *weights,
                           long width, float *out) {
    Vector sums[rows][vectors];
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) sums[i][j] = load(out + i * width + j * lanes);
    for (long k = 0; k < length; k++) {
        const float *row = left[k] + column;
        Vector weight[vectors];
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) weight[j] = load(weights + k * width + j * lanes);
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            const float factor = row[i];
#pragma GCC unroll 4
            for (int j = 0; j < vectors; j++) sums[i][j] += factor * weight[j];
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) store(out + i * width + j * lanes, sums[i][j]);
}

// out[c][q] += sum over k of left[k][c] * weights[k][q].
__attribute__((noinline)) void weighted_sums(const float *const *left, long length, long channels, const float *weights,
                          long width, float *out) {
    for_vector_groups(width, [&](auto vectors, long q) {
        constexpr int vector_count = decltype(vectors)::number;
        for_row_groups<most_rows(vector_count)>(channels, [&](auto row_count, long c) {
            weighted_group<decltype(row_count)::number, vector_count>(
                left, c, length, weights + q, width, out + c * width + q);
        });
    });
}

template <int rows, int vectors>
__attribute__((noinline)) void gradient_group(const float *weights, long width, long queries, const float *right,
                           long right_width, float *const *out, long first, long channels) {
    Vector sums[rows][vectors] = {};
    for (long q = 0; q < queries; q++) {
        Vector row[vectors];
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) row[j] = load(right + q * right_width + j * lanes);
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            const float factor = weights[i * width + q];
#pragma GCC unroll 4
            for (int j = 0; j < vectors; j++) sums[i][j] += factor * row[j];
        }
    }
    if (channels - first >= vectors * lanes) {
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
            for (int j = 0; j < vectors; j++) {
                float *sum = out[i] + first + j * lanes;
                store(sum, load(sum) + sums[i][j]);
            }
        return;
    }
    // The last vector is not full.
    float result[rows][vectors * lanes];
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) store(result[i] + j * lanes, sums[i][j]);
    for (int i = 0; i < rows; i++)
        for (long c = first; c < channels; c++) out[i][c] += result[i][c - first];
}

// out[i][c] += sum over q of weights[i][q] * right[q][c]; rows of right are padded with zeros to
// right_width, a multiple of the lanes.
__attribute__((noinline)) void weight_gradients(const float *weights, long width, long rows, long queries,
                             const float *right, long right_width, float *const *out,
                             long channels) {
    for_vector_groups(round_up(channels, lanes), [&](auto vectors, long c) {
        constexpr int vector_count = decltype(vectors)::number;
        for_row_groups<most_rows(vector_count)>(rows, [&](auto row_count, long i) {
            gradient_group<decltype(row_count)::number, vector_count>(
                weights + i * width, width, queries, right + c, right_width, out + i, c, channels);
        });
    });
}

}  // namespace
