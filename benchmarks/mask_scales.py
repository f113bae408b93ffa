# SPDX-License-Identifier: Apache-2.0
"""What the scale and the regularization of in-train pruning do: a ResNet-8 on the 8x8 digits.

    python benchmarks/mask_scales.py

trains `in_train_pruning` from scratch under FGSM, with the paper's scales and rate of the masks and
with the defaults, and shows the operations that are left. One seed; 12 epochs, so a small scale has
far fewer steps than in the paper.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import keras
from absl import app, flags
from common import show

import tfmot_atmc as atmc
from tfmot_atmc.slimming import layer_costs, slim_model
from tfmot_atmc.utils.files import write_json

OUT = flags.DEFINE_string("out", "benchmarks/results/mask_scales", "Folder for results.")
EPOCHS = flags.DEFINE_integer("epochs", 12, "Epochs of each training.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the weights.")

BATCH, EPSILON = 64, 0.1
RUNS: list[dict[str, Any]] = [
    {"ratio": 0.2, "scale": 50.0, "mask_rate": 0.01},
    {"ratio": 0.2, "scale": 10.0, "mask_rate": 0.01},
    {"ratio": 0.2},
    {"ratio": 0.5},
    {"ratio": 0.2, "scale": 50.0, "mask_rate": 0.01, "regularization": 0.0},
]


def macs(model: keras.Model) -> int:
    return sum(cost.macs or 0 for cost in layer_costs(model))


def train(data: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """One training, and what is left of the network."""
    network = atmc.models.cifar_resnet(8, input_shape=(8, 8, 1), seed=SEED.value)
    small = atmc.compress(network, "in_train_pruning", attack="fgsm", epsilon=EPSILON, **arguments)
    steps = EPOCHS.value * -(-len(data.x_train) // BATCH)
    rate = keras.optimizers.schedules.CosineDecay(0.1, steps)
    small.compile(
        keras.optimizers.SGD(rate, momentum=0.9, global_clipnorm=5.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    small.fit(data.x_train, data.y_train, epochs=EPOCHS.value, batch_size=BATCH, verbose=0)
    found = small.evaluate(data.x_test, data.y_test, verbose=0, return_dict=True)
    method = small.method
    return {
        "target": method.ratio,
        "scale": method.scale,
        "mask_rate": method.mask_rate,
        "regularization": method.regularization,
        "operations": macs(slim_model(atmc.strip_compression(small))) / macs(network),
        "clean": found["accuracy"],
        "fgsm": found["robust_accuracy"],
    }


def main(_: list[str]) -> None:
    warnings.simplefilter("ignore")
    data = atmc.datasets.load("digits")
    rows = [train(data, arguments) for arguments in RUNS]
    show("Operations left by masks of channels", rows)
    out = Path(OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    settings = {"epochs": EPOCHS.value, "seed": SEED.value, "epsilon": EPSILON}
    write_json(out / "results.json", {**settings, "rows": rows})


if __name__ == "__main__":
    app.run(main)
