"""The data types of the Open Inference Protocol, and the NumPy types they correspond to."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from trtkp.errors import InputError

__all__ = ["DATATYPES", "datatype_of"]

#: NumPy type of each protocol type. The protocol sends tensors in little-endian order. Its type ``BYTES`` (strings) is
#: left out, because no engine has such an input.
DATATYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_NAMES = {dtype.name: name for name, dtype in DATATYPES.items()}


def datatype_of(dtype: str) -> str:
    """Return the protocol's name of a NumPy type.

    Raises:
        InputError: the protocol has no name for it.

    Example:
        >>> datatype_of("float16")
        'FP16'
    """
    if dtype not in _NAMES:
        raise InputError(
            f"type {dtype[:40]} is not in the Open Inference Protocol",
            remedy="build with inputs and outputs in fp32 or fp16",
        )
    return _NAMES[dtype]
