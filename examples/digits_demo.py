# SPDX-License-Identifier: Apache-2.0
"""Compresses a network for 8x8 digits that stays robust, exports it and attacks the file.

    python examples/digits_demo.py --out demo

writes demo/model.tflite, demo/results.json and demo/results.png, in a minute or two.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import keras
import numpy as np
from absl import app, flags
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import tfmot_atmc as atmc  # noqa: E402
from tfmot_atmc.utils.figures import accuracy_bars, save_figure  # noqa: E402

FLAGS = flags.FLAGS
flags.DEFINE_string("out", "demo", "Folder to write to.")
flags.DEFINE_integer("epochs", 20, "Epochs of each training.", lower_bound=1)
flags.DEFINE_integer("limit", None, "Use only so many examples.", lower_bound=1)
EPSILON = 0.15  # how far a pixel in [0, 1] may be changed


def train(model: Any, data: Any, optimizer: Any) -> Any:
    """Compiles and fits a compressed model, and returns the plain one behind it."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    update = [atmc.callbacks.UpdateCompression()]
    x, y = data.x_train, data.y_train
    model.fit(x, y, batch_size=64, epochs=FLAGS.epochs, callbacks=update, verbose=0)
    return atmc.strip_compression(model)


def draw(path: str, results: dict[str, Any], images: Any, readings: dict[str, Any], y: Any) -> None:
    """Draws accuracies, file sizes, and attacked digits with what each of two networks reads."""
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    grid = figure.add_gridspec(2, 30, height_ratios=(2, 1))
    accuracy, size = figure.add_subplot(grid[0, :20]), figure.add_subplot(grid[0, 20:])
    bars = {name: {k: row[k] for k in ("clean", "PGD-40")} for name, row in results.items()}
    accuracy_bars(accuracy, bars)
    accuracy.set_title(f"Accuracy, clean and attacked within {EPSILON} of each pixel")
    names = ("dense, robust", ".tflite")
    sizes = size.bar(names, [results[n]["bytes"] / 1024 for n in names], 0.5, color="#5b7f95")
    size.bar_label(sizes, fmt="%.1f")
    size.set(title="KiB on disk", yticks=[], xlim=(-0.7, 1.7))
    size.spines[["top", "right", "left"]].set_visible(False)
    for i, image in enumerate(images):
        axes = figure.add_subplot(grid[1, 3 * i : 3 * i + 3])
        axes.imshow(image[..., 0], cmap="gray_r", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[])
        places = (axes.set_title, axes.set_xlabel)
        for (name, read), write in zip(readings.items(), places, strict=True):
            write(f"{name}: {read[i]}", fontsize=9, color="black" if read[i] == y[i] else "red")
    save_figure(figure, path)


def main(argv: list[str]) -> None:
    """Trains, compresses, exports, attacks, and shows what came of it."""
    del argv
    os.makedirs(FLAGS.out, exist_ok=True)
    file = os.path.join(FLAGS.out, "model.tflite")
    console = Console(width=None if sys.stdout.isatty() else 120)
    data = atmc.datasets.load("digits", limit=FLAGS.limit)
    attack = atmc.attacks.PGD(epsilon=EPSILON, steps=5)

    console.print("Training dense networks, without and with attacks ...")
    start = atmc.models.small_cnn(seed=0)
    naive = train(atmc.compress(start, "da"), data, keras.optimizers.Adam(2e-3))
    dense = train(atmc.compress(start, "da", attack=attack), data, keras.optimizers.Adam(2e-3))

    console.print("Compressing under attack to a twentieth of the weights, of 4 bits each ...")
    method = atmc.methods.ATMC(ratio=0.05, bits=4)
    compressed = atmc.compress(dense, method, attack=attack)
    rate = keras.optimizers.schedules.CosineDecay(0.05, FLAGS.epochs * len(data.x_train) // 64)
    small = train(compressed, data, keras.optimizers.SGD(rate, momentum=0.9, global_clipnorm=1.0))
    report = compressed.compression_report()
    console.print(str(report), highlight=False)

    console.print("Exporting, and attacking all of them ...")
    exported = atmc.export_tflite(small, file, inputs=data.x_test)
    strong = atmc.attacks.PGD(epsilon=EPSILON, steps=40, step_size=EPSILON / 6)
    targets = {"dense": naive, "dense, robust": dense, "ATMC": small, ".tflite": file}
    results: dict[str, Any] = {}
    table = Table("network", "clean", "PGD-40", "nonzeros", "bytes of .tflite")
    test = (data.x_test, data.y_test)
    for name, target in targets.items():
        # A file gives no gradients: it is attacked by way of the Keras model it was made from.
        source = small if target == file else None
        found = atmc.evaluate_robustness(target, test, attacks=strong, source=source, verbose=0)
        weights = report.dense_parameters if "dense" in name else report.nonzeros
        size = exported.dense_bytes if "dense" in name else exported.bytes
        clean, robust = found.clean_accuracy, found.robust_accuracy
        results[name] = {"clean": clean, "PGD-40": robust, "nonzeros": weights, "bytes": size}
        table.add_row(name, f"{clean:.1%}", f"{robust:.1%}", f"{weights:,}", f"{size:,}")
    console.print(table)
    with open(os.path.join(FLAGS.out, "results.json"), "w", encoding="utf-8") as out:
        json.dump(results, out, indent=2)

    shown = np.array([np.argmax(data.y_test == digit) for digit in np.unique(data.y_test)])
    y = data.y_test[shown]
    x = strong(naive, data.x_test[shown], y).numpy()  # attacks on the network without defence
    logits = {"dense": naive.predict(x, verbose=0), ".tflite": atmc.export.TFLiteModel(file)(x)[0]}
    readings = {name: outputs.argmax(-1) for name, outputs in logits.items()}
    draw(os.path.join(FLAGS.out, "results.png"), results, x, readings, y)


if __name__ == "__main__":
    app.run(main)
