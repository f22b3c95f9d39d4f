"""Where replicas of experts go, by load."""

import numpy as np

from . import _native
from ._arrays import array, flat, same

__all__ = ["LoadAverage", "count_tokens", "keep_in_place", "moves", "rebalance_experts"]


def _tables(tables, layers, experts):
    slots, replicas, counts, most = tables
    return slots.reshape(layers, -1), replicas.reshape(layers, experts, most), counts.reshape(layers, experts)


def rebalance_experts(weight, num_replicas, num_groups, num_nodes, num_gpus):
    """Places ``num_replicas`` replicas by the load ``weight[layers, experts]`` (float32).

    Returns ``phy2log[layers, replicas]``, the expert in each slot; ``log2phy[layers, experts, most]``, the slots of each
    expert, -1 behind the last; ``logcnt[layers, experts]``, the numbers of replicas. Ties go to the lower index.
    """
    weight = array("weight", weight, np.float32, 2)
    layers, experts = weight.shape
    shape = [experts, num_replicas, num_groups, num_nodes, num_gpus]
    return _tables(_native.eplb_rebalance(flat(weight), shape), layers, experts)


def count_tokens(chosen, experts):
    """How many of ``chosen`` (int64, -1 for none) are each expert."""
    return _native.eplb_count(flat(array("chosen", chosen, np.int64)), experts)


def _placements(old, new):
    old, new = array("old", old, np.int64, 2), array("new", new, np.int64, 2)
    same("new", new, old.shape)
    return old, new


def moves(old, new, experts, num_gpus):
    """Copies that lead from one ``phy2log`` to another: a list of (layer, expert, from slot, to slot)."""
    old, new = _placements(old, new)
    return _native.eplb_moves(flat(old), flat(new), [old.shape[0], experts, num_gpus])


def keep_in_place(old, new, experts, num_gpus):
    """The placement ``new`` with the slots of each GPU in an order that leaves what ``old`` has there."""
    old, new = _placements(old, new)
    layers = old.shape[0]
    return _tables(_native.eplb_keep(flat(old), flat(new), [layers, experts, num_gpus]), layers, experts)


class LoadAverage:
    """Moving average of loads: a step weighs half as much as one ``half_life`` steps later."""

    def __init__(self, layers, experts, half_life):
        self._shape = (layers, experts)
        self._native = _native.LoadAverage(layers, experts, half_life)

    def observe(self, counts):
        """Adds a step's ``counts[layers, experts]`` (uint64)."""
        self._native.observe(flat(array("counts", counts, np.uint64)))

    def loads(self):
        """``[layers, experts]``, float32."""
        return self._native.loads().reshape(self._shape)
