# SPDX-License-Identifier: Apache-2.0
"""Arguments that are a scalar or one value a channel."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["Bounds", "ordered_bounds", "per_channel", "plain", "radius"]

Bounds = tuple[np.ndarray | None, np.ndarray | None]


def per_channel(value: Any, name: str) -> np.ndarray:
    """Returns a scalar or a list of values a channel as a float64 array.

    Raises:
        ValueError: it is None, NaN, or has more than one axis.
    """
    array = np.asarray(value, dtype=np.float64)
    if array.ndim > 1 or np.isnan(array).any():
        raise ValueError(f"`{name}` must be a scalar or one value a channel. Received {value!r}.")
    return array


def radius(value: Any, name: str) -> np.ndarray:
    """Returns a distance in input units, see `per_channel`.

    Raises:
        ValueError: it is negative or infinite as well.
    """
    array = per_channel(value, name)
    if (array < 0).any() or np.isinf(array).any():
        raise ValueError(
            f"`{name}` must be finite and at least 0, in input units. Received {value!r}."
        )
    return array


def ordered_bounds(bounds: Any) -> Bounds:
    """Returns `(low, high)` as arrays, None for no bound.

    Raises:
        ValueError: it is no pair, or low is not below high.
    """
    try:
        low, high = (None, None) if bounds is None else bounds
    except (TypeError, ValueError) as error:
        raise ValueError(f"`bounds` must be a pair (low, high). Received {bounds!r}.") from error
    low = None if low is None else per_channel(low, "bounds")
    high = None if high is None else per_channel(high, "bounds")
    if low is not None and high is not None and not (low < high).all():
        raise ValueError(f"`bounds` must have low < high. Received {bounds!r}.")
    return low, high


def plain(value: np.ndarray | None) -> Any:
    """Returns an array as a float or a list, ready for JSON."""
    return None if value is None else value.tolist()
