// d = c + a bᵀ, persistent and warp-specialised: warpgroup 0 loads tiles by TMA, the others multiply and store. Set
// before: KIND, FP8, ROW_SCALES, OUT_F32, WITH_C, BLOCK_M, BLOCK_N, STAGES, CLUSTER, N, K (not if k-grouped),
// SHARED_BYTES, and the function `wgmma` for tiles of 64 by BLOCK_N.
constexpr u32 WARPGROUPS = BLOCK_M / 64, THREADS = WARPGROUP * (1 + WARPGROUPS);
constexpr u32 SUMS = BLOCK_N / 2;
constexpr u32 BLOCK_K = FP8 ? 128 : 64;
constexpr u32 OUT_BYTES = OUT_F32 ? 4 : 2;
constexpr u32 ROW_BYTES = BLOCK_N * OUT_BYTES;
constexpr u32 SLAB_BYTES = ROW_BYTES % 128 == 0 ? 128 : ROW_BYTES % 64 == 0 ? 64 : 32;
constexpr u32 SLAB_COLUMNS = SLAB_BYTES / OUT_BYTES, SLABS = BLOCK_N / SLAB_COLUMNS;

// Shared memory from a multiple of 1024 on; `shared_bytes` in config.rs adds up the same.
constexpr u32 OUT_SLAB = 64 * 128, OUT_BUFFERS = 2;
constexpr u32 A_BYTES = BLOCK_M * 128, B_BYTES = BLOCK_N * 128;
constexpr u32 SA_BYTES = FP8 ? BLOCK_M * 4 : 0, SB_BYTES = FP8 && ROW_SCALES ? BLOCK_N * 4 : 0;
constexpr u32 SB_ROOM = parts(SB_BYTES, 128) * 128;
constexpr u32 A_AT = WARPGROUPS * OUT_BUFFERS * OUT_SLAB, B_AT = A_AT + STAGES * A_BYTES;
constexpr u32 SA_AT = B_AT + STAGES * B_BYTES, SB_AT = SA_AT + STAGES * SA_BYTES;
constexpr u32 BARRIERS_AT = SB_AT + STAGES * SB_ROOM;
constexpr u32 LOADED = A_BYTES + B_BYTES + SA_BYTES + SB_BYTES;

static_assert(1024 + BARRIERS_AT + STAGES * 16 == SHARED_BYTES, "as many bytes as the launch asks for");
static_assert(BLOCK_M == 64 || BLOCK_M == 128, "one or two warpgroups multiply 64 rows each");
static_assert(BLOCK_N % 16 == 0 && BLOCK_N <= (FP8 ? 160 : 256), "sums must stay in registers");
static_assert(B_BYTES % 1024 == 0, "tiles must begin at the swizzle's period");

struct Arguments {
    const float *scales_b;
    const int *numbers;
    const void *c;
    void *d;
    u32 m, groups;
};

__device__ __forceinline__ Grid grid_of(const Arguments &of) {
    Grid grid;
    grid.kind = KIND;
    grid.block_m = BLOCK_M;
    grid.m = of.m;
    grid.columns = parts(parts(N, BLOCK_N), CLUSTER);
    grid.groups = KIND == MASKED || KIND == K_GROUPED ? of.groups : 1;
    grid.clusters = gridDim.x / CLUSTER;
    return grid;
}

__device__ __forceinline__ Cursor first_tile() { return Cursor{blockIdx.x / CLUSTER, 0, 0}; }

#if KIND == K_GROUPED
__device__ __forceinline__ u32 blocks_of(const Arguments &of, u32 group) { return u32(of.numbers[group]) / BLOCK_K; }
#else
__device__ __forceinline__ u32 blocks_of(const Arguments &, u32) { return parts(K, BLOCK_K); }
#endif

// Row of `a` and `d` at which a group's begin.
__device__ __forceinline__ u32 base_of(const Arguments &of, u32 group) {
    return KIND == MASKED || KIND == K_GROUPED ? group * of.m : 0;
}

struct Maps {
    const TensorMap *a, *b, *scales_a, *scales_b;
};

__device__ __forceinline__ void produce(const Arguments &of, const Maps &maps, const TensorMap *groups_maps,
                                        u32 shared, u32 full, u32 empty, u32 rank) {
    const Grid grid = grid_of(of);
    Cursor at = first_tile();
    Tile tile;
    u32 stage = 0, phase = 0;
    while (next_tile(&grid, of.numbers, &at, &tile)) {
        Maps from = maps;
        const u32 n0 = (tile.column * CLUSTER + rank) * BLOCK_N, m0 = tile.row * BLOCK_M;
        u32 a_row = base_of(of, tile.group) + m0, b_row = tile.group * N + n0;
        const u32 blocks = blocks_of(of, tile.group);
        u32 sa_row = KIND == MASKED ? tile.group * blocks : 0, sb_row = tile.group * blocks;
        if (KIND == K_GROUPED) {
            const TensorMap *own = groups_maps + tile.group * 4;
            from = Maps{own, own + 1, own + 2, own + 3};
            if (blocks > 0) {
                for (u32 i = 0; i < 4; ++i) tma_acquire(own + i);
            }
            a_row = m0, b_row = n0, sb_row = 0;
        }
        for (u32 block = 0; block < blocks; ++block) {
            barrier_wait(empty + stage * 8, phase ^ 1);
            const u32 barrier = full + stage * 8;
            barrier_expect(barrier, LOADED);
            const u32 a = shared + A_AT + stage * A_BYTES;
            if (CLUSTER == 1) {
                tma_load(a, from.a, block * BLOCK_K, a_row, barrier);
            } else {
                // Both blocks of the cluster need the same rows: each loads half of them for both.
                const u32 half = rank * (BLOCK_M / 2);
                tma_load_all(a + half * 128, from.a, block * BLOCK_K, a_row + half, barrier, 3);
            }
            tma_load(shared + B_AT + stage * B_BYTES, from.b, block * BLOCK_K, b_row, barrier);
            if (FP8) tma_load(shared + SA_AT + stage * SA_BYTES, from.scales_a, m0, sa_row + block, barrier);
            if (SB_BYTES > 0) tma_load(shared + SB_AT + stage * SB_ROOM, from.scales_b, n0, sb_row + block, barrier);
            stage = stage + 1 == STAGES ? 0 : stage + 1;
            phase ^= stage == 0;
        }
    }
}

// What was read from a stage may be overwritten.
__device__ __forceinline__ void release(u32 empty, u32 stage, u32 lane) {
    __syncwarp();
    if (CLUSTER == 1) {
        if (lane == 0) barrier_arrive(empty + stage * 8);
    } else if (lane < CLUSTER) {
        barrier_arrive_at(empty + stage * 8, lane);
    }
}

// One block of 128 columns of K: the tensor core's sum times both scales, added in f32.
__device__ __forceinline__ void promote(float (&sums)[SUMS], const float (&part)[SUMS], const float *rows,
                                        float first, float second, u32 border, u32 columns) {
#pragma unroll
    for (u32 g = 0; g < BLOCK_N / 8; ++g) {
        float left = 128 % BLOCK_N == 0 || g * 8 < border ? first : second, right = left;
        if (SB_BYTES > 0) {
            const float2 both = load_shared_two(columns + g * 32);
            left = both.x, right = both.y;
        }
        sums[g * 4] += rows[0] * left * part[g * 4];
        sums[g * 4 + 1] += rows[0] * right * part[g * 4 + 1];
        sums[g * 4 + 2] += rows[1] * left * part[g * 4 + 2];
        sums[g * 4 + 3] += rows[1] * right * part[g * 4 + 3];
    }
}

struct Place {
    u32 shared, full, empty, warpgroup, lane, row, pair;
};

struct Ring {
    u32 stage, phase;
    __device__ __forceinline__ void step() {
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        phase ^= stage == 0;
    }
};

__device__ __forceinline__ void start_products(float (&sums)[SUMS], const Place &in, u32 stage, bool keep) {
    const u64 a = matrix_descriptor(in.shared + A_AT + stage * A_BYTES + in.warpgroup * 64 * 128);
    const u64 b = matrix_descriptor(in.shared + B_AT + stage * B_BYTES);
    __syncwarp();
    wgmma_begin();
#pragma unroll
    for (u32 k = 0; k < 4; ++k) wgmma(sums, a + k * 2, b + k * 2, keep || k > 0);
    wgmma_commit();
}

#if FP8
__device__ __forceinline__ void multiply(float (&sums)[SUMS], const Arguments &of, const Place &in, Ring &ring,
                                         const Tile &tile, u32 n0, u32 blocks) {
    // Scales of 128 rows of b: a tile has rows of up to two such blocks.
    constexpr u32 SCALED = 128, ROWS_OF_SCALES = parts(N, SCALED);
    const u32 scale_row = n0 / SCALED, border = SCALED - n0 % SCALED;
    const float *scales = of.scales_b + u64(tile.group * ROWS_OF_SCALES + scale_row) * blocks;
    const bool has_first = !ROW_SCALES && scale_row < ROWS_OF_SCALES;
    const bool has_second = !ROW_SCALES && 128 % BLOCK_N != 0 && scale_row + 1 < ROWS_OF_SCALES;
#pragma unroll
    for (u32 i = 0; i < SUMS; ++i) sums[i] = 0;
    for (u32 block = 0; block < blocks; ++block) {
        const float first = has_first ? __ldg(scales + block) : 0;
        const float second = has_second ? __ldg(scales + blocks + block) : 0;
        barrier_wait(in.full + ring.stage * 8, ring.phase);
        float part[SUMS];
        start_products(part, in, ring.stage, false);
        const u32 at = in.shared + SA_AT + ring.stage * SA_BYTES + (in.warpgroup * 64 + in.row) * 4;
        const float rows[2] = {load_shared(at), load_shared(at + 32)};
        wgmma_wait<0>();
#pragma unroll
        for (u32 i = 0; i < SUMS; ++i) pin(part[i]);
        if (SB_BYTES == 0) release(in.empty, ring.stage, in.lane);
        promote(sums, part, rows, first, second, border,
                in.shared + SB_AT + ring.stage * SB_ROOM + in.pair * 4);
        if (SB_BYTES > 0) release(in.empty, ring.stage, in.lane);
        ring.step();
    }
}
#else
__device__ __forceinline__ void multiply(float (&sums)[SUMS], const Arguments &, const Place &in, Ring &ring,
                                         const Tile &, u32, u32 blocks) {
#pragma unroll
    for (u32 i = 0; i < SUMS; ++i) sums[i] = 0;
#pragma unroll
    for (u32 i = 0; i < SUMS; ++i) pin(sums[i]);
    u32 last = 0;
    for (u32 block = 0; block < blocks; ++block) {
        barrier_wait(in.full + ring.stage * 8, ring.phase);
        start_products(sums, in, ring.stage, true);
        // The block before is over when only this one is left.
        wgmma_wait<1>();
        if (block > 0) release(in.empty, last, in.lane);
        last = ring.stage;
        ring.step();
    }
    wgmma_wait<0>();
#pragma unroll
    for (u32 i = 0; i < SUMS; ++i) pin(sums[i]);
    if (blocks > 0) release(in.empty, last, in.lane);
}
#endif

// Whether a row of the group has a result.
__device__ __forceinline__ bool counts(const Arguments &of, u32 group, u32 row) {
    if (KIND == MASKED) return row < u32(of.numbers[group]);
    if (KIND == CONTIGUOUS) return row < of.m && of.numbers[row] == int(group);
    return row < of.m;
}

__device__ __forceinline__ void add_old(float (&sums)[SUMS], const void *c, const u64 (&rows)[2],
                                        const bool (&valid)[2], u32 n0, u32 pair) {
#pragma unroll
    for (u32 g = 0; g < BLOCK_N / 8; ++g) {
        const u32 column = n0 + g * 8 + pair;
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            if (!valid[half] || column >= N) continue;
            if (OUT_F32) {
                const float2 old = *reinterpret_cast<const float2 *>(static_cast<const float *>(c) + rows[half] * N + column);
                sums[g * 4 + half * 2] += old.x;
                sums[g * 4 + half * 2 + 1] += old.y;
            } else {
                const u32 old = *reinterpret_cast<const u32 *>(static_cast<const u16 *>(c) + rows[half] * N + column);
                sums[g * 4 + half * 2] += from_bf16(old & 0xffff);
                sums[g * 4 + half * 2 + 1] += from_bf16(old >> 16);
            }
        }
    }
}

// Rows of which some don't count: each thread writes its own numbers.
__device__ __forceinline__ void store_some(const float (&sums)[SUMS], void *d, const u64 (&rows)[2],
                                           const bool (&valid)[2], u32 n0, u32 pair) {
#pragma unroll
    for (u32 g = 0; g < BLOCK_N / 8; ++g) {
        const u32 column = n0 + g * 8 + pair;
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            if (!valid[half] || column >= N) continue;
            const float x = sums[g * 4 + half * 2], y = sums[g * 4 + half * 2 + 1];
            if (OUT_F32) {
                *reinterpret_cast<float2 *>(static_cast<float *>(d) + rows[half] * N + column) = make_float2(x, y);
            } else {
                *reinterpret_cast<u32 *>(static_cast<u16 *>(d) + rows[half] * N + column) = two_bf16(x, y);
            }
        }
    }
}

// 64 rows that all count: by shared memory, in slabs of up to 128 bytes a row, and TMA.
__device__ __forceinline__ void store_all(const float (&sums)[SUMS], const TensorMap *map, const Place &in, u32 n0,
                                          u32 row) {
    const bool elected = threadIdx.x % WARPGROUP == 0;
#pragma unroll
    for (u32 slab = 0; slab < SLABS; ++slab) {
        const u32 buffer = in.shared + (in.warpgroup * OUT_BUFFERS + slab % OUT_BUFFERS) * OUT_SLAB;
        if (slab % OUT_BUFFERS == 0) {
            if (elected) tma_store_read();
            named_sync(1 + in.warpgroup, WARPGROUP);
        }
#pragma unroll
        for (u32 g = 0; g < SLAB_COLUMNS / 8; ++g) {
#pragma unroll
            for (u32 half = 0; half < 2; ++half) {
                const u32 i = (slab * (SLAB_COLUMNS / 8) + g) * 4 + half * 2;
                const u32 offset = (in.row + half * 8) * SLAB_BYTES + (g * 8 + in.pair) * OUT_BYTES;
                const u32 to = buffer + swizzled<SLAB_BYTES>(offset);
                if (OUT_F32) {
                    store_shared(to, sums[i], sums[i + 1]);
                } else {
                    store_shared(to, two_bf16(sums[i], sums[i + 1]));
                }
            }
        }
        fence_async();
        named_sync(1 + in.warpgroup, WARPGROUP);
        const u32 column = n0 + slab * SLAB_COLUMNS;
        if (elected && column < N) {
            tma_store(map, buffer, column, row);
            tma_store_commit();
        }
    }
}

__device__ __forceinline__ void consume(const Arguments &of, const TensorMap *map_d, const Place &in, u32 rank) {
    const Grid grid = grid_of(of);
    Cursor at = first_tile();
    Tile tile;
    Ring ring = {0, 0};
    while (next_tile(&grid, of.numbers, &at, &tile)) {
        const u32 n0 = (tile.column * CLUSTER + rank) * BLOCK_N;
        float sums[SUMS];
        multiply(sums, of, in, ring, tile, n0, blocks_of(of, tile.group));
        const u32 row = tile.row * BLOCK_M + in.warpgroup * 64, base = base_of(of, tile.group);
        if (n0 >= N) continue;
        const u64 rows[2] = {u64(base) + row + in.row, u64(base) + row + in.row + 8};
        const bool valid[2] = {counts(of, tile.group, row + in.row), counts(of, tile.group, row + in.row + 8)};
        if (WITH_C) add_old(sums, of.c, rows, valid, n0, in.pair);
        // Rows of a group follow each other, so the last of 64 stands for all.
        if (counts(of, tile.group, row + 63)) {
            store_all(sums, map_d, in, n0, base + row);
        } else {
            store_some(sums, of.d, rows, valid, n0, in.pair);
        }
    }
    if (threadIdx.x % WARPGROUP == 0) tma_store_done();
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    gemm(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b,
         const __grid_constant__ TensorMap map_sa, const __grid_constant__ TensorMap map_sb,
         const __grid_constant__ TensorMap map_d, const TensorMap *groups_maps, const float *scales_b,
         const int *numbers, const void *c, void *d, u32 m, u32 groups) {
    const Arguments of = {scales_b, numbers, c, d, m, groups};
    extern __shared__ u8 memory[];
    const u32 shared = (shared_address(memory) + 1023) / 1024 * 1024;
    const u32 full = shared + BARRIERS_AT, empty = full + STAGES * 8;
    const u32 rank = CLUSTER == 1 ? 0 : cluster_rank();
    if (threadIdx.x == 0) {
        for (u32 stage = 0; stage < STAGES; ++stage) {
            barrier_init(full + stage * 8, 1);
            barrier_init(empty + stage * 8, WARPGROUPS * 4 * CLUSTER);
        }
        fence_barriers();
    }
    if (CLUSTER == 1) {
        __syncthreads();
    } else {
        cluster_sync();
    }
    if (threadIdx.x < WARPGROUP) {
        if (WARPGROUPS == 2) registers_down<40>();
        if (threadIdx.x == 0) {
            produce(of, Maps{&map_a, &map_b, &map_sa, &map_sb}, groups_maps, shared, full, empty, rank);
        }
        __syncwarp();
    } else {
        if (WARPGROUPS == 2) registers_up<232>();
        const u32 thread = threadIdx.x % WARPGROUP, lane = threadIdx.x % 32;
        const Place in = {shared, full, empty, threadIdx.x / WARPGROUP - 1, lane,
                          thread / 32 * 16 + lane / 4, lane % 4 * 2};
        consume(of, &map_d, in, rank);
        __syncwarp();
    }
    // Nobody leaves while the other block may still write to its memory or arrive at its barriers.
    if (CLUSTER > 1) cluster_sync();
}
