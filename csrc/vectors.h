// Vectors of the widest registers that the compiler may use here, and arithmetic on them.
//
// Everything in this file and in those that include it has internal linkage: the source is compiled
// once for each instruction set, and the linker must not merge one set's functions with another's.
#pragma once

#include <math.h>
#include <stdint.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#include <utility>

namespace {

#if defined(__AVX512F__)
constexpr int lanes = 16;
#elif defined(__AVX2__)
constexpr int lanes = 8;
#else
constexpr int lanes = 4;
#endif

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int registers = 32;
#else
constexpr int registers = 16;
#endif

typedef float Vector __attribute__((vector_size(lanes * 4)));
typedef int32_t Integers __attribute__((vector_size(lanes * 4)));
typedef uint32_t Words __attribute__((vector_size(lanes * 4)));
typedef uint16_t Halves __attribute__((vector_size(lanes * 2)));

// A bfloat16 number: the upper half of a float32.
struct Bfloat16 {
    uint16_t bits;
};

template <class To, class From>
inline To bits_of(const From &from) {
    static_assert(sizeof(To) == sizeof(From), "sizes differ");
    To to;
    __builtin_memcpy(&to, &from, sizeof(to));
    return to;
}

inline Vector load(const float *p) {
    Vector v;
    __builtin_memcpy(&v, p, sizeof(v));
    return v;
}

inline Vector load(const Bfloat16 *p) {
    Halves halves;
    __builtin_memcpy(&halves, p, sizeof(halves));
    return bits_of<Vector>(__builtin_convertvector(halves, Words) << 16);
}

inline void store(float *p, Vector v) { __builtin_memcpy(p, &v, sizeof(v)); }

inline float load_one(const float *p) { return *p; }
inline float load_one(const Bfloat16 *p) { return bits_of<float>(uint32_t(p->bits) << 16); }

inline void store_one(float *p, float x) { *p = x; }
inline void store_one(Bfloat16 *p, float x) {
    uint32_t word = bits_of<uint32_t>(x);
    bool nan = (word & 0x7fffffffu) > 0x7f800000u;
    word += 0x7fffu + ((word >> 16) & 1u);  // to nearest, ties to even
    p->bits = nan ? uint16_t(0x7fc0) : uint16_t(word >> 16);
}

inline void store(Bfloat16 *p, Vector v) {
#ifdef __AVX512BF16__
    const auto halves = _mm512_cvtneps_pbh(v);
    __builtin_memcpy(p, &halves, sizeof(halves));
#else
    const Words words = bits_of<Words>(v);
    const Words rounded = words + 0x7fffu + ((words >> 16) & 1u);  // to nearest, ties to even
    const Words result = (words & 0x7fffffffu) > 0x7f800000u ? Words{} + 0x7fc00000u : rounded;
    const Halves halves = __builtin_convertvector(result >> 16, Halves);
    __builtin_memcpy(p, &halves, sizeof(halves));
#endif
}

// Some numbers of a vector; zeros behind the last.
template <class T>
inline Vector load_some(const T *p, long count) {
    if (count == lanes) return load(p);
#if defined(__AVX512F__)
    const auto mask = __mmask16((1u << count) - 1);
    if constexpr (sizeof(T) == sizeof(float)) return _mm512_maskz_loadu_ps(mask, p);
    const auto halves = bits_of<Halves>(_mm256_maskz_loadu_epi16(mask, p));
    return bits_of<Vector>(__builtin_convertvector(halves, Words) << 16);
#else
    T numbers[lanes] = {};
    __builtin_memcpy(numbers, p, size_t(count) * sizeof(T));
    return load(numbers);
#endif
}

template <class T>
inline void store_some(T *p, long count, Vector v) {
    if (count == lanes) return store(p, v);
    T numbers[lanes];
    store(numbers, v);
#if defined(__AVX512F__)
    const auto mask = __mmask16((1u << count) - 1);
    if constexpr (sizeof(T) == sizeof(float))
        _mm512_mask_storeu_ps(p, mask, v);
    else
        _mm256_mask_storeu_epi16(p, mask,
                                 _mm256_loadu_si256(reinterpret_cast<const __m256i *>(numbers)));
#else
    __builtin_memcpy(p, numbers, size_t(count) * sizeof(T));
#endif
}

inline Vector constant(float x) { return Vector{} + x; }

// Of a NaN in a: b. One instruction, where compilers make two of the comparison. (512-bit ones without
// a mask get a warning from GCC 12.)
inline Vector maximum(Vector a, Vector b) {
#if defined(__AVX512F__)
    return _mm512_maskz_max_ps(0xffff, a, b);
#elif defined(__AVX2__)
    return _mm256_max_ps(a, b);
#else
    return a > b ? a : b;
#endif
}

// Of a NaN in b: b.
inline Vector minimum(Vector a, Vector b) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    return _mm256_min_ps(a, b);
#else
    return a < b ? a : b;
#endif
}

// Scores are scaled by this, so that their exponentials are powers of 2.
constexpr double log2_of_e = 1.4426950408889634;

// p[i] = p[i] * x[i] + coefficient.
template <int count>
__attribute__((always_inline)) inline void polynomial_step(Vector (&p)[count], const Vector (&x)[count],
                                                           float coefficient) {
#pragma GCC unroll 8
    for (int i = 0; i < count; i++) p[i] = p[i] * x[i] + coefficient;
}

// 2^x of each, from x = -125 to 127, infinity at 128 and above; 2^-125 below; NaN for NaN. Relative
// error below 1.7e-7; for results that are rounded to bfloat16 (`is_short`), below 1.1e-4 with AVX-512. Each
// number's steps wait for each other, so that several vectors go side by side.
template <bool is_short = false, int count>
__attribute__((always_inline)) inline void exp2(Vector (&x)[count]) {
    Vector p[count], fraction[count];
#pragma GCC unroll 8
    for (int i = 0; i < count; i++) x[i] = maximum(constant(-125.0f), x[i]);
    // The polynomials are minimax for the relative error, with 2^0 exact.
#if defined(__AVX512F__)
#pragma GCC unroll 8
    for (int i = 0; i < count; i++) {
        fraction[i] = _mm512_maskz_reduce_ps(0xffff, x[i], _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
        p[i] = constant(is_short ? 7.82682321e-2f : 1.86713005e-3f);
    }
    if constexpr (is_short) {
        polynomial_step(p, fraction, 2.26307273e-1f);
        polynomial_step(p, fraction, 6.95424495e-1f);
    } else {
        polynomial_step(p, fraction, 9.01703071e-3f);
        polynomial_step(p, fraction, 5.57999127e-2f);
        polynomial_step(p, fraction, 2.40164444e-1f);
        polynomial_step(p, fraction, 6.93151295e-1f);
    }
    polynomial_step(p, fraction, 1.0f);
#pragma GCC unroll 8
    for (int i = 0; i < count; i++) x[i] = _mm512_maskz_scalef_ps(0xffff, p[i], x[i]);
#else
    // Adding 1.5 * 2^23 rounds to an integer in the low bits; 127 more is the exponent's bias.
    const float shifter = 12582912.0f + 127.0f;
#pragma GCC unroll 8
    for (int i = 0; i < count; i++) {
        x[i] = minimum(constant(128.0f), x[i]);
        const Vector shifted = x[i] + shifter;
        fraction[i] = x[i] - (shifted - shifter);
        x[i] = bits_of<Vector>(bits_of<Words>(shifted) << 23);  // 2 to the integer
        p[i] = constant(1.32647273e-3f);
    }
    polynomial_step(p, fraction, 9.67151299e-3f);
    polynomial_step(p, fraction, 5.55073358e-2f);
    polynomial_step(p, fraction, 2.40222424e-1f);
    polynomial_step(p, fraction, 6.93147004e-1f);
    polynomial_step(p, fraction, 1.0f);
#pragma GCC unroll 8
    for (int i = 0; i < count; i++) x[i] *= p[i];
#endif
}

// Exchanges, between two rows of a square, the numbers whose column's bit `step` is not the row's.
template <int step, int... i>
inline void exchange(Vector &low, Vector &high, std::integer_sequence<int, i...>) {
    const Vector a = low, b = high;
#if defined(__clang__) || __GNUC__ >= 12
    low = __builtin_shufflevector(a, b, ((i & step) ? lanes + i - step : i)...);
    high = __builtin_shufflevector(a, b, ((i & step) ? lanes + i : i + step)...);
#else
    low = __builtin_shuffle(a, b, Integers{((i & step) ? lanes + i - step : i)...});
    high = __builtin_shuffle(a, b, Integers{((i & step) ? lanes + i : i + step)...});
#endif
}

template <int step = 1>
inline void transpose(Vector *square) {
#pragma GCC unroll 16
    for (int i = 0; i < lanes; i++)
        if (!(i & step))
            exchange<step>(square[i], square[i + step], std::make_integer_sequence<int, lanes>());
    if constexpr (2 * step < lanes) transpose<2 * step>(square);
}

inline long ceil_div(long a, long b) { return (a + b - 1) / b; }
inline long round_up(long a, long b) { return ceil_div(a, b) * b; }
inline long smaller(long a, long b) { return a < b ? a : b; }
inline long larger(long a, long b) { return a > b ? a : b; }

}  // namespace
