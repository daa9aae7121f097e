// Compiled once for each instruction set, with HALONET_VARIANT its name.
#include "variant.h"

#include "backward.h"
#include "forward.h"
#ifdef __AMX_BF16__
#include "forward_tiles.h"
#endif

namespace {

template <class Pass>
int64_t scratch_bytes(const HaloProblem &p, const Shape &shape) {
    Arena arena(nullptr);
    Pass pass(p, shape, arena);
    return arena.used;
}

// Task t of a list over images, blocks (rows first, `step` apart) and heads, heads fastest: tasks
// that share a window follow each other.
struct Tasks {
    long first_row, first_column, step, rows, columns, count;

    Tasks(const HaloProblem &p, const Shape &shape, long first_row, long first_column, long step)
        : first_row(first_row),
          first_column(first_column),
          step(step),
          rows(ceil_div(larger(0, shape.block_rows - first_row), step)),
          columns(ceil_div(larger(0, shape.block_columns - first_column), step)),
          count(p.batch * rows * columns * p.heads) {}

    Block block(const HaloProblem &p, const Shape &shape, long task) const {
        const long head = task % p.heads, place = task / p.heads;
        const long column = place % columns, row = place / columns % rows;
        return Block(p, shape, place / columns / rows, first_row + row * step,
                     first_column + column * step, head);
    }
};

template <class Pass>
int forward(const HaloProblem &p) {
    const Shape shape(p);
    const Tasks tasks(p, shape, 0, 0, 1);
    const int64_t bytes = scratch_bytes<Pass>(p, shape);
    [[maybe_unused]] const long share = larger(1, tasks.count / (p.threads * 8));
    int failed = 0;
#pragma omp parallel num_threads(int(smaller(p.threads, larger(1, tasks.count)))) reduction(| : failed)
    {
        void *memory = halonet_scratch(bytes);
        if (!memory) {
            failed = 1;
        }
        Arena arena(memory);
        Pass pass(p, shape, arena);
#pragma omp for schedule(dynamic, share)
        for (long task = 0; task < tasks.count; task++)
            if (memory)
                pass.run(tasks.block(p, shape, task),
                         tasks.block(p, shape, smaller(task + 1, tasks.count - 1)));
    }
    return failed ? HALO_OUT_OF_MEMORY : HALO_SUCCESS;
}

// Blocks whose windows overlap add to the same gradients of keys and values. Blocks that lie
// `apart` blocks from each other in both directions don't overlap, so the map is done in apart^2
// turns: no two threads meet, and each number is summed in the same order by any number of threads.
template <class T>
int backward(const HaloProblem &p) {
    const Shape shape(p);
    const int64_t bytes = scratch_bytes<Backward<T>>(p, shape);
    const long table = shape.offsets * p.table_width;
    const long apart = ceil_div(shape.window, p.block_size);
    const long turns = smaller(apart, shape.block_rows) * smaller(apart, shape.block_columns);
    const long across = smaller(apart, shape.block_columns);
    const Tasks first_turn(p, shape, 0, 0, apart);  // the one with the most blocks
    const long most_groups = smaller(first_turn.count, halonet_gradient_groups);
    for (long i = 0; i < 2 * table * most_groups; i++) p.workspace[i] = 0.0f;
    int failed = 0;
#pragma omp parallel num_threads(int(larger(1, smaller(p.threads, most_groups)))) reduction(| : failed)
    {
        void *memory = halonet_scratch(bytes);
        if (!memory) failed = 1;
        Arena arena(memory);
        Backward<T> pass(p, shape, arena);
        for (long turn = 0; turn < turns; turn++) {
            const Tasks tasks(p, shape, turn / across, turn % across, apart);
            const long groups = smaller(tasks.count, halonet_gradient_groups);
#pragma omp for schedule(dynamic, 1)
            for (long group = 0; group < groups; group++) {
                float *row_table = p.workspace + group * 2 * table;
                const long first = tasks.count * group / groups;
                const long end = tasks.count * (group + 1) / groups;
                for (long task = first; task < end && memory; task++)
                    pass.run(tasks.block(p, shape, task), row_table, row_table + table);
            }
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

}  // namespace

#define HALONET_JOIN_(a, b) a##b
#define HALONET_JOIN(a, b) HALONET_JOIN_(a, b)
#define HALONET_TEXT_(a) #a
#define HALONET_TEXT(a) HALONET_TEXT_(a)

extern const HaloVariant HALONET_JOIN(halonet_, HALONET_VARIANT) = {
    HALONET_TEXT(HALONET_VARIANT), forward_of_type, backward_of_type};
