# SPDX-License-Identifier: Apache-2.0
"""What the tests of the export share: small models with sparse kernels."""

import keras
import numpy as np
from keras import layers

from tfmot_atmc import export


def prune(model, density, seed=0, grid=None):
    """Gives every kernel random values, a share `density` of them nonzero (at least one)."""
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        if len(variable.shape) < 2:
            continue
        if grid is None:
            values = rng.normal(0.0, 0.1, variable.shape).astype(np.float32)
        else:
            codes = rng.integers(1, 128, variable.shape) * rng.choice([-1, 1], variable.shape)
            values = codes.astype(np.float32) * np.float32(grid)
        kept = np.zeros(values.size, bool)
        kept[rng.permutation(values.size)[: max(1, round(density * values.size))]] = True
        variable.assign(values * kept.reshape(values.shape))
    return model


def perceptron(width=64):
    return keras.Sequential(
        [
            keras.Input((16,)),
            layers.Dense(width, activation="relu"),
            layers.Dense(width, activation="relu"),
            layers.Dense(5),
        ]
    )


def quick_export(model, path, **options):
    return export.export_tflite(model, path, **{"measure_latency": False, "slim": False} | options)
