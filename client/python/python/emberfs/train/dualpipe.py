"""Pipelines in two directions: schedules, their times, and an executor over threads."""

from . import _native

__all__ = ["Pipeline", "Simulation"]

Simulation = _native.Simulation


class Pipeline:
    """The schedules of ``kind`` "dualpipe" or "dualpipev" for so many ranks and micro-batches."""

    def __init__(self, kind, ranks, chunks, forward_only=False):
        self._native = _native.Pipeline(kind, ranks, chunks, forward_only)
        self.ranks, self.stages = self._native.ranks, self._native.stages
        self.chunks_of_module = self._native.chunks_of_module

    def stage(self, rank, module):
        """The stage that module 0 or 1 of a rank holds."""
        return self._native.stage(rank, module)

    def is_first(self, rank, module):
        """Whether that is the first stage, which takes inputs."""
        return self._native.is_first(rank, module)

    def is_last(self, rank, module):
        """Whether that is the last stage, which takes labels."""
        return self._native.is_last(rank, module)

    def program(self, rank):
        """What a rank does, in order: tuples ("forward" | "backward" | "backward_input" | "weight", module, chunk),
        ("overlapped", (module, chunk) forward, (module, chunk) backward), and ("exchange", [("send" | "receive",
        "activation" | "gradient", module, chunk, peer), ...]), whose messages are posted together."""
        return self._native.program(rank)

    def simulate(self, forward=1.0, backward=2.0, weight=1.0, overlapped=3.0):
        """Times of a step: ``makespan``, ``bubbles`` and ``peak_activations`` by rank, ``text()``, ``svg()``."""
        return self._native.simulate([forward, backward, weight, overlapped])

    def run(self, stages, inputs, labels, criterion, limit=60.0):
        """Runs a step with a thread for each rank.

        ``stages[rank]`` are two objects with ``forward(chunk, x, keep) -> y``, ``backward_input(chunk, dy) -> (dx,
        deferred)`` and ``weight_gradients(deferred)``. ``inputs[rank]`` and ``labels[rank]`` are two lists, one for each
        module, with an entry for each of ``chunks_of_module`` micro-batches where the module is the first or last stage,
        else empty. ``criterion(y, label) -> (loss, dy)``. A message is waited for ``limit`` seconds.

        Returns for each rank (losses, outputs). What a stage raises is raised.
        """
        feeds = [(list(map(list, x)), list(map(list, y))) for x, y in zip(inputs, labels, strict=True)]
        return self._native.run([list(pair) for pair in stages], feeds, criterion, limit)
