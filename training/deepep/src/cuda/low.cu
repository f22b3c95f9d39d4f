// The low-latency mode: a message for each token and expert, in a place of its own at the expert's rank, which nothing
// has to be counted for; there each expert's rows are packed in the order of rank and token. On the way back each
// result has a place too, by choice and token, and the weights are applied where it arrives, in the order of choices.

#ifndef ONLY_LOW_COMBINE
// Lanes of a warp hold 128 numbers; those behind the end of a row count nothing.
constexpr u32 EACH = BLOCK / LANES;

// Writes a token's numbers in FP8, and their scales, to `n` places.
INLINE void put_cast(const Group &g, u32 t, const u64 *rows, const u64 *scales, u32 n) {
    const u16 *row = g.own<u16>(X, u64(t) * g.hidden);
    for (u32 block = 0; block < parts(g.hidden, BLOCK); ++block) {
        const u32 column = block * BLOCK + g.lane * EACH;
        float x[EACH], most = 1e-4f;
        UNROLL for (u32 i = 0; i < EACH; i += 4) {
            const bool there = column + i < g.hidden;
            const u64 four = there ? *reinterpret_cast<const u64 *>(row + column + i) : 0;
            UNROLL for (u32 j = 0; j < 4; ++j) {
                x[i + j] = bits_float(u32(four >> (16 * j)) << 16);
                most = greater(most, magnitude(x[i + j]));
            }
        }
        float scale = quotient(greatest_in_warp(most), 448.0f);
        if (g.mode & POWERS) {
            const u32 bits = float_bits(scale), exponent = (bits >> 23 & 255) + ((bits & 0x7fffff) != 0);
            scale = bits_float((exponent < 1 ? 1 : exponent > 254 ? 254 : exponent) << 23);
        }
        const float inverse = quotient(1.0f, scale);
        UNROLL for (u32 i = 0; i < EACH; i += 4) {
            u32 four = 0;
            UNROLL for (u32 j = 0; j < 4; ++j) four |= u32(to_e4m3(product(x[i + j], inverse))) << (8 * j);
            for (u32 to = 0; to < n && column + i < g.hidden; ++to) {
                *reinterpret_cast<u32 *>(rows[to] + column + i) = four;
            }
        }
        for (u32 to = g.lane; to < n; to += LANES) reinterpret_cast<float *>(scales[to])[block] = scale;
    }
}

INLINE void send_messages(const Group &g) {
    SHARED u64 rows[WARPS][TOPK_MAX];
    SHARED u64 scales[WARPS][TOPK_MAX];
    const u32 bytes = g.hidden * (g.mode & FP8 ? 1 : 2), blocks = parts(g.hidden, BLOCK);
    for (u32 t = g.from + g.warp; t < g.to; t += WARPS) {
        u32 n = 0;
        for (u32 k = 0; k < g.topk; ++k) {
            const int expert = g.own<int>(XChosen)[u64(t) * g.topk + k];
            if (expert < 0) continue;
            const u32 to = expert / g.local;
            const u64 place = (u64(expert % g.local) * g.ranks + g.rank) * g.tokens + t;
            if (g.lane == 0) {
                rows[g.warp][n] = reinterpret_cast<u64>(g.at<u8>(to, Messages, place * bytes));
                scales[g.warp][n] = reinterpret_cast<u64>(g.at<float>(to, MessageScales, place * blocks));
                *g.at<u64>(to, Headers, place) = u64(g.epoch) << 32 | k;
            }
            ++n;
        }
        sync_warp();
        if (g.mode & FP8) {
            put_cast(g, t, rows[g.warp], scales[g.warp], n);
        } else {
            put_row(g.own<u8>(X, u64(t) * bytes), rows[g.warp], n, bytes / 16, g.lane);
        }
        sync_warp();
    }
}

// Which of a rank's tokens from `t0` on, as many as there are lanes, have come to an expert; and this lane's header.
INLINE u32 arrived(const Group &g, u32 expert, u32 of, u32 t0, u64 &header) {
    const u32 t = t0 + g.lane;
    header = t < g.tokens ? *g.own<u64>(Headers, (u64(expert) * g.ranks + of) * g.tokens + t) : 0;
    return ballot(header >> 32 == g.epoch);
}

// Packs the rows of one rank for one expert.
INLINE void pack(const Group &g, u32 expert, u32 of) {
    const u32 bytes = g.hidden * (g.mode & FP8 ? 1 : 2), blocks = parts(g.hidden, BLOCK);
    u64 header;
    u32 begin = 0;
    for (u32 earlier = 0; earlier < of; ++earlier) {
        for (u32 t0 = 0; t0 < g.tokens; t0 += LANES) begin += ones(arrived(g, expert, earlier, t0, header));
    }
    u32 found = 0;
    for (u32 t0 = 0; t0 < g.tokens; t0 += LANES) {
        const u32 mask = arrived(g, expert, of, t0, header);
        const u64 first = u64(expert) * g.ranks * g.tokens + begin + found;
        if (g.warp == 0 && (mask >> g.lane & 1)) {
            u32 *source = g.own<u32>(Sources, 4 * (first + ones(mask & ((1u << g.lane) - 1))));
            source[0] = of;
            source[1] = t0 + g.lane;
            source[2] = u32(header);
        }
        u32 i = 0;
        for (u32 left = mask; left != 0; left &= left - 1, ++i) {
            if ((found + i) % WARPS != g.warp) continue;
            const u64 from = (u64(expert) * g.ranks + of) * g.tokens + t0 + lowest(left), to = first + i;
            put_row(g.own<u8>(Messages, from * bytes), g.own<u8>(Values, to * bytes), bytes / 16, g.lane);
            if (g.mode & FP8) {
                put(g.own<float>(MessageScales, from * blocks), g.own<float>(Scales, to * blocks), blocks, g.lane);
            }
        }
        found += ones(mask);
    }
    if (thread() == 0) {
        u32 *range = g.own<u32>(Ranges, 2 * (u64(expert) * g.ranks + of));
        range[0] = begin;
        range[1] = found;
    }
}

KERNEL low_dispatch(const Call *call) {
    const Group g(call);
    send_messages(g);
    g.tell(TokensFlags);
    if (!g.wait(TokensFlags, LATE_TOKENS)) return;
    for (u32 pair = g.part; pair < g.local * g.ranks; pair += g.blocks) pack(g, pair / g.ranks, pair % g.ranks);
}
#endif

#ifndef ONLY_LOW_DISPATCH
KERNEL low_combine(const Call *call) {
    // Of each warp's token: what has come back, and its weights.
    SHARED const Vector *rows[WARPS][TOPK_MAX];
    SHARED float weights[WARPS][TOPK_MAX];
    const Group g(call);
    const u32 vectors = g.hidden / 8;
    for (u32 pair = g.part; pair < g.local * g.ranks; pair += g.blocks) {
        const u32 begin = g.own<u32>(Ranges)[2 * pair], rows = g.own<u32>(Ranges)[2 * pair + 1];
        for (u32 i = g.warp; i < rows; i += WARPS) {
            const u64 row = u64(pair / g.ranks) * g.ranks * g.tokens + begin + i;
            const u32 *source = g.own<u32>(Sources, 4 * row);
            const u64 place = u64(source[2]) * g.tokens + source[1];
            u16 *to = g.at<u16>(source[0], Back, place * g.hidden);
            put_row(g.own<u16>(Y, row * g.hidden), to, vectors, g.lane);
        }
    }
    g.tell(BackFlags);
    if (!g.wait(BackFlags, LATE_BACK)) return;
    for (u32 t = g.from + g.warp; t < g.to; t += WARPS) {
        const int *chosen = g.own<int>(XChosen, u64(t) * g.topk);
        u32 n = 0;
        for (u32 k = 0; k < g.topk; ++k) {
            if (chosen[k] < 0) continue;
            if (g.lane == 0) {
                rows[g.warp][n] = g.own<Vector>(Back, (u64(k) * g.tokens + t) * vectors);
                weights[g.warp][n] = *g.own<float>(XWeights, u64(t) * g.topk + k);
            }
            ++n;
        }
        sync_warp();
        Vector *out = g.own<Vector>(Out, u64(t) * vectors);
        for (u32 at = g.lane; at < vectors; at += LANES) {
            Sums sums{};
            for (u32 i = 0; i < n; ++i) sums.add(rows[g.warp][i][at], weights[g.warp][i]);
            out[at] = sums.round();
        }
        sync_warp();
    }
}
#endif
