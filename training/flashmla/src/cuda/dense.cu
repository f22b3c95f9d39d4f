// Dense decoding: one part's pages of a paged BF16 cache, which come by TMA. Blocks: tiles of 64 rows, of all heads of
// the cache, by parts. Behind attend.cuh.
struct Pages {
    const int *table;
    u32 columns, kv_head;
};

__device__ __forceinline__ void load_pages(const Arguments &of, const Part &part, const Pages &pages,
                                           const TensorMap *map, u32 shared) {
    u32 stage = 0, phase = 0;
    for (int request = part.begin; request <= part.end; ++request) {
        const Range range = range_of(of, part, request);
        for (u32 page = range.from; page < range.to; ++page) {
            barrier_wait(shared + EMPTY_AT + stage * 8, phase ^ 1);
            const u32 barrier = shared + FULL_AT + stage * 8;
            const u32 row = pages.table[u64(request) * pages.columns + page] * PAGE;
            barrier_expect(barrier, PAGE_BYTES);
            for (u32 chunk = 0; chunk < CHUNKS; ++chunk) {
                const u32 to = shared + PAGES_AT + stage * PAGE_BYTES + chunk * CHUNK_BYTES;
                tma_load(to, map, pages.kv_head * WIDTH + chunk * 64, row, barrier);
            }
            stage = stage + 1 == STAGES ? 0 : stage + 1;
            phase ^= stage == 0;
        }
    }
}

struct Mask {
    const int *lengths;
    u32 queries;
    bool causal;

    __device__ __forceinline__ void logits(float (&logits)[16], const Tile &tile, int request, u32 page, u32,
                                           const Place &in) const {
        const int length = lengths[request];
#pragma unroll
        for (u32 r = 0; r < 2; ++r) {
            const int behind = int(queries) - 1 - int((tile.first_row + in.row + r * 8) / tile.group);
            const int seen = causal ? smaller(length, length - behind) : length;
#pragma unroll
            for (u32 i = 0; i < 8; ++i) {
                const int key = page * PAGE + in.half * 32 + i / 2 * 8 + in.pair + i % 2;
                float &logit = logits[i / 2 * 4 + r * 2 + i % 2];
                if (key >= seen) logit = __uint_as_float(0xff800000);
            }
        }
    }
    // What lies behind the length may be no number, and zero times that is none either.
    __device__ __forceinline__ void clear_keys(int request, u32 page, u32 keys, const Place &in) const {
        const u32 tokens = smaller(PAGE, u32(lengths[request]) - page * PAGE), units = (PAGE - tokens) * 8;
        for (u32 i = in.thread; i < units * (VALUES / 64); i += CONSUMERS) {
            const u32 at = i / units * CHUNK_BYTES + tokens * 128 + i % units * 16;
            store_shared_16(keys + at, make_uint4(0, 0, 0, 0));
        }
    }
};

extern "C" __global__ void __launch_bounds__(3 * WARPGROUP, 1)
    dense(const __grid_constant__ TensorMap map, const u16 *q, const int *table, const int *lengths, const Part *parts_,
          const int *pieces, u16 *out, float *lse, float *part_out, float *part_lse, u32 queries, u32 heads,
          u32 kv_heads, u32 columns, u32 causal, u32 scale) {
    const Arguments of = {q, parts_, lengths, pieces, out, lse, part_out, part_lse, nullptr,
                          queries, heads, __uint_as_float(scale)};
    const u32 group = heads / kv_heads, tiles = parts(queries * group, ROWS), kv_head = blockIdx.x / tiles;
    const Part part = parts_[blockIdx.y];
    const u32 shared = prepare(1);
    if (threadIdx.x < WARPGROUP) {
        registers_down<40>();
        if (threadIdx.x == 0) load_pages(of, part, Pages{table, columns, kv_head}, &map, shared);
    } else {
        registers_up<232>();
        const Tile tile = {0, queries, kv_head * group, group, blockIdx.x % tiles * ROWS};
        attend(of, part, tile, place_of_thread(shared), Mask{lengths, queries, causal != 0});
    }
}
