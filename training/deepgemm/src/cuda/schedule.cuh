// Which tile of which product a cluster computes next. Plain C as well, so that a test on the host runs this very code.
#ifndef SCHEDULE_FN
#define SCHEDULE_FN static __device__ __forceinline__
#endif

// Kinds of products.
#define PLAIN 0
#define CONTIGUOUS 1
#define MASKED 2
#define K_GROUPED 3
// Rows of tiles that are gone through together, so that what they read stays in the second cache.
#define BAND 16u

struct Grid {
    unsigned kind, block_m;
    // Rows of a group (all rows if contiguous), columns in the tiles of a cluster, groups.
    unsigned m, columns, groups;
    // Clusters that share the work.
    unsigned clusters;
};

struct Cursor {
    unsigned next, group, before;
};

struct Tile {
    unsigned group, row, column;
};

SCHEDULE_FN unsigned tiles_of(unsigned rows, unsigned block_m) { return (rows + block_m - 1) / block_m; }

// Tile `i` of `rows` by `columns`.
SCHEDULE_FN void place_in(unsigned i, unsigned rows, unsigned columns, struct Tile *tile) {
    unsigned band = i / (BAND * columns), within = i % (BAND * columns);
    unsigned left = rows - band * BAND, height = left < BAND ? left : BAND;
    tile->row = band * BAND + within % height;
    tile->column = within / height;
}

// False if there are no more. `numbers` are the groups of the rows, or the rows of the groups; tiles of padding are
// passed over.
SCHEDULE_FN int next_tile(const struct Grid *grid, const int *numbers, struct Cursor *at, struct Tile *tile) {
    for (;;) {
        unsigned i = at->next;
        if (grid->kind == MASKED) {
            for (;;) {
                if (at->group >= grid->groups) return 0;
                unsigned rows = tiles_of((unsigned)numbers[at->group], grid->block_m);
                if (i - at->before < rows * grid->columns) {
                    tile->group = at->group;
                    place_in(i - at->before, rows, grid->columns, tile);
                    break;
                }
                at->before += rows * grid->columns;
                at->group += 1;
            }
        } else {
            unsigned rows = tiles_of(grid->m, grid->block_m), each = rows * grid->columns;
            if (each == 0 || i / each >= grid->groups) return 0;
            tile->group = i / each;
            place_in(i % each, rows, grid->columns, tile);
        }
        at->next = i + grid->clusters;
        if (grid->kind != CONTIGUOUS) return 1;
        int group = numbers[tile->row * grid->block_m];
        if (group >= 0) {
            tile->group = (unsigned)group;
            return 1;
        }
    }
}
