# SPDX-License-Identifier: Apache-2.0
"""Compresses a network of keras.applications, here a tiny MobileNetV2 with random weights.

    python examples/keras_applications.py

For a real one, give it `weights="imagenet"` and your data.
"""

from __future__ import annotations

import os
import sys

import keras
import numpy as np
from absl import app

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import tfmot_atmc as atmc  # noqa: E402


def main(argv: list[str]) -> None:
    """Compresses two thirds of the network for one epoch, and shows what was done to each layer."""
    del argv
    keras.utils.set_random_seed(0)
    model = keras.applications.MobileNetV2(
        input_shape=(32, 32, 3), alpha=0.35, weights=None, classes=5, classifier_activation=None
    )
    # Depthwise kernels are few and fragile; everything else shares one budget.
    small = atmc.compress(
        model,
        "al0",
        ratio=0.3,
        attack=atmc.attacks.FGSM(epsilon=2.0 / 127.5, bounds=(-1.0, 1.0)),
        layers=lambda layer: type(layer) in (keras.layers.Conv2D, keras.layers.Dense),
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    small.compile(keras.optimizers.SGD(1e-2, momentum=0.9), loss, metrics=["accuracy"])
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (16, 32, 32, 3)).astype("float32")  # as MobileNetV2 wants them
    y = rng.integers(0, 5, 16)
    small.fit(x, y, batch_size=8, callbacks=[atmc.callbacks.UpdateCompression()], verbose=2)
    print(small.compression_report())
    deployable = atmc.strip_compression(small)
    print("The plain network has its layers back:", deployable.layers[-1].name)


if __name__ == "__main__":
    app.run(main)
