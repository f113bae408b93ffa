# SPDX-License-Identifier: Apache-2.0
"""Removes from a Keras model the channels that change nothing."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers

from tfmot_atmc.slimming.analysis import Walk, is_graph
from tfmot_atmc.slimming.channels import Weighted
from tfmot_atmc.slimming.rebuilding import Rebuilder
from tfmot_atmc.utils.cloning import copy_layer


def slim_model(model: keras.Model) -> keras.Model:
    """Returns a model without the channels whose removal provably changes no output.

    A channel goes when nothing that reaches an output reads it, or when it is the same for every
    input and can move into the biases of all layers that read it. Constants are followed through
    biases, activations, batch normalisation, pooling, concatenation and sums. Where a constant
    that is not zero meets zero padding, and where a layer is not known (an own class, softmax, an
    operation outside a layer), the channel stays. Sums keep a channel that any of their inputs
    needs. A layer without any needed channel keeps one.

    Outputs are equal up to the rounding of float32: the same sums run over fewer terms, which
    kernels of another size may add in another order.

    Args:
        model: a built functional or sequential model, plain (after `strip_compression`). Inner
            functional models are slimmed too, if they are called once. It stays as it is.

    Returns:
        A model with the layers and names of the original, uncompiled; biases are added where
        constants need them.

    Raises:
        TypeError: if `model` is not a Keras model.
        ValueError: if the model is wrapped for compression, or its graph is not known because it
            is subclassed.

    Example:

    >>> import keras, numpy as np
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="relu"),
    ...                           keras.layers.Dense(2)])
    >>> kernel = np.ones((3, 2)); kernel[1] = 0.0  # nobody reads the second unit
    >>> model.layers[1].set_weights([kernel, np.zeros(2)])
    >>> [layer.units for layer in slim_model(model).layers]
    [2, 2]
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a keras.Model. Received {type(model).__name__}.")
    if hasattr(model, "compression_report"):
        raise ValueError(
            f"The model {model.name!r} is wrapped for compression; call "
            "`strip_compression(model)` first and slim what it returns."
        )
    if not is_graph(model) or not model.built:
        raise ValueError(
            f"Only built functional and sequential models can be slimmed, since the graph of "
            f"others is not known. Received {model.name!r} of type {type(model).__name__}."
        )
    return _Surgeon(model).run(model)


class _Surgeon(Rebuilder):
    """Rebuilds a model without the channels that nobody needs."""

    def __init__(self, model: keras.Model):
        super().__init__()
        self.walk = Walk(model)
        self.needed = self.walk.channels.needed()

    def entered(self, model: Any) -> bool:
        return id(model) in self.walk.nested

    def input_of(self, tensor: Any) -> Any:
        signal = self.walk.tensors[id(tensor)]
        shape = tuple(tensor.shape)
        if signal is not None:
            shape = (*shape[:-1], int(self.needed[signal.atoms].sum()))
        return keras.Input(batch_shape=shape, dtype=tensor.dtype, name=tensor.name)

    def changed(self, layer: Any) -> Any:
        config, channels = layer.get_config(), self.walk.channels
        if id(layer) in channels.weighted:
            values = self._cut_kernel(layer, channels.weighted[id(layer)], config)
        elif id(layer) in channels.scaled:
            values = self._cut_scales(layer, self.needed[channels.scaled[id(layer)]])
        elif id(layer) in channels.widened:
            before, inside, behind = (
                int(self.needed[atoms].sum()) for atoms in channels.widened[id(layer)]
            )
            return copy_layer(layer, layer.with_zero_channels(inside, before, behind))
        else:
            return None
        copy = copy_layer(layer, config)
        self.later(lambda: copy.set_weights(values))
        return copy

    def _cut_kernel(
        self, layer: Any, weighted: Weighted, config: dict[str, Any]
    ) -> list[np.ndarray]:
        """Sets the size in the config; returns kernel and bias."""
        inputs, outputs = self.needed[weighted.source], self.needed[weighted.result]
        kernel = keras.ops.convert_to_numpy(layer.kernel)[..., inputs, :][..., outputs]
        config["units" if "units" in config else "filters"] = int(outputs.sum())
        removed = ~inputs & ~np.isnan(weighted.constants)
        folded = weighted.constants[removed] @ weighted.effect[removed]
        if layer.use_bias:
            folded = keras.ops.convert_to_numpy(layer.bias) + folded
        elif not folded.any():
            return [kernel]
        config["use_bias"] = True
        return [kernel, folded[outputs].astype(kernel.dtype)]

    def _cut_scales(self, layer: Any, kept: np.ndarray) -> list[np.ndarray]:
        if not isinstance(layer, layers.DepthwiseConv2D):
            return [value[kept] for value in _values(layer)]
        kernel, *bias = _values(layer)
        return [kernel[:, :, kept, :], *(b[np.repeat(kept, kernel.shape[-1])] for b in bias)]


def _values(layer: Any) -> list[np.ndarray]:
    return [keras.ops.convert_to_numpy(weight) for weight in layer.weights]
