# SPDX-License-Identifier: Apache-2.0
"""Slimming in operations and latency: a ResNet-20 pruned by ATMC against the dense one.

    python benchmarks/slimming.py --work /tmp/slimming --epochs 5 --limit 10000

trains ResNet-20 on CIFAR-10 under ATMC and a fast attack, slims it, and measures the .tflite files
of the dense, the sparse and the slimmed model in turns. `--scaling` measures instead how long
slimming and sparse encoding take for networks of growing size.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from rich.console import Console
from rich.table import Table

import tfmot_atmc as atmc
from tfmot_atmc.export import TFLiteModel, measure_latency
from tfmot_atmc.export.tflite import flatbuffer, rewrite
from tfmot_atmc.slimming import compare_models
from tfmot_atmc.utils.files import write_json

EPSILON = 4 / 255

WORK = flags.DEFINE_string("work", "slimming", "Folder for checkpoints and files.")
OUT = flags.DEFINE_string("out", "benchmarks/results/slimming", "Folder for results.")
RATIO = flags.DEFINE_float("ratio", 0.01, "Nonzeros as a ratio of the dense kernels' parameters.")
EPOCHS = flags.DEFINE_integer("epochs", 5, "Epochs of training.")
LIMIT = flags.DEFINE_integer("limit", 10_000, "Training images.")
TEST = flags.DEFINE_integer("test", 1000, "Test images.")
ROUNDS = flags.DEFINE_integer("rounds", 31, "Rounds of the latency measurement.")
THREADS = flags.DEFINE_integer("threads", 0, "Threads of training; 0 for all cores.")
SCALING = flags.DEFINE_bool("scaling", False, "Measure slimming and encoding of large networks.")


def train(data: Any) -> keras.Model:
    """ATMC on a ResNet-20 from scratch; kept in the work folder, resumed where it was."""
    path = Path(WORK.value) / "atmc.keras"
    if path.exists():
        return keras.saving.load_model(path)
    x, y = data.x_train, data.y_train
    steps = -(-len(x) // 64)
    attack = atmc.attacks.RFGSM(epsilon=EPSILON)
    model = atmc.compress(atmc.models.get("resnet20"), "atmc", ratio=RATIO.value, attack=attack)
    rate = keras.optimizers.schedules.CosineDecay(3e-3, EPOCHS.value * steps)
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    batches = atmc.datasets.EpochBatches(
        x, y, batch_size=64, seed=0, augment="crop_flip", epoch=lambda: model.step // steps
    )
    backup = keras.callbacks.BackupAndRestore(Path(WORK.value) / "backup")
    model.fit(
        batches,
        epochs=EPOCHS.value,
        callbacks=[atmc.callbacks.UpdateCompression(), backup],
        verbose=2,
    )
    model.save(path)
    return model


def accuracy(path: Path, data: Any) -> float:
    logits = TFLiteModel(path)(data.x_test)[0]
    return float((logits.argmax(1) == data.y_test).mean())


def compare(data: Any) -> dict[str, Any]:
    """Dense, sparse and slimmed files of the trained network, side by side."""
    compressed = train(data)
    plain = atmc.strip_compression(compressed)
    slimmed = atmc.slim_model(plain)
    models = {"sparse": plain, "slimmed": slimmed, "slimmed, int8 values": slimmed}
    folder = Path(WORK.value)
    files, rows = {}, {}
    dense = atmc.models.get("resnet20")
    exported = atmc.export_tflite(dense, folder / "dense.tflite", measure_latency=False)
    files["dense"], rows["dense"] = folder / "dense.tflite", {"bytes": exported.bytes}
    for number, (name, model) in enumerate(models.items()):
        path = folder / f"{number}.tflite"
        exported = atmc.export_tflite(
            model,
            path,
            slim=False,
            inputs=data.x_test[:100],
            values="int8" if "int8" in name else "auto",
            measure_latency=False,
        )
        files[name] = path
        rows[name] = {
            "bytes": exported.bytes,
            "max_difference": exported.max_difference,
            "label_agreement": exported.label_agreement,
            "accuracy": accuracy(path, data),
        }
    latency = measure_latency(files, [data.x_test[:1]], rounds=ROUNDS.value)
    for name, row in rows.items():
        row["latency_ms"] = latency[name]
    report = compare_models(plain, slimmed, latency_ms=(latency["dense"], latency["slimmed"]))
    print(report)
    robust = atmc.evaluate_robustness(
        plain,
        (data.x_test, data.y_test),
        attacks=atmc.attacks.PGD(epsilon=EPSILON, steps=7, rule="kurakin"),
    )
    return {
        "files": rows,
        "slimming": report.to_dict(),
        "clean_accuracy": robust.clean_accuracy,
        "pgd7_accuracy": robust.robust_accuracy,
        "training": {"epochs": EPOCHS.value, "images": LIMIT.value, "ratio": RATIO.value},
    }


def scaling() -> list[dict[str, Any]]:
    """Seconds to slim, size up and encode networks at 1% of random nonzeros, smallest first."""
    rows = []
    builders = {
        "ResNet-20": lambda: atmc.models.get("resnet20"),
        "WRN-16-8": lambda: atmc.models.get("wide_resnet_16_8"),
        "MobileNetV2": lambda: keras.applications.MobileNetV2(weights=None),
        "ResNet-50": lambda: keras.applications.ResNet50(weights=None),
    }
    for name, build in builders.items():
        model = build()
        rng = np.random.default_rng(0)
        for weight in model.trainable_weights:
            if len(weight.shape) > 1:
                weight.assign(weight.numpy() * (rng.random(weight.shape) < 0.01))
        dense = tf.lite.TFLiteConverter.from_keras_model(model).convert()
        start = time.process_time()
        slimmed = atmc.slim_model(model)
        between = time.process_time()
        bytes_ = atmc.export.weight_bytes(model)
        sized = time.process_time()
        graph = flatbuffer.read_model(dense)
        rewrite.sparsify_weights(graph, min_sparsity=0.5)
        file = flatbuffer.pack_model(graph)
        end = time.process_time()
        weights = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
        rows.append(
            {
                "network": name,
                "weights": weights,
                "slim_cpu_seconds": round(between - start, 2),
                "size_cpu_seconds": round(sized - between, 2),
                "encode_cpu_seconds": round(end - sized, 2),
                "encode_ns_per_weight": round(1e9 * (end - sized) / weights, 1),
                "weight_bytes": bytes_,
                "file_bytes": len(file),
                "slimmed_parameters": slimmed.count_params(),
            }
        )
        print(rows[-1], flush=True)
    return rows


def main(_: list[str]) -> None:
    if THREADS.value:
        tf.config.threading.set_intra_op_parallelism_threads(THREADS.value)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    Path(OUT.value).mkdir(parents=True, exist_ok=True)
    if SCALING.value:
        write_json(Path(OUT.value) / "scaling.json", scaling())
        return
    Path(WORK.value).mkdir(parents=True, exist_ok=True)
    data = atmc.datasets.load("cifar10", limit=LIMIT.value)
    test = {"x_test": data.x_test[: TEST.value], "y_test": data.y_test[: TEST.value]}
    data = dataclasses.replace(data, **test)
    results = compare(data)
    table = Table("file", "bytes", "latency ms", "faster than dense", "accuracy")
    dense = results["files"]["dense"]["latency_ms"]
    for name, row in results["files"].items():
        ratio = dense / row["latency_ms"]
        found = f"{row['accuracy']:.1%}" if "accuracy" in row else "untrained"
        table.add_row(name, f"{row['bytes']:,}", f"{row['latency_ms']:.3f}", f"{ratio:.2f}x", found)
    Console().print(table)
    write_json(Path(OUT.value) / "results.json", json.loads(json.dumps(results, default=str)))


if __name__ == "__main__":
    app.run(main)
