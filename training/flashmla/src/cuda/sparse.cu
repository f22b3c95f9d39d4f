// Sparse decoding: one part's chosen tokens of the FP8 cache, 64 at a time, which warpgroup 0 brings to shared memory
// as BF16. Blocks: tiles of 64 heads of each query, by parts. Behind attend.cuh.
constexpr u32 TOKEN_BYTES = 656, SCALES_AT = 512, ROPE_AT = 528, OF_WARP = PAGE / 4;

// Four E4M3 numbers times a scale, in BF16.
__device__ __forceinline__ uint2 widen(u32 four, float scale) {
    float y[4];
    four_e4m3(y, four);
#pragma unroll
    for (u32 i = 0; i < 4; ++i) y[i] *= scale;
    return make_uint2(two_bf16(y[0], y[1]), two_bf16(y[2], y[3]));
}

// A warp's 16 tokens. A lane has 16 of a token's first 512 numbers; a token that isn't there is zeros.
__device__ __forceinline__ void load_tokens(const u8 *cache, int token, u32 keys, u32 warp, u32 lane) {
    constexpr u32 AHEAD = 8;
    for (u32 first = 0; first < OF_WARP; first += AHEAD) {
        uint4 numbers[AHEAD];
        float scales[AHEAD];
#pragma unroll
        for (u32 i = 0; i < AHEAD; ++i) {
            const int at = __shfl_sync(~0u, token, first + i);
            const u8 *from = cache + u64(at < 0 ? 0 : at) * TOKEN_BYTES;
            numbers[i] = make_uint4(0, 0, 0, 0), scales[i] = 0;
            if (at < 0) continue;
            numbers[i] = __ldg(reinterpret_cast<const uint4 *>(from) + lane);
            scales[i] = __ldg(reinterpret_cast<const float *>(from + SCALES_AT) + lane / 8);
        }
#pragma unroll
        for (u32 i = 0; i < AHEAD; ++i) {
            const u32 row = warp * OF_WARP + first + i;
            const uint2 a = widen(numbers[i].x, scales[i]), b = widen(numbers[i].y, scales[i]);
            const uint2 c = widen(numbers[i].z, scales[i]), d = widen(numbers[i].w, scales[i]);
            store_shared_16(keys + unit_at(row, lane * 2), make_uint4(a.x, a.y, b.x, b.y));
            store_shared_16(keys + unit_at(row, lane * 2 + 1), make_uint4(c.x, c.y, d.x, d.y));
        }
    }
    // The last 64 are BF16 already: 8 lanes have a token's.
#pragma unroll
    for (u32 first = 0; first < OF_WARP; first += 4) {
        const u32 i = first + lane / 8;
        const int at = __shfl_sync(~0u, token, i);
        uint4 numbers = make_uint4(0, 0, 0, 0);
        if (at >= 0) {
            numbers = __ldg(reinterpret_cast<const uint4 *>(cache + u64(at) * TOKEN_BYTES + ROPE_AT) + lane % 8);
        }
        store_shared_16(keys + unit_at(warp * OF_WARP + i, VALUES / 8 + lane % 8), numbers);
    }
}

__device__ __forceinline__ void load_chosen(const Arguments &of, const Part &part, const u8 *cache, const int *indices,
                                            u32 columns, u32 query, u32 shared) {
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u32 stage = 0, phase = 0;
    for (int request = part.begin; request <= part.end; ++request) {
        const Range range = range_of(of, part, request);
        const u32 count = of.lengths[request];
        const int *own = indices + (u64(request) * of.queries + query) * columns;
        for (u32 page = range.from; page < range.to; ++page) {
            const u32 i = page * PAGE + warp * OF_WARP + lane;
            const int token = lane < OF_WARP && i < count ? __ldg(own + i) : -1;
            const u32 there = __ballot_sync(~0u, token >= 0);
            barrier_wait(shared + EMPTY_AT + stage * 8, phase ^ 1);
            load_tokens(cache, token, shared + PAGES_AT + stage * PAGE_BYTES, warp, lane);
            if (lane == 0) store_shared_half(shared + THERE_AT + stage * 8 + warp * 2, u16(there));
            fence_async();
            barrier_arrive(shared + FULL_AT + stage * 8);
            stage = stage + 1 == STAGES ? 0 : stage + 1;
            phase ^= stage == 0;
        }
    }
}

struct Mask {
    __device__ __forceinline__ void logits(float (&logits)[16], const Tile &, int, u32, u32 stage,
                                           const Place &in) const {
        const u32 there = load_shared_word(in.shared + THERE_AT + stage * 8 + in.half * 4) >> in.pair;
#pragma unroll
        for (u32 i = 0; i < 16; ++i) {
            if ((there >> (i / 4 * 8 + i % 2) & 1) == 0) logits[i] = __uint_as_float(0xff800000);
        }
    }
    __device__ __forceinline__ void clear_keys(int, u32, u32, const Place &) const {}
};

extern "C" __global__ void __launch_bounds__(3 * WARPGROUP, 1)
    sparse(const u8 *cache, const u16 *q, const int *indices, const int *counts, const Part *parts_, const int *pieces,
           const float *sink, u16 *out, float *lse, float *part_out, float *part_lse, u32 queries, u32 heads,
           u32 columns, u32 scale) {
    const Arguments of = {q, parts_, counts, pieces, out, lse, part_out, part_lse, sink,
                          queries, heads, __uint_as_float(scale)};
    const u32 tiles = parts(heads, ROWS), query = blockIdx.x / tiles;
    const Part part = parts_[blockIdx.y];
    const u32 shared = prepare(WARPGROUP);
    if (threadIdx.x < WARPGROUP) {
        registers_down<104>();
        load_chosen(of, part, cache, indices, columns, query, shared);
    } else {
        registers_up<200>();
        const Tile tile = {query, 1, 0, heads, blockIdx.x % tiles * ROWS};
        attend(of, part, tile, place_of_thread(shared), Mask{});
    }
}
