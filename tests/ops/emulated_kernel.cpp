// Calls the native kernel on a processor that is emulated, for test_arm.py. Each line of the input is a function
// of the library without "halonet_" (workspace is halonet_backward_workspace) and a file; each line of the output
// what the function gave. The file holds the function's struct, then the memory that it points to: its pointers
// are offsets in the file, 0 for null. Results are written to that memory.
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <initializer_list>

#include "halonet_cpu.h"

static int64_t call_forward(const HaloProblem *problem) { return halonet_forward(problem); }
static int64_t call_backward(const HaloProblem *problem) { return halonet_backward(problem); }

static long call(const char *function, const char *path) {
    const int file = open(path, O_RDWR);
    struct stat status;
    if (file < 0 || fstat(file, &status)) return -1;
    const size_t size = size_t(status.st_size);
    void *memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (memory == MAP_FAILED) return -1;
    auto place = [&](auto *&pointer) {
        if (pointer)
            pointer = reinterpret_cast<decltype(+pointer)>(reinterpret_cast<size_t>(memory) +
                                                           reinterpret_cast<size_t>(pointer));
    };
    long result = -1;
    auto places = [&](auto *&...pointers) { (place(pointers), ...); };
    // Of the struct at the file's beginning, after `prepare` has placed its pointers.
    auto run = [&](auto *kernel, auto given, auto prepare) {
        memcpy(&given, memory, sizeof(given));
        prepare(given);
        return long(kernel(&given));
    };
    const auto is = [&](const char *name) { return !strcmp(function, name); };
    if (is("affine_silu"))
        result = run(halonet_affine_silu, HaloActivation(),
                     [&](auto &a) { places(a.output, a.maps, a.scale, a.shift, a.added); });
    else if (is("pool_silu"))
        result = run(halonet_pool_silu, HaloPooling(), [&](auto &p) { places(p.output, p.maps); });
    else if (is("statistics"))
        result = run(halonet_statistics, HaloStatistics(),
                     [&](auto &s) { places(s.maps, s.mean, s.variance, s.workspace); });
    else if (is("norm_gradient"))
        result = run(halonet_norm_gradient, HaloNormGradient(), [&](auto &n) {
            places(n.maps_gradient, n.added_gradient, n.weight_gradient, n.bias_gradient, n.maps,
                   n.added);
            places(n.gradient, n.scale, n.shift, n.mean, n.inverse_deviation, n.workspace);
        });
    else if (is("forward") || is("backward") || is("workspace"))
        result = run(is("forward")    ? call_forward
                     : is("backward") ? call_backward
                                      : halonet_backward_workspace,
                     HaloProblem(), [&](auto &p) {
                         for (HaloMap *map :
                              {&p.query, &p.key, &p.value, &p.output, &p.log_sum, &p.output_gradient,
                               &p.query_gradient, &p.key_gradient, &p.value_gradient})
                             place(map->data);
                         places(p.row_table, p.column_table, p.row_table_gradient);
                         places(p.column_table_gradient, p.workspace);
                     });
    munmap(memory, size);
    return result;
}

int main() {
    char function[16], path[4096];
    while (scanf("%15s %4095s", function, path) == 2) {
        printf("%ld\n", call(function, path));
        fflush(stdout);
    }
}
