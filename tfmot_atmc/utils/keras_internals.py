# SPDX-License-Identifier: Apache-2.0
"""What Keras has no public name for: all layers of a model, their own variables, their inputs."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

__all__ = [
    "computes_as_its_class",
    "flat_layers",
    "input_structure",
    "layer_state",
    "own_variables",
    "overrides",
    "place_randomness",
    "random_states",
    "set_own_variables",
]


def flat_layers(model: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Returns the model itself and all layers inside it, each once, in a fixed order."""
    return list(model._flatten_layers(include_self=True, recursive=True))


def own_variables(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Returns the variables of the layer itself, without those of layers inside it."""
    return list(layer._trainable_variables) + list(layer._non_trainable_variables)


def set_own_variables(
    layer: keras.layers.Layer, variables: list[keras.Variable]
) -> list[keras.Variable]:
    """Sets which trainable variables Keras sees in the layer itself; returns those before."""
    before = layer._trainable_variables
    layer.__dict__["_trainable_variables"] = variables
    return before


def random_states(layer: keras.layers.Layer) -> list[Any]:
    """Returns the states of the layer's own random generators, which are no weights."""
    return [generator.state for generator in layer._seed_generators]


def layer_state(model: keras.layers.Layer) -> list[tuple[keras.Variable, tf.Tensor]]:
    """Returns what a forward pass may change, such as moving averages, with its value now."""
    return [
        (variable, tf.identity(variable.value))
        for layer in flat_layers(model)
        for variable in layer._non_trainable_variables
    ]


def place_randomness(model: keras.layers.Layer, step: tf.Tensor) -> None:
    """Ties the random draws of layers such as Dropout to the step, so that a resumed run repeats.

    Keras saves the counters of its random seeds neither in weights nor in backups.

    Args:
        model: the model whose layers draw.
        step: scalar integer tensor, optimizer steps taken so far.
    """
    for layer in flat_layers(model):
        for variable in random_states(layer):
            state = tf.convert_to_tensor(variable)
            counter = tf.cast(step, state.dtype) * 4096  # more than the draws of one step
            variable.assign(tf.stack([state[0], counter]))


def input_structure(model: keras.Model) -> Any:
    """Returns the nest of `KerasTensor`s that a model takes; None where it is not known.

    A subclassed model knows the shapes that it was built with, but no dtypes: they are taken to be
    those of floating inputs.
    """
    if getattr(model, "_inputs_struct", None) is not None:
        return model._inputs_struct
    if getattr(model, "inputs", None):
        return model.inputs[0] if len(model.inputs) == 1 else model.inputs
    shapes = getattr(model, "_build_shapes_dict", None) or {}
    if len(shapes) != 1:
        return None
    return _specified(next(iter(shapes.values())))


def _specified(shape: Any) -> Any:
    if isinstance(shape, dict):
        return {key: _specified(value) for key, value in shape.items()}
    if all(size is None or isinstance(size, int) for size in shape):
        return keras.KerasTensor((None, *shape[1:]), dtype=keras.config.floatx())
    return [_specified(value) for value in shape]


def overrides(thing: Any, method: str) -> bool:
    """Tells whether a method is another than the one that Keras gives to its classes.

    Args:
        thing: a layer or model, or a class of them.
        method: name of the method.
    """
    if not isinstance(thing, type):
        return method in vars(thing) or overrides(type(thing), method)
    owner = next((cls for cls in thing.__mro__ if method in vars(cls)), None)
    return owner is not None and owner.__module__.partition(".")[0] != "keras"


def computes_as_its_class(layer: Any) -> bool:
    """Tells whether a layer of Keras's own has no method attached that computes something else."""
    return not any(name in vars(layer) for name in ("call", "convolution_op"))
