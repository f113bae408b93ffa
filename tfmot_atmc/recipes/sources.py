# SPDX-License-Identifier: Apache-2.0
"""The data of a run: a dataset by name, or one's own by its path, in the units of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tfmot_atmc import datasets
from tfmot_atmc.attacks.values import by_column
from tfmot_atmc.datasets.splits import Dataset
from tfmot_atmc.recipes.defaults import defaults
from tfmot_atmc.utils.numbers import parse_number

__all__ = [
    "check_units",
    "default_epsilon",
    "load_data",
    "parse_bounds",
    "parse_size",
    "parse_values",
    "radius_of",
]

_SMALLEST = 1 / 2000


def parse_values(text: Any, name: str = "epsilon") -> Any:
    """Returns what a text says: a number, one for each feature, or one by each column's name.

    Args:
        text: such as `"8/255"`, `"0.1,0.2"` or `"age=1,income=50"`; what is no text is returned.
        name: the setting, for messages.

    Raises:
        ValueError: if it is none of these.

    Example:

    >>> parse_values("51/255"), parse_values("1,2"), parse_values("age=1")
    (0.2, [1.0, 2.0], {'age': 1.0})
    """
    if not isinstance(text, str):
        return text
    parts = [part.strip() for part in text.split(",")]
    try:
        if all("=" in part for part in parts):
            pairs = [part.split("=", 1) for part in parts]
            return {column.strip(): parse_number(value) for column, value in pairs}
        values = [parse_number(part) for part in parts]
    except ValueError:
        raise ValueError(
            f"`{name}` must be a number such as 0.1 or 8/255, one for each feature such as "
            f"0.1,0.2, or by columns such as age=1,income=50. Received {text!r}."
        ) from None
    return values if len(values) > 1 else values[0]


def parse_bounds(text: str | None) -> Any:
    """Returns the bounds that a text such as `"0,255"` names; None for None.

    Args:
        text: two numbers; or a range for each feature, `"0:1,0:50"`, or for columns by name,
            `"age=0:120,income=0:1e6"`.

    Returns:
        A pair of numbers, a pair of lists, or a pair by each column's name.

    Raises:
        ValueError: if it is something else, or a lower end is not below the higher one.

    Example:

    >>> parse_bounds("0,255"), parse_bounds("0:1,0:5"), parse_bounds("age=0:120")
    ((0.0, 255.0), ([0.0, 0.0], [1.0, 5.0]), {'age': (0.0, 120.0)})
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    named = all("=" in part for part in parts)
    try:
        if ":" not in text:
            low, high = (float(part) for part in parts)
            pairs = [(low, high)]
        else:
            ends = [part.rsplit("=", 1)[-1].split(":") for part in parts]
            pairs = [(float(low), float(high)) for low, high in ends]
    except ValueError:
        pairs = [(0.0, 0.0)]
    if not all(low < high for low, high in pairs):
        raise ValueError(
            "`bounds` must be the lowest and the highest value of an input, such as 0,255, or such "
            f"a range for each feature, 0:1,0:50, or by column, age=0:120. Received {text!r}."
        )
    if ":" not in text:
        return pairs[0]
    if named:
        return {part.split("=")[0].strip(): p for part, p in zip(parts, pairs, strict=True)}
    lows, highs = zip(*pairs, strict=True)
    return list(lows), list(highs)


def default_epsilon(usual: float, bounds: str | None) -> Any:
    """Returns a radius for inputs in [0, 1] in the units of the bounds, as a setting is written.

    Args:
        usual: the radius.
        bounds: as `parse_bounds` takes them.

    Example:

    >>> default_epsilon(0.1, "0,20"), default_epsilon(0.1, "age=0:120,income=0:1e6")
    (2.0, 'age=12.0,income=100000.0')
    """
    found = parse_bounds(bounds)
    if found is None:
        return usual
    if isinstance(found, dict):
        return ",".join(f"{name}={usual * (high - low)}" for name, (low, high) in found.items())
    if isinstance(found[0], list):
        return ",".join(str(usual * (high - low)) for low, high in zip(*found, strict=True))
    return usual * (found[1] - found[0])


def radius_of(epsilon: Any, data: Dataset) -> Any:
    """Returns the radius of attacks on some data: a float, or an array with one entry a feature.

    Args:
        epsilon: a number, or a text as `parse_values` takes it.
        data: the data, whose columns it may name.

    Raises:
        ValueError: if a column is unknown, or their number is another.
    """
    found = parse_values(epsilon)
    if isinstance(found, dict):
        if data.feature_names is None:
            raise ValueError(
                "`epsilon` by column needs the columns' names: save them in the .npz file as the "
                "array feature_names."
            )
        return by_column(found, data.feature_names)
    if isinstance(found, list) and len(found) != data.input_shape[-1]:
        raise ValueError(
            f"`epsilon` has {len(found)} values and the inputs have {data.input_shape[-1]} "
            "features; give one for each, or one for all."
        )
    return np.asarray(found) if isinstance(found, list) else float(found or 0)


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


def load_data(
    dataset: str,
    data: str | None = None,
    *,
    bounds: str | None = None,
    image_size: str | None = None,
    data_dir: str | None = None,
    seed: int = 0,
    limit: int | None = None,
) -> Dataset:
    """Returns data as flags and settings name it.

    Args:
        dataset: name of a dataset, for `data` None.
        data: path of one's own data (`datasets.load_own`).
        bounds: what its values reach, see `parse_bounds`.
        image_size: what its images are brought to, see `parse_size`.
        data_dir: folder of tensorflow-datasets.
        seed: seed of the split of one's own data.
        limit: at most so many examples in each split.

    Raises:
        FileNotFoundError: if there is nothing at the path of one's own data.
        ValueError: if the data does not hold together.
    """
    fraction = defaults(dataset).validation_fraction
    if data is None:
        for name, given in (("bounds", bounds), ("image_size", image_size)):
            if given is not None:
                raise ValueError(f"`{name}` is for `data` of your own. Received {name} alone.")
        return datasets.load(dataset, validation_fraction=fraction, data_dir=data_dir, limit=limit)
    return datasets.load_own(
        Path(data),
        bounds=parse_bounds(bounds),
        image_size=parse_size(image_size),
        validation_fraction=max(fraction, 0.1),
        seed=seed,
        limit=limit,
    )


def check_units(epsilon: Any, bounds: tuple[Any, Any]) -> None:
    """Refuses a radius that cannot be in the units of the inputs.

    Args:
        epsilon: radius of the attacks, one for all features or one for each.
        bounds: lowest and highest value of an input, or None, likewise.

    Raises:
        ValueError: if a radius is more than the whole range, or less than a fraction of a level.
    """
    low, high = bounds
    if low is None or high is None:
        return
    radii, reach = np.broadcast_arrays(epsilon, np.asarray(high, float) - np.asarray(low, float))
    for radius, span in zip(np.ravel(radii), np.ravel(reach), strict=True):
        if not np.isfinite(span) or not (radius > span or 0 < radius < _SMALLEST * span):
            continue
        raise ValueError(
            f"`epsilon` is {radius:g} and the inputs span {span:g}: they are in different units. "
            f"8/255 of the range would be epsilon={8 / 255 * span:.4g}."
        )
