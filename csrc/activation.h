// SiLU of sums, in place: what follows a 1x1 convolution of a fused model (its norm's shift, the shortcut)
// in one pass over its result.
#pragma once

#include "vectors.h"

namespace {

// `count` vectors at p: p = silu(p + shift + added), where null pointers add nothing.
template <int count, class T>
__attribute__((always_inline)) inline void add_silu(T *p, const T *shift, const T *added) {
    Vector x[count], exponential[count];
#pragma GCC unroll 8
    for (int i = 0; i < count; i++) {
        x[i] = load(p + i * lanes);
        if (shift) x[i] += load(shift + i * lanes);
        if (added) x[i] += load(added + i * lanes);
        exponential[i] = x[i] * float(-log2_of_e);
    }
    exp2(exponential);
#pragma GCC unroll 8
    for (int i = 0; i < count; i++) store(p + i * lanes, x[i] / (exponential[i] + 1.0f));
}

// The last channels of a pixel, fewer than a vector.
template <class T>
void add_silu_to_rest(T *p, const T *shift, const T *added, long count) {
    T padded[3][lanes] = {};
    const T *given[3] = {p, shift, added};
    for (int i = 0; i < 3; i++)
        if (given[i]) __builtin_memcpy(padded[i], given[i], size_t(count) * sizeof(T));
    add_silu<1>(padded[0], padded[1], padded[2]);
    __builtin_memcpy(p, padded[0], size_t(count) * sizeof(T));
}

template <class T>
void add_silu_to_pixel(T *p, const T *shift, const T *added, long channels) {
    const auto from = [](const T *numbers, long i) { return numbers ? numbers + i : nullptr; };
    long i = 0;
    for (; i + 4 * lanes <= channels; i += 4 * lanes) add_silu<4>(p + i, from(shift, i), from(added, i));
    for (; i + lanes <= channels; i += lanes) add_silu<1>(p + i, from(shift, i), from(added, i));
    if (i < channels) add_silu_to_rest(p + i, from(shift, i), from(added, i), channels - i);
}

template <class T>
void add_silu_to_maps(const HaloActivation &a) {
    T *maps = static_cast<T *>(a.maps);
    const T *shift = static_cast<const T *>(a.shift), *added = static_cast<const T *>(a.added);
    // A thread for fewer numbers costs more than it does.
#pragma omp parallel for num_threads(int(smaller(a.threads, larger(1, a.pixels * a.channels / 32768))))
    for (long pixel = 0; pixel < a.pixels; pixel++) {
        const long i = pixel * a.channels;
        add_silu_to_pixel(maps + i, shift, added ? added + i : nullptr, a.channels);
    }
}

}  // namespace
