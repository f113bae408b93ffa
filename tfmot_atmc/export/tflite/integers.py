# SPDX-License-Identifier: Apache-2.0
"""Signed integers of 2, 4 or 8 bits, as a file holds them."""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema

INTEGERS = {8: schema.TensorType.INT8, 4: schema.TensorType.INT4, 2: schema.TensorType.INT2}
"""Types by their bits; those below 8 are packed into bytes, the first in the lowest bits."""
PACKED = {kind: bits for bits, kind in INTEGERS.items() if bits < 8}


def fewest_bits(codes: np.ndarray, least: int) -> int:
    """Returns how few bits hold integers of both signs alike: 2, 4 or 8, and not below `least`."""
    largest = int(np.abs(codes.astype(np.int64)).max(initial=0))
    fitting = (bits for bits in sorted(INTEGERS) if bits >= least and largest < 2 ** (bits - 1))
    return next(fitting, max(INTEGERS))


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Returns integers packed into bytes, the first in the lowest bits; as they are for 8 bits.

    Example:

    >>> packed(np.array([1, -1, 0, 1, -1], np.int8), 2).tolist()
    [77, 3]
    """
    if bits == max(INTEGERS):
        return codes
    each = 8 // bits
    flat = np.zeros(-(-codes.size // each) * each, np.uint8)
    flat[: codes.size] = codes.astype(np.uint8).ravel() & (2**bits - 1)
    shifts = (bits * np.arange(each)).astype(np.uint8)
    return np.bitwise_or.reduce(flat.reshape(-1, each) << shifts, axis=1).astype(np.uint8)


def unpacked(content: np.ndarray, bits: int, size: int) -> np.ndarray:
    """The integers of packed bytes, as int8."""
    each = 8 // bits
    if content.size != -(-size // each):
        raise ValueError(f"A constant of {size} values of {bits} bits has {content.size} bytes.")
    shifts = (bits * np.arange(each)).astype(np.uint8)
    codes = (content[:, None] >> shifts) & (2**bits - 1)
    signed = codes.astype(np.int8) - (codes >= 2 ** (bits - 1)).astype(np.int8) * np.int8(2**bits)
    return signed.ravel()[:size]
