# SPDX-License-Identifier: Apache-2.0
"""A byte budget from beginning to end: plan, train, fit, and what is left of accuracy.

    python benchmarks/budgets.py --dataset digits --budgets 3KB,4KB,6KB --work /tmp/budgets
    python benchmarks/budgets.py --dataset mnist --budgets 8KB,12KB,20KB --epochs 3 \
        --dense dense.keras --work /tmp/budgets

Every budget starts from the same dense adversarial network, trains ATMC-8 at the planned ratio with
the default recipe, and is evaluated as a .tflite file (PGD-16 transferred from the model that was
exported) and as that model. Stopped and started again, a run goes on where it was.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from rich.console import Console
from rich.table import Table

import tfmot_atmc as atmc
from tfmot_atmc.recipes.defaults import defaults
from tfmot_atmc.utils.files import write_json

DATASET = flags.DEFINE_string("dataset", "digits", "Name of the dataset.")
BUDGETS = flags.DEFINE_list("budgets", ["3KB", "4KB", "6KB"], "Sizes of the file.")
DENSE = flags.DEFINE_string("dense", None, "A trained dense model, .keras. [trained here]")
EPOCHS = flags.DEFINE_integer("epochs", None, "Epochs of pruning. [the dataset's default]")
WORK = flags.DEFINE_string("work", "budgets", "Folder for checkpoints and files.")
OUT = flags.DEFINE_string("out", "benchmarks/results/budgets", "Folder for results.")
LIMIT = flags.DEFINE_integer("limit", None, "Training images. [all]")
TEST = flags.DEFINE_integer("test", 1000, "Test images.")
THREADS = flags.DEFINE_integer("threads", 0, "Threads of this process; 0 for all cores.")


def start(data: Any, folder: Path, common: dict[str, Any]) -> keras.Model:
    """The dense adversarial network, plain."""
    known = defaults(DATASET.value)
    if DENSE.value:
        model = keras.saving.load_model(DENSE.value, compile=False)
    else:
        stages = [atmc.recipes.dense_stage(known.dense_epochs)]
        network = atmc.models.get(
            known.model, input_shape=data.input_shape, num_classes=data.num_classes, seed=0
        )
        model = atmc.recipes.run_stages(network, stages, data, out_dir=folder / "dense", **common)
    return atmc.strip_compression(model) if hasattr(model, "compression_report") else model


def one(size: str, dense: keras.Model, data: Any, common: dict[str, Any]) -> dict[str, Any]:
    """Plans, trains, fits and measures one budget."""
    known = defaults(DATASET.value)
    plan = atmc.plan_budget(dense, size)
    stages = atmc.recipes.atmc_stages(plan.ratio, 8, EPOCHS.value or known.epochs)
    folder = Path(WORK.value) / DATASET.value / size
    model = atmc.recipes.run_stages(dense, stages, data, out_dir=folder, **common)
    deployed = atmc.deploy(model, optimize="size", values="int8").model
    attack = atmc.attacks.PGD(epsilon=known.epsilon, steps=16, rule="kurakin")
    x, y = data.x_train[:300], data.y_train[:300]
    examples = np.concatenate([x, attack(deployed, tf.constant(x), tf.constant(y)).numpy()])
    path = folder / "model.tflite"
    fitted = atmc.fit_to_bytes(deployed, path, size, examples, measure_latency=False)
    test = (data.x_test[: TEST.value], data.y_test[: TEST.value])
    report = atmc.evaluate_robustness(fitted.model, test, attacks=attack, verbose=0)
    file = atmc.evaluate_robustness(
        str(path), test, attacks=attack, source=fitted.model, verbose=0, checks=False
    )
    return {
        "max_bytes": plan.max_bytes,
        "plan": dataclasses.asdict(plan),
        "bytes": path.stat().st_size,
        "nonzeros": model.compression_report().nonzeros,
        "channels_after_trimming": fitted.channels,
        "model": {"clean": report.clean_accuracy, "pgd16": report.robust_accuracy},
        "file": {"clean": file.clean_accuracy, "transferred_pgd16": file.robust_accuracy},
        "stages": [f"{stage.name}: {stage.epochs} epochs" for stage in stages],
    }


def main(_: list[str]) -> None:
    if THREADS.value:
        tf.config.threading.set_intra_op_parallelism_threads(THREADS.value)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    known = defaults(DATASET.value)
    data = atmc.datasets.load(
        DATASET.value, validation_fraction=known.validation_fraction, limit=LIMIT.value
    )
    attack = atmc.attacks.PGD(epsilon=known.epsilon, steps=known.steps)
    common: dict[str, Any] = {"attack": attack, "augment": known.augment, "verbose": 2}
    folder = Path(WORK.value) / DATASET.value
    folder.mkdir(parents=True, exist_ok=True)
    dense = start(data, folder, common)
    rows = {size: one(size, dense, data, common) for size in BUDGETS.value}
    table = Table("budget", "bytes", "ratio", "nonzeros", "trimmed to", "clean", "PGD-16", "file")
    for size, row in rows.items():
        table.add_row(
            size,
            f"{row['bytes']:,}",
            f"{row['plan']['ratio']:.4f}",
            f"{row['nonzeros']:,}",
            str(row["channels_after_trimming"] or "-"),
            f"{row['model']['clean']:.1%}",
            f"{row['model']['pgd16']:.1%}",
            f"{row['file']['clean']:.1%} / {row['file']['transferred_pgd16']:.1%}",
        )
    Console(width=120).print(table)
    Path(OUT.value).mkdir(parents=True, exist_ok=True)
    write_json(Path(OUT.value) / f"{DATASET.value}.json", rows)


if __name__ == "__main__":
    app.run(main)
