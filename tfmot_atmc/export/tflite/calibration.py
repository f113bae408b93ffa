# SPDX-License-Identifier: Apache-2.0
"""Whether calibration examples are in the units that a model was trained on."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np

from tfmot_atmc.slimming import is_graph
from tfmot_atmc.utils.keras_internals import calls_of, flat_layers

__all__ = ["other_range"]

_FEWEST, _MOST = 8, 64
_FACTOR = 20.0
_NORMALISING = (keras.layers.Normalization, keras.layers.BatchNormalization)


def other_range(model: keras.Model, samples: Sequence[np.ndarray]) -> tuple[str, ...]:
    """Tells of examples that vary far more, or far less, than those that a model was trained on.

    A normalisation remembers how much its inputs varied in training. The first one of the graph is
    compared with what the examples give there.

    Args:
        model: a built Keras model.
        samples: examples, one array for each input.

    Returns:
        One line, or nothing: where it fits, where the model has no normalisation that has seen
        data, or where there are too few examples to say.

    Example:

    >>> import keras, numpy as np
    >>> norm = keras.layers.Normalization(mean=0.5, variance=0.08)
    >>> model = keras.Sequential([keras.Input((3,)), norm])
    >>> x = np.random.default_rng(0).random((20, 3))
    >>> len(other_range(model, [x])), len(other_range(model, [255 * x]))
    (0, 1)
    """
    if not is_graph(model) or len(samples) != 1 or len(samples[0]) < _FEWEST:
        return ()
    found = [layer for layer in flat_layers(model) if isinstance(layer, _NORMALISING)]
    if not found or len(calls_of(found[0])) != 1 or found[0] not in model.layers:
        return ()
    known = _variance(found[0])
    if known is None:
        return ()
    before = keras.Model(model.inputs, calls_of(found[0])[0].input_tensors[0])
    values = keras.ops.convert_to_numpy(before(samples[0][:_MOST].astype("float32")))
    seen = float(np.mean(np.var(values.reshape(-1, values.shape[-1]), axis=0, dtype=np.float64)))
    ratio = (seen / known) ** 0.5
    if 1 / _FACTOR <= ratio <= _FACTOR:
        return ()
    return (
        f"At {found[0].name!r} the calibration examples vary {ratio:.3g} times as much as those "
        "that the model was trained on: they are in other units, or hardly differ. Pass examples "
        "prepared as in training, for instance divided by 255.",
    )


def _variance(layer: keras.layers.Layer) -> float | None:
    """The variance that a normalisation has seen; None for one that has seen nothing."""
    raw = getattr(layer, "moving_variance", None)
    raw = getattr(layer, "variance", None) if raw is None else raw
    if raw is None:
        return None
    value = np.asarray(keras.ops.convert_to_numpy(raw), np.float64)
    untouched = isinstance(layer, keras.layers.BatchNormalization) and (value == 1).all()
    mean = float(value.mean())
    return None if untouched or not mean > 0 else mean
