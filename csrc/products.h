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

// Calls body(Count<rows>, first) for groups of `most` rows, and for what is left. The sums of one or two rows
// alone would wait for each other: so few are not left where more can be.
template <int most, class Body>
inline void for_row_groups(long rows, Body body, long first = 0) {
    for (long left = rows - first; left == most || left >= most + (most > 4 ? 4 : 0); left -= most) {
        body(Count<most>(), first);
        first += most;
    }
    if constexpr (most > 1) for_row_groups<most - 1>(rows, body, first);
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

// Rows of channels, of cells or of a table's entries, in slices of 16 channels: a slice's rows follow each
// other, so that the compiler knows how far apart they are, and needs one register for all.
constexpr long slice_channels = 16;

struct Rows {
    const float *first;
    long slice_step;  // from one slice to the next

    const float *at(long row, long channel) const {
        return first + channel / slice_channels * slice_step + row * slice_channels +
               channel % slice_channels;
    }
    Rows from(long row) const { return {first + row * slice_channels, slice_step}; }
};

// Sums of the gradients of such rows, or of a table's, which are `row_step` apart.
struct GradientRows {
    float *first;
    long row_step, slice_step;

    float *at(long row, long channel) const {
        return first + channel / slice_channels * slice_step + row * row_step + channel % slice_channels;
    }
    GradientRows from(long row) const { return {first + row * row_step, row_step, slice_step}; }
    operator Rows() const { return {first, slice_step}; }  // of cells
};

// Calls body(first channel, channels) for each slice.
template <class Body>
inline void for_slices(long channels, Body body) {
    for (long first = 0; first < channels; first += slice_channels)
        body(first, smaller(slice_channels, channels - first));
}

// A number for each row and query: one vector of queries after the other, each with all rows.
template <class Number>
struct ScoresOf {
    Number *first;
    long vector_step;

    Number *at(long row, long q) const { return first + q / lanes * vector_step + row * lanes; }
    ScoresOf from(long row, long q) const { return {at(row, q), vector_step}; }
    operator ScoresOf<const Number>() const { return {first, vector_step}; }
};
using Scores = ScoresOf<float>;
using ConstantScores = ScoresOf<const float>;

// What a cell's sums begin with, for each query: the sum of a number for its row and one for its column.
struct Biases {
    const float *row, *column;
    long row_step, column_step;

    Biases from(long i, long q) const {
        return {row + i * row_step + q, column + q, row_step, column_step};
    }
    Biases of_column(long v) const { return {row, column + v * column_step, row_step, column_step}; }
};

template <int rows, int vectors>
__attribute__((noinline)) void dot_group(Rows left, long length, const float *right, long width,
                                         Biases biases, Scores out) {
    Vector sums[rows][vectors];
#pragma GCC unroll 4
    for (int j = 0; j < vectors; j++) {
        const Vector column = load(biases.column + j * lanes);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++)
            sums[i][j] = load(biases.row + i * biases.row_step + j * lanes) + column;
    }
    for_slices(length, [&](long first, long channels) {
        const float *row = left.at(0, first);
        for (long c = 0; c < channels; c++, row++, right += width) {
            Vector column[vectors];
#pragma GCC unroll 4
            for (int j = 0; j < vectors; j++) column[j] = load(right + j * lanes);
#pragma GCC unroll 16
            for (int i = 0; i < rows; i++) {
                const float factor = row[i * slice_channels];
#pragma GCC unroll 4
                for (int j = 0; j < vectors; j++) sums[i][j] += factor * column[j];
            }
        }
    });
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) store(out.at(i, j * lanes), sums[i][j]);
}

// The products below for the first vectors of queries.
template <int vectors, class Between>
inline void dot_vectors(Rows left, long rows, long columns, long length, const float *right, long width,
                        Biases biases, Scores out, Between between) {
    for (long v = 0; v < columns; v++) {
        const Biases these = biases.of_column(v);
        between();
        for_row_groups<most_rows(vectors)>(rows, [&](auto row_count, long i) {
            dot_group<decltype(row_count)::number, vectors>(left.from(v * rows + i), length, right,
                                                            width, these.from(i, 0),
                                                            out.from(v * rows + i, 0));
        });
    }
}

// out[i][q] = bias[i][q] + sum over c of left[i][c] * right[c][q], for cells of `columns` columns of `rows`
// rows each. Calls between() before each column.
template <class Between>
__attribute__((noinline)) void dot_products(Rows left, long rows, long columns, long length,
                                            const float *right, long width, Biases biases, Scores out,
                                            Between between) {
    for_vector_groups(width, [&](auto vectors, long q) {
        dot_vectors<decltype(vectors)::number>(left, rows, columns, length, right + q, width,
                                               biases.from(0, q), out.from(0, q), between);
    });
}

template <int rows, int vectors>
__attribute__((noinline)) void weighted_group(const float *left, long length, ConstantScores weights,
                                              float *out, long width) {
    Vector sums[rows][vectors];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) sums[i][j] = load(out + i * width + j * lanes);
    for (long k = 0; k < length; k++) {
        const float *row = left + k * slice_channels;
        Vector weight[vectors];
#pragma GCC unroll 4
        for (int j = 0; j < vectors; j++) weight[j] = load(weights.at(k, j * lanes));
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

// The sums below for the first vectors of queries.
template <int vectors>
inline void weighted_vectors(Rows left, long length, long channels, ConstantScores weights, float *out,
                             long width) {
    for_slices(channels, [&](long first, long count) {
        for_row_groups<most_rows(vectors)>(count, [&](auto row_count, long c) {
            weighted_group<decltype(row_count)::number, vectors>(left.at(0, first + c), length, weights,
                                                                 out + (first + c) * width, width);
        });
    });
}

// out[c][q] += sum over k of left[k][c] * weights[k][q].
__attribute__((noinline)) void weighted_sums(Rows left, long length, long channels,
                                             ConstantScores weights, long width, float *out) {
    for_vector_groups(width, [&](auto vectors, long q) {
        weighted_vectors<decltype(vectors)::number>(left, length, channels, weights.from(0, q), out + q,
                                                    width);
    });
}

// scores[i] -> their powers of 2, with `highest` subtracted if there is one, whose sum over the rows is
// added to totals.
// The sum is of these rows by itself: added one by one to a large total, equal weights (as of padding's
// cells without a relative position) would all be rounded the same way.
template <int vectors>
__attribute__((noinline)) void exponentials(Scores scores, long rows, const float *highest,
                                            float *totals) {
    for (long q = 0; q < vectors * lanes; q += lanes) {
        Vector total = {};
        for_row_groups<4>(rows, [&](auto row_count, long k) __attribute__((always_inline)) {
            constexpr int count = decltype(row_count)::number;
            float *const score = scores.at(k, q);
            Vector some[count], sum = {};
#pragma GCC unroll 4
            for (int i = 0; i < count; i++) some[i] = load(score + i * lanes);
            if (highest)
#pragma GCC unroll 4
                for (int i = 0; i < count; i++) some[i] -= load(highest + q);
            exp2(some);
#pragma GCC unroll 4
            for (int i = 0; i < count; i++) {
                store(score + i * lanes, some[i]);
                sum += some[i];
            }
            total += sum;
        });
        store(totals + q, load(totals + q) + total);
    }
}

// Attention to some cells, `columns` columns of `rows` rows, a few queries at a time, whose `scores` stay in
// the first cache: weight[i][q] = 2^(bias[i][q] - highest[q] if there is one
// + sum over c of keys[i][c] * queries[c][q]), totals[q] += sum over i of weight[i][q],
// sums[c][q] += sum over i of values[i][c] * weight[i][q]. Calls between() now and then.
template <class Between>
__attribute__((noinline)) void attend(Rows keys, long rows, long columns, long channels,
                                      const float *queries, long width, Biases biases,
                                      const float *highest, Rows values, long value_channels,
                                      Scores scores, float *totals, float *sums, Between between) {
    for_vector_groups(width, [&](auto vectors, long q) {
        constexpr int count = decltype(vectors)::number;
        dot_vectors<count>(keys, rows, columns, channels, queries + q, width, biases.from(0, q), scores,
                           between);
        exponentials<count>(scores, rows * columns, highest ? highest + q : nullptr, totals + q);
        weighted_vectors<count>(values, rows * columns, value_channels, scores, sums + q, width);
    });
}

template <int rows, int vectors>
__attribute__((noinline)) void gradient_group(ConstantScores weights, long queries, const float *right,
                                              long right_width, GradientRows out, long first,
                                              long channels) {
    Vector sums[rows][vectors] = {};
    for (long some = 0; some < queries; some += lanes) {
        const float *weight = weights.at(0, some);
        for (long q = some; q < smaller(queries, some + lanes); q++, weight++) {
            Vector row[vectors];
#pragma GCC unroll 4
            for (int j = 0; j < vectors; j++) row[j] = load(right + q * right_width + j * lanes);
#pragma GCC unroll 16
            for (int i = 0; i < rows; i++) {
                const float factor = weight[i * lanes];
#pragma GCC unroll 4
                for (int j = 0; j < vectors; j++) sums[i][j] += factor * row[j];
            }
        }
    }
    if (channels - first >= vectors * lanes) {
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
            for (int j = 0; j < vectors; j++) {
                float *sum = out.at(i, first + j * lanes);
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
        for (long c = first; c < channels; c++) *out.at(i, c) += result[i][c - first];
}

// out[i][c] += sum over q of weights[i][q] * right[q][c]; rows of right are padded with zeros to
// right_width, a multiple of the lanes.
__attribute__((noinline)) void weight_gradients(ConstantScores weights, long rows, long queries,
                                                const float *right, long right_width, GradientRows out,
                                                long channels) {
    for_vector_groups(round_up(channels, lanes), [&](auto vectors, long c) {
        constexpr int vector_count = decltype(vectors)::number;
        for_row_groups<most_rows(vector_count)>(rows, [&](auto row_count, long i) {
            gradient_group<decltype(row_count)::number, vector_count>(
                weights.from(i, 0), queries, right + c, right_width, out.from(i), c, channels);
        });
    });
}

}  // namespace
