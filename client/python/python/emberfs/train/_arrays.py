"""From whatever holds numbers to flat NumPy arrays in the same memory."""

import sys

import numpy as np

_BITS = {"bfloat16": np.uint16, "float8_e4m3fn": np.uint8}


def _viewed(x):
    """An array that shares the memory of ``x``."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        name = str(x.dtype).removeprefix("torch.")
        if name in _BITS:
            x = x.view(torch.uint16 if name == "bfloat16" else torch.uint8)
        return x.detach().numpy()
    if isinstance(x, np.ndarray):
        return x.view(_BITS[x.dtype.name]) if x.dtype.name in _BITS else x
    if hasattr(x, "__dlpack__"):
        return np.from_dlpack(x)
    return np.asarray(memoryview(x))


def array(name, x, kind, dims=None):
    """``x`` as a contiguous array of a kind of numbers, ``dims`` of them deep."""
    try:
        found = _viewed(x)
    except (TypeError, BufferError, RuntimeError) as error:
        raise ValueError(f"{name}: no array, nothing with DLPack or the buffer protocol: {error}") from error
    if found.dtype != np.dtype(kind):
        raise ValueError(f"{name}: has numbers of type {found.dtype}, not {np.dtype(kind)}")
    if dims is not None and found.ndim != dims:
        raise ValueError(f"{name}: has {found.ndim} dimensions, not {dims}")
    if not found.flags.c_contiguous:
        raise ValueError(f"{name}: is not contiguous; copy it first")
    return found


def flat(x):
    """The same memory in one dimension."""
    return x.reshape(-1)


def same(name, x, shape):
    """``x`` if it has that shape."""
    if x.shape != tuple(shape):
        raise ValueError(f"{name}: has shape {list(x.shape)}, not {list(shape)}")
    return x
