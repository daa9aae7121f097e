// SiLU after a norm, forward and backward: what else would be a pass for the norm, one for the sum with a
// shortcut and one for the activation.
#pragma once

#include "vectors.h"

namespace {

// What a pixel's numbers are made of; null for what there isn't.
template <class T>
struct Activation {
    T *output;
    const T *maps;
    const float *scale, *shift;
    const T *added, *gradient;

    explicit Activation(const HaloActivation &a)
        : output(static_cast<T *>(a.output)),
          maps(static_cast<const T *>(a.maps)),
          scale(a.scale),
          shift(a.shift),
          added(static_cast<const T *>(a.added)),
          gradient(static_cast<const T *>(a.gradient)) {}

    // `count` vectors, from number i of the pixel that begins at number `first`.
    template <int count>
    __attribute__((always_inline)) void run(long first, long i) const {
        Vector x[count], exponential[count];
#pragma GCC unroll 8
        for (int v = 0; v < count; v++, i += lanes) {
            x[v] = load(maps + first + i);
            if (scale) x[v] *= load(scale + i);
            if (shift) x[v] += load(shift + i);
            if (added) x[v] += load(added + first + i);
            exponential[v] = x[v] * float(-log2_of_e);
        }
        exp2(exponential);
        i -= count * lanes;
#pragma GCC unroll 8
        for (int v = 0; v < count; v++, i += lanes) {
            const Vector gate = 1.0f / (exponential[v] + 1.0f);
            if (gradient)
                store(output + first + i,
                      load(gradient + first + i) * gate * (1.0f + x[v] * (1.0f - gate)));
            else
                store(output + first + i, x[v] * gate);
        }
    }

    // The last channels of a pixel, fewer than a vector, by copies.
    void run_rest(long first, long i, long count) const {
        T numbers[4][lanes] = {};
        float factors[2][lanes] = {};
        Activation padded = *this;
        const auto copy = [count](auto *&from, auto *to, long offset) {
            if (from) __builtin_memcpy(to, from + offset, size_t(count) * sizeof(*to));
            if (from) from = to;
        };
        copy(padded.maps, numbers[0], first + i);
        copy(padded.added, numbers[1], first + i);
        copy(padded.gradient, numbers[2], first + i);
        copy(padded.scale, factors[0], i);
        copy(padded.shift, factors[1], i);
        padded.output = numbers[3];
        padded.template run<1>(0, 0);
        __builtin_memcpy(output + first + i, numbers[3], size_t(count) * sizeof(T));
    }
};

template <class T>
void affine_silu_of_maps(const HaloActivation &a) {
    const Activation<T> activation(a);
    // A thread for fewer numbers costs more than it does.
#pragma omp parallel for num_threads(int(smaller(a.threads, larger(1, a.pixels * a.channels / 32768))))
    for (long pixel = 0; pixel < a.pixels; pixel++) {
        const long first = pixel * a.channels;
        long i = 0;
        for (; i + 4 * lanes <= a.channels; i += 4 * lanes) activation.template run<4>(first, i);
        for (; i + lanes <= a.channels; i += lanes) activation.template run<1>(first, i);
        if (i < a.channels) activation.run_rest(first, i, a.channels - i);
    }
}

}  // namespace
