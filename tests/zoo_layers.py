"""Layers, models and a function of a user's own, for the zoo of small models."""

import keras
import numpy as np
from keras import layers

PACKAGE = "model_zoo"


def _register(cls):
    return keras.saving.register_keras_serializable(package=PACKAGE)(cls)


@_register
class Blocks(keras.Model):
    """A subclassed model with layers in a list."""

    def __init__(self, units=4, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.flatten = layers.Flatten()
        self.blocks = [layers.Dense(6, activation="relu"), layers.Dropout(0.3)]
        self.head = layers.Dense(units)

    def call(self, inputs, training=None):
        x = self.flatten(inputs)
        for block in self.blocks:
            x = block(x, training=training) if isinstance(block, layers.Dropout) else block(x)
        return self.head(x)

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@_register
class Own(keras.Model):
    """A functional model of an own class."""


@_register
class Gain(layers.Layer):
    """Keeps a number that no weight and no configuration has."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.gain = 1.0

    def call(self, inputs):
        return inputs * self.gain

    def save_own_variables(self, store):
        store["gain"] = np.asarray(self.gain)

    def load_own_variables(self, store):
        self.gain = float(np.asarray(store["gain"]))


@_register
class StandardisedConv(layers.Conv2D):
    """Weight standardisation, written as Keras shows it."""

    def convolution_op(self, inputs, kernel):
        ops = keras.ops
        centred = kernel - ops.mean(kernel, (0, 1, 2), keepdims=True)
        deviation = ops.sqrt(ops.var(kernel, (0, 1, 2), keepdims=True) + 1e-5)
        return super().convolution_op(inputs, centred / deviation)


@_register
class Remembering(layers.Dense):
    """A dense layer that saves a number of its own beside its weights."""

    def __init__(self, units, **kwargs):
        super().__init__(units, **kwargs)
        self.shift = 0.0

    def call(self, inputs, training=None):
        return super().call(inputs) + self.shift

    def save_own_variables(self, store):
        super().save_own_variables(store)
        store["shift"] = np.asarray(self.shift)

    def load_own_variables(self, store):
        self.shift = float(np.asarray(store["shift"]))
        super().load_own_variables({k: store[k] for k in store.keys() if k != "shift"})


@_register
class Film(layers.Layer):
    """Takes a second tensor by keyword."""

    def call(self, x, scale=None):
        return x if scale is None else x * scale


@_register
class Composite(layers.Layer):
    """A layer of layers."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.inside = layers.Dense(units, activation="tanh")
        self.norm = layers.LayerNormalization()

    def build(self, shape):
        self.inside.build(shape)
        self.norm.build((*shape[:-1], self.units))

    def call(self, inputs):
        return self.norm(self.inside(inputs))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


def swish_like(x):
    """An activation that Keras does not know, and that needs a name of this module."""
    return x * keras.activations.sigmoid(SLOPE * x)


SLOPE = 1.5
