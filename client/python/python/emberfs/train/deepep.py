"""Tokens to the ranks of their experts and back, between processes of one machine: the normal mode."""

from dataclasses import dataclass

import numpy as np

from . import _native
from ._arrays import array, flat, same

__all__ = ["Dispatched", "Group", "layout"]


@dataclass
class Dispatched:
    """What a rank has received: rows in the order of rank and token."""

    #: bf16 [rows, hidden], or (FP8 [rows, hidden], float32 scales [rows, hidden / 128 up]).
    tokens: object
    #: int64 [rows, topk]: experts of this rank, -1 for others'. Empty after ``dispatch_again``.
    chosen: np.ndarray
    #: float32 [rows, topk].
    weights: np.ndarray
    #: uint32 [rows, 2]: rank and token there.
    sources: np.ndarray
    #: uint32: rows of each expert of this rank.
    per_expert: np.ndarray
    #: For ``combine`` and ``dispatch_again``.
    handle: object


class Group:
    """A rank of several processes, which share a file in /dev/shm that isn't there before. A rank is waited for ``limit``
    seconds, now and in each call. All ranks make the same calls in the same order."""

    def __init__(self, path, rank, *, ranks, experts, hidden, topk, tokens, limit=60.0):
        self._hidden, self._topk = hidden, topk
        self._native = _native.Group(path, rank, [ranks, experts, hidden, topk, tokens], limit)

    def _sent(self, x):
        if isinstance(x, tuple):
            values, scales = array("tokens", x[0], np.uint8, 2), array("scales", x[1], np.float32, 2)
            same("tokens", values, (values.shape[0], self._hidden))
            return flat(values), flat(scales)
        x = array("tokens", x, np.uint16, 2)
        return flat(same("tokens", x, (x.shape[0], self._hidden)))

    def _got(self, of):
        (bf16, fp8), (chosen, weights, sources, per_expert), handle = of
        if fp8 is None:
            tokens = bf16.reshape(handle.rows, self._hidden)
        else:
            tokens = fp8[0].reshape(handle.rows, self._hidden), fp8[1].reshape(handle.rows, -(-self._hidden // 128))
        return Dispatched(
            tokens, chosen.reshape(-1, self._topk), weights.reshape(-1, self._topk), sources.reshape(-1, 2), per_expert,
            handle,
        )

    def dispatch(self, tokens, chosen, weights):
        """Sends ``tokens`` (bf16 [n, hidden], or FP8 and scales) to the ranks of the experts ``chosen`` (int64 [n, topk],
        -1 for none), with their ``weights`` (float32)."""
        chosen, weights = array("chosen", chosen, np.int64, 2), array("weights", weights, np.float32, 2)
        return self._got(self._native.dispatch(self._sent(tokens), flat(chosen), flat(weights)))

    def dispatch_again(self, tokens, handle):
        """Sends tokens where those of an earlier dispatch went."""
        return self._got(self._native.dispatch_again(self._sent(tokens), handle))

    def combine(self, rows, handle, weights=None, biases=()):
        """Sends ``rows`` (bf16 [rows, hidden], weighted already) back and adds them up in the order of the ranks, on top of
        up to two biases. Returns (bf16 [n, hidden], sums of the weights or None)."""
        rows = array("rows", rows, np.uint16, 2)
        if weights is not None:
            weights = flat(array("weights", weights, np.float32, 2))
        biases = [flat(array("biases", bias, np.uint16, 2)) for bias in biases]
        tokens, sums = self._native.combine(flat(rows), weights, handle, biases)
        return tokens.reshape(-1, self._hidden), None if sums is None else sums.reshape(-1, self._topk)


def layout(chosen, *, ranks, experts):
    """(uint32 [ranks], uint32 [experts]): tokens that go to each rank, and to each expert, of ``chosen`` (int64 [n, topk])."""
    chosen = array("chosen", chosen, np.int64, 2)
    tokens, topk = chosen.shape
    return _native.deepep_layout(flat(chosen), [ranks, experts, 1, topk, max(tokens, 1)])
