// SiLU after a norm: what else would be a pass for the norm, one for the sum with a shortcut and one for the
// activation. And SiLU with the max pooling of a stem.
#pragma once

#include <type_traits>

#include "vectors.h"

namespace {

// 1 / (1 + e^-x), as exact as T shows.
template <class T, int count>
__attribute__((always_inline)) inline void sigmoid(const Vector (&x)[count], Vector (&gate)[count]) {
    constexpr bool is_short = sizeof(T) == sizeof(Bfloat16);
#pragma GCC unroll 8
    for (int v = 0; v < count; v++) gate[v] = x[v] * float(-log2_of_e);
    exp2<is_short>(gate);
#pragma GCC unroll 8
    for (int v = 0; v < count; v++) {
#if defined(__AVX512F__)
        if constexpr (is_short) {
            gate[v] = _mm512_maskz_rcp14_ps(0xffff, gate[v] + 1.0f);
            continue;
        }
#endif
        gate[v] = 1.0f / (gate[v] + 1.0f);
    }
}

// What a pixel's numbers are made of; null for what there isn't.
template <class T>
struct Activation {
    T *output;
    const T *maps;
    const float *scale, *shift;
    const T *added;

    explicit Activation(const HaloActivation &a)
        : output(static_cast<T *>(a.output)),
          maps(static_cast<const T *>(a.maps)),
          scale(a.scale),
          shift(a.shift),
          added(static_cast<const T *>(a.added)) {}

    // `count` vectors of `some` channels each, from number `at` on, which are channels c and on.
    template <int count>
    __attribute__((always_inline)) void run(long at, long c, long some) const {
        Vector x[count], gate[count];
#pragma GCC unroll 4
        for (int v = 0; v < count; v++) {
            const long i = v * lanes;
            x[v] = load_some(maps + at + i, some);
            if (scale) x[v] *= load_some(scale + c + i, some);
            if (shift) x[v] += load_some(shift + c + i, some);
            if (added) x[v] += load_some(added + at + i, some);
        }
        sigmoid<T>(x, gate);
#pragma GCC unroll 4
        for (int v = 0; v < count; v++) store_some(output + at + v * lanes, some, x[v] * gate[v]);
    }
};

// Calls run(vectors, number, channel, channels of a vector) for a pixel's numbers from `first` on: four vectors
// at a time, as the steps of each wait for each other.
template <class Run>
__attribute__((always_inline)) inline void for_channels(long first, long channels, Run run) {
    long c = 0;
    for (; c + 4 * lanes <= channels; c += 4 * lanes)
        run(std::integral_constant<int, 4>(), first + c, c, lanes);
    for (; c + lanes <= channels; c += lanes) run(std::integral_constant<int, 1>(), first + c, c, lanes);
    if (c < channels) run(std::integral_constant<int, 1>(), first + c, c, channels - c);
}

// A thread for fewer numbers costs more than it does; none is without a pixel.
inline int count_threads(long pixels, long channels, long threads) {
    return int(larger(1, smaller(smaller(threads, pixels), pixels * channels / 32768)));
}

template <class T>
void affine_silu_of_maps(const HaloActivation &a) {
    const Activation<T> activation(a);
#pragma omp parallel for num_threads(count_threads(a.pixels, a.channels, a.threads))
    for (long pixel = 0; pixel < a.pixels; pixel++)
        for_channels(pixel * a.channels, a.channels, [&](auto vectors, long at, long c, long some) {
            activation.template run<vectors()>(at, c, some);
        });
}

// A NaN if one of the two is.
inline Vector larger_or_nan(Vector a, Vector b) { return ((b > a) | (b != b)) ? b : a; }

// SiLU, and then the largest of 3 x 3 pixels around every second one, [ceil(height / 2), ceil(width / 2)]. At
// the edges a pixel of the map stands for one beyond, which changes nothing. The largest of a row's pixels
// are kept in scratch memory, as the row above and the one below need them both.
template <class T>
class SiluPool {
public:
    explicit SiluPool(const HaloPooling &p)
        : p(p),
          output_height(ceil_div(p.height, 2)),
          output_width(ceil_div(p.width, 2)),
          padded_channels(round_up(p.channels, lanes)) {}

    long rows() const { return p.batch * output_height; }
    int64_t scratch_bytes() const { return 2 * row_floats() * int64_t(sizeof(float)); }

    // Some rows of the results, of all images in turn.
    void run(long first, long end, float *scratch) const {
        float *above = scratch, *middle = scratch + row_floats();
        for (long row = first; row < end; row++) {
            const long image = row / output_height, y = 2 * (row % output_height);
            if (row == first || y == 0)
                pool_row(image, larger(0, y - 1), [&](long j, long c, long, Vector largest) {
                    store(above + j * padded_channels + c, largest);
                });
            pool_row(image, y, [&](long j, long c, long, Vector largest) {
                store(middle + j * padded_channels + c, largest);
            });
            T *output = static_cast<T *>(p.output) + row * output_width * p.channels;
            pool_row(image, smaller(y + 1, p.height - 1),
                     [&](long j, long c, long count, Vector largest) {
                         const long at = j * padded_channels + c;
                         store_some(
                             output + j * p.channels + c, count,
                             larger_or_nan(larger_or_nan(load(above + at), load(middle + at)), largest));
                         store(above + at, largest);
                     });
        }
    }

private:
    static constexpr int vectors_at_once = registers == 32 ? 4 : 2;

    const HaloPooling &p;
    const long output_height, output_width, padded_channels;

    long row_floats() const { return output_width * padded_channels; }

    // Calls put(column of the results, channel, channels, the largest of three pixels).
    template <class Put>
    void pool_row(long image, long y, Put put) const {
        const T *row = static_cast<const T *>(p.maps) + (image * p.height + y) * p.width * p.channels;
        long c = 0;
        for (; c + vectors_at_once * lanes <= p.channels; c += vectors_at_once * lanes)
            pool_channels<vectors_at_once>(row, c, lanes, put);
        for (; c < p.channels; c += lanes) pool_channels<1>(row, c, smaller(lanes, p.channels - c), put);
    }

    // `count` channels of each vector.
    template <int vectors, class Put>
    __attribute__((always_inline)) void pool_channels(const T *row, long channel, long count,
                                                      Put put) const {
        Vector before[vectors];
        for (long j = 0; j < output_width; j++) {
            const T *pixel = row + 2 * j * p.channels + channel;
            const T *next = 2 * j + 1 < p.width ? pixel + p.channels : pixel;
            Vector pair[2 * vectors];
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) {
                pair[v] = load_some(pixel + v * lanes, count);
                pair[vectors + v] = load_some(next + v * lanes, count);
            }
            silu(pair);
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) {
                Vector largest = larger_or_nan(pair[v], pair[vectors + v]);
                if (j) largest = larger_or_nan(before[v], largest);
                before[v] = pair[vectors + v];
                put(j, channel + v * lanes, count, largest);
            }
        }
    }

    template <int count>
    __attribute__((always_inline)) static void silu(Vector (&x)[count]) {
        Vector gate[count];
        sigmoid<T>(x, gate);
#pragma GCC unroll 8
        for (int v = 0; v < count; v++) x[v] *= gate[v];
    }
};

template <class T>
int pool_silu_of_maps(const HaloPooling &p) {
    const SiluPool<T> pool(p);
    const long ranges = smaller(p.threads, larger(1, pool.rows() / 4));
    int failed = 0;
#pragma omp parallel for num_threads(int(ranges)) reduction(| : failed)
    for (long range = 0; range < ranges; range++) {
        void *scratch = halonet_scratch(pool.scratch_bytes());
        if (!scratch)
            failed = 1;
        else
            pool.run(pool.rows() * range / ranges, pool.rows() * (range + 1) / ranges,
                     static_cast<float *>(scratch));
    }
    return failed ? HALO_OUT_OF_MEMORY : HALO_SUCCESS;
}

}  // namespace
