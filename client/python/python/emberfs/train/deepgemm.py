"""Products of FP8 and BF16 matrices with fine-grained scales."""

import numpy as np

from . import _native
from ._arrays import array, flat, same

__all__ = [
    "Cpu", "bf16_gemm_nt", "fp8_gemm_nt", "fp8_gemm_nt_contiguous", "fp8_gemm_nt_k_grouped", "fp8_gemm_nt_masked",
    "fp8_mqa_logits", "per_block", "per_channel", "per_token",
]

BLOCK = 128


def Cpu(threads=None, order=None, portable=False):
    """What computes: all processors and the fastest code if nothing is said. ``order`` is "in_turn" or "even_odd":
    results depend on it, in their last bits, and on nothing else."""
    return _native.Cpu(threads, order, portable)


def _quantise(x, by, power_of_two):
    try:
        x = array("x", x, np.float32, 2)
    except ValueError:
        x = array("x", x, np.uint16, 2)
    values, scales, shape = _native.deepgemm_quantise(flat(x), list(x.shape), by, power_of_two)
    return values.reshape(x.shape), scales.reshape(shape)


def per_token(x, power_of_two=False):
    """FP8 of ``x[m, k]`` (float32 or bf16) with a scale for each row and 128 columns: (uint8 [m, k], float32)."""
    return _quantise(x, "token", power_of_two)


def per_block(x, power_of_two=False):
    """The same with a scale for each 128 x 128."""
    return _quantise(x, "block", power_of_two)


def per_channel(x, power_of_two=False):
    """The same with a scale for each 128 rows and one column."""
    return _quantise(x, "channel", power_of_two)


def _rows(n, blocks):
    return -(-n // BLOCK) if blocks else n


def _operand(name, of, dims, blocks=False):
    values, scales = of
    values = array(name, values, np.uint8, dims)
    scales = array(f"scales of {name}", scales, np.float32, dims)
    *groups, n, k = values.shape
    same(f"scales of {name}", scales, (*groups, _rows(n, blocks), -(-k // BLOCK)))
    return values, (flat(values), flat(scales))


def _fits(a, b):
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(f"b: has {b.shape[-1]} columns, and a has {a.shape[-1]}")


def fp8_gemm_nt(a, b, c=None, recipe="blocks", dtype="bf16", cpu=None):
    """``c + a bT`` for (values, scales) ``a[m, k]`` and ``b[n, k]``. ``recipe``: b has scales for "blocks" of 128 rows, or
    for "rows". ``dtype`` of c and the result: "bf16" or "f32"."""
    blocks = _choice("recipe", recipe, {"blocks": True, "rows": False})
    (a, flat_a), (b, flat_b) = _operand("a", a, 2), _operand("b", b, 2, blocks)
    _fits(a, b)
    (m, k), n, cpu = a.shape, b.shape[0], cpu or Cpu()
    wide = _choice("dtype", dtype, {"f32": True, "bf16": False})
    if c is not None:
        c = flat(same("c", array("c", c, np.float32 if wide else np.uint16, 2), (m, n)))
    multiply = cpu.fp8_f32 if wide else cpu.fp8_bf16
    return multiply(flat_a, flat_b, c, [m, n, k], blocks).reshape(m, n)


def bf16_gemm_nt(a, b, c=None, cpu=None):
    """``c + a bT`` for bf16 ``a[m, k]``, ``b[n, k]`` and float32 ``c[m, n]``, in float32."""
    a, b = array("a", a, np.uint16, 2), array("b", b, np.uint16, 2)
    _fits(a, b)
    (m, k), n = a.shape, b.shape[0]
    if c is not None:
        c = flat(same("c", array("c", c, np.float32, 2), (m, n)))
    return (cpu or Cpu()).bf16_f32(flat(a), flat(b), c, [m, n, k]).reshape(m, n)


def fp8_gemm_nt_contiguous(a, b, groups, recipe="blocks", cpu=None):
    """Row i of ``a[m, k]`` times the transpose of ``b[g, n, k]``, g being ``groups[i]`` (int32, -1 for padding, whose rows
    are zeros); each group's rows begin at a multiple of 128. bf16 [m, n]."""
    blocks = _choice("recipe", recipe, {"blocks": True, "rows": False})
    (a, flat_a), (b, flat_b) = _operand("a", a, 2), _operand("b", b, 3, blocks)
    _fits(a, b)
    (m, k), (count, n, _) = a.shape, b.shape
    groups = array("groups", groups, np.int32, 1)
    return (cpu or Cpu()).contiguous(flat_a, flat_b, groups, [m, n, k, count], blocks).reshape(m, n)


def fp8_gemm_nt_masked(a, b, rows, recipe="blocks", cpu=None):
    """``a[g, m, k]`` times the transposes of ``b[g, n, k]``; of each group ``rows[g]`` (int32) count. bf16 [g, m, n], zeros
    behind them."""
    blocks = _choice("recipe", recipe, {"blocks": True, "rows": False})
    (a, flat_a), (b, flat_b) = _operand("a", a, 3), _operand("b", b, 3, blocks)
    _fits(a, b)
    (count, m, k), n = a.shape, b.shape[1]
    same("b", b, (count, n, k))
    rows = array("rows", rows, np.int32, 1)
    return (cpu or Cpu()).masked(flat_a, flat_b, rows, [m, n, k, count], blocks).reshape(count, m, n)


def fp8_gemm_nt_k_grouped(a, b, c, cpu=None):
    """Weight gradients: ``c[g] + a[g] b[g]T`` in float32 for lists of (values, scales) ``a[g][m, k]`` and ``b[g][n, k]``
    with scales for each row; k is a multiple of 128 and may differ."""
    c = array("c", c, np.float32, 3)
    if not len(a) == len(b) == c.shape[0]:
        raise ValueError(f"a, b, c: have {len(a)}, {len(b)} and {c.shape[0]} groups")
    count, m, n = c.shape
    left, right, ks = [], [], []
    for g in range(count):
        (x, flat_x), (y, flat_y) = _operand("a", a[g], 2), _operand("b", b[g], 2)
        _fits(x, y)
        same("a", x, (m, x.shape[1]))
        same("b", y, (n, x.shape[1]))
        left.append(flat_x)
        right.append(flat_y)
        ks.append(x.shape[1])
    return (cpu or Cpu()).k_grouped(left, right, flat(c), ks, [m, n]).reshape(count, m, n)


def fp8_mqa_logits(q, keys, weights, seen, cpu=None):
    """Sums over heads of ``max(q . k * scale, 0) * weight``: ``q[s, h, d]`` FP8, ``keys`` = (FP8 [t, d], float32 [t]),
    ``weights[s, h]`` float32, ``seen`` a list of (from, to). float32 [s, t], -inf for what isn't seen."""
    q, weights = array("q", q, np.uint8, 3), array("weights", weights, np.float32, 2)
    values, scales = array("keys", keys[0], np.uint8, 2), array("scales of keys", keys[1], np.float32, 1)
    (queries, heads, width), count = q.shape, values.shape[0]
    same("weights", weights, (queries, heads))
    same("keys", values, (count, width))
    shape = [queries, heads, width, count]
    logits = (cpu or Cpu()).logits(flat(q), (flat(values), scales), flat(weights), list(seen), shape)
    return logits.reshape(queries, count)


def _choice(name, value, choices):
    if value not in choices:
        raise ValueError(f"{name}: {value!r} is none of {sorted(choices)}")
    return choices[value]
