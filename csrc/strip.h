// Rows of blocks, and copies of the cells that they meet. In a map one head's cells lie as far apart as
// all heads are wide, a power of 2 as a rule, so that a window falls on a few sets of the caches only.
// In the copy they follow each other.
#pragma once

#include <limits.h>

#include "geometry.h"
#include "products.h"

namespace {

// What one strip's copies may take. With the next strip's, that is the second-level cache where it is
// small.
constexpr long strip_bytes = 256 * 1024;

// Blocks beside each other, of one head, and the part of the map that their windows cover.
struct Strip {
    long image, head, block_row, first_block, end_block;
    long first_row, rows, first_column, columns;

    Strip() = default;

    Strip(const HaloProblem &p, const Shape &shape, long image, long block_row, long first_block,
          long blocks, long head)
        : image(image),
          head(head),
          block_row(block_row),
          first_block(first_block),
          end_block(smaller(first_block + blocks, shape.block_columns)) {
        const Block first = block(p, shape, first_block), last = block(p, shape, end_block - 1);
        first_row = first.cell_row + first.first_row;
        rows = first.end_row - first.first_row;
        first_column = first.cell_column + first.first_column;
        columns = last.cell_column + last.end_column - first_column;
    }

    Block block(const HaloProblem &p, const Shape &shape, long block_column) const {
        return Block(p, shape, image, block_row, block_column, head);
    }

    long cells() const { return rows * columns; }

    template <class T>
    T *cell(const HaloMap &map, long row, long column) const {
        return at<T>(map, image, first_row + row, first_column + column, head);
    }
};

// Cells of one map that a strip of `blocks` blocks meets, at most.
inline long strip_cells(const HaloProblem &p, const Shape &shape, long blocks) {
    return smaller(shape.window, p.height) *
           smaller((blocks - 1) * p.block_size + shape.window, p.width);
}

// As many blocks as `cell_floats` numbers for each cell leave room for, but `least`; in even strips.
inline long blocks_that_fit(const HaloProblem &p, const Shape &shape, long cell_floats, long least) {
    long blocks = shape.block_columns;
    while (blocks > least && strip_cells(p, shape, blocks) * cell_floats * 4 > strip_bytes) blocks--;
    return ceil_div(shape.block_columns, ceil_div(shape.block_columns, blocks));
}

// Cells of the strip `other` to move before each column of a product of `strip`, so that all are moved when
// `strip` is done.
inline long cells_between_products(const Shape &shape, const Strip &other, const Strip &strip) {
    const long passes = ceil_div(shape.block_queries * shape.block_queries, most_vectors * lanes);
    return ceil_div(other.cells(), passes * strip.columns);
}

// Numbers of a strip's cells, column by column, so that a window's cells follow each other: those of a
// map's channels, in slices, and after them zeros up to a whole slice.
struct StripCells {
    long channels, slice_step;
    float *cells;

    StripCells(const HaloProblem &p, const Shape &shape, long blocks, long channels, Arena &arena)
        : channels(channels),
          slice_step(strip_cells(p, shape, blocks) * slice_channels),
          cells(arena.take<float>(ceil_div(channels, slice_channels) * slice_step)) {}

    // Some cells of a block's window, all in the map.
    GradientRows rows(const Strip &strip, const Block &block, const Cells &some) const {
        return {at(strip, block.cell_row + some.row - strip.first_row,
                   block.cell_column + some.column - strip.first_column),
                slice_channels, slice_step};
    }

    // The copy of a cell.
    float *at(const Strip &strip, long row, long column) const {
        return cells + (column * strip.rows + row) * slice_channels;
    }

    void clear(const Strip &strip) const {
        for_slices(channels, [&](long first, long) {
            float *slice = cells + first / slice_channels * slice_step;
            for (long i = 0; i < strip.cells() * slice_channels; i += lanes) store(slice + i, Vector{});
        });
    }
};

// Goes through a strip's cells in a map, a few at a time while products are computed: fetched some cells
// before they are read, they cost little time.
template <class T>
class Walk {
public:
    void begin(const HaloMap &through, const Strip &over, const StripCells &copies) {
        map = through;
        strip = over;
        cells = &copies;
        left = strip.cells();
        row = -1;
        column = strip.columns;
        // Some 44 lines ahead: a few of cells that take many. An odd number of cells, lest they be
        // fetched a multiple of 4096 bytes from where they are read: the first-level cache takes such
        // lines for each other.
        lines = ceil_div(copies.channels, line_numbers);
        const long columns = smaller(44 / lines | 1, strip.columns);
        across = map.column;
        down = strip.rows * slice_channels;
        ahead = columns * map.column;
        turn = map.row - strip.columns * map.column;
        last = strip.columns - columns;
    }

    // Calls body(the map's cell, the copy's) for the next `count` cells, or as many as are left; of cells that
    // take `known_lines` of the caches, if it isn't 0.
    template <long known_lines = 0, class Body>
    void step(long count, Body body) {
        for (count = smaller(count, left), left -= count; count > 0;) {
            if (column == strip.columns) {
                column = 0;
                row++;
                cell = strip.cell<T>(map, row, 0);
                copy = cells->at(strip, row, 0);
            }
            // Up to where what is fetched lies in the next row. After the last, nothing of use is fetched.
            const bool same_row = column < last;
            const long run = smaller(count, (same_row ? last : strip.columns) - column);
            const long distance = same_row ? ahead : ahead + turn;
            // Not members: any store might change those.
            const long from_step = across, to_step = down, fetched = known_lines ? known_lines : lines;
            T *const from = cell;
            float *const to = copy;
            for (long i = 0; i < run; i++) {
                T *const here = from + i * from_step;
                for (long line = 0; line < fetched; line++)
                    __builtin_prefetch(here + distance + line * line_numbers, 0, 2);
                body(here, to + i * to_step);
            }
            column += run;
            count -= run;
            cell = from + run * from_step;
            copy = to + run * to_step;
        }
    }

private:
    static constexpr long line_numbers = 64 / long(sizeof(T));  // of a line of the caches

    HaloMap map;
    Strip strip;
    const StripCells *cells;
    long left = 0;     // cells
    long row, column;  // of the next
    T *cell;
    float *copy;
    long across, down;       // from a cell to the next, in the map and in the copy
    long lines;              // of the caches that a cell takes
    long ahead, turn, last;  // from a cell to what is fetched; from `last` on, it lies in the next row
};

// Copies of a strip's cells, and of those of the strip after it, on their way.
template <class T>
class Copies {
public:
    Copies(const HaloProblem &p, const Shape &shape, const HaloMap &map, long channels, long blocks,
           Arena &arena)
        : map(map), copies{{p, shape, blocks, channels, arena}, {p, shape, blocks, channels, arena}} {}

    const StripCells &cells() const { return copies[current]; }

    // Makes `next` the strip whose cells are copied by calls of step().
    void begin(const Strip &next) { walk.begin(map, next, copies[!current]); }

    void step(long count) {
        const long channels = cells().channels, slice_step = cells().slice_step;
        if (channels == slice_channels)  // without loops over slices, which cost as much as the copy
            return walk.template step<1>(count, [](const T *cell, float *copy) {
                for (long c = 0; c < slice_channels; c += lanes) store(copy + c, load(cell + c));
            });
        walk.step(count, [=](const T *cell, float *copy) {
            for_slices(channels, [&](long first, long some) {
                if (some == slice_channels)
                    for (long c = 0; c < slice_channels; c += lanes)
                        store(copy + c, load(cell + first + c));
                else
                    for (long c = 0; c < slice_channels; c++)
                        copy[c] = c < some ? load_one(cell + first + c) : 0.0f;
                copy += slice_step;
            });
        });
    }

    // Copies what is left; the next strip is now the current one.
    void finish() {
        step(LONG_MAX);
        current = !current;
    }

private:
    const HaloMap &map;
    StripCells copies[2];
    int current = 0;
    Walk<T> walk;
};

// Sums of a strip's cells, and those of the strip before it, on their way into the map.
class Sums {
public:
    Sums(const HaloProblem &p, const Shape &shape, const HaloMap &map, long channels, long blocks,
         Arena &arena)
        : map(map), sums{{p, shape, blocks, channels, arena}, {p, shape, blocks, channels, arena}} {}

    const StripCells &cells() const { return sums[current]; }

    // Sums of a strip begin at 0.
    void clear(const Strip &strip) { cells().clear(strip); }

    void step(long count) {
        const long channels = cells().channels, slice_step = cells().slice_step;
        if (channels == slice_channels)
            return walk.step<1>(count, [](float *cell, const float *sum) {
                for (long c = 0; c < slice_channels; c += lanes)
                    store(cell + c, load(cell + c) + load(sum + c));
            });
        walk.step(count, [=](float *cell, const float *sum) {
            for_slices(channels, [&](long first, long some) {
                float *to = cell + first;
                if (some == slice_channels)
                    for (long c = 0; c < slice_channels; c += lanes)
                        store(to + c, load(to + c) + load(sum + c));
                else
                    for (long c = 0; c < some; c++) to[c] += sum[c];
                sum += slice_step;
            });
        });
    }

    // Adds what is left; the current strip, which is done, is now the one that calls of step() add.
    void turn(const Strip &done) {
        step(LONG_MAX);
        walk.begin(map, done, cells());
        current = !current;
    }

private:
    const HaloMap &map;
    StripCells sums[2];
    int current = 0;
    Walk<float> walk;
};

}  // namespace
