# SPDX-License-Identifier: Apache-2.0
"""Arrays of one's own made to a `Dataset`: units, targets and classes looked at, and split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tfmot_atmc.attacks.values import by_column
from tfmot_atmc.datasets.splits import Dataset, Split, split_off

__all__ = ["Bounds", "checked_dataset", "in_units"]

_TEST_FRACTION = 0.2

Bounds = tuple[Any, Any]


def in_units(
    parts: dict[str, Split], bounds: Any, columns: Sequence[str] | None = None
) -> tuple[dict[str, Split], Bounds]:
    """Returns the inputs as floats in the units of the model, and their bounds.

    Args:
        parts: inputs and targets of each split.
        bounds: lowest and highest value, as numbers or as one for each feature; by the name of a
            column a pair of them; or None: (0, 1) for bytes, which are then divided by 255, and for
            values in [0, 1], else no bounds.
        columns: what the features are called; None for no names.

    Raises:
        ValueError: if values are not finite, or outside the bounds.
    """
    first = parts["train"][0]
    if first.dtype == np.uint8 and bounds is None:
        unit = np.float32(255)
        return {k: (x.astype("float32") / unit, y) for k, (x, y) in parts.items()}, (0.0, 1.0)
    parts = {
        k: (x.astype("float32"), y.astype("float32") if y is x else y)
        for k, (x, y) in parts.items()
    }
    lowest, highest = _extremes([x for x, _ in parts.values()])
    if not np.isfinite([lowest, highest]).all():
        raise ValueError("x holds values that are not finite; remove or fill them first.")
    if bounds is None:
        unit_range = lowest.min() >= 0.0 and 0.0 < highest.max() <= 1.0
        return parts, (0.0, 1.0) if unit_range else (None, None)
    if isinstance(bounds, Mapping):
        bounds = _bounds_of_columns(bounds, columns)
    for end, worst, sign in ((bounds[0], lowest, -1), (bounds[1], highest, 1)):
        if end is None:
            continue
        if np.ndim(end) and np.shape(end) != worst.shape:
            raise ValueError(
                f"`bounds` has {np.size(end)} values and x has {worst.size} features; give one "
                "for each, or one for all."
            )
        ends = np.broadcast_to(np.asarray(end, np.float64), worst.shape)
        slack = 1e-5 * np.where(np.isfinite(ends), np.maximum(1.0, np.abs(ends)), 1.0)
        beyond = np.flatnonzero(sign * (worst - ends) > slack)
        if beyond.size:
            raise ValueError(_outside(beyond[0], lowest, highest, bounds, columns))
    return parts, bounds


def _extremes(arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest value of each feature, along the last axis."""
    rows = [x.reshape(-1, x.shape[-1] if x.ndim > 1 else 1) for x in arrays]
    least = [np.min(row, axis=0, initial=np.inf) for row in rows]
    most = [np.max(row, axis=0, initial=-np.inf) for row in rows]
    return np.min(least, axis=0), np.max(most, axis=0)


def _bounds_of_columns(
    bounds: Mapping[str, tuple[float, float]], columns: Sequence[str] | None
) -> Bounds:
    if columns is None:
        raise ValueError(
            "`bounds` by column needs the columns' names: save them as the array feature_names."
        )
    low = by_column({name: pair[0] for name, pair in bounds.items()}, columns, rest=-np.inf)
    high = by_column({name: pair[1] for name, pair in bounds.items()}, columns, rest=np.inf)
    return low, high


def _outside(
    index: int, lowest: Any, highest: Any, bounds: Bounds, columns: Sequence[str] | None
) -> str:
    """What to say of values that leave their bounds."""
    each = np.ndim(bounds[0]) or np.ndim(bounds[1])
    where, least, most = "x", lowest.min(), highest.max()
    if each:
        where = f"Column {columns[index]!r} of x" if columns else f"Feature {index} of x"
        least, most = lowest[index], highest[index]
    ends = [
        "no bound" if end is None else f"{np.ravel(end)[index if np.ndim(end) else 0]:g}"
        for end in bounds
    ]
    return (
        f"{where} holds values from {least:g} to {most:g}, outside the bounds {ends[0]} to "
        f"{ends[1]}. Give bounds in the units of x, or scale x."
    )


def checked_dataset(
    path: Path,
    parts: dict[str, Split],
    bounds: Bounds,
    names: tuple[str, ...],
    validation_fraction: float,
    seed: int,
    limit: int | None,
    columns: tuple[str, ...] | None = None,
) -> Dataset:
    """Returns splits as a dataset: targets by kind, what is missing set aside.

    Args:
        path: where they come from.
        parts: inputs in the units of the model, and targets, of each split.
        bounds: lowest and highest value of an input.
        names: what classes or answers are called; empty for no names.
        validation_fraction: part of the training data held out, where there is no such split.
        seed: seed of the draws.
        limit: at most so many examples in each split.
        columns: what the features are called; None for no names.

    Raises:
        ValueError: if targets do not fit the inputs, the names or each other.
    """
    parts = {split: (x, _targets(path, x, y)) for split, (x, y) in parts.items()}
    y_train = parts["train"][1]
    count = 0
    if y_train.dtype.kind == "i":
        highest = max(int(y.max(initial=0)) for _, y in parts.values())
        count = len(names) or highest + 1
        _check_classes(path, parts, count, names)
    elif y_train.ndim == 2 and all(np.isin(y, (0, 1)).all() for _, y in parts.values()):
        count = y_train.shape[1]
    if names and len(names) != count:
        raise ValueError(f"{str(path)!r} names {len(names)} classes but has {count}.")
    if "test" not in parts:
        parts["train"], parts["test"] = split_off(parts["train"], _TEST_FRACTION, 0)
    if "validation" not in parts:
        rest = split_off(parts["train"], validation_fraction, seed)
        parts["train"], parts["validation"] = rest
    (xt, yt), (xv, yv), (xe, ye) = (
        tuple(array[:limit] for array in parts[split]) for split in ("train", "validation", "test")
    )
    return Dataset(xt, yt, xv, yv, xe, ye, count, str(path), names or None, bounds, columns)


def _targets(path: Path, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Classes as int64, all other targets as float32."""
    if len(x) != len(y):
        raise ValueError(
            f"{str(path)!r} holds {len(x)} inputs and {len(y)} targets; give one for each."
        )
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim == 1 and (y.dtype.kind in "iub" or (y == np.rint(y)).all()):
        return y.astype("int64")
    return y.astype("float32")


def _check_classes(path: Path, parts: dict[str, Split], count: int, names: tuple[str, ...]) -> None:
    for split, (_, y) in parts.items():
        lowest, highest = int(y.min(initial=0)), int(y.max(initial=0))
        if lowest < 0 or highest >= count:
            raise ValueError(
                f"{str(path)!r} has labels from {lowest} to {highest} in {split!r}, but "
                f"{count} classes{' by its class_names' if names else ''}: labels must be "
                f"0 to {count - 1}."
            )
    present = np.unique(parts["train"][1])
    if len(present) < 2:
        raise ValueError(
            f"{str(path)!r} holds one class only, {present.tolist()}; a classifier needs two."
        )
