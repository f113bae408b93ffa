# SPDX-License-Identifier: Apache-2.0
"""Float values as 8-bit integers times one scale: exactly where that is possible, or nearest."""

from __future__ import annotations

import numpy as np

_MAX_CODE = 127
# Scales tried by `nearest_int8_grid`, from one that clips nothing to one that clips half.
_SCALES = 129
# Beyond so many values a sample of them settles the scale.
_MOST_VALUES = 1 << 14


def exact_int8_grid(array: np.ndarray) -> tuple[np.ndarray, np.float32] | None:
    """Writes float32 values as int8 codes times one scale, if that reproduces every bit.

    Args:
        array: float32 array.

    Returns:
        `(codes, scale)` with `codes` int8 in [-127, 127], of the same shape, zero exactly where
        `array` is zero, and `float32(codes) * scale == array`; None if there is no such scale.

    Example:
        >>> codes, scale = exact_int8_grid(np.array([0.0, 0.5, -0.75], np.float32))
        >>> codes.tolist(), float(scale)
        ([0, 2, -3], 0.25)
    """
    nonzero = array[array != 0]
    # A look at a few values spares sorting millions that are obviously not a small codebook.
    if np.unique(nonzero[:4096]).size > 2 * _MAX_CODE or not np.isfinite(nonzero).all():
        return None
    distinct = np.unique(nonzero)
    if distinct.size == 0 or distinct.size > 2 * _MAX_CODE:
        return None
    largest = np.abs(distinct).max()
    for largest_code in range(1, _MAX_CODE + 1):
        centre = np.float32(largest / np.float32(largest_code))
        # `largest` was rounded, so its scale may be a neighbour of the quotient.
        for scale in (centre, *(np.nextafter(centre, np.float32(end)) for end in (0, np.inf))):
            if scale < np.finfo(np.float32).tiny:
                return None
            codes = np.rint(distinct / scale)
            if np.abs(codes).max() <= _MAX_CODE and np.array_equal(codes * scale, distinct):
                return np.rint(array / scale).astype(np.int8), scale
    return None


def nearest_int8_grid(array: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """Writes float32 values as int8 codes times the scale that leaves the smallest squared error.

    Args:
        array: float32 array of finite values.

    Returns:
        `(codes, scale)` with `codes` int8 in [-127, 127], of the same shape, zero where `array` is
        zero and where it is less than half a scale from it. Exact where `exact_int8_grid` finds a
        grid.

    Raises:
        ValueError: if a value is not finite.

    Example:
        >>> codes, scale = nearest_int8_grid(np.array([0.0, 1.0, 0.3, 0.001], np.float32))
        >>> bool(np.abs(codes * scale - [0.0, 1.0, 0.3, 0.001]).max() <= scale / 2)
        True
    """
    if not np.isfinite(array).all():
        raise ValueError("Values that are not finite have no int8 codes; check the weights.")
    exact = exact_int8_grid(array)
    if exact is not None:
        return exact
    values, counts = np.unique(np.abs(array[array != 0]), return_counts=True)
    if values.size == 0:
        return np.zeros(array.shape, np.int8), np.float32(1.0)
    largest = values[-1]
    if values.size > _MOST_VALUES:
        chosen = np.linspace(0, values.size - 1, _MOST_VALUES).astype(np.int64)
        values, counts = values[chosen], counts[chosen]
    scales = largest / np.linspace(_MAX_CODE + 0.49, _MAX_CODE / 2, _SCALES)

    def error(scale: float) -> float:
        rounded = np.minimum(np.rint(values / scale), _MAX_CODE) * scale
        return float(counts @ np.square(rounded - values.astype(np.float64)))

    scale = np.float32(min(scales.tolist(), key=error))
    if scale < np.finfo(np.float32).tiny:
        return np.zeros(array.shape, np.int8), np.float32(1.0)
    codes = np.clip(np.rint(array / scale), -_MAX_CODE, _MAX_CODE)
    return codes.astype(np.int8), scale
