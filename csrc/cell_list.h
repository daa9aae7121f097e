// A window's cells one by one, with their addresses in a map.
#pragma once

#include "geometry.h"

namespace {

// Cells that are copied at once.
constexpr int listed_cells = 256;
constexpr int chunk_rows = listed_cells + addresses_at_once;

// Some cells of a list.
struct ListedCells {
    long first, count;
};

// The cells of a window that take part: first those in the map, row by row, then, unless
// padding is masked, those outside, whose keys and values are 0.
struct CellList {
    int64_t *row, *column;  // in the window
    long inside = 0, count = 0;
    long first_row = 0, end_row = 0, first_column = 0, end_column = 0;

    CellList(const HaloProblem &p, const Shape &shape, Arena &arena)
        : row(arena.take<int64_t>(shape.window_cells)),
          column(arena.take<int64_t>(shape.window_cells)),
          window(shape.window),
          mask_padding(p.mask_padding) {}

    bool are_those_of(const Block &block) const {
        return first_row == block.first_row && end_row == block.end_row &&
               first_column == block.first_column && end_column == block.end_column;
    }

    // Does nothing where the block before had the same cells, as most blocks of a map do.
    void place(const Block &block) {
        if (are_those_of(block)) return;
        first_row = block.first_row;
        end_row = block.end_row;
        first_column = block.first_column;
        end_column = block.end_column;
        count = 0;
        for (long u = first_row; u < end_row; u++)
            for (long v = first_column; v < end_column; v++) put(u, v);
        inside = count;
        for (long u = 0; u < window && !mask_padding; u++)
            for (long v = 0; v < window; v++)
                if (u < first_row || u >= end_row || v < first_column || v >= end_column) put(u, v);
    }

    template <class Body>
    void for_chunks(long begin, long end, long size, Body body) const {
        for (long first = begin; first < end; first += size)
            body(ListedCells{first, smaller(size, end - first)});
    }

private:
    long window;
    bool mask_padding;

    void put(long u, long v) {
        row[count] = u;
        column[count++] = v;
    }
};

// Where a window's cells lie in an array, in bytes from its cell (0, 0).
class CellOffsets {
public:
    CellOffsets(const Shape &shape, Arena &arena)
        : offsets(arena.take<int64_t>(shape.window_cells + addresses_at_once)) {}

    // `row_step` and `column_step` are in bytes. Does nothing where they and the cells are those of
    // the call before.
    void place(const CellList &cells, int64_t row_step, int64_t column_step) {
        const int64_t shape[] = {cells.first_row,  cells.end_row, cells.first_column,
                                 cells.end_column, row_step,      column_step};
        if (!__builtin_memcmp(shape, placed, sizeof(shape))) return;
        __builtin_memcpy(placed, shape, sizeof(shape));
        for (long k = 0; k < cells.count; k++)
            offsets[k] = cells.row[k] * row_step + cells.column[k] * column_step;
    }

    template <class T>
    void place(const CellList &cells, const HaloMap &map) {
        place(cells, map.row * long(sizeof(T)), map.column * long(sizeof(T)));
    }

    // Rows of a chunk's cells, [chunk_rows].
    template <class T>
    void rows(const ListedCells &chunk, T *origin, T **rows) const {
        for (long k = 0; k < chunk.count; k += addresses_at_once) {
            Addresses some;
            __builtin_memcpy(&some, offsets + chunk.first + k, sizeof(some));
            some += reinterpret_cast<uint64_t>(origin);
            __builtin_memcpy(rows + k, &some, sizeof(some));
        }
    }

    // Rows of a chunk's cells in a map.
    template <class T>
    void rows(const HaloMap &map, const Block &block, const ListedCells &chunk, T **rows) const {
        this->rows(chunk, first_cell<T>(map, block), rows);
    }

private:
    int64_t *offsets;
    int64_t placed[6] = {};  // what they were computed for
};

}  // namespace
