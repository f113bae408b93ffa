# SPDX-License-Identifier: Apache-2.0
"""Replaces layers by two smaller ones whose kernels multiply to theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import layers

from tfmot_atmc.slimming.analysis import is_graph
from tfmot_atmc.slimming.rebuilding import Rebuilder
from tfmot_atmc.utils.cloning import copy_layer
from tfmot_atmc.utils.keras_internals import computes_as_its_class, inner_layers

FIRST = "_first"


def can_factor(layer: Any) -> bool:
    """Tells whether a layer may be replaced: an ungrouped convolution or a dense layer."""
    if not computes_as_its_class(layer):
        return False
    if type(layer) is layers.Dense:
        return layer.quantization_mode is None and not layer.lora_enabled
    return type(layer) in (layers.Conv1D, layers.Conv2D) and layer.groups == 1


def factor_layers(
    model: keras.Model, products: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> keras.Model:
    """Returns a model in which layers run as two, one after the other.

    A layer with kernel A B becomes a layer `<name>_first` of kernel A, without bias and
    activation, and a layer `<name>` of kernel B with bias and activation of the original: a dense
    layer, a 1x1 convolution, or, where A is a vertical filter, the horizontal one.

    Args:
        model: a built functional or sequential model. It stays as it is.
        products: by layer name: A of shape `(..., r)`, the kernel's but for the last axis, and B of
            shape `(r, outputs)`; or A of shape `(height, 1, inputs, r)` and B of shape
            `(1, width, r, outputs)`.

    Returns:
        An uncompiled model with the outputs of the original, up to rounding.

    Raises:
        ValueError: if the graph of the model is not known, a name is not that of a layer of the
            model itself (or of an inner one) or that of several, a layer cannot be replaced, or a
            shape does not fit.

    Example:

    >>> import keras, numpy as np
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(6, name="wide")])
    >>> model.set_weights([np.ones((4, 6)), np.zeros(6)])
    >>> two = factor_layers(model, {"wide": (np.ones((4, 1)), np.ones((1, 6)))})
    >>> [(layer.name, layer.units) for layer in two.layers]
    [('wide_first', 1), ('wide', 6)]
    """
    if not is_graph(model) or not model.built:
        raise ValueError(
            "Only built functional and sequential models can be changed, since the graph of others "
            f"is not known. Received {model.name!r} of type {type(model).__name__}."
        )
    inside = inner_layers(model)
    known = {layer.name: layer for layer in inside}
    for name, (a, b) in products.items():
        if sum(layer.name == name for layer in inside) > 1:
            raise ValueError(
                f"Several layers are named {name!r}, in the model and in models inside it; a layer "
                "to be replaced needs a name of its own."
            )
        if name not in known or not can_factor(known[name]):
            raise ValueError(
                f"{name!r} must be the name of an ungrouped convolution or dense layer; the model "
                f"has {[other for other, layer in known.items() if can_factor(layer)]}."
            )
        shape = tuple(known[name].kernel.shape)
        if not _gives(np.shape(a), np.shape(b), shape):
            raise ValueError(
                f"The product for {name!r} must give the shape {shape}. Received {np.shape(a)} and "
                f"{np.shape(b)}."
            )
    return _Splitter(products).run(model)


def _gives(a: tuple[int, ...], b: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether kernels of shapes a and b, one after the other, stand for one of a shape."""
    if len(b) == 2:
        return (*a[:-1], b[1]) == shape and a[-1] == b[0]
    if len(shape) != 4 or len(a) != 4 or len(b) != 4:
        return False
    return (a, b) == ((shape[0], 1, shape[2], a[3]), (1, shape[1], a[3], shape[3]))


def _pointwise(rank: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Changes to the configurations of two convolutions of which the second is a pointwise one."""
    ones = (1,) * rank
    return {}, {"kernel_size": ones, "strides": ones, "dilation_rate": ones}


def _vertical_and_horizontal(config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Changes to the configurations of two convolutions, one along each axis of an image."""
    names = ("kernel_size", "strides", "dilation_rate")
    vertical = {name: (config[name][0], 1) for name in names}
    return vertical, {name: (1, config[name][1]) for name in names}


class _Splitter(Rebuilder):
    """Rebuilds a model with two layers for each one that has a product."""

    def __init__(self, products: Mapping[str, tuple[np.ndarray, np.ndarray]]):
        super().__init__()
        self.products = products
        self.firsts: dict[int, Any] = {}

    def parts(self, copy: Any) -> list[Any]:
        first = self.firsts.get(id(copy))
        return [copy] if first is None else [first, copy]

    def changed(self, layer: Any) -> Any:
        if layer.name not in self.products:
            return None
        return self._split(layer, layer.get_config(), layer.get_weights())

    def _split(self, layer: Any, config: dict[str, Any], values: list[np.ndarray]) -> Any:
        a, b = self.products[layer.name]
        plain = {"name": layer.name + FIRST, "use_bias": False, "activation": None}
        if isinstance(layer, layers.Dense):
            first = copy_layer(layer, config | plain | {"units": a.shape[-1]})
            second = copy_layer(layer, config)
        else:
            rank = a.ndim - 2
            changes = _pointwise(rank) if b.ndim == 2 else _vertical_and_horizontal(config)
            plain |= {"filters": a.shape[-1]}
            first = copy_layer(layer, config | plain | changes[0])
            second = copy_layer(layer, config | changes[1])
            b = b.reshape((1,) * rank + b.shape) if b.ndim == 2 else b
        self.later(lambda: first.set_weights([a]))
        self.later(lambda: second.set_weights([b, *values[1:]]))
        self.firsts[id(second)] = first
        return second
