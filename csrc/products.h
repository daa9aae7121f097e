// The small matrix products that the attention is made of, each a block of sums in registers.
//
// Queries lie along the lanes: a "column" below is a vector of queries, `width` floats apart from one
// row to the next. Cells and channels come one number at a time, broadcast: neither windows nor
// channels waste lanes.
#pragma once

#include "geometry.h"

namespace {

// Vectors of queries that one call may take, and the rows that fill the registers beside them.
constexpr int most_vectors = registers == 32 ? 4 : 2;
constexpr int most_rows(int vectors) {
    return registers == 32 ? (vectors == 4 ? 6 : vectors == 1 ? 16 : 8) : (vectors == 2 ? 6 : 8);
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

// Rows of numbers, `pitch` apart.
template <class Number>
struct RowsOf {
    Number *first;
    long pitch;

    Number *operator[](long i) const { return first + i * pitch; }
    RowsOf from(long i) const { return {first + i * pitch, pitch}; }
    operator RowsOf<const Number>() const { return {first, pitch}; }
};
using Rows = RowsOf<const float>;
using GradientRows = RowsOf<float>;

// Two numbers for each row and query, which the row's sums begin with.
struct Biases {
    const float *const *first, *const *second;
};

template <int rows, int vectors>
__attribute__((always_inline)) inline void dot_group(Rows left, long length, const float *right,
                                                     long width, Biases biases, long q, float *out,
                                                     long out_width) {
    Vector sums[rows][vectors];
    const float *row[rows];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
        row[i] = left[i];
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++)
            sums[i][j] = load(biases.first[i] + q + j * lanes) + load(biases.second[i] + q + j * lanes);
    }
    for (long c = 0; c < length; c++) {
        Vector column[vectors];
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) column[j] = load(right + c * width + j * lanes);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            const float factor = row[i][c];
#pragma GCC unroll 4
            for (int j = 0; j < vectors; j++) sums[i][j] += factor * column[j];
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) store(out + i * out_width + j * lanes, sums[i][j]);
}

// The products below for the vectors of queries from q on. Calls between() before each group of rows.
template <int vectors, class Between>
inline void dot_columns(Rows left, long rows, long length, const float *right, long width, Biases biases,
                        long q, float *out, long out_width, Between between) {
    for_row_groups<most_rows(vectors)>(rows, [&](auto row_count, long i) {
        between();
        dot_group<decltype(row_count)::number, vectors>(left.from(i), length, right + q, width,
                                                        Biases{biases.first + i, biases.second + i}, q,
                                                        out + i * out_width, out_width);
    });
}

// out[i][q] = first bias[i][q] + second bias[i][q] + sum over c of left[i][c] * right[c][q]. Calls
// between() now and then.
template <class Between>
__attribute__((noinline)) void dot_products(Rows left, long rows, long length, const float *right,
                                            long width, Biases biases, float *out, Between between) {
    for_vector_groups(width, [&](auto vectors, long q) {
        dot_columns<decltype(vectors)::number>(left, rows, length, right, width, biases, q, out + q,
                                               width, between);
    });
}

template <int rows, int vectors>
__attribute__((noinline)) void weighted_group(Rows left, long length, const float *weights,
                                              long weight_width, float *out, long width) {
    Vector sums[rows][vectors];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) sums[i][j] = load(out + i * width + j * lanes);
    for (long k = 0; k < length; k++) {
        const float *row = left[k];
        Vector weight[vectors];
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) weight[j] = load(weights + k * weight_width + j * lanes);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            const float factor = row[i];
#pragma GCC unroll 4
            for (int j = 0; j < vectors; j++) sums[i][j] += factor * weight[j];
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) store(out + i * width + j * lanes, sums[i][j]);
}

// The sums below for the first vectors of queries; rows of weights are weight_width apart.
template <int vectors>
inline void weighted_columns(Rows left, long length, long channels, const float *weights,
                             long weight_width, float *out, long width) {
    for_row_groups<most_rows(vectors)>(channels, [&](auto row_count, long c) {
        weighted_group<decltype(row_count)::number, vectors>(
            Rows{left.first + c, left.pitch}, length, weights, weight_width, out + c * width, width);
    });
}

// out[c][q] += sum over k of left[k][c] * weights[k][q].
__attribute__((noinline)) void weighted_sums(Rows left, long length, long channels, const float *weights,
                                             long width, float *out) {
    for_vector_groups(width, [&](auto vectors, long q) {
        weighted_columns<decltype(vectors)::number>(left, length, channels, weights + q, width, out + q,
                                                    width);
    });
}

// scores[i] -> their powers of 2, with `highest` subtracted if there is one, whose sum over the rows is
// added to totals.
// The sum is of these rows by itself: added one by one to a large total, equal weights (as of padding's
// cells without a relative position) would all be rounded the same way.
template <int vectors>
__attribute__((noinline)) void exponentials(float *scores, long rows, const float *highest,
                                            float *totals) {
    constexpr long width = vectors * lanes;
    for (long q = 0; q < width; q += lanes) {
        Vector total = {};
        for_row_groups<4>(rows, [&](auto row_count, long k) __attribute__((always_inline)) {
            constexpr int count = decltype(row_count)::number;
            float *const score = scores + k * width + q;
            Vector some[count], sum = {};
#pragma GCC unroll 4
            for (int i = 0; i < count; i++) some[i] = load(score + i * width);
            if (highest)
#pragma GCC unroll 4
                for (int i = 0; i < count; i++) some[i] -= load(highest + q);
            exp2(some);
#pragma GCC unroll 4
            for (int i = 0; i < count; i++) {
                store(score + i * width, some[i]);
                sum += some[i];
            }
            total += sum;
        });
        store(totals + q, load(totals + q) + total);
    }
}

// Attention to some cells, a few queries at a time, whose `scores` [cells][vectors] stay in the first
// cache: weight[i][q] = 2^(first bias[i][q] + second bias[i][q] - highest[q] if there is one
// + sum over c of keys[i][c] * queries[c][q]), totals[q] += sum over i of weight[i][q],
// sums[c][q] += sum over i of values[i][c] * weight[i][q]. Calls between() now and then.
template <class Between>
__attribute__((noinline)) void attend(Rows keys, long cells, long channels, const float *queries,
                                      long width, Biases biases, const float *highest, Rows values,
                                      long value_channels, float *scores, float *totals, float *sums,
                                      Between between) {
    for_vector_groups(width, [&](auto vectors, long q) {
        constexpr int count = decltype(vectors)::number;
        dot_columns<count>(keys, cells, channels, queries, width, biases, q, scores, count * lanes,
                           between);
        exponentials<count>(scores, cells, highest ? highest + q : nullptr, totals + q);
        weighted_columns<count>(values, cells, value_channels, scores, count * lanes, sums + q, width);
    });
}

template <int rows, int vectors>
__attribute__((noinline)) void gradient_group(const float *weights, long width, long queries,
                                              const float *right, long right_width, GradientRows out,
                                              long first, long channels) {
    Vector sums[rows][vectors] = {};
    for (long q = 0; q < queries; q++) {
        Vector row[vectors];
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) row[j] = load(right + q * right_width + j * lanes);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            const float factor = weights[i * width + q];
#pragma GCC unroll 4
            for (int j = 0; j < vectors; j++) sums[i][j] += factor * row[j];
        }
    }
    if (channels - first >= vectors * lanes) {
#pragma GCC unroll 16
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
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) store(result[i] + j * lanes, sums[i][j]);
    for (int i = 0; i < rows; i++)
        for (long c = first; c < channels; c++) out[i][c] += result[i][c - first];
}

// out[i][c] += sum over q of weights[i][q] * right[q][c]; rows of right are padded with zeros to
// right_width, a multiple of the lanes.
__attribute__((noinline)) void weight_gradients(const float *weights, long width, long rows,
                                                long queries, const float *right, long right_width,
                                                GradientRows out, long channels) {
    for_vector_groups(round_up(channels, lanes), [&](auto vectors, long c) {
        constexpr int vector_count = decltype(vectors)::number;
        for_row_groups<most_rows(vector_count)>(rows, [&](auto row_count, long i) {
            gradient_group<decltype(row_count)::number, vector_count>(
                weights + i * width, width, queries, right + c, right_width, out.from(i), c, channels);
        });
    });
}

}  // namespace
