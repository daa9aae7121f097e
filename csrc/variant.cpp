// Compiled once for each instruction set, with HALONET_VARIANT its name.
#include "variant.h"

#include "backward.h"
#include "forward.h"
#include "norm.h"
#ifdef __AMX_BF16__
#include "forward_tiles.h"
#endif

namespace {

template <class Pass>
int64_t scratch_bytes(const HaloProblem &p, const Shape &shape, long blocks) {
    Arena arena(nullptr);
    Pass pass(p, shape, blocks, arena);
    return arena.used;
}

// Task t of a list of strips, of `blocks` blocks each, over images, rows of blocks (`row_step` apart),
// strips of a row (`strip_step` apart) and heads, heads fastest: tasks that share cells follow each
// other.
struct Tasks {
    long blocks, first_row, row_step, first_strip, strip_step, rows, strips, count;

    Tasks(const HaloProblem &p, const Shape &shape, long blocks, long first_row = 0, long row_step = 1,
          long first_strip = 0, long strip_step = 1)
        : blocks(blocks),
          first_row(first_row),
          row_step(row_step),
          first_strip(first_strip),
          strip_step(strip_step),
          rows(ceil_div(larger(0, shape.block_rows - first_row), row_step)),
          strips(ceil_div(larger(0, ceil_div(shape.block_columns, blocks) - first_strip), strip_step)),
          count(p.batch * rows * strips * p.heads) {}

    Strip strip(const HaloProblem &p, const Shape &shape, long task) const {
        const long head = task % p.heads, place = task / p.heads;
        const long strip = place % strips, row = place / strips % rows;
        return Strip(p, shape, place / strips / rows, first_row + row * row_step,
                     (first_strip + strip * strip_step) * blocks, blocks, head);
    }
};

// A thread's share of tasks that are dealt to the threads in ranges of neighbours.
struct Deal {
    const Tasks &tasks;
    long ranges;
    long &dealt;  // ranges, to all threads
    long range = 0, task = 0, end = 0;

    // Moves to the next task; false where there is none.
    bool next() {
        if (++task < end) return true;
#pragma omp atomic capture
        range = dealt++;
        if (range >= ranges) return false;
        task = tasks.count * range / ranges;
        end = tasks.count * (range + 1) / ranges;
        return true;
    }
};

template <class Pass>
int forward(const HaloProblem &p) {
    const Shape shape(p);
    const long blocks = Pass::blocks_of_strip(p, shape);
    const Tasks tasks(p, shape, blocks);
    const int64_t bytes = scratch_bytes<Pass>(p, shape, blocks);
    const long ranges = smaller(tasks.count, 8 * p.threads);
    long dealt = 0;
    int failed = 0;
#pragma omp parallel num_threads(int(smaller(p.threads, larger(1, tasks.count)))) reduction(| : failed)
    {
        void *memory = halonet_scratch(bytes);
        if (!memory) failed = 1;
        Arena arena(memory);
        Pass pass(p, shape, blocks, arena);
        Deal deal{tasks, ranges, dealt};
        bool more = memory && deal.next();
        Strip strip = more ? tasks.strip(p, shape, deal.task) : Strip();
        if (more) pass.begin(strip);
        while (more) {
            more = deal.next();
            const Strip next = more ? tasks.strip(p, shape, deal.task) : strip;
            pass.run(strip, more ? &next : nullptr);
            strip = next;
        }
    }
    return failed ? HALO_OUT_OF_MEMORY : HALO_SUCCESS;
}

// Strips whose windows overlap add to the same gradients of keys and values: those of rows of blocks
// less than `apart` from each other, and strips side by side. So the map is done in turns: no two
// threads meet, and each number is summed in the same order by any number of threads.
template <class T>
int backward(const HaloProblem &p) {
    const Shape shape(p);
    const long blocks = Backward<T>::blocks_of_strip(p, shape);
    const int64_t bytes = scratch_bytes<Backward<T>>(p, shape, blocks);
    const long table = shape.offsets * p.table_width;
    const long apart = ceil_div(shape.window, p.block_size);
    const long across = blocks < shape.block_columns ? 2 : 1;
    const long turns = smaller(apart, shape.block_rows) * across;
    const Tasks first_turn(p, shape, blocks, 0, apart, 0, across);  // the one with the most strips
    const long most_groups = smaller(first_turn.count, halonet_gradient_groups);
    for (long i = 0; i < 2 * table * most_groups; i++) p.workspace[i] = 0.0f;
    long dealt = 0;
    int failed = 0;
#pragma omp parallel num_threads(int(larger(1, smaller(p.threads, most_groups)))) reduction(| : failed)
    {
        void *memory = halonet_scratch(bytes);
        if (!memory) failed = 1;
        Arena arena(memory);
        Backward<T> pass(p, shape, blocks, arena);
        for (long turn = 0; turn < turns; turn++) {
            const Tasks tasks(p, shape, blocks, turn / across, apart, turn % across, across);
#pragma omp single
            dealt = 0;
            Deal deal{tasks, smaller(tasks.count, halonet_gradient_groups), dealt};
            bool more = memory && deal.next();
            Strip strip = more ? tasks.strip(p, shape, deal.task) : Strip();
            if (more) pass.begin(strip);
            while (more) {
                float *row_table = p.workspace + deal.range * 2 * table;
                more = deal.next();
                const Strip next = more ? tasks.strip(p, shape, deal.task) : strip;
                pass.run(strip, more ? &next : nullptr, row_table, row_table + table);
                strip = next;
            }
            pass.finish();
#pragma omp barrier
        }
    }
    for (long i = 0; i < table; i++) p.row_table_gradient[i] = p.column_table_gradient[i] = 0.0f;
    for (long group = 0; group < most_groups; group++) {
        const float *sums = p.workspace + group * 2 * table;
        for (long i = 0; i < table; i++) {
            p.row_table_gradient[i] += sums[i];
            p.column_table_gradient[i] += sums[table + i];
        }
    }
    return failed ? HALO_OUT_OF_MEMORY : HALO_SUCCESS;
}

int forward_of_type(const HaloProblem &p) {
#ifdef __AMX_BF16__
    using ForwardBfloat16 = ForwardTiles;
#else
    using ForwardBfloat16 = Forward<Bfloat16>;
#endif
    return p.data_type == HALO_FLOAT32 ? forward<Forward<float>>(p) : forward<ForwardBfloat16>(p);
}

int backward_of_type(const HaloProblem &p) {
    return p.data_type == HALO_FLOAT32 ? backward<float>(p) : backward<Bfloat16>(p);
}

void affine_silu_of_type(const HaloActivation &a) {
    a.data_type == HALO_FLOAT32 ? affine_silu_of_maps<float>(a) : affine_silu_of_maps<Bfloat16>(a);
}

int pool_silu_of_type(const HaloPooling &p) {
    return p.data_type == HALO_FLOAT32 ? pool_silu_of_maps<float>(p) : pool_silu_of_maps<Bfloat16>(p);
}

void statistics_of_type(const HaloStatistics &s) {
    s.data_type == HALO_FLOAT32 ? statistics_of_maps<float>(s) : statistics_of_maps<Bfloat16>(s);
}

void norm_gradient_of_type(const HaloNormGradient &n) {
    n.data_type == HALO_FLOAT32 ? norm_gradient_of_maps<float>(n) : norm_gradient_of_maps<Bfloat16>(n);
}

}  // namespace

#define HALONET_JOIN_(a, b) a##b
#define HALONET_JOIN(a, b) HALONET_JOIN_(a, b)
#define HALONET_TEXT_(a) #a
#define HALONET_TEXT(a) HALONET_TEXT_(a)

extern const HaloVariant HALONET_JOIN(halonet_, HALONET_VARIANT) = {
    HALONET_TEXT(HALONET_VARIANT), forward_of_type,   backward_of_type,
    affine_silu_of_type,           pool_silu_of_type, statistics_of_type,
    norm_gradient_of_type};
