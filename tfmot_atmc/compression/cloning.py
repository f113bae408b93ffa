# SPDX-License-Identifier: Apache-2.0
"""Copies of Keras models, made from their own configurations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from tfmot_atmc.compression.sites import flat_layers


def copy_model(model: keras.Model) -> keras.Model:
    """Returns a copy with variables of its own, equal values, and no optimizer.

    Args:
        model: a built Keras model.

    Returns:
        A model of the same class, layers and names.

    Raises:
        ValueError: if the model is not built, or cannot be rebuilt from its own config.
    """
    if not model.built or (not model.weights and model.count_params() == 0):
        raise ValueError(
            f"Model '{model.name}' is not built, so it has no weights to compress. Call it on a "
            "batch, or model.build(input_shape), first."
        )
    config = keras.saving.serialize_keras_object(model)
    values = [keras.ops.convert_to_numpy(weight) for weight in model.weights]
    return rebuild_model(config, values, classes_of(model), model.name)


def rebuild_model(
    config: Mapping[str, Any],
    values: Sequence[np.ndarray],
    custom_objects: Mapping[str, Any],
    name: str,
) -> keras.Model:
    """Returns the model of a serialised config with the given weights."""
    plain = {key: value for key, value in config.items() if key != "compile_config"}
    how = (
        "Give the class a get_config() that returns its constructor's arguments, or pass "
        "in_place=True to let the model itself be changed."
    )
    try:
        copy = keras.saving.deserialize_keras_object(
            plain, custom_objects=dict(custom_objects), safe_mode=False
        )
    except Exception as error:
        raise ValueError(
            f"Model '{name}' cannot be rebuilt from its own configuration. {how}"
        ) from error
    shapes = [tuple(weight.shape) for weight in copy.weights]
    if shapes != [tuple(value.shape) for value in values]:
        raise ValueError(
            f"Model '{name}', rebuilt from its own configuration, has other weights than before "
            f"({len(shapes)} instead of {len(values)}). {how}"
        )
    copy.set_weights(list(values))
    return copy


def classes_of(model: keras.Model) -> dict[str, type]:
    """Returns the classes of a model's layers that Keras would not find by itself."""
    classes = {type(layer) for layer in flat_layers(model)}
    return {cls.__name__: cls for cls in classes if not cls.__module__.startswith("keras")}
