# SPDX-License-Identifier: Apache-2.0
"""Compresses a trained classifier of your own.

    python examples/compress_your_model.py --model mine.keras --data mine.npz --out small.tflite

The .npz file holds `x` (inputs in [0, 1]) and `y` (class indices). Without flags, a small network
for the embedded digits stands in for yours.
"""

from __future__ import annotations

import os
import sys

import keras
import numpy as np
from absl import app, flags

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import tfmot_atmc as atmc  # noqa: E402

FLAGS = flags.FLAGS
flags.DEFINE_string("model", None, "A .keras file of a classifier.")
flags.DEFINE_string("data", None, "An .npz file with x and y.")
flags.DEFINE_string("out", "small.tflite", "File to write.")
flags.DEFINE_float("ratio", 0.1, "Nonzeros as a ratio of the parameters of the dense kernels.")
flags.DEFINE_float("epsilon", 0.1, "How far each input may be changed.")
flags.DEFINE_integer("epochs", 5, "Epochs.")
flags.DEFINE_integer("limit", None, "Use only so many examples.")


def main(argv: list[str]) -> None:
    """Compresses, exports and reports."""
    del argv
    if FLAGS.data:
        arrays = np.load(FLAGS.data)
        x, y = arrays["x"], arrays["y"]
    else:
        digits = atmc.datasets.load("digits")
        x, y = digits.x_train, digits.y_train
    x, y = x[: FLAGS.limit], y[: FLAGS.limit]
    model = keras.saving.load_model(FLAGS.model) if FLAGS.model else atmc.models.small_cnn(seed=0)

    # Attacks perturb raw inputs: bounds and epsilon are in their units.
    attack = atmc.attacks.PGD(epsilon=FLAGS.epsilon, steps=3, bounds=(0.0, 1.0))
    small = atmc.compress(model, "atmc", ratio=FLAGS.ratio, attack=attack, attack_warmup=100)
    # Ours returns logits. For a network that ends in a softmax, leave `from_logits` out.
    logits = model.layers[-1].get_config().get("activation") != "softmax"
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=logits)
    small.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    small.fit(x, y, epochs=FLAGS.epochs, callbacks=[atmc.callbacks.UpdateCompression()], verbose=2)
    print(small.compression_report())

    deployable = atmc.strip_compression(small)
    print(atmc.export_tflite(deployable, FLAGS.out, inputs=x[:64]))
    print(atmc.evaluate_robustness(deployable, (x, y), attacks="pgd", epsilon=FLAGS.epsilon))


if __name__ == "__main__":
    app.run(main)
