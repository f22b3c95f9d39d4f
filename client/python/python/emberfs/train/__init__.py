"""The training libraries of EmberFS, on the processors of this machine.

Arguments are NumPy arrays, or whatever offers DLPack or the buffer protocol (torch tensors in memory of the host among
them); Python copies nothing on the way in, so they must be contiguous (deepgemm copies FP8 operands once). Results are NumPy arrays, which offer both protocols
in turn. NumPy knows neither bfloat16 nor FP8: their bits are ``uint16`` and ``uint8``. ``ml_dtypes.bfloat16`` and
``torch.bfloat16`` are taken as they are; results become them with ``.view(ml_dtypes.bfloat16)`` or
``torch.from_numpy(x).view(torch.bfloat16)``.

What is wrong with an argument raises ``ValueError`` with its name and the rule; a rank that doesn't come raises
``TimeoutError``, one that has failed ``RuntimeError``.
"""

from . import deepep, deepgemm, dualpipe, eplb, flashmla

__all__ = ["deepep", "deepgemm", "dualpipe", "eplb", "flashmla"]
