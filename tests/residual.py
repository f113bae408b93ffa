# SPDX-License-Identifier: Apache-2.0
"""A residual network with a depthwise layer, and data for it, for tests of how parts meet."""

import keras
import numpy as np
from keras import layers


def data(shape=(8,), n=32, classes=4):
    rng = np.random.default_rng(0)
    return rng.random((n, *shape), np.float32), rng.integers(0, classes, n)


def residual():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", name="stem")(inputs)
    y = layers.DepthwiseConv2D(3, padding="same", name="depth")(x)
    y = layers.Conv2D(4, 1, name="point")(y)
    x = layers.Add()([x, y])
    twice = layers.Conv2D(4, 3, strides=2, padding="same", name="twice")
    x = layers.GlobalAveragePooling2D()(twice(x))
    return keras.Model(inputs, layers.Dense(5, name="head")(x))


def compiled(small, rate=0.05):
    small.compile(
        keras.optimizers.SGD(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    return small
