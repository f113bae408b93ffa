# SPDX-License-Identifier: Apache-2.0
"""Arguments that are a scalar or one value a channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = [
    "Bounds",
    "by_column",
    "ordered_bounds",
    "out_of_scale",
    "per_channel",
    "plain",
    "radius",
    "slack",
]

Bounds = tuple[np.ndarray | None, np.ndarray | None]

# Half of the range makes every image the same grey; a thousandth is below what a pixel stores.
_LARGEST, _SMALLEST = 0.5, 1e-3
# Pixels that went through a float32 resize or normalisation may leave [0, 1] by this much.
_BOUNDS_SLACK = 1e-6


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


def by_column(values: Mapping[str, float], columns: Sequence[str], rest: float = 0.0) -> np.ndarray:
    """Returns one value a feature, in the order of the columns, for `epsilon` or for bounds.

    Args:
        values: the value of each column that is named.
        columns: names of the features, in the order of the inputs' last axis.
        rest: the value of all other columns: with 0 an attack leaves them alone.

    Returns:
        float64 array, one entry a column.

    Raises:
        ValueError: a name is none of the columns, or two columns have one name.

    Example:
    >>> by_column({"income": 50.0}, ["age", "income"]).tolist()
    [0.0, 50.0]
    """
    order = {name: index for index, name in enumerate(columns)}
    unknown = sorted(set(values) - set(order))
    if unknown or len(order) != len(columns):
        raise ValueError(
            f"There is no column {', '.join(map(repr, unknown))}; the columns are "
            f"{', '.join(map(repr, columns))}."
            if unknown
            else f"Several columns have the same name: {', '.join(map(repr, columns))}."
        )
    found = np.full(len(columns), float(rest))
    for name, value in values.items():
        found[order[name]] = value
    return found


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


def out_of_scale(epsilon: np.ndarray, reach: float) -> str | None:
    """Tells of a radius that seems to be in other units than the inputs; None where it fits.

    Args:
        epsilon: radius; 0 and infinity are meant so.
        reach: largest possible distance of two inputs, in the attack's norm.

    Example:
    >>> out_of_scale(np.array(8.0), 1.0).split(" for ")[0]
    'epsilon 8 allows any image, or nearly,'
    """
    largest = float(np.max(epsilon))
    if not np.isfinite(largest) or largest <= 0 or reach <= 0:
        return None
    if _SMALLEST * reach <= largest < _LARGEST * reach:
        return None
    large = largest >= _LARGEST * reach
    what = "allows any image, or nearly," if large else "changes next to nothing"
    return (
        f"epsilon {largest:g} {what} for inputs that are at most {reach:g} apart. It is meant in "
        "the units of the inputs: 8/255 for pixels in [0, 1], 8 for pixels in 0..255."
    )


def plain(value: np.ndarray | None) -> Any:
    """Returns an array as a float or a list, ready for JSON."""
    return None if value is None else value.tolist()


def slack(bound: np.ndarray) -> np.ndarray:
    """Returns by how much float32 inputs may miss a bound that they were computed to meet.

    Args:
        bound: the least or greatest legal input.
    """
    return np.maximum(_BOUNDS_SLACK, 2.0**-22 * np.abs(bound))
