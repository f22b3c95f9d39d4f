// What became of rows, back to where they came from, and the sums there: in the order of the ranks, on top of the
// biases. A row goes to the place of its rank and token.

INLINE void send(const Group &g) {
    const u32 rows = g.own<u32>(Before)[g.ranks], vectors = g.hidden / 8;
    const u32 from = u64(rows) * g.part / g.blocks, to = u64(rows) * (g.part + 1) / g.blocks;
    for (u32 row = from + g.warp; row < to; row += WARPS) {
        const u32 *source = g.own<u32>(Sources, 2 * u64(row));
        const u32 of = source[0];
        const u64 place = u64(g.rank) * g.tokens + source[1];
        put_row(g.own<u16>(Y, u64(row) * g.hidden), g.at<u16>(of, Back, place * g.hidden), vectors, g.lane);
        if (g.mode & WITH_WEIGHTS) {
            const float *weights = g.own<float>(YWeights, u64(row) * g.topk);
            put(weights, g.at<float>(of, BackWeights, place * g.topk), g.topk, g.lane);
        }
    }
}

// The sums of a token's weights.
INLINE void add_weights(const Group &g, u32 t, const int *places) {
    for (u32 k = g.lane; k < g.topk; k += LANES) {
        float weight = 0;
        for (u32 of = 0; of < g.ranks; ++of) {
            if (places[of] < 0) continue;
            weight = sum(weight, g.own<float>(BackWeights)[(u64(of) * g.tokens + t) * g.topk + k]);
        }
        g.own<float>(OutWeights)[u64(t) * g.topk + k] = weight;
    }
}

KERNEL combine(const Call *call) {
    // Of each warp's token: its biases, then what has come back.
    SHARED const Vector *rows[WARPS][2 + TOPK_MAX];
    const Group g(call);
    send(g);
    g.tell(BackFlags);
    if (!g.wait(BackFlags, LATE_BACK)) return;
    const u32 vectors = g.hidden / 8, biases = u32(call->biases);
    for (u32 t = g.from + g.warp; t < g.to; t += WARPS) {
        const int *places = g.own<int>(Places, u64(t) * g.ranks);
        u32 n = 0;
        for (u32 i = 0; i < biases; ++i, ++n) {
            if (g.lane == 0) rows[g.warp][n] = g.own<Vector>(Biases, (u64(i) * g.tokens + t) * vectors);
        }
        for (u32 of = 0; of < g.ranks; ++of) {
            if (places[of] < 0) continue;
            if (g.lane == 0) rows[g.warp][n] = g.own<Vector>(Back, (u64(of) * g.tokens + t) * vectors);
            ++n;
        }
        sync_warp();
        Vector *out = g.own<Vector>(Out, u64(t) * vectors);
        for (u32 at = g.lane; at < vectors; at += LANES) {
            Sums sums{};
            for (u32 i = 0; i < n; ++i) sums.add(rows[g.warp][i][at]);
            out[at] = sums.round();
        }
        if (g.mode & WITH_WEIGHTS) add_weights(g, t, places);
        sync_warp();
    }
}
