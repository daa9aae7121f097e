// Batch norm in training: the statistics of a batch, and the backward pass of the norm with SiLU after it.
#pragma once

#include "activation.h"

namespace {

// Two sums for each channel: in float32 of as many pixels as stay in the caches, and in float64 of all. They
// lie in a part of the caller's workspace of norm_sums numbers for each channel.
constexpr long norm_sums = 3;

class ChannelSums {
public:
    ChannelSums(double *workspace, long range, long channels)
        : total(workspace + range * norm_sums * channels),
          part(reinterpret_cast<float *>(total + 2 * channels)),
          channels(channels) {}

    double *const total;
    float *const part;

    // Calls run(first pixel, end) for parts of a range of pixels, with sums of zero.
    template <class Run>
    void for_parts(long first, long end, Run run) const {
        for (long i = 0; i < 2 * channels; i++) total[i] = 0.0;
        const long most = larger(8, smaller(128, 32768 / larger(1, channels)));
        for (; first < end; first += most) {
            for (long i = 0; i < 2 * channels; i++) part[i] = 0.0f;
            run(first, smaller(first + most, end));
        }
    }

private:
    const long channels;
};

template <int vectors, class T>
__attribute__((always_inline)) inline void add_values(const T *maps, float *sum, long some) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++, maps += lanes, sum += lanes)
        store_some(sum, some, load_some(sum, some) + load_some(maps, some));
}

template <int vectors, class T>
__attribute__((always_inline)) inline void add_squares(const T *maps, const float *mean, float *sum,
                                                       long some) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++, maps += lanes, mean += lanes, sum += lanes) {
        const Vector far = load_some(maps, some) - load_some(mean, some);
        store_some(sum, some, load_some(sum, some) + far * far);
    }
}

// Mean and sum of squared distances of `before` pixels, joined by `count` others'.
inline void join(double &mean, double &squares, double before, double count, double other_mean,
                 double other_squares) {
    const double far = other_mean - mean, share = count / (before + count);
    mean += far * share;
    squares += other_squares + far * far * before * share;
}

// The mean of a range of pixels, and the sum of squared distances from it.
template <class T>
void add_statistics(const HaloStatistics &s, long first, long end, const ChannelSums &sums) {
    const T *maps = static_cast<const T *>(s.maps);
    double *mean = sums.total, *squares = sums.total + s.channels;
    sums.for_parts(first, end, [&](long start, long stop) {
        for (long pixel = start; pixel < stop; pixel++)
            for_channels(pixel * s.channels, s.channels, [&](auto vectors, long at, long c, long some) {
                add_values<vectors()>(maps + at, sums.part + c, some);
            });
        const float each = 1.0f / float(stop - start);
        for (long c = 0; c < s.channels; c++) sums.part[c] *= each;
        for (long pixel = start; pixel < stop; pixel++)
            for_channels(pixel * s.channels, s.channels, [&](auto vectors, long at, long c, long some) {
                add_squares<vectors()>(maps + at, sums.part + c, sums.part + s.channels + c, some);
            });
        for (long c = 0; c < s.channels; c++)
            join(mean[c], squares[c], double(start - first), double(stop - start), sums.part[c],
                 sums.part[s.channels + c]);
    });
}

template <class T>
void statistics_of_maps(const HaloStatistics &s) {
    const int ranges = count_threads(s.pixels, s.channels, s.threads);
#pragma omp parallel for num_threads(ranges)
    for (long range = 0; range < ranges; range++)
        add_statistics<T>(s, s.pixels * range / ranges, s.pixels * (range + 1) / ranges,
                          ChannelSums(s.workspace, range, s.channels));
    for (long c = 0; c < s.channels; c++) {
        double mean = 0.0, squares = 0.0;
        for (long range = 0; range < ranges; range++) {
            const double *found = ChannelSums(s.workspace, range, s.channels).total + c;
            const long before = s.pixels * range / ranges;
            const long count = s.pixels * (range + 1) / ranges - before;
            join(mean, squares, double(before), double(count), found[0], found[s.channels]);
        }
        s.mean[c] = float(mean);
        s.variance[c] = float(squares / double(s.pixels));
    }
}

// The backward pass of silu(y), y = maps * scale + shift + added, where scale and shift are of a norm. The
// first pass sums up the gradient of y, the second writes that of maps.
template <class T>
class NormGradient {
public:
    explicit NormGradient(const HaloNormGradient &n)
        : n(n),
          maps(static_cast<const T *>(n.maps)),
          added(static_cast<const T *>(n.added)),
          gradient(static_cast<const T *>(n.gradient)),
          maps_gradient(static_cast<T *>(n.maps_gradient)),
          sum_gradient(n.added_gradient ? static_cast<T *>(n.added_gradient) : maps_gradient) {}

    // Of the gradient of y, and of its products with the distance from the mean.
    void sum(long first, long end, const ChannelSums &sums) const {
        sums.for_parts(first, end, [&](long start, long stop) {
            for (long pixel = start; pixel < stop; pixel++)
                for_channels(
                    pixel * n.channels, n.channels, [&](auto vectors, long at, long c, long some) {
                        sum_some<vectors()>(at, c, some, sums.part + c, sums.part + n.channels + c);
                    });
            for (long i = 0; i < 2 * n.channels; i++) sums.total[i] += sums.part[i];
        });
    }

    void write(long first, long end) const {
        for (long pixel = first; pixel < end; pixel++)
            for_channels(pixel * n.channels, n.channels, [&](auto vectors, long at, long c, long some) {
                write_some<vectors()>(at, c, some);
            });
    }

private:
    const HaloNormGradient &n;
    const T *const maps, *const added, *const gradient;
    T *const maps_gradient;
    T *const sum_gradient;  // of y: what the first pass writes and the second reads
    const float each = 1.0f / float(n.pixels);

    __attribute__((always_inline)) Vector distance(long at, long c, long some) const {
        return load_some(maps + at, some) - load_some(n.mean + c, some);
    }

    // `count` vectors from number `at` on, which are channels c and on.
    template <int count>
    __attribute__((always_inline)) void sum_some(long at, long c, long some, float *sum,
                                                 float *product) const {
        Vector y[count], slope[count];
#pragma GCC unroll 4
        for (int v = 0; v < count; v++) {
            y[v] = load_some(maps + at + v * lanes, some) * load_some(n.scale + c + v * lanes, some) +
                   load_some(n.shift + c + v * lanes, some);
            if (added) y[v] += load_some(added + at + v * lanes, some);
        }
        sigmoid<T>(y, slope);
#pragma GCC unroll 4
        for (int v = 0; v < count; v++, at += lanes, c += lanes, sum += lanes, product += lanes) {
            slope[v] *= load_some(gradient + at, some) * (1.0f + y[v] * (1.0f - slope[v]));
            store_some(sum_gradient + at, some, slope[v]);
            store_some(sum, some, load_some(sum, some) + slope[v]);
            store_some(product, some, load_some(product, some) + slope[v] * distance(at, c, some));
        }
    }

    template <int count>
    __attribute__((always_inline)) void write_some(long at, long c, long some) const {
#pragma GCC unroll 4
        for (int v = 0; v < count; v++, at += lanes, c += lanes) {
            Vector slope = load_some(sum_gradient + at, some);
            if (n.batch_statistics) {  // a pixel moves the mean and the deviation, too
                const Vector by_distance =
                    load_some(n.inverse_deviation + c, some) * load_some(n.weight_gradient + c, some);
                slope -=
                    each * (distance(at, c, some) * by_distance + load_some(n.bias_gradient + c, some));
            }
            store_some(maps_gradient + at, some, load_some(n.scale + c, some) * slope);
        }
    }
};

template <class T>
void norm_gradient_of_maps(const HaloNormGradient &n) {
    const NormGradient<T> pass(n);
    const int ranges = count_threads(n.pixels, n.channels, n.threads);
#pragma omp parallel for num_threads(ranges)
    for (long range = 0; range < ranges; range++)
        pass.sum(n.pixels * range / ranges, n.pixels * (range + 1) / ranges,
                 ChannelSums(n.workspace, range, n.channels));
    for (long c = 0; c < n.channels; c++) {
        double sum = 0.0, product = 0.0;
        for (long range = 0; range < ranges; range++) {
            const double *found = ChannelSums(n.workspace, range, n.channels).total + c;
            sum += found[0];
            product += found[n.channels];
        }
        n.bias_gradient[c] = float(sum);
        n.weight_gradient[c] = float(product * n.inverse_deviation[c]);
    }
#pragma omp parallel for num_threads(ranges)
    for (long range = 0; range < ranges; range++)
        pass.write(n.pixels * range / ranges, n.pixels * (range + 1) / ranges);
}

}  // namespace
