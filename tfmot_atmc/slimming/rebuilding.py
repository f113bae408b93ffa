# SPDX-License-Identifier: Apache-2.0
"""Rebuilds a functional or sequential model layer by layer, some of them changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import layers

from tfmot_atmc.slimming.analysis import graph_of, is_graph
from tfmot_atmc.utils.cloning import copy_layer, copy_state
from tfmot_atmc.utils.comparison import check_outputs, probe

# Other sizes of kernels are added up in another order; a GPU multiplies in fewer bits.
_ROUNDING, _ROUNDING_ON_GPU = 1e-3, 2e-2


class Rebuilder:
    """Makes a new model from the layers of another; each layer once, however often it is called.

    Subclasses override `changed` for the layers that are to be others, and where needed `entered`,
    `input_of` and `call`.
    """

    def __init__(self) -> None:
        self._copies: dict[int, Any] = {}
        self._after: list[Callable[[], None]] = []

    def run(self, model: keras.Model) -> keras.Model:
        """Returns the new model, which gives the outputs of the old one.

        Raises:
            ValueError: if it does not, on made-up inputs.
        """
        expected = probe(model)
        rebuilt = self._rebuild(model)
        for finish in self._after:
            finish()
        check_outputs(
            expected,
            rebuilt,
            f"The rebuilt model '{model.name}'",
            "A layer keeps something that is neither in its configuration nor in its weights: "
            "write it in save_own_variables() and load_own_variables(), or do without rebuilding "
            "(slim=False in an export).",
            tolerance=_ROUNDING_ON_GPU if tf.config.list_logical_devices("GPU") else _ROUNDING,
        )
        return rebuilt

    def changed(self, layer: Any) -> Any:
        """Returns what stands for a layer, with its weights set by `later`; None for a copy."""
        return None

    def entered(self, model: Any) -> bool:
        """Whether an inner model is rebuilt too, and not copied as it is."""
        return is_graph(model)

    def input_of(self, tensor: Any) -> Any:
        """Returns the new input for an input of the model or of an inner one."""
        return keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=tensor.name)

    def parts(self, copy: Any) -> list[Any]:
        """Returns the layers, one after the other, that a layer's copy stands for."""
        return [copy]

    def later(self, finish: Callable[[], None]) -> None:
        """Notes what is to be done once all layers are built, such as setting weights."""
        self._after.append(finish)

    def _rebuild(self, model: Any) -> Any:
        inputs = [self.input_of(tensor) for tensor in graph_of(model).inputs]
        if isinstance(model, keras.Sequential):
            copies = [part for layer in model.layers for part in self.parts(self._copy(layer))]
            rebuilt = keras.Sequential([inputs[0], *copies], name=model.name)
        else:
            rebuilt = keras.models.clone_model(
                model,
                input_tensors=keras.tree.pack_sequence_as(model.input, inputs),
                clone_function=self._copy,
                call_function=self._call,
            )
        rebuilt.trainable = model.trainable
        return rebuilt

    def _call(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        *first, last = self.parts(layer)
        for part in first:
            args = (part(*args),)
        return last(*args, **kwargs)

    def _copy(self, layer: Any) -> Any:
        if not isinstance(layer, layers.Layer):
            return layer  # an operation keeps nothing
        if id(layer) not in self._copies:
            copy = self._rebuild(layer) if self.entered(layer) else self.changed(layer)
            if copy is None:
                copy = copy_layer(layer, layer.get_config())
                self.later(lambda: copy_state(layer, copy))
            self._copies[id(layer)] = copy
        return self._copies[id(layer)]
