# SPDX-License-Identifier: Apache-2.0
"""A small network on noise, for tests of methods that keep some of its weights."""

import keras
import numpy as np

from tfmot_atmc import attacks, models
from tfmot_atmc.datasets.splits import Dataset

RNG = np.random.default_rng(0)
X = RNG.uniform(size=(48, 6, 6, 1)).astype(np.float32)
Y = RNG.integers(0, 3, 48).astype(np.int32)
DATA = Dataset(X[:32], Y[:32], X[32:40], Y[32:40], X[40:], Y[40:], 3, "noise")
ATTACK = attacks.FGSM(epsilon=0.1)


def network():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Conv2D(4, 3, name="conv"),  # 36 weights
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dense(3, name="head"),  # 192 weights
        ]
    )
    return models.add_last_batch_norm(model)


class Counts(keras.callbacks.Callback):
    """The nonzeros of every kernel after each step."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append([np.count_nonzero(k.compose()) for k in self.model.kernels])


def fitted(model, epochs=2, rate=0.1):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(rate, momentum=0.9, weight_decay=5e-4), loss)
    counts = Counts()
    model.fit(X[:32], Y[:32], batch_size=16, epochs=epochs, verbose=0, callbacks=[counts])
    return counts.seen
