// Logits of an indexer: warpgroup 0 loads keys by TMA, two others multiply 64 keys each with the heads of some queries
// and add the heads up. Set before: HEADS, WIDTH, SPAN (queries of a block; SPAN * HEADS is 128), CHUNK (keys of a block
// in 128s), STAGES, SHARED_BYTES, and the function `wgmma` for tiles of 64 by 128.
constexpr u32 COLUMNS = SPAN * HEADS, KEYS = 128, SUMS = COLUMNS / 2;
constexpr u32 QUERIES_BYTES = COLUMNS * 128, KEYS_BYTES = KEYS * 128;
constexpr u32 BARRIERS_AT = QUERIES_BYTES + STAGES * KEYS_BYTES;

static_assert(1024 + BARRIERS_AT + STAGES * 16 + 8 == SHARED_BYTES, "as many bytes as the launch asks for");
static_assert(COLUMNS == 128 && HEADS % 8 == 0 && SPAN <= 4, "a thread of four writes the logits of a query");
static_assert(WIDTH % 32 == 0 && WIDTH <= 128, "a head is a row of shared memory");

struct Seen {
    u32 from, to;
};

// Blocks of 128 keys that a query of this block sees, within the block's own.
__device__ __forceinline__ Seen seen_blocks(const u32 *seen, u32 first_query, u32 queries, Seen own) {
    u32 from = ~0u, to = 0;
    for (u32 i = 0; i < SPAN && first_query + i < queries; ++i) {
        const u32 a = seen[(first_query + i) * 2], b = seen[(first_query + i) * 2 + 1];
        if (a < b) from = smaller(from, a / KEYS), to = greater(to, parts(b, KEYS));
    }
    from = greater(from, own.from), to = smaller(to, own.to);
    return from < to ? Seen{from, to} : Seen{own.from, own.from};
}

__device__ __forceinline__ void multiply_block(float (&part)[SUMS], u32 keys, u32 queries) {
    const u64 a = matrix_descriptor(keys), b = matrix_descriptor(queries);
    __syncwarp();
    wgmma_begin();
#pragma unroll
    for (u32 k = 0; k < WIDTH / 32; ++k) wgmma(part, a + k * 2, b + k * 2, k > 0);
    wgmma_commit();
}

extern "C" __global__ void __launch_bounds__(384, 1)
    logits(const __grid_constant__ TensorMap map_q, const __grid_constant__ TensorMap map_k, const float *key_scales,
           const float *weights, const u32 *seen, float *d, u32 queries, u32 keys) {
    extern __shared__ u8 memory[];
    const u32 shared = (shared_address(memory) + 1023) / 1024 * 1024;
    const u32 full = shared + BARRIERS_AT, empty = full + STAGES * 8, loaded = empty + STAGES * 8;
    const u32 first_query = blockIdx.x * SPAN, own_from = blockIdx.y * CHUNK;
    const Seen own = {own_from, smaller(own_from + CHUNK, parts(keys, KEYS))};
    const Seen blocks = seen_blocks(seen, first_query, queries, own);
    if (threadIdx.x == 0) {
        for (u32 stage = 0; stage < STAGES; ++stage) {
            barrier_init(full + stage * 8, 1);
            barrier_init(empty + stage * 8, 8);
        }
        barrier_init(loaded, 1);
        fence_barriers();
    }
    __syncthreads();
    if (threadIdx.x < WARPGROUP) {
        if (threadIdx.x != 0 || blocks.from == blocks.to) return;
        barrier_expect(loaded, QUERIES_BYTES);
        tma_load(shared, &map_q, 0, first_query * HEADS, loaded);
        u32 stage = 0, phase = 0;
        for (u32 block = blocks.from; block < blocks.to; ++block) {
            barrier_wait(empty + stage * 8, phase ^ 1);
            barrier_expect(full + stage * 8, KEYS_BYTES);
            tma_load(shared + QUERIES_BYTES + stage * KEYS_BYTES, &map_k, 0, block * KEYS, full + stage * 8);
            stage = stage + 1 == STAGES ? 0 : stage + 1;
            phase ^= stage == 0;
        }
        return;
    }
    const u32 thread = threadIdx.x - WARPGROUP, lane = threadIdx.x % 32, quarter = lane % 4;
    const u32 warpgroup = thread / WARPGROUP, row = thread / 32 * 16 + lane / 4;
    const float nothing = __uint_as_float(0xff800000);
    for (u32 block = own.from; block < own.to; ++block) {
        if (block >= blocks.from && block < blocks.to) continue;
        for (u32 i = thread; i < SPAN * KEYS; i += 2 * WARPGROUP) {
            const u32 query = first_query + i / KEYS, key = block * KEYS + i % KEYS;
            if (query < queries && key < keys) d[u64(query) * keys + key] = nothing;
        }
    }
    if (blocks.from == blocks.to) return;
    float weight[COLUMNS / 4];
#pragma unroll
    for (u32 i = 0; i < COLUMNS / 4; ++i) {
        const u32 column = i / 2 * 8 + quarter * 2 + i % 2, query = first_query + column / HEADS;
        weight[i] = query < queries ? weights[u64(query) * HEADS + column % HEADS] : 0;
    }
    const u32 mine = first_query + quarter;
    const bool writes = quarter < SPAN && mine < queries;
    const Seen sees = writes ? Seen{seen[mine * 2], seen[mine * 2 + 1]} : Seen{0, 0};
    barrier_wait(loaded, 0);
    u32 stage = 0, phase = 0;
    for (u32 block = blocks.from; block < blocks.to; ++block) {
        const u32 key = block * KEYS + row;
        const float scale[2] = {key < keys ? __ldg(key_scales + key) : 0,
                                key + 8 < keys ? __ldg(key_scales + key + 8) : 0};
        barrier_wait(full + stage * 8, phase);
        float part[SUMS];
        multiply_block(part, shared + QUERIES_BYTES + stage * KEYS_BYTES + warpgroup * 64 * 128, shared);
        wgmma_wait<0>();
#pragma unroll
        for (u32 i = 0; i < SUMS; ++i) pin(part[i]);
        __syncwarp();
        if (lane == 0) barrier_arrive(empty + stage * 8);
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        phase ^= stage == 0;
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            float logit = nothing;
#pragma unroll
            for (u32 query = 0; query < SPAN; ++query) {
                float sum = 0;
#pragma unroll
                for (u32 i = query * HEADS / 4; i < (query + 1) * HEADS / 4; ++i) {
                    sum += fmaxf(part[i / 2 * 4 + half * 2 + i % 2] * scale[half], 0.0f) * weight[i];
                }
                sum += __shfl_xor_sync(~0u, sum, 1);
                sum += __shfl_xor_sync(~0u, sum, 2);
                if (quarter == query) logit = sum;
            }
            const u32 at = key + half * 8;
            if (!writes || at >= keys) continue;
            d[u64(mine) * keys + at] = at >= sees.from && at < sees.to ? logit : nothing;
        }
    }
}
