# SPDX-License-Identifier: Apache-2.0
"""The data of a run: a dataset by name, or one's own by its path, in the units of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tfmot_atmc import datasets
from tfmot_atmc.datasets.splits import Dataset
from tfmot_atmc.recipes.defaults import defaults

__all__ = ["check_units", "load_data", "parse_bounds", "parse_size"]

_SMALLEST = 1 / 2000


def parse_bounds(text: str | None) -> tuple[float, float] | None:
    """Returns the bounds that a text such as `"0,255"` names; None for None.

    Raises:
        ValueError: if it is not two numbers, the lower one first.

    Example:

    >>> parse_bounds("0,255")
    (0.0, 255.0)
    """
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = 0.0
    if not low < high:
        raise ValueError(
            f"`bounds` must be the lowest and the highest value of an input, such as 0,255. "
            f"Received {text!r}."
        )
    return low, high


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Returns the height and width that a text such as `"96,96"` names; None for None.

    Raises:
        ValueError: if it is not two whole numbers of at least 1.
    """
    if text is None:
        return None
    parts = text.replace("x", ",").split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() and int(part) for part in parts):
        raise ValueError(
            f"`image_size` must be height and width, such as 96,96. Received {text!r}."
        )
    return int(parts[0]), int(parts[1])


def load_data(settings: Any) -> Dataset:
    """Returns the data that settings name.

    Args:
        settings: resolved `CompressionSettings`.

    Raises:
        FileNotFoundError: if there is nothing at the path of one's own data.
        ValueError: if the data does not hold together, or epsilon is in other units than its
            bounds.
    """
    fraction = defaults(settings.dataset).validation_fraction
    if settings.data is None:
        for name in ("bounds", "image_size"):
            if getattr(settings, name) is not None:
                raise ValueError(f"`{name}` is for `data` of your own. Received {name} alone.")
        return datasets.load(
            settings.dataset,
            validation_fraction=fraction,
            data_dir=settings.data_dir,
            limit=settings.limit,
        )
    data = datasets.load_own(
        Path(settings.data),
        bounds=parse_bounds(settings.bounds),
        image_size=parse_size(settings.image_size),
        validation_fraction=max(fraction, 0.1),
        seed=settings.seed,
        limit=settings.limit,
    )
    if data.task != "classes":
        raise ValueError(
            f"{settings.data!r} holds {data.task} to predict, and this command trains classifiers. "
            "Train those in Python: compress(model, ...), compile with your loss, fit."
        )
    return data


def check_units(epsilon: float, bounds: tuple[Any, Any]) -> None:
    """Refuses a radius that cannot be in the units of the inputs.

    Args:
        epsilon: radius of the attacks.
        bounds: lowest and highest value of an input, or None.

    Raises:
        ValueError: if the radius is more than the whole range, or less than a fraction of a level.
    """
    low, high = bounds
    if low is None or high is None:
        return
    reach = float(np.max(np.asarray(high) - np.asarray(low)))
    if epsilon > reach or 0 < epsilon < _SMALLEST * reach:
        raise ValueError(
            f"`epsilon` is {epsilon:g} and the inputs span {reach:g}: they are in different units. "
            f"8/255 of the range would be epsilon={8 / 255 * reach:.4g}."
        )
