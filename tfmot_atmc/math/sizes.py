# SPDX-License-Identifier: Apache-2.0
"""What a compressed model weighs: the ATMC paper's metric and an entropy bound.

The paper counts codes and codebooks of the nonzeros and nothing else. The entropy bound adds the
positions of the nonzeros and lets codes have any length, so it is what a perfect coder would need.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import numpy as np

_FLOAT_BITS = 32


_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]?)(?:i?b|bytes)?", re.IGNORECASE)


def parse_bytes(size: int | str) -> int:
    """Returns a size in bytes.

    Args:
      size: bytes, or text such as `"24KB"`, `"1.5 MiB"` or `"24000"`. A K is 1,024 bytes with or
        without an i, as flash memories are counted.

    Raises:
      ValueError: not a positive size.

    Example:

    >>> parse_bytes("24KB"), parse_bytes("1.5 MiB"), parse_bytes(100)
    (24576, 1572864, 100)
    """
    match = _BYTES.fullmatch(str(size).strip())
    found = 0 if match is None else int(float(match[1]) * _UNITS[match[2].lower()])
    if found < 1 or isinstance(size, (bool, float)):
        raise ValueError(
            f'A size must be a positive number of bytes or text such as "24KB". Received {size!r}.'
        )
    return found


_THOUSANDS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_COUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]?)(?:macs?)?", re.IGNORECASE)


def parse_count(count: int | str) -> int:
    """Returns a number of operations.

    Args:
      count: the number, or text such as `"12M"` or `"1.5 GMACs"`; a K is 1,000.

    Raises:
      ValueError: not a positive number.

    Example:

    >>> parse_count("12M"), parse_count("1.5 GMACs"), parse_count(100)
    (12000000, 1500000000, 100)
    """
    match = _COUNT.fullmatch(str(count).strip())
    found = 0 if match is None else round(float(match[1]) * _THOUSANDS[match[2].lower()])
    if found < 1 or isinstance(count, (bool, float)):
        raise ValueError(
            f'A number of operations must be positive, or text such as "12M". Received {count!r}.'
        )
    return found


_MILLISECONDS = {"": 1.0, "ms": 1.0, "us": 1e-3, "s": 1e3}
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|us|s|)", re.IGNORECASE)


def parse_milliseconds(time: float | str) -> float:
    """Returns a time in milliseconds.

    Args:
      time: milliseconds, or text such as `"2ms"`, `"500 us"` or `"0.01s"`.

    Raises:
      ValueError: not a positive time.

    Example:

    >>> parse_milliseconds("2ms"), parse_milliseconds("500 us"), parse_milliseconds(0.25)
    (2.0, 0.5, 0.25)
    """
    match = None if isinstance(time, bool) else _TIME.fullmatch(str(time).strip())
    found = 0.0 if match is None else float(match[1]) * _MILLISECONDS[match[2].lower()]
    if not found > 0:
        raise ValueError(
            'A latency must be a positive number of milliseconds or text such as "2ms". '
            f"Received {time!r}."
        )
    return found


def paper_bits(nonzeros: int, distinct: int, bits: int) -> int:
    """Bits of one matrix by the size metric of ATMC (Gui et al., 2019, Sec. 4).

    Args:
      nonzeros: number of nonzero entries n.
      distinct: number of distinct nonzero values q.
      bits: the code width the model was trained for; 32 means "not quantised".

    Returns:
      `n * ceil(log2 q) + 32 * q`, or raw floats `32 * n` where the codes would not pay
      (`2**ceil(log2 q) >= n`) or `bits` is 32.

    Raises:
      ValueError: negative counts, more distinct values than nonzeros, or `bits` outside 1..32.

    Example:

    >>> paper_bits(1000, 201, 8), paper_bits(200, 200, 8), paper_bits(1000, 201, 32)
    (14432, 6400, 32000)
    """
    if nonzeros < 0 or not 0 <= distinct <= nonzeros or (nonzeros and not distinct):
        raise ValueError(
            "Expected 0 <= distinct <= nonzeros, and distinct >= 1 if there are nonzeros. "
            f"Received nonzeros={nonzeros}, distinct={distinct}."
        )
    if not 1 <= bits <= _FLOAT_BITS:
        raise ValueError(f"`bits` must be in 1..32. Received {bits}.")
    if bits == _FLOAT_BITS or nonzeros == 0:
        return _FLOAT_BITS * nonzeros
    width = (distinct - 1).bit_length()
    if 2**width >= nonzeros:
        return _FLOAT_BITS * nonzeros
    return nonzeros * width + _FLOAT_BITS * distinct


def entropy_bits(size: int, nonzeros: int, code_counts: Iterable[int]) -> float:
    """Lower bound in bits on positions and codes of one matrix, its codebook not included.

    Args:
      size: number of entries of the matrix.
      nonzeros: number of nonzero entries.
      code_counts: how often each distinct nonzero value occurs; sums to `nonzeros`.

    Returns:
      `log2(size choose nonzeros) + nonzeros * H(codes)`.

    Raises:
      ValueError: inconsistent counts.

    Example:

    >>> round(entropy_bits(4, 2, [1, 1]), 6)  # log2(6) + 2 * 1
    4.584963
    """
    return _position_bits(size, nonzeros) + _code_bits(nonzeros, code_counts)


def _position_bits(size: int, nonzeros: int) -> float:
    if not 0 <= nonzeros <= size:
        raise ValueError(f"Expected 0 <= nonzeros <= size. Received {nonzeros} and {size}.")
    choices = math.lgamma(size + 1) - math.lgamma(nonzeros + 1) - math.lgamma(size - nonzeros + 1)
    return max(choices, 0.0) / math.log(2.0)


def _code_bits(nonzeros: int, code_counts: Iterable[int]) -> float:
    counts = np.asarray(list(code_counts), np.float64)
    if np.any(counts < 0) or counts.sum() != nonzeros:
        raise ValueError(
            f"`code_counts` must be >= 0 and sum to nonzeros={nonzeros}, sum is {counts.sum():g}."
        )
    counts = counts[counts > 0]
    return float(np.sum(counts * np.log2(nonzeros / counts))) if nonzeros else 0.0
