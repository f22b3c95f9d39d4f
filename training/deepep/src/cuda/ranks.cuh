// Ranks, as parts of one grid: `blocks` blocks each, with a heap each in memory that all of them reach.

// What a call does besides.
enum Mode { AGAIN = 1, WITH_WEIGHTS = 2, FP8 = 4, POWERS = 8 };
// What a rank has been waited for, in a status: this << 32 | rank + 1.
enum What { LATE_COUNTS = 1, LATE_TOKENS = 2, LATE_BACK = 3 };

struct Call {
    u64 ranks, blocks, experts, hidden, topk, tokens, epoch, limit_ns, mode, biases;
    u64 areas[AREAS];
    // Of each rank: where its heap is; then how many tokens it has.
    u64 of_ranks[1];
};

struct alignas(16) Vector {
    u32 words[4];
};

constexpr u32 BLOCK = 128;
constexpr u32 TOPK_MAX = 32, EXPERTS_MAX = 4096, RANKS_MAX = 132;
// Vectors that a lane reads before it writes them.
constexpr u32 FLIGHT = 4;

constexpr INLINE u32 parts(u32 a, u32 b) { return (a + b - 1) / b; }

// Numbers of a call, read once.
struct Group {
    const Call *call;
    u32 ranks, blocks, local, hidden, topk, tokens, epoch, mode;
    // This block: its rank, and its number there; this thread: its warp and lane.
    u32 rank, part, warp, lane;
    // This rank's tokens, and those of them that are this block's.
    u32 count, from, to;

    INLINE explicit Group(const Call *call)
        : call(call), ranks(call->ranks), blocks(call->blocks), local(call->experts / call->ranks),
          hidden(call->hidden), topk(call->topk), tokens(call->tokens), epoch(call->epoch), mode(call->mode) {
        rank = block() / blocks;
        part = block() % blocks;
        warp = thread() / LANES;
        lane = thread() % LANES;
        count = u32(call->of_ranks[ranks + rank]);
        from = u64(count) * part / blocks;
        to = u64(count) * (part + 1) / blocks;
    }
    template <class T> INLINE T *at(u32 of, Area area, u64 element = 0) const {
        return reinterpret_cast<T *>(call->of_ranks[of] + call->areas[area]) + element;
    }
    template <class T> INLINE T *own(Area area, u64 element = 0) const { return at<T>(rank, area, element); }

    // After what all threads of the block have written: sets its flag at every rank.
    INLINE void tell(Area flags) const {
        sync_block();
        for (u32 to = thread(); to < ranks; to += THREADS) {
            store_release(at<u32>(to, flags, block()), epoch);
        }
    }
    // Until every block of every rank has set its flag here. False if one is late: the kernel must end then.
    INLINE bool wait(Area flags, What what) const {
        bool late = false;
        const u64 limit = call->limit_ns, begin = now_ns();
        for (u32 i = thread(); i < ranks * blocks && !late; i += THREADS) {
            while (load_acquire(own<u32>(flags, i)) != epoch) {
                if (now_ns() - begin > limit) {
                    set_once(own<u64>(Status), u64(what) << 32 | (i / blocks + 1));
                    late = true;
                    break;
                }
                rest();
            }
        }
        return !any_in_block(late);
    }
};

// A warp's copy of a row of so many vectors to each of `n` places.
INLINE void put_row(const void *from, const u64 *places, u32 n, u32 vectors, u32 lane) {
    const Vector *row = static_cast<const Vector *>(from);
    for (u32 at = lane; at < vectors; at += LANES * FLIGHT) {
        Vector held[FLIGHT];
        UNROLL for (u32 i = 0; i < FLIGHT; ++i) {
            if (at + i * LANES < vectors) held[i] = row[at + i * LANES];
        }
        for (u32 j = 0; j < n; ++j) {
            Vector *place = reinterpret_cast<Vector *>(places[j]);
            UNROLL for (u32 i = 0; i < FLIGHT; ++i) {
                if (at + i * LANES < vectors) place[at + i * LANES] = held[i];
            }
        }
    }
}
INLINE void put_row(const void *from, void *place, u32 vectors, u32 lane) {
    const u64 places[1] = {reinterpret_cast<u64>(place)};
    put_row(from, places, 1, vectors, lane);
}
template <class T> INLINE void put(const T *from, T *to, u32 count, u32 lane) {
    for (u32 i = lane; i < count; i += LANES) to[i] = from[i];
}

// The nearest BF16 number, the even one of two.
INLINE u32 rounded(float x) {
    const u32 bits = float_bits(x);
    return x != x ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
struct Sums {
    float x[8];
    INLINE void add(const Vector &row) {
        UNROLL for (u32 i = 0; i < 4; ++i) {
            x[2 * i] = sum(x[2 * i], bits_float(row.words[i] << 16));
            x[2 * i + 1] = sum(x[2 * i + 1], bits_float(row.words[i] & 0xffff0000));
        }
    }
    INLINE void add(const Vector &row, float weight) {
        UNROLL for (u32 i = 0; i < 4; ++i) {
            x[2 * i] = sum(x[2 * i], product(weight, bits_float(row.words[i] << 16)));
            x[2 * i + 1] = sum(x[2 * i + 1], product(weight, bits_float(row.words[i] & 0xffff0000)));
        }
    }
    INLINE Vector round() const {
        Vector out;
        UNROLL for (u32 i = 0; i < 4; ++i) out.words[i] = rounded(x[2 * i]) | rounded(x[2 * i + 1]) << 16;
        return out;
    }
};
