# SPDX-License-Identifier: Apache-2.0
"""Trains the networks of the frontier: robust accuracy against bytes, dense and sparse, on MNIST.

    python benchmarks/frontier.py --train dense166k,s12k,s5k,s2k --work /tmp/frontier
    python benchmarks/frontier.py --slopes al0-plain,s5k --images 300 --work /tmp/frontier
    python benchmarks/frontier.py --sizes s2k,s5k,al0-through --images 1000 --work /tmp/frontier

The first trains the named runs of `RUNS` one after another, each in a folder of its own. The second
attacks models with slopes in the backward pass. The third exports models and gives bytes, clean
accuracy and AutoAttack. Each figure is a file in the work folder; stopped and started again, a run
goes on where it was. `--out` keeps the tables.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from common import load_plain, show

import tfmot_atmc as atmc
from tfmot_atmc import attacks, models, recipes
from tfmot_atmc.constraints import CubicBudget
from tfmot_atmc.methods import AL0, AdversarialLoss, Stage
from tfmot_atmc.recipes.pipeline import load_keras
from tfmot_atmc.slimming import slim_model
from tfmot_atmc.utils.files import write_json

EPSILON = 76 / 255
SLOPES = (None, 0.05, 0.2, 1.0)

TRAIN = flags.DEFINE_list("train", [], "Names of runs, in order.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of weights, batches and attacks.")
SLOPED = flags.DEFINE_list("slopes", [], "Names of runs, to attack with slopes.")
SIZES = flags.DEFINE_list("sizes", [], "Names of runs, to export and to measure.")
IMAGES = flags.DEFINE_integer("images", 300, "Test images, from the first.")
OUT = flags.DEFINE_string("out", None, "Folder for the tables, as JSON.")
WORK = flags.DEFINE_string("work", "logs/frontier", "Folder with one folder for each run.")
THREADS = flags.DEFINE_integer("threads", 1, "Threads of this process; 0 for all cores.")


class Run(NamedTuple):
    """What is trained: a network or the last model of another run, through stages."""

    start: Callable[[int], keras.Model] | str
    stages: Sequence[recipes.Stage]
    attack: attacks.Attack


def dense(epochs: int, steps: int, network: str, **arguments: Any) -> Run:
    return Run(
        lambda seed: models.get(network, seed=seed, **arguments),
        [recipes.dense_stage(epochs)],
        attacks.PGD(epsilon=EPSILON, steps=steps),
    )


def pruned(start: str, ratio: float, epochs: int, slope: float | None, through: bool) -> Run:
    """A-l0 from a dense start, with a slope in the attack's backward pass, and in the weights'."""
    loss = AdversarialLoss(0.2, backward_slope=slope if through else None)
    method = AL0(ratio, schedule=CubicBudget(end=0.4), floors=0)
    stage = Stage("l0", method, epochs, 0.05, clipnorm=5.0, objective=loss)
    return Run(start, [stage], attacks.PGD(epsilon=EPSILON, steps=5, backward_slope=slope))


RUNS = {
    "dense166k": dense(8, 5, "mnist_cnn"),
    "s12k": dense(16, 3, "compact_cnn"),
    "s5k": dense(16, 3, "compact_cnn", filters=(6, 10), units=16),
    "s2k": dense(16, 3, "compact_cnn", filters=(4, 8), units=0),
    "al0-plain": pruned("dense166k", 0.01, 4, None, False),
    "al0-slope": pruned("dense166k", 0.01, 4, 0.05, False),
    "al0-through": pruned("dense166k", 0.01, 4, 0.05, True),
}


def folder(name: str) -> Path:
    return Path(WORK.value) / f"{name}-{SEED.value}"


def trained(name: str) -> keras.Model:
    """The plain model at the end of a run."""
    return atmc.strip_compression(load_keras(folder(name) / f"{RUNS[name].stages[-1].name}.keras"))


def train(name: str, data: Any) -> None:
    run, out = RUNS[name], folder(name)
    recipes.run_stages(
        trained(run.start) if isinstance(run.start, str) else run.start(SEED.value),
        run.stages,
        data,
        attack=run.attack,
        validation_attack=attacks.PGD(epsilon=EPSILON, steps=10, step_size=EPSILON / 6),
        out_dir=out,
        seed=SEED.value,
        verbose=2,
    )


def pgd40(slope: Any) -> attacks.Attack:
    return attacks.PGD(epsilon=EPSILON, steps=40, step_size=EPSILON / 6, backward_slope=slope)


def measured(
    model: Path, label: str, attack: attacks.Attack, data: Any, **options: Any
) -> dict[str, Any]:
    """Accuracy under one attack, its cost, and the accuracy after each of its parts; kept."""
    kept = model.with_name(f"{model.stem}.{label}-{IMAGES.value}.json")
    if not kept.exists():
        network = slim_model(load_plain(str(model)))  # the same function, cheaper
        images, labels = data.x_test[: IMAGES.value], data.y_test[: IMAGES.value]
        common: dict[str, Any] = {"attacks": attack, "checks": False, "verbose": 0, **options}
        atmc.evaluate_robustness(network, (images[:10], labels[:10]), **common)  # traces
        start = time.process_time()
        report = atmc.evaluate_robustness(network, (images, labels), **common)
        found = {
            "clean": report.clean_accuracy,
            "robust": report.robust_accuracy,
            "parts": {part.name: part.accuracy for part in report.attacks},
            "cpu_seconds": round(time.process_time() - start, 2),
        }
        write_json(kept, found)
    return json.loads(kept.read_text())


def last(name: str) -> Path:
    return folder(name) / f"{RUNS[name].stages[-1].name}.keras"


def slopes(names: Sequence[str], data: Any) -> list[dict[str, Any]]:
    """Robust accuracy under PGD-40 with each slope, and under AutoAttack."""
    rows = []
    for name in names:
        row: dict[str, Any] = {"model": name, "zero gradients": zero_share(last(name), data)}
        for slope in SLOPES:
            found = measured(last(name), f"pgd40-{slope}", pgd40(slope), data)
            row |= {"clean": found["clean"], f"slope {slope or 0}": found["robust"]}
        row["auto"] = measured(last(name), "pgd40-auto", pgd40("auto"), data)["robust"]
        quick = attacks.QuickAutoAttack(epsilon=EPSILON)
        row["QuickAutoAttack"] = measured(last(name), "quick", quick, data)["robust"]
        rows.append(row)
    return rows


def zero_share(path: Path, data: Any) -> float:
    """Which share of the input gradients of 100 images is exactly zero."""
    model, loss = load_plain(str(path)), keras.losses.SparseCategoricalCrossentropy(True)
    images = tf.constant(data.x_test[:100])
    with tf.GradientTape() as tape:
        tape.watch(images)
        value = loss(data.y_test[:100], model(images))
    return float(np.mean(tape.gradient(value, images).numpy() == 0))


def sizes(names: Sequence[str], data: Any) -> list[dict[str, Any]]:
    """Bytes of the int8 file, clean accuracy on all test images, and AutoAttack."""
    rows = []
    for name in names:
        plain = load_plain(str(last(name)))
        exact = attacks.AutoAttack(epsilon=EPSILON)
        parts = measured(last(name), "autoattack", exact, data, batch_size=100)["parts"]
        file = atmc.export_tflite(plain, folder(name) / "model.tflite", values="int8")
        plain.compile(metrics=["accuracy"])
        _, clean = plain.evaluate(data.x_test, data.y_test, batch_size=500, verbose=0)
        row = {
            "run": name,
            "weights": sum(int(np.count_nonzero(w)) for w in plain.get_weights() if w.ndim > 1),
            "bytes": file.bytes,
            "clean": clean,
            "PGD-40": measured(last(name), "pgd40-None", pgd40(None), data)["robust"],
            "before Square": parts["fab-t"],
            "AutoAttack": parts["square"],
        }
        rows.append(row)
    return rows


def keep(name: str, rows: list[dict[str, Any]]) -> None:
    show(name, rows)
    if OUT.value and rows:
        Path(OUT.value).mkdir(parents=True, exist_ok=True)
        write_json(Path(OUT.value) / f"{name}.json", {"images": IMAGES.value, "rows": rows})


def main(_: list[str]) -> None:
    if THREADS.value:
        tf.config.threading.set_intra_op_parallelism_threads(THREADS.value)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    data = atmc.datasets.load("mnist", validation_fraction=0.02)
    for name in TRAIN.value:
        train(name, data)
    keep("slopes", slopes(SLOPED.value, data))
    keep("sizes", sizes(SIZES.value, data))


if __name__ == "__main__":
    app.run(main)
