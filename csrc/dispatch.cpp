// The C interface: checks the arguments and calls the variant for this processor.
#include <stdlib.h>
#include <string.h>

#ifdef HALONET_X86
#include <cpuid.h>
#endif
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "variant.h"

namespace {

// Compiled in, best first.
const HaloVariant *const variants[] = {
#ifdef HALONET_AMX
    &halonet_amx,
#endif
#ifdef HALONET_X86
    &halonet_avx512, &halonet_avx2,
#endif
    &halonet_baseline};

#ifdef HALONET_X86
// The instructions are there, and Linux grants their registers to this process.
bool has_matrix_tiles() {
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    if (!(d >> 22 & 1) || !(d >> 24 & 1)) return false;
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a >> 5 & 1)) return false;  // AVX512-BF16
#ifdef __linux__
    const long request_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return false;
#endif
}
#endif

bool runs_here(const HaloVariant *variant) {
#ifdef HALONET_X86
    __builtin_cpu_init();
    if (!strcmp(variant->name, "amx") && !has_matrix_tiles()) return false;
    if (!strcmp(variant->name, "avx512") || !strcmp(variant->name, "amx"))
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl");
    if (!strcmp(variant->name, "avx2"))
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
               __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
#endif
    return !strcmp(variant->name, "baseline");
}

const HaloVariant *best() {
    for (const HaloVariant *variant : variants)
        if (runs_here(variant)) return variant;
    return &halonet_baseline;
}

const HaloVariant *chosen = best();

bool is_type(int64_t type) { return type == HALO_FLOAT32 || type == HALO_BFLOAT16; }

bool valid(const HaloProblem &p) {
    return p.batch >= 0 && p.height > 0 && p.width > 0 && p.heads > 0 && p.channels > 0 &&
           p.value_channels > 0 && p.block_size > 0 && p.halo_size >= 0 &&
           (p.stride == 1 || p.stride == 2) && p.block_size % p.stride == 0 && p.position_stride >= 0 &&
           (p.scale != 0 || p.position_scale == 0) &&
           (p.block_size / p.stride - 1) * p.position_stride < p.block_size && p.threads > 0 &&
           (p.table_width == 0 || p.table_width == p.channels || p.table_width * 2 == p.channels) &&
           is_type(p.data_type);
}

// One allocation a thread, grown when a call needs more.
struct Scratch {
    void *memory = nullptr;
    int64_t bytes = 0;
    ~Scratch() { free(memory); }
};

thread_local Scratch scratch;

}  // namespace

void *halonet_scratch(int64_t bytes) {
    if (scratch.bytes < bytes) {
        free(scratch.memory);
        scratch.memory = nullptr;
        scratch.bytes = 0;
        if (posix_memalign(&scratch.memory, 64, size_t(bytes))) scratch.memory = nullptr;
        if (scratch.memory) scratch.bytes = bytes;
    }
    return scratch.memory;
}

int halonet_interface(void) { return HALONET_INTERFACE; }

int halonet_problem_size(void) { return int(sizeof(HaloProblem)); }

int halonet_forward(const HaloProblem *problem) {
    if (!valid(*problem)) return HALO_BAD_ARGUMENT;
    return chosen->forward(*problem);
}

int halonet_backward(const HaloProblem *problem) {
    if (!valid(*problem)) return HALO_BAD_ARGUMENT;
    return chosen->backward(*problem);
}

int64_t halonet_backward_workspace(const HaloProblem *problem) {
    const int64_t offsets = 2 * (problem->block_size + problem->halo_size) - 1;
    return 2 * offsets * problem->table_width * halonet_gradient_groups;
}

int halonet_affine_silu(const HaloActivation *activation) {
    const HaloActivation &a = *activation;
    if (a.pixels < 0 || a.channels < 0 || a.threads < 1 || !is_type(a.data_type))
        return HALO_BAD_ARGUMENT;
    chosen->affine_silu(a);
    return HALO_SUCCESS;
}

int halonet_pool_silu(const HaloPooling *pooling) {
    const HaloPooling &p = *pooling;
    if (p.batch < 0 || p.height < 1 || p.width < 1 || p.channels < 0 || p.threads < 1 ||
        !is_type(p.data_type))
        return HALO_BAD_ARGUMENT;
    return chosen->pool_silu(p);
}

int halonet_statistics(const HaloStatistics *statistics) {
    const HaloStatistics &s = *statistics;
    if (s.pixels < 1 || s.channels < 0 || s.threads < 1 || !is_type(s.data_type))
        return HALO_BAD_ARGUMENT;
    chosen->statistics(s);
    return HALO_SUCCESS;
}

int halonet_norm_gradient(const HaloNormGradient *gradient) {
    const HaloNormGradient &n = *gradient;
    if (n.pixels < 1 || n.channels < 0 || n.threads < 1 || !is_type(n.data_type))
        return HALO_BAD_ARGUMENT;
    chosen->norm_gradient(n);
    return HALO_SUCCESS;
}

const char *halonet_variant(void) { return chosen->name; }

int halonet_select(const char *name) {
    if (!name) {
        chosen = best();
        return HALO_SUCCESS;
    }
    for (const HaloVariant *variant : variants) {
        if (strcmp(variant->name, name) || !runs_here(variant)) continue;
        chosen = variant;
        return HALO_SUCCESS;
    }
    return HALO_BAD_ARGUMENT;
}
