// The C interface of the native halo attention kernel (paper, section 2.2), of batch norm with an
// activation and of a stem's pooling: one struct describes a call, with all its tensors and options.
//
// Maps are channels-last, [batch, height, width, heads, channels]. The stride of the channels is 1, the
// others are free, so that query, key and value may be slices of one projection's output.
#pragma once

#include <stdint.h>

// Goes up with each change of a struct or of what its fields mean; halonet/ops/cpu.py has the same
// number and refuses a library that has another.
#define HALONET_INTERFACE 4

#define HALONET_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

// A map and its strides, counted in elements.
typedef struct {
    void *data;
    int64_t batch, row, column, head;
} HaloMap;

enum { HALO_FLOAT32 = 0, HALO_BFLOAT16 = 1 };
enum { HALO_SUCCESS = 0, HALO_OUT_OF_MEMORY = 1, HALO_BAD_ARGUMENT = 2 };

typedef struct {
    int64_t batch, height, width, heads, channels, value_channels;
    int64_t block_size, halo_size, stride, position_stride, mask_padding;
    int64_t table_width;  // 0 (no tables), channels / 2 or channels
    int64_t data_type;    // of query, key, value, output and their gradients unless said otherwise
    int64_t threads;
    double scale;
    double position_scale;  // of the relative logits; scale must not be 0 unless this is

    HaloMap query;   // [batch, ceil(height / stride), ceil(width / stride), heads, channels]
    HaloMap key;     // [batch, height, width, heads, channels]
    HaloMap value;   // [batch, height, width, heads, value_channels]
    HaloMap output;  // as query, value_channels wide
    // Natural logarithm of the softmax's denominator, float32, one number a query and head.
    // The forward pass writes it where data is not null; the backward pass reads it.
    HaloMap log_sum;
    const float *row_table, *column_table;  // [2 (block_size + halo_size) - 1, table_width]

    // Read and written by the backward pass only.
    HaloMap output_gradient;
    HaloMap query_gradient;
    HaloMap key_gradient, value_gradient;  // float32, added to: the caller fills them with zeros
    float *row_table_gradient, *column_table_gradient;  // float32, overwritten
    float *workspace;  // halonet_backward_workspace() floats, never read before written
} HaloProblem;

// output = silu(maps * scale + shift + added), as after batch norm. All but scale and shift are [pixels, channels], without gaps, and may be the same memory.
typedef struct {
    void *output;
    const void *maps;
    const float *scale, *shift;  // [channels], or null
    const void *added;           // or null
    int64_t pixels, channels;
    int64_t data_type;  // of all but scale and shift
    int64_t threads;
} HaloActivation;

// output = the largest of silu(maps) among 3 x 3 pixels, two apart, as max pooling with a padding of 1 has them.
typedef struct {
    void *output;      // [batch, ceil(height / 2), ceil(width / 2), channels], without gaps
    const void *maps;  // [batch, height, width, channels], without gaps
    int64_t batch, height, width, channels;
    int64_t data_type;  // of both
    int64_t threads;
} HaloPooling;

// Mean and variance of each channel over all pixels, as batch norm takes them.
typedef struct {
    const void *maps;        // [pixels, channels], without gaps
    float *mean, *variance;  // [channels]; squares are divided by pixels
    double *workspace;       // 3 * channels * threads, never read before written
    int64_t pixels, channels;
    int64_t data_type;  // of maps
    int64_t threads;
} HaloStatistics;

// The gradients of silu(y), y = maps * scale + shift + added, where scale = weight * inverse_deviation and
// shift = bias - mean * scale are a batch norm's. Maps are [pixels, channels], without gaps.
typedef struct {
    void *maps_gradient;
    void *added_gradient;                    // that of y; null where nothing is added
    float *weight_gradient, *bias_gradient;  // [channels]
    const void *maps;
    const void *added;  // or null
    const void *gradient;
    const float *scale, *shift, *mean, *inverse_deviation;  // [channels]
    double *workspace;         // 3 * channels * threads, never read before written
    int64_t batch_statistics;  // mean and deviation are those of maps, and move with them
    int64_t pixels, channels;
    int64_t data_type;  // of the maps
    int64_t threads;
} HaloNormGradient;

HALONET_API int halonet_interface(void);     // HALONET_INTERFACE
HALONET_API int halonet_problem_size(void);  // of HaloProblem, in bytes

HALONET_API int halonet_forward(const HaloProblem *problem);
HALONET_API int halonet_backward(const HaloProblem *problem);
HALONET_API int64_t halonet_backward_workspace(const HaloProblem *problem);
HALONET_API int halonet_affine_silu(const HaloActivation *activation);
HALONET_API int halonet_pool_silu(const HaloPooling *pooling);
HALONET_API int halonet_statistics(const HaloStatistics *statistics);
HALONET_API int halonet_norm_gradient(const HaloNormGradient *gradient);

// The instruction set in use: "amx", "avx512", "avx2" or "baseline". halonet_select switches to the
// named one, or back to the best for a null pointer; it returns HALO_BAD_ARGUMENT where the
// processor or the build lacks it.
HALONET_API const char *halonet_variant(void);
HALONET_API int halonet_select(const char *name);

#ifdef __cplusplus
}
#endif
