# SPDX-License-Identifier: Apache-2.0
"""A layer of your own says itself which of its weights are compressed.

python examples/custom_layer.py
"""

from __future__ import annotations

import os
import sys
from typing import Any

import keras
import numpy as np
from absl import app

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import tfmot_atmc as atmc  # noqa: E402


@keras.saving.register_keras_serializable(package="examples")
class LowRankDense(keras.layers.Layer):
    """A dense layer whose kernel is a product of two."""

    def __init__(self, units: int, rank: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.units, self.rank = units, rank

    def build(self, input_shape: tuple[int, ...]) -> None:
        self.down = self.add_weight(name="down", shape=(input_shape[-1], self.rank))
        self.up = self.add_weight(name="up", shape=(self.rank, self.units))

    def call(self, inputs: Any) -> Any:
        return keras.ops.relu(inputs @ self.down @ self.up)

    def get_compressible_weights(self) -> list[Any]:
        """Only the large matrix is compressed; `up` stays as it is."""
        return [self.down]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units, "rank": self.rank}


def main(argv: list[str]) -> None:
    """Compresses a model with such a layer."""
    del argv
    keras.utils.set_random_seed(0)
    data = atmc.datasets.load("digits", limit=320)
    model = keras.Sequential(
        [
            keras.Input(data.input_shape),
            keras.layers.Flatten(),
            LowRankDense(48, rank=12, name="low_rank"),
            keras.layers.Dense(10, name="logits"),
        ]
    )
    small = atmc.compress(model, "atmc", ratio=0.3, attack=atmc.attacks.FGSM(epsilon=0.05))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    small.compile(keras.optimizers.Adam(5e-3), loss, metrics=["accuracy"])
    update = atmc.callbacks.UpdateCompression()
    small.fit(data.x_train, data.y_train, epochs=8, callbacks=[update], verbose=2)
    print(small.compression_report())
    layer = atmc.strip_compression(small).get_layer("low_rank")
    for variable in layer.weights:
        kept = np.count_nonzero(keras.ops.convert_to_numpy(variable))
        print(f"{variable.name}: {kept} of {np.prod(variable.shape)} nonzero")


if __name__ == "__main__":
    app.run(main)
