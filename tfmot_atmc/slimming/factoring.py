# SPDX-License-Identifier: Apache-2.0
"""Replaces layers by two smaller ones whose kernels multiply to theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import layers

from tfmot_atmc.slimming.analysis import is_graph, remade

FIRST = "_first"


def can_factor(layer: Any) -> bool:
    """Tells whether a layer may be replaced: an ungrouped convolution or a dense layer."""
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
        model: A built functional or sequential model. It stays as it is.
        products: By layer name: A of shape `(..., r)`, the kernel's but for the last axis, and B of
            shape `(r, outputs)`; or A of shape `(height, 1, inputs, r)` and B of shape
            `(1, width, r, outputs)`.

    Returns:
        An uncompiled model with the outputs of the original, up to rounding.

    Raises:
        ValueError: If the graph of the model is not known, a name is not that of a layer of the
            model itself (or of an inner one), a layer cannot be replaced, or a shape does not fit.

    Example:

    >>> import keras, numpy as np
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(6, name="wide")])
    >>> two = factor_layers(model, {"wide": (np.ones((4, 1)), np.ones((1, 6)))})
    >>> [(layer.name, layer.units) for layer in two.layers]
    [('wide_first', 1), ('wide', 6)]
    """
    if not is_graph(model) or not model.built:
        raise ValueError(
            "Only built functional and sequential models can be changed, since the graph of others "
            f"is not known; got {model.name!r} of type {type(model).__name__}."
        )
    known = {layer.name: layer for layer in model._flatten_layers(include_self=False)}
    for name, (a, b) in products.items():
        if name not in known or not can_factor(known[name]):
            raise ValueError(
                f"{name!r} must be the name of an ungrouped convolution or dense layer; the model "
                f"has {[other for other, layer in known.items() if can_factor(layer)]}."
            )
        shape = tuple(known[name].kernel.shape)
        if not _gives(np.shape(a), np.shape(b), shape):
            raise ValueError(
                f"The product for {name!r} must give the shape {shape}, got {np.shape(a)} and "
                f"{np.shape(b)}."
            )
    return _Rebuilder(products).run(model)


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


class _Rebuilder:
    def __init__(self, products: Mapping[str, tuple[np.ndarray, np.ndarray]]):
        self.products = products
        self.copies: dict[int, Any] = {}
        self.firsts: dict[int, Any] = {}
        self.values: list[tuple[Any, list[np.ndarray]]] = []

    def run(self, model: keras.Model) -> keras.Model:
        custom = {type(layer) for layer in model._flatten_layers()}
        with keras.saving.custom_object_scope({cls.__name__: cls for cls in custom}):
            rebuilt = self._rebuild(model)
        for layer, values in self.values:
            layer.set_weights(values)
        return rebuilt

    def _rebuild(self, model: Any) -> Any:
        if isinstance(model, keras.Sequential):
            parts: list[Any] = [
                keras.Input(batch_shape=t.shape, dtype=t.dtype) for t in model.inputs
            ]
            for layer in model.layers:
                copy = self._copy(layer)
                parts += [self.firsts[id(copy)]] if id(copy) in self.firsts else []
                parts.append(copy)
            return keras.Sequential(parts, name=model.name)
        return keras.models.clone_model(model, clone_function=self._copy, call_function=self._call)

    def _call(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        first = self.firsts.get(id(layer))
        return layer(*args, **kwargs) if first is None else layer(first(*args))

    def _copy(self, layer: Any) -> Any:
        if id(layer) not in self.copies:
            if is_graph(layer):
                self.copies[id(layer)] = self._rebuild(layer)
            elif isinstance(layer, layers.Layer):
                self.copies[id(layer)] = self._make(layer)
            else:
                self.copies[id(layer)] = layer
        return self.copies[id(layer)]

    def _make(self, layer: Any) -> Any:
        config, values = layer.get_config(), layer.get_weights()
        if layer.name in self.products:
            return self._split(layer, config, values)
        copy = remade(layer, config)
        self.values.append((copy, values))
        return copy

    def _split(self, layer: Any, config: dict[str, Any], values: list[np.ndarray]) -> Any:
        a, b = self.products[layer.name]
        plain = {"name": layer.name + FIRST, "use_bias": False, "activation": None}
        if isinstance(layer, layers.Dense):
            first = layers.Dense.from_config(config | plain | {"units": a.shape[-1]})
            second = layers.Dense.from_config(config)
        else:
            rank = a.ndim - 2
            changes = _pointwise(rank) if b.ndim == 2 else _vertical_and_horizontal(config)
            plain |= {"filters": a.shape[-1]}
            first = type(layer).from_config(config | plain | changes[0])
            second = type(layer).from_config(config | changes[1])
            b = b.reshape((1,) * rank + b.shape) if b.ndim == 2 else b
        self.values += [(first, [a]), (second, [b, *values[1:]])]
        self.firsts[id(second)] = first
        return second
