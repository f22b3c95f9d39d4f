// Each token once to each rank that has an expert for it. Rows come in the order of rank and token: a token's place
// among those of its block is counted, the blocks' counts are told to all ranks, and sums of them give the row.

// Counts the tokens of this block that go to each rank, and their places among these; -1 for a token that doesn't.
INLINE void count(const Group &g) {
    SHARED u32 experts[EXPERTS_MAX];
    const u32 all = g.ranks * g.local;
    const int *chosen = g.own<int>(XChosen);
    for (u32 i = thread(); i < all; i += THREADS) experts[i] = 0;
    sync_block();
    for (u32 i = g.from * g.topk + thread(); i < g.to * g.topk; i += THREADS) {
        if (chosen[i] >= 0) add_shared(&experts[chosen[i]], 1);
    }
    for (u32 to = g.warp; to < g.ranks; to += WARPS) {
        const u32 first = to * g.local;
        u32 found = 0;
        for (u32 t0 = g.from; t0 < g.to; t0 += LANES) {
            const u32 t = t0 + g.lane;
            bool goes = false;
            for (u32 k = 0; k < g.topk && t < g.to; ++k) goes |= u32(chosen[t * g.topk + k]) - first < g.local;
            const u32 mask = ballot(goes);
            const u32 place = found + ones(mask & ((1u << g.lane) - 1));
            if (t < g.to) g.own<int>(Places)[u64(t) * g.ranks + to] = goes ? int(place) : -1;
            found += ones(mask);
        }
        for (u32 at = g.lane; at < g.ranks; at += LANES) g.at<u32>(at, Counts)[block() * g.ranks + to] = found;
    }
    sync_block();
    for (u32 i = thread(); i < all; i += THREADS) {
        g.at<u32>(i / g.local, ExpertCounts)[block() * g.local + i % g.local] = experts[i];
    }
}

// The places and counts of an earlier dispatch. They are there already if its buffer is the one to be filled.
INLINE void recall(const Group &g) {
    if (g.own<u32>(Counts) == g.own<u32>(OldCounts)) return;
    for (u64 i = u64(g.from) * g.ranks + thread(); i < u64(g.to) * g.ranks; i += THREADS) {
        g.own<int>(Places)[i] = g.own<int>(OldPlaces)[i];
    }
    if (g.part > 0) return;
    for (u32 i = thread(); i < g.ranks * g.blocks * g.ranks; i += THREADS) {
        g.own<u32>(Counts)[i] = g.own<u32>(OldCounts)[i];
    }
}

// What the host wants to know of the rows that come here.
INLINE void summarise(const Group &g, const u32 *counts) {
    u32 *before = g.own<u32>(Before);
    for (u32 of = thread(); of <= g.ranks; of += THREADS) {
        u32 rows = 0;
        for (u32 i = 0; i < of * g.blocks; ++i) rows += counts[i * g.ranks + g.rank];
        before[of] = rows;
    }
    if (g.mode & AGAIN) return;
    for (u32 expert = thread(); expert < g.local; expert += THREADS) {
        u32 rows = 0;
        for (u32 i = 0; i < g.ranks * g.blocks; ++i) rows += g.own<u32>(ExpertCounts)[i * g.local + expert];
        g.own<u32>(PerExpert)[expert] = rows;
    }
}

// What goes with a token's numbers.
INLINE void put_more(const Group &g, u32 t, u32 to, u32 row) {
    const u32 blocks = parts(g.hidden, BLOCK);
    if (g.mode & FP8) {
        put(g.own<float>(XScales, u64(t) * blocks), g.at<float>(to, Scales, u64(row) * blocks), blocks, g.lane);
    }
    if (g.lane == 0) {
        g.at<u32>(to, Sources)[2 * u64(row)] = g.rank;
        g.at<u32>(to, Sources)[2 * u64(row) + 1] = t;
    }
    if (g.mode & AGAIN) return;
    for (u32 k = g.lane; k < g.topk; k += LANES) {
        const u64 from = u64(t) * g.topk + k, at = u64(row) * g.topk + k;
        const u32 expert = u32(g.own<int>(XChosen)[from]) - to * g.local;
        const bool there = expert < g.local;
        g.at<int>(to, Chosen)[at] = there ? int(expert) : -1;
        g.at<float>(to, Weights)[at] = there ? g.own<float>(XWeights)[from] : 0.0f;
    }
}

KERNEL dispatch(const Call *call) {
    SHARED u32 first[RANKS_MAX];
    SHARED u64 rows[WARPS][TOPK_MAX];
    const Group g(call);
    if (g.mode & AGAIN) {
        recall(g);
        sync_block();
    } else {
        count(g);
        g.tell(CountsFlags);
        if (!g.wait(CountsFlags, LATE_COUNTS)) return;
    }
    const u32 *counts = g.own<u32>(g.mode & AGAIN ? OldCounts : Counts);
    if (g.part == 0) summarise(g, counts);
    for (u32 to = thread(); to < g.ranks; to += THREADS) {
        u32 before = 0;
        for (u32 i = 0; i < block(); ++i) before += counts[i * g.ranks + to];
        first[to] = before;
    }
    sync_block();
    const u32 bytes = g.hidden * (g.mode & FP8 ? 1 : 2);
    for (u32 t = g.from + g.warp; t < g.to; t += WARPS) {
        u32 n = 0;
        for (u32 to = 0; to < g.ranks; ++to) {
            const int place = g.own<int>(Places)[u64(t) * g.ranks + to];
            if (place < 0) continue;
            const u32 row = first[to] + place;
            if (g.lane == 0) rows[g.warp][n] = reinterpret_cast<u64>(g.at<u8>(to, Values, u64(row) * bytes));
            put_more(g, t, to, row);
            ++n;
        }
        sync_warp();
        put_row(g.own<u8>(X, u64(t) * bytes), rows[g.warp], n, bytes / 16, g.lane);
        sync_warp();
    }
    g.tell(TokensFlags);
    g.wait(TokensFlags, LATE_TOKENS);
}
