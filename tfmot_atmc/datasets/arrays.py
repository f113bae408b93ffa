# SPDX-License-Identifier: Apache-2.0
"""Arrays of one's own: an .npz file, or a directory that tf.data saved.

Example:

>>> data = load_npz("machines.npz")  # doctest: +SKIP
>>> data.task, data.input_shape  # doctest: +SKIP
('classes', (640,))
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_atmc.datasets.checked import Bounds, checked_dataset, in_units
from tfmot_atmc.datasets.splits import Dataset, Split

__all__ = ["load_npz", "load_saved"]


def load_npz(
    path: str | os.PathLike[str],
    *,
    bounds: Bounds | Mapping[str, Bounds] | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    limit: int | None = None,
) -> Dataset:
    """Loads arrays `x` and `y`, or `x_train`, `y_train`, `x_test`, ..., from an .npz file.

    `y` holds classes (whole numbers, `[examples]`), several yes or no answers (0 and 1,
    `[examples, answers]`) or numbers to predict. Without `y` the targets are the inputs, as for an
    autoencoder. An array `class_names` names the classes, `feature_names` the columns of x.

    Args:
        path: the file.
        bounds: lowest and highest value of an input, as numbers or as one for each feature, or a
            pair for each column that is named; None: (0, 1) for bytes, which are then divided by
            255, and for values in [0, 1], else no bounds.
        validation_fraction: part of the training data held out, where there is no such split.
        seed: seed of the draws.
        limit: at most so many examples in each split.

    Returns:
        The data.

    Raises:
        ValueError: if x is missing or y does not fit it.
    """
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    names = tuple(str(name) for name in arrays.pop("class_names", ()))
    columns = tuple(str(name) for name in arrays.pop("feature_names", ())) or None
    arrays = {f"{k}_train" if k in ("x", "y") else k: v for k, v in arrays.items()}
    arrays = {
        k.replace("_val", "_validation") if k.endswith("_val") else k: v for k, v in arrays.items()
    }
    if "x_train" not in arrays:
        raise ValueError(
            f"{str(path)!r} has no array named x or x_train; it has "
            f"{', '.join(sorted(arrays)) or 'none'}. Save it with numpy.savez(path, x=x, y=y)."
        )
    parts: dict[str, Split] = {}
    for split in ("train", "validation", "test"):
        x, y = arrays.get(f"x_{split}"), arrays.get(f"y_{split}")
        if x is None:
            continue
        if y is None and "y_train" in arrays:
            raise ValueError(
                f"{str(path)!r} has x_{split} but no y_{split}; save both, or no y at all to train "
                "the inputs themselves."
            )
        parts[split] = x, x if y is None else y
    return _made(path, parts, bounds, names, validation_fraction, seed, limit, columns)


def load_saved(
    path: str | os.PathLike[str],
    *,
    bounds: Bounds | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    limit: int | None = None,
) -> Dataset:
    """Loads a directory written by `tf.data.Dataset.save`: pairs (x, y), or x; batched or not.

    Args:
        path: the directory.
        bounds: as for `load_npz`.
        validation_fraction: part of the data held out for validation.
        seed: seed of the draws.
        limit: at most so many examples in each split.

    Returns:
        The data; a fifth is set aside for tests.

    Raises:
        ValueError: if its elements are neither arrays nor pairs of arrays.
    """
    saved = tf.data.Dataset.load(os.fspath(path))
    spec = saved.element_spec
    leaves = spec if isinstance(spec, tuple) else (spec,)
    if len(leaves) > 2 or not all(isinstance(leaf, tf.TensorSpec) for leaf in leaves):
        raise ValueError(
            f"{str(path)!r} holds elements of the form {spec}; save pairs (x, y) of tensors."
        )
    elements = [e if isinstance(e, tuple) else (e,) for e in saved.as_numpy_iterator()]
    if not elements:
        raise ValueError(f"{str(path)!r} holds no examples.")
    join = np.concatenate if _is_batched(leaves) else np.stack
    columns = [join([np.asarray(e[i]) for e in elements]) for i in range(len(leaves))]
    parts = {"train": (columns[0], columns[-1])}
    return _made(path, parts, bounds, (), validation_fraction, seed, limit)


def _made(path: Any, parts: dict[str, Split], bounds: Any, *rest: Any) -> Dataset:
    """The dataset of some parts; `rest` is names, fraction, seed, limit and columns."""
    columns = rest[4] if len(rest) > 4 else None
    first = parts["train"][0]
    if columns is not None and (first.ndim < 2 or len(columns) != first.shape[-1]):
        raise ValueError(
            f"{str(path)!r} names {len(columns)} features, but its x has the shape {first.shape}."
        )
    return checked_dataset(Path(path), *in_units(parts, bounds, columns), *rest)


def _is_batched(leaves: tuple[tf.TensorSpec, ...]) -> bool:
    """Whether elements are batches: their first dimension is open, or the same in x and y."""
    shapes = [leaf.shape.as_list() for leaf in leaves]
    if not shapes[0]:
        return False
    if shapes[0][0] is None or len(shapes) == 1:
        return shapes[0][0] is None
    return len(shapes[0]) > 1 and shapes[1][:1] == shapes[0][:1]
