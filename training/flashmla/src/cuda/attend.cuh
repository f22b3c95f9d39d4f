// Attention of 64 rows (queries and heads) to keys, a page of 64 at a time: warpgroup 0 brings pages to shared memory,
// the other two multiply. Of a page's logits each of them computes half, 64 rows by 32 keys, and of the output half the
// columns, 64 by 256; weights go by shared memory, as BF16. Set before: SHARED_BYTES, what hopper.cuh and
// instructions.cuh have, and the functions `wgmma_logits` for tiles of 64 by 32 and `wgmma_values` for 64 by 256, whose
// second factor's rows are K.
constexpr u32 PAGE = 64, WIDTH = 576, VALUES = 512, ROWS = 64;
constexpr u32 CHUNKS = WIDTH / 64, CHUNK_BYTES = 64 * 128, PAGE_BYTES = CHUNKS * CHUNK_BYTES;
constexpr u32 STAGES = 2, CONSUMERS = 2 * WARPGROUP;
constexpr float LOG2_E = 1.44269504088896340736f, LN_2 = 0.69314718055994530942f;

// Shared memory from a multiple of 1024 on. Keys and queries are in chunks of 64 columns, each 64 rows of 128 bytes
// with the 128-byte swizzle.
constexpr u32 QUERIES_AT = 0, PAGES_AT = PAGE_BYTES, WEIGHTS_AT = PAGES_AT + STAGES * PAGE_BYTES;
constexpr u32 GREATEST_AT = WEIGHTS_AT + CHUNK_BYTES, SUMS_AT = GREATEST_AT + 2 * ROWS * 4;
constexpr u32 THERE_AT = SUMS_AT + 2 * ROWS * 4, FULL_AT = THERE_AT + STAGES * 8, EMPTY_AT = FULL_AT + STAGES * 8;
static_assert(1024 + EMPTY_AT + STAGES * 8 == SHARED_BYTES, "as much as is asked for");

// What one part does; as in schedule.rs.
struct Part {
    int begin, begin_page, begin_piece, begin_is_split, end, end_page, end_is_split, unused;
};

struct Arguments {
    const u16 *q;
    const Part *parts;
    // Tokens of each request; and of pieces before each.
    const int *lengths, *pieces;
    u16 *out;
    float *lse;
    // Of pieces: `[pieces, queries, heads, 512]` and `[pieces, queries, heads]`, which is of base 2.
    float *part_out, *part_lse;
    // A logit for each head, or null.
    const float *sink;
    u32 queries, heads;
    float scale;
};

// Rows of a tile, from `first_row` on: row i is query `first_query + i / group` and head `first_head + i % group`.
struct Tile {
    u32 first_query, queries, first_head, group, first_row;
};

struct Range {
    u32 from, to, piece;
    bool split;
};

__device__ __forceinline__ u32 pages_of(int length) { return parts(u32(length), PAGE); }

__device__ __forceinline__ Range range_of(const Arguments &of, const Part &part, int request) {
    const bool first = request == part.begin, last = request == part.end;
    Range range;
    range.from = first ? part.begin_page : 0;
    range.to = last ? part.end_page : pages_of(of.lengths[request]);
    range.piece = of.pieces[request] + (first ? part.begin_piece : 0);
    range.split = (first && part.begin_is_split) || (last && part.end_is_split);
    return range;
}

// A factor whose contiguous dimension is not K: rows of 128 bytes are 64 columns of one k, groups of 8 rows are 1024
// bytes apart, and the next 64 columns are in the next chunk.
__device__ __forceinline__ u64 values_descriptor(u32 address) {
    return (u64(1) << 62) | (u64(1024 >> 4) << 32) | (u64(CHUNK_BYTES >> 4) << 16) | u64((address & 0x3ffff) >> 4);
}

// Where 16 bytes of a row lie, `unit` of 72.
__device__ __forceinline__ u32 unit_at(u32 row, u32 unit) {
    return unit / 8 * CHUNK_BYTES + swizzled<128>(row * 128 + unit % 8 * 16);
}

// Query and head of a row, as their place in `[batch, queries, heads]`, of which there are fewer than 2^31.
__device__ __forceinline__ u32 place_of(const Arguments &of, const Tile &tile, u32 row) {
    const u32 i = tile.first_row + row;
    return (tile.first_query + i / tile.group) * of.heads + tile.first_head + i % tile.group;
}
__device__ __forceinline__ bool is_row(const Tile &tile, u32 row) {
    return tile.first_row + row < tile.queries * tile.group;
}

// All that multiplies. Warps come together first: matrix instructions and barriers are for whole ones.
__device__ __forceinline__ void sync_consumers() {
    __syncwarp();
    named_sync(1, CONSUMERS);
}

// Queries to shared memory, by all that multiply; rows that aren't there are zeros.
__device__ __forceinline__ void load_queries(const Arguments &of, const Tile &tile, u32 shared, u32 thread) {
    constexpr u32 UNITS = WIDTH / 8;
    for (u32 i = thread; i < ROWS * UNITS; i += CONSUMERS) {
        const u32 row = i / UNITS, unit = i % UNITS;
        uint4 x = make_uint4(0, 0, 0, 0);
        if (is_row(tile, row)) {
            const u16 *from = of.q + u64(place_of(of, tile, row)) * WIDTH;
            x = __ldg(reinterpret_cast<const uint4 *>(from) + unit);
        }
        store_shared_16(shared + QUERIES_AT + unit_at(row, unit), x);
    }
    fence_async();
    sync_consumers();
}

// One thread's share: rows `row` and `row + 8`, columns `8 i + pair` and the next one.
struct Place {
    u32 shared, thread, half, lane, row, pair;
};

struct Sums {
    float out[128];
    float greatest[2], sum[2];
};

__device__ __forceinline__ void clear(Sums &sums) {
#pragma unroll
    for (u32 i = 0; i < 128; ++i) sums.out[i] = 0;
    const float nothing = __uint_as_float(0xff800000);
    sums.greatest[0] = sums.greatest[1] = nothing;
    sums.sum[0] = sums.sum[1] = 0;
}

__device__ __forceinline__ void multiply_logits(float (&logits)[16], const Place &in, u32 page) {
    const u64 a = matrix_descriptor(in.shared + QUERIES_AT), b = matrix_descriptor(page + in.half * 32 * 128);
    __syncwarp();
    wgmma_begin();
#pragma unroll
    for (u32 k = 0; k < WIDTH / 16; ++k) {
        const u64 step = k / 4 * (CHUNK_BYTES >> 4) + k % 4 * 2;
        wgmma_logits(logits, a + step, b + step, k > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
#pragma unroll
    for (u32 i = 0; i < 16; ++i) pin(logits[i]);
}

__device__ __forceinline__ void multiply_values(Sums &sums, const Place &in, u32 page) {
    const u64 a = matrix_descriptor(in.shared + WEIGHTS_AT), b = values_descriptor(page + in.half * 4 * CHUNK_BYTES);
#pragma unroll
    for (u32 i = 0; i < 128; ++i) pin(sums.out[i]);
    wgmma_begin();
#pragma unroll
    for (u32 k = 0; k < PAGE / 16; ++k) wgmma_values(sums.out, a + k * 2, b + k * (16 * 128 >> 4), true);
    wgmma_commit();
    wgmma_wait<0>();
#pragma unroll
    for (u32 i = 0; i < 128; ++i) pin(sums.out[i]);
}

// The greatest logit of each row over both halves of the page. All logits of the page are computed afterwards.
__device__ __forceinline__ void greatest_of_rows(float (&found)[2], const float (&logits)[16], const Place &in) {
    const u32 own = in.shared + GREATEST_AT + in.half * ROWS * 4;
    const u32 other = in.shared + GREATEST_AT + (in.half ^ 1) * ROWS * 4;
#pragma unroll
    for (u32 r = 0; r < 2; ++r) {
        float x = logits[r * 2];
#pragma unroll
        for (u32 i = 0; i < 4; ++i) x = fmaxf(x, fmaxf(logits[i * 4 + r * 2], logits[i * 4 + r * 2 + 1]));
        x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
        found[r] = fmaxf(x, __shfl_xor_sync(~0u, x, 2));
        if (in.pair == 0) store_shared_one(own + (in.row + r * 8) * 4, found[r]);
    }
    sync_consumers();
#pragma unroll
    for (u32 r = 0; r < 2; ++r) found[r] = fmaxf(found[r], load_shared(other + (in.row + r * 8) * 4));
}

// Weights of the page's keys to shared memory, and what was summed before made relative to the new greatest logit.
__device__ __forceinline__ void weigh(Sums &sums, const float (&logits)[16], const Place &in) {
    float greatest[2];
    greatest_of_rows(greatest, logits, in);
#pragma unroll
    for (u32 r = 0; r < 2; ++r) {
        const float now = fmaxf(sums.greatest[r], greatest[r]);
        // Nothing seen yet: all weights are zero, not 2^(-inf + inf).
        const float base = now == __uint_as_float(0xff800000) ? 0 : now;
        const float kept = exp2f(sums.greatest[r] - base);
        sums.greatest[r] = now;
        sums.sum[r] *= kept;
#pragma unroll
        for (u32 i = 0; i < 32; ++i) {
            sums.out[i * 4 + r * 2] *= kept;
            sums.out[i * 4 + r * 2 + 1] *= kept;
        }
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            const float x = exp2f(logits[i * 4 + r * 2] - base), y = exp2f(logits[i * 4 + r * 2 + 1] - base);
            sums.sum[r] += x + y;
            const u32 offset = (in.row + r * 8) * 128 + (in.half * 32 + i * 8 + in.pair) * 2;
            store_shared(in.shared + WEIGHTS_AT + swizzled<128>(offset), two_bf16(x, y));
        }
    }
}

// The sum over both halves of the keys and all threads of a row.
__device__ __forceinline__ void complete_sums(Sums &sums, const Place &in) {
    const u32 own = in.shared + SUMS_AT + in.half * ROWS * 4, other = in.shared + SUMS_AT + (in.half ^ 1) * ROWS * 4;
#pragma unroll
    for (u32 r = 0; r < 2; ++r) {
        sums.sum[r] += __shfl_xor_sync(~0u, sums.sum[r], 1);
        sums.sum[r] += __shfl_xor_sync(~0u, sums.sum[r], 2);
        if (in.pair == 0) store_shared_one(own + (in.row + r * 8) * 4, sums.sum[r]);
    }
    sync_consumers();
#pragma unroll
    for (u32 r = 0; r < 2; ++r) {
        const float rest = load_shared(other + (in.row + r * 8) * 4);
        // In the same order in both halves, so that both divide by the same number.
        sums.sum[r] = in.half == 0 ? sums.sum[r] + rest : rest + sums.sum[r];
    }
}

// Of a request that one part does alone: results; of a piece: means and logarithms of base 2 for `combine`.
__device__ __forceinline__ void write(const Arguments &of, const Tile &tile, const Range &range, u32 request,
                                      const Sums &sums, const Place &in) {
#pragma unroll
    for (u32 r = 0; r < 2; ++r) {
        const u32 row = in.row + r * 8;
        if (!is_row(tile, row)) continue;
        const u32 place = place_of(of, tile, row), in_request = place - request * of.queries * of.heads;
        const u32 head = in_request % of.heads, query = in_request / of.heads;
        const bool nothing = sums.sum[r] == 0;
        const float log2_sum = sums.greatest[r] + log2f(sums.sum[r]);
        float factor = nothing ? 0 : 1 / sums.sum[r];
        const u32 first = in.half * 256 + in.pair;
        if (range.split) {
            const u64 at = u64(range.piece) * of.queries * of.heads + in_request;
            float *to = of.part_out + at * VALUES + first;
#pragma unroll
            for (u32 i = 0; i < 32; ++i) {
                const float x = sums.out[i * 4 + r * 2] * factor, y = sums.out[i * 4 + r * 2 + 1] * factor;
                *reinterpret_cast<float2 *>(to + i * 8) = make_float2(x, y);
            }
            if (in.half == 0 && in.pair == 0) of.part_lse[at] = nothing ? __uint_as_float(0xff800000) : log2_sum;
            continue;
        }
        const float lse = nothing ? __uint_as_float(0x7f800000) : log2_sum * LN_2;
        if (of.sink != nullptr && !nothing) factor *= 1 / (1 + expf(of.sink[head] - lse));
        u16 *to = of.out + u64(place) * VALUES + first;
#pragma unroll
        for (u32 i = 0; i < 32; ++i) {
            const float x = sums.out[i * 4 + r * 2] * factor, y = sums.out[i * 4 + r * 2 + 1] * factor;
            *reinterpret_cast<u32 *>(to + i * 8) = two_bf16(x, y);
        }
        // `[batch, heads, queries]`.
        if (in.half == 0 && in.pair == 0) of.lse[(request * of.heads + head) * of.queries + query] = lse;
    }
}

// All rows' part, by what multiplies. `Mask` sets logits of keys that a row doesn't see to -infinity and makes zeros of
// keys that aren't there; it is called when no logits are being computed and before weights are used.
template <class Mask>
__device__ __forceinline__ void attend(const Arguments &of, const Part &part, Tile tile, const Place &in,
                                       const Mask &mask) {
    u32 stage = 0, phase = 0;
    Sums sums;
    const u32 query_in_request = tile.first_query;
    for (int request = part.begin; request <= part.end; ++request) {
        const Range range = range_of(of, part, request);
        tile.first_query = u32(request) * of.queries + query_in_request;
        clear(sums);
        if (range.from < range.to) load_queries(of, tile, in.shared, in.thread);
        for (u32 page = range.from; page < range.to; ++page) {
            barrier_wait(in.shared + FULL_AT + stage * 8, phase);
            const u32 keys = in.shared + PAGES_AT + stage * PAGE_BYTES;
            float logits[16];
            multiply_logits(logits, in, keys);
            const float scale = of.scale * LOG2_E;
#pragma unroll
            for (u32 i = 0; i < 16; ++i) logits[i] *= scale;
            mask.logits(logits, tile, request, page, stage, in);
            weigh(sums, logits, in);
            mask.clear_keys(request, page, keys, in);
            fence_async();
            sync_consumers();
            multiply_values(sums, in, keys);
            __syncwarp();
            if (in.lane == 0) barrier_arrive(in.shared + EMPTY_AT + stage * 8);
            stage = stage + 1 == STAGES ? 0 : stage + 1;
            phase ^= stage == 0;
        }
        if (range.from < range.to) complete_sums(sums, in);
        write(of, tile, range, u32(request), sums, in);
    }
}

__device__ __forceinline__ Place place_of_thread(u32 shared) {
    const u32 thread = threadIdx.x - WARPGROUP, lane = threadIdx.x % 32;
    return Place{shared, thread, thread / WARPGROUP, lane, thread % WARPGROUP / 32 * 16 + lane / 4, lane % 4 * 2};
}

// Shared memory, its barriers ready; a page is full after so many arrivals.
__device__ __forceinline__ u32 prepare(u32 arrivals) {
    extern __shared__ u8 memory[];
    const u32 shared = (shared_address(memory) + 1023) / 1024 * 1024;
    if (threadIdx.x == 0) {
        for (u32 stage = 0; stage < STAGES; ++stage) {
            barrier_init(shared + FULL_AT + stage * 8, arrivals);
            barrier_init(shared + EMPTY_AT + stage * 8, CONSUMERS / 32);
        }
        fence_barriers();
    }
    __syncthreads();
    return shared;
}
