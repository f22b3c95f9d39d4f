"""The training libraries through Python: equal to the originals' data or to NumPy, errors with names, memory shared."""

import json
import multiprocessing
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from emberfs.train import deepep, deepgemm, dualpipe, eplb, flashmla

TRAINING = Path(__file__).parents[3] / "training"
BF16 = ml_dtypes.bfloat16


def data(crate, name):
    return json.loads((TRAINING / crate / "tests/data" / name).read_text())


def noise(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def difference(x, y):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return 1 - 2 * (x * y).sum() / ((x * x).sum() + (y * y).sum())


# eplb


def test_eplb_gives_the_placement_of_the_original():
    weight = np.array(
        [[90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86], [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27]],
        np.float32,
    )
    slots, replicas, counts = eplb.rebalance_experts(weight, 16, 4, 2, 8)
    assert slots.tolist() == [
        [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
        [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
    ]
    assert counts.tolist() == [[1, 2, 1, 1, 2, 2, 1, 1, 1, 1, 2, 1], [1, 2, 1, 1, 1, 2, 2, 1, 2, 1, 1, 1]]
    assert replicas.shape == (2, 12, 2) and replicas[0, 0].tolist() == [12, -1]
    for case in data("eplb", "cases.json")["cases"]:
        numbers = [case[f"num_{what}"] for what in ("replicas", "groups", "nodes", "gpus")]
        tables = eplb.rebalance_experts(np.array(case["weight"], np.float32), *numbers)
        for found, name in zip(tables, ("phy2log", "log2phy", "logcnt")):
            assert found.tolist() == case[name], case["note"]


def test_flashmla_has_the_schedules_of_the_original():
    for case in data("flashmla", "references.json")["schedules"]:
        parts, pieces = flashmla.schedule(case["cache_seqlens"], case["num_sm_parts"])
        assert [[int(x) for x in part] for part in parts] == case["parts"] and pieces == case["num_splits"]


def test_eplb_follows_loads():
    average = eplb.LoadAverage(1, 4, 10.0)
    chosen = np.array([0, 0, 0, 1, 2, 3, -1, 0], np.int64)
    average.observe(eplb.count_tokens(chosen, 4))
    assert average.loads().tolist() == [[4, 1, 1, 1]]
    first = eplb.rebalance_experts(np.ones((1, 4), np.float32), 6, 1, 1, 2)[0]
    then = eplb.rebalance_experts(average.loads(), 6, 1, 1, 2)[0]
    kept = eplb.keep_in_place(first, then, 4, 2)[0]
    assert sorted(kept[0]) == sorted(then[0]) and (then == 0).sum() == 3
    assert len(eplb.moves(first, kept, 4, 2)) <= len(eplb.moves(first, then, 4, 2))
    with pytest.raises(ValueError, match="weight: has numbers of type float64"):
        eplb.rebalance_experts(np.ones((1, 4)), 6, 1, 1, 2)
    with pytest.raises(ValueError, match="replicas"):
        eplb.rebalance_experts(np.ones((1, 4), np.float32), 3, 1, 1, 1)


# dualpipe


def test_dualpipe_has_the_programs_and_times_of_the_original():
    pipeline = dualpipe.Pipeline("dualpipe", 8, 20)
    times = pipeline.simulate()
    assert times.makespan == 66 and times.bubbles == [6.0] * 8 and times.peak_activations == [9] * 8
    assert times.svg().startswith("<svg") and times.text().count("\n") == 8
    steps = [step for step in dualpipe.Pipeline("dualpipe", 4, 8).program(0) if step[0] != "exchange"]
    assert steps[:5] == [("forward", 0, 0), ("forward", 0, 1), ("forward", 0, 2), ("forward", 1, 0), ("backward_input", 1, 0)]
    assert steps[7] == ("overlapped", (0, 3), (1, 1))
    with pytest.raises(ValueError, match="ranks"):
        dualpipe.Pipeline("dualpipe", 3, 8)


class Scale:
    """A stage that multiplies by a number."""

    def __init__(self, factor):
        self.factor, self.gradient, self.saved = factor, 0.0, {}

    def forward(self, chunk, x, keep):
        if keep:
            self.saved[chunk] = x
        return x * self.factor

    def backward_input(self, chunk, dy):
        return dy * self.factor, (dy, self.saved.pop(chunk))

    def weight_gradients(self, deferred):
        dy, x = deferred
        self.gradient += float((dy * x).sum())


@pytest.mark.parametrize("kind", ["dualpipe", "dualpipev"])
def test_dualpipe_runs_stages_of_python(kind):
    pipeline = dualpipe.Pipeline(kind, 2, 8)
    stages = [[Scale(1.0 + 0.1 * pipeline.stage(rank, module)) for module in (0, 1)] for rank in range(2)]
    chunk = lambda module, i: noise(100 * (module if kind == "dualpipe" else 0) + i, 3)
    feed = lambda takes: [
        [[chunk(m, i) for i in range(pipeline.chunks_of_module)] if takes(r, m) else [] for m in (0, 1)] for r in range(2)
    ]
    criterion = lambda y, label: (float(((y - label) ** 2).sum()), 2 * (y - label))
    done = pipeline.run(stages, feed(pipeline.is_first), feed(pipeline.is_last), criterion)
    product = np.prod([1.0 + 0.1 * stage for stage in range(pipeline.stages)])
    losses = sorted(loss for rank in done for loss in rank[0])
    inputs = [chunk(m, i) for m in ((0, 1) if kind == "dualpipe" else (0,)) for i in range(pipeline.chunks_of_module)]
    assert np.allclose(losses, sorted(((x * product - x) ** 2).sum() for x in inputs))
    first = sum(of.gradient for pair, r in zip(stages, range(2)) for m, of in enumerate(pair) if pipeline.stage(r, m) == 0)
    assert np.isclose(first, sum((2 * (x * product - x) * product * x).sum() for x in inputs))

    class Broken(Scale):
        def forward(self, chunk, x, keep):
            raise KeyError("broken")

    stages[1][0] = Broken(1.0)
    with pytest.raises(KeyError, match="broken"):
        pipeline.run(stages, feed(pipeline.is_first), feed(pipeline.is_last), criterion, limit=20)


# deepgemm


def test_deepgemm_is_near_the_product():
    a, b = noise(1, 70, 300), noise(2, 136, 300)
    exact = a @ b.T
    qa, qb = deepgemm.per_token(a), deepgemm.per_block(b)
    assert qa[0].dtype == np.uint8 and qa[1].shape == (70, 3) and qb[1].shape == (2, 3)
    for order in ("in_turn", "even_odd"):
        cpu = deepgemm.Cpu(order=order)
        d = deepgemm.fp8_gemm_nt(qa, qb, dtype="f32", cpu=cpu)
        assert difference(d, exact) < 1e-3
        slow = deepgemm.Cpu(threads=1, order=order, portable=True)
        assert (deepgemm.fp8_gemm_nt(qa, qb, dtype="f32", cpu=slow) == d).all()
    rounded = deepgemm.fp8_gemm_nt(qa, qb).view(BF16).astype(np.float32)
    assert difference(rounded, exact) < 1e-3
    rows = deepgemm.fp8_gemm_nt(qa, deepgemm.per_token(b, power_of_two=True), c=d, recipe="rows", dtype="f32")
    assert difference(rows, 2 * exact) < 1e-3
    wide = deepgemm.bf16_gemm_nt(a.astype(BF16), b.astype(BF16))
    assert difference(wide, exact) < 1e-4


def test_deepgemm_multiplies_groups():
    a, b = noise(3, 384, 256), noise(4, 2, 64, 256)
    qa, parts = deepgemm.per_token(a), [deepgemm.per_block(x) for x in b]
    qb = tuple(np.stack([part[i] for part in parts]) for i in (0, 1))
    groups = np.full(384, -1, np.int32)
    groups[:130], groups[256:300] = 1, 0
    d = deepgemm.fp8_gemm_nt_contiguous(qa, qb, groups).view(BF16).astype(np.float32)
    assert difference(d[:130], a[:130] @ b[1].T) < 1e-3 and difference(d[256:300], a[256:300] @ b[0].T) < 1e-3
    assert not d[130:256].any()
    masked = tuple(x[:256].reshape(2, 128, -1) for x in qa)
    d = deepgemm.fp8_gemm_nt_masked(masked, qb, np.array([5, 0], np.int32)).view(BF16).astype(np.float32)
    assert difference(d[0, :5], a[:5] @ b[0].T) < 1e-3 and not d[1].any()
    x, y, c = noise(5, 32, 128), noise(6, 48, 128), noise(7, 2, 32, 48)
    empty = (np.zeros((32, 0), np.uint8), np.zeros((32, 0), np.float32)), (np.zeros((48, 0), np.uint8), np.zeros((48, 0), np.float32))
    d = deepgemm.fp8_gemm_nt_k_grouped([deepgemm.per_token(x), empty[0]], [deepgemm.per_token(y), empty[1]], c)
    assert difference(d[0], c[0] + x @ y.T) < 1e-3 and (d[1] == c[1]).all()


def test_deepgemm_logits():
    q, k, weights = noise(8, 4 * 32, 64), noise(9, 20, 64), np.abs(noise(10, 4, 32))
    qq, (kv, scales) = deepgemm.per_token(q), deepgemm.per_token(k)
    seen = [(0, 5), (3, 20), (7, 7), (0, 20)]
    scaled = weights * qq[1].reshape(4, 32)
    logits = deepgemm.fp8_mqa_logits(qq[0].reshape(4, 32, 64), (kv, scales[:, 0].copy()), scaled, seen)
    exact = (np.maximum(np.einsum("shd,td->sht", q.reshape(4, 32, 64), k), 0) * weights[..., None]).sum(1)
    for i, (start, end) in enumerate(seen):
        assert np.isneginf(np.delete(logits[i], range(start, end))).all()
        assert start == end or difference(logits[i, start:end], exact[i, start:end]) < 1e-3


def test_wrong_arguments_are_named():
    a = deepgemm.per_token(noise(1, 4, 256))
    b = deepgemm.per_block(noise(2, 8, 256))
    with pytest.raises(ValueError, match="scales of a: has shape"):
        deepgemm.fp8_gemm_nt((a[0], a[1][:, :1].copy()), b)
    with pytest.raises(ValueError, match="not contiguous"):
        deepgemm.fp8_gemm_nt((a[0][:, ::2], a[1]), b)
    with pytest.raises(ValueError, match="columns"):
        deepgemm.fp8_gemm_nt(a, deepgemm.per_block(noise(2, 8, 128)))
    with pytest.raises(ValueError, match="scales"):
        deepgemm.fp8_gemm_nt((a[0], a[1] * np.float32("nan")), b)
    with pytest.raises(ValueError, match="can't be quantised"):
        deepgemm.per_token(np.full((1, 4), np.inf, np.float32))
    with pytest.raises(ValueError, match="a: no array"):
        deepgemm.bf16_gemm_nt("text", np.zeros((1, 1), np.uint16))
    with pytest.raises(ValueError, match="recipe"):
        deepgemm.fp8_gemm_nt(a, b, recipe="columns")


def test_memory_is_taken_by_either_protocol():
    a, b = noise(1, 3, 256).astype(BF16), noise(2, 5, 256).astype(BF16)
    expected = deepgemm.bf16_gemm_nt(a, b)

    class Dlpack:
        def __init__(self, x):
            self.x = x

        def __dlpack__(self, **kwargs):
            return self.x.__dlpack__(**kwargs)

        def __dlpack_device__(self):
            return self.x.__dlpack_device__()

    bits = a.view(np.uint16)
    assert (deepgemm.bf16_gemm_nt(Dlpack(bits), memoryview(b.view(np.uint16))) == expected).all()
    assert (np.from_dlpack(expected) == np.asarray(memoryview(expected))).all()
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = torch.from_numpy(bits.copy()).view(torch.bfloat16)
    assert (deepgemm.bf16_gemm_nt(x, b) == expected).all()


# deepep


def rank_of(path, rank, to):
    try:
        shape = dict(ranks=2, experts=4, hidden=128, topk=2, tokens=8)
        group = deepep.Group(path, rank, **shape, limit=30)
        x = noise(rank, 8, 128).astype(BF16)
        chosen = np.random.default_rng(rank).permuted(np.tile(np.arange(4), (8, 1)), axis=1)[:, :2].astype(np.int64)
        weights = np.abs(noise(10 + rank, 8, 2))
        got = group.dispatch(x, chosen, weights)
        rows = got.tokens.view(BF16).astype(np.float32) * got.weights.sum(1, keepdims=True)
        back, sums = group.combine(rows.astype(BF16), got.handle, weights=got.weights)
        again = group.dispatch_again(x, got.handle)
        assert (again.tokens == got.tokens).all() and got.per_expert.sum() == (got.chosen >= 0).sum()
        expected = x.astype(np.float32) * weights.sum(1, keepdims=True)
        quantised = group.dispatch(deepgemm.per_token(x.astype(np.float32)), chosen, weights)
        to.put((
            bool(np.allclose(back.view(BF16).astype(np.float32), expected, rtol=0.02, atol=0.02)),
            bool(np.allclose(sums, weights)),
            bool((quantised.sources == got.sources).all()),
        ))
        if rank == 1:
            os._exit(0)
        try:
            group.dispatch(x, chosen, weights)
            to.put("no error")
        except (RuntimeError, TimeoutError) as error:
            to.put(str(error))
    except Exception as error:
        to.put(repr(error))


def test_deepep_between_processes_and_a_rank_that_dies():
    context = multiprocessing.get_context("spawn")
    to, path = context.SimpleQueue(), f"/dev/shm/emberfs-python-{os.getpid()}"
    ranks = [context.Process(target=rank_of, args=(path, rank, to)) for rank in range(2)]
    for process in ranks:
        process.start()
    assert [to.get(), to.get()] == [(True, True, True)] * 2
    assert "rank 1" in to.get()
    for process in ranks:
        process.join()
    per_rank, per_expert = deepep.layout(np.array([[0, 3], [1, -1]], np.int64), ranks=2, experts=4)
    assert per_rank.tolist() == [2, 1] and per_expert.tolist() == [1, 1, 0, 1]
    with pytest.raises(ValueError, match="chosen"):
        deepep.layout(np.array([[0, 4]], np.int64), ranks=2, experts=4)


# flashmla


def attention(q, keys, scale):
    logits = q @ keys.T * scale
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    total = weights.sum(-1, keepdims=True)
    return weights / total @ keys[:, :512], (np.log(total) + logits.max(-1, keepdims=True))[..., 0]


def test_flashmla_dense_and_sparse():
    heads, scale = 4, 576**-0.5
    cache = noise(1, 3, 64, 1, 576).astype(BF16)
    cache.reshape(-1, 576)[64 + 36 :] = np.float32("nan")
    q = noise(2, 2, 1, heads, 576).astype(BF16)
    table, lengths = np.array([[0, 1], [7, 7]], np.int32), np.array([100, 0], np.int32)
    out, lse = flashmla.dense_decode(q, cache, table, lengths, parts=2)
    keys = cache.astype(np.float32).reshape(-1, 576)[:100]
    expected, logs = attention(q[0, 0].astype(np.float32), keys, scale)
    assert np.abs(out[0, 0].view(BF16).astype(np.float32) - expected).max() < 5e-3
    assert np.allclose(lse[0, :, 0], logs, atol=1e-4)
    assert not out[1].any() and np.isposinf(lse[1]).all()

    kv = noise(3, 50, 576).astype(BF16)
    indices = np.array([[3, 49, -1, 7]], np.int32)
    out, most, lse = flashmla.sparse_prefill(q[0], kv, indices)
    expected, logs = attention(q[0, 0].astype(np.float32), kv.astype(np.float32)[[3, 49, 7]], scale)
    assert np.abs(out[0].view(BF16).astype(np.float32) - expected).max() < 2e-2 and np.allclose(lse[0], logs, atol=1e-3)
    assert most.shape == (1, heads)

    quantised = flashmla.quantise(noise(4, 64, 576).astype(BF16))
    assert quantised.shape == (64, 656)
    back = flashmla.dequantise(quantised).view(BF16).astype(np.float32)
    out, lse = flashmla.sparse_decode(q, quantised, np.array([[[3, -1]], [[5, 9]]], np.int32))
    expected, _ = attention(q[0, 0].astype(np.float32), back[[3]], scale)
    assert np.abs(out[0, 0].view(BF16).astype(np.float32) - expected).max() < 2e-2
    parts, pieces = flashmla.schedule([100, 0], 2)
    assert len(parts) == 2 and pieces[-1] >= 2
    with pytest.raises(ValueError, match="block_table"):
        flashmla.dense_decode(q, cache, np.full((2, 2), 9, np.int32), lengths)
