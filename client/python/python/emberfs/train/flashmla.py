"""Attention with latent keys: 576 numbers a token, of which 512 are the value; pages of 64 tokens."""

import numpy as np

from . import _native
from ._arrays import array, flat, same

__all__ = ["dense_decode", "dequantise", "quantise", "schedule", "sparse_decode", "sparse_prefill"]

PAGE, WIDTH, VALUE, CACHE = 64, 576, 512, 656


def schedule(lengths, parts):
    """How requests of so many tokens are divided into parts: a list of (first request, its page, its piece, whether it is
    split, last request, the page behind its last, whether that is split), and the pieces before each request."""
    return _native.flashmla_schedule([int(length) for length in lengths], parts)


def dense_decode(q, cache, block_table, lengths, causal=True, scale=None, parts=1):
    """``q[batch, queries, heads, 576]`` attends to ``cache[pages, 64, kv_heads, 576]`` (both bf16) by ``block_table`` and
    ``lengths`` (int32). Returns (bf16 [batch, queries, heads, 512], float32 lse [batch, heads, queries])."""
    q, cache = array("q", q, np.uint16, 4), array("cache", cache, np.uint16, 4)
    batch, queries, heads, _ = q.shape
    same("q", q, (batch, queries, heads, WIDTH))
    kv_heads = cache.shape[2]
    same("cache", cache, (cache.shape[0], PAGE, kv_heads, WIDTH))
    table, lengths = array("block_table", block_table, np.int32, 2), array("lengths", lengths, np.int32, 1)
    shape = [batch, queries, heads, kv_heads]
    out, lse = _native.flashmla_dense(flat(q), flat(cache), flat(table), lengths, shape, causal, scale, parts)
    return out.reshape(batch, queries, heads, VALUE), lse.reshape(batch, heads, queries)


def _extra(chosen, sink, scale):
    chosen = None if chosen is None else flat(array("chosen", chosen, np.int32))
    return chosen, None if sink is None else array("sink", sink, np.float32, 1), scale


def sparse_prefill(q, kv, indices, chosen=None, sink=None, scale=None):
    """``q[queries, heads, d]`` attends to chosen rows of ``kv[tokens, d]`` (bf16): ``indices[queries, k]`` (int32, -1 for
    none). Returns (bf16 [queries, heads, 512], greatest logits and lse, float32 [queries, heads])."""
    q, kv, indices = array("q", q, np.uint16, 3), array("kv", kv, np.uint16, 2), array("indices", indices, np.int32, 2)
    queries, heads, width = q.shape
    extra = _extra(chosen, sink, scale)
    out, most, lse = _native.flashmla_prefill(flat(q), flat(kv), flat(indices), [queries, heads, width], extra)
    return out.reshape(queries, heads, VALUE), most.reshape(queries, heads), lse.reshape(queries, heads)


def quantise(tokens):
    """The FP8 cache of ``tokens[n, 576]`` (bf16): uint8 [n, 656]."""
    return _native.flashmla_quantise(flat(array("tokens", tokens, np.uint16, 2))).reshape(-1, CACHE)


def dequantise(cache):
    """Back: bf16 [n, 576]."""
    return _native.flashmla_dequantise(flat(array("cache", cache, np.uint8, 2))).reshape(-1, WIDTH)


def sparse_decode(q, cache, indices, chosen=None, sink=None, scale=None):
    """``q[batch, queries, heads, 576]`` (bf16) attends to chosen tokens of the FP8 cache ``[pages * 64, 656]``:
    ``indices[batch, queries, k]`` (int32). Returns as :func:`dense_decode`."""
    q, cache = array("q", q, np.uint16, 4), array("cache", cache, np.uint8, 2)
    indices = array("indices", indices, np.int32, 3)
    batch, queries, heads, _ = q.shape
    same("q", q, (batch, queries, heads, WIDTH))
    extra = _extra(chosen, sink, scale)
    out, lse = _native.flashmla_sparse(flat(q), flat(cache), flat(indices), [batch, queries, heads], extra)
    return out.reshape(batch, queries, heads, VALUE), lse.reshape(batch, heads, queries)
