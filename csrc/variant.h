// One build of the kernel for one instruction set, and what the builds share.
#pragma once

#include "halonet_cpu.h"

struct HaloVariant {
    const char *name;
    int (*forward)(const HaloProblem &);
    int (*backward)(const HaloProblem &);
    void (*affine_silu)(const HaloActivation &);
    int (*pool_silu)(const HaloPooling &);
    void (*statistics)(const HaloStatistics &);
    void (*norm_gradient)(const HaloNormGradient &);
};

extern const HaloVariant halonet_baseline;
extern const HaloVariant halonet_avx2;
extern const HaloVariant halonet_avx512;
extern const HaloVariant halonet_amx;

// Scratch memory of the calling thread, kept until the thread ends; null if there is none to be had.
void *halonet_scratch(int64_t bytes);

// Partial sums of the tables' gradients: blocks are dealt to so many groups, whatever the number of
// threads, and groups are added up in order, so that the result doesn't depend on the threads.
constexpr int64_t halonet_gradient_groups = 128;
