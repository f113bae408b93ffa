# SPDX-License-Identifier: Apache-2.0
"""Which layers of a model are to be compressed, as the user says it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras

from tfmot_atmc.utils.keras_internals import flat_layers

__all__ = ["MARK", "Layers", "selected_indices"]

MARK = "_tfmot_atmc_selected"
"""Attribute of layers that `compress` was given one by one."""

Layers = Sequence[str] | Callable[[keras.layers.Layer], bool] | None


def selected_indices(model: keras.Model, layers: Layers) -> list[int] | None:
    """Returns which layers of a model are meant.

    Args:
        model: a built model.
        layers: None for those marked, or all if none is; names; or a function from a layer to
            whether it is meant.

    Returns:
        Indices in `flat_layers(model)`; None for all.

    Raises:
        ValueError: if no layer has one of the names.
    """
    flat = flat_layers(model)
    marked = [i for i, layer in enumerate(flat) if MARK in layer.__dict__]
    if layers is None:
        return marked or None
    if callable(layers):
        return [i for i, layer in enumerate(flat) if layers(layer)]
    unknown = sorted(set(layers) - {layer.name for layer in flat})
    if unknown:
        raise ValueError(
            f"No layer is named {unknown}. Layers with weights are "
            f"{[layer.name for layer in flat if layer.weights]}."
        )
    return [i for i, layer in enumerate(flat) if layer.name in set(layers)]
