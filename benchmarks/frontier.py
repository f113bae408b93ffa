# SPDX-License-Identifier: Apache-2.0
"""Trains the networks of the frontier: robust accuracy against bytes, small and of few bits.

    python benchmarks/frontier.py --train s2k,s5k,dense166k,al0-32,al0-16,al0-8,al0-4 --work W
    python benchmarks/frontier.py --train few32,few16,few8,few4 --work W
    python benchmarks/frontier.py --sizes few4,few8,few8/dense,s2k,s5k --images 300 --work W
    python benchmarks/frontier.py --slopes al0-plain,s5k --images 300 --work W

The first two train the named runs of `RUNS` one after another, each in a folder of its own; a run
that starts from another one comes after it. The third exports models and gives bytes, clean
accuracy and AutoAttack of what the file holds. The last attacks models with slopes in the backward
pass. Each figure is a file in the work folder; stopped and started again, a run goes on where it
was. `--out` keeps the tables, beside the rows of other calls.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
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
from tfmot_atmc.export.tflite.grids import nearest_int8_grid
from tfmot_atmc.export.tflite.rewrite import DEQUANTIZE_BYTES
from tfmot_atmc.methods import AL0, AdversarialLoss, FewBits, Stage
from tfmot_atmc.slimming import slim_model, trim_channels
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
    """What is trained: a network or the model of another run, through stages.

    Attributes:
        start: makes a network from a seed; or names a run, or one of its stages: "few16/dense".
        stages: the stages of training.
        attack: the attack of training.
        keep: output channels that are kept of layers of the start, the most influential ones.
    """

    start: Callable[[int], keras.Model] | str
    stages: Sequence[recipes.Stage]
    attack: attacks.Attack
    keep: Mapping[str, int] = {}


def pgd(steps: int) -> attacks.Attack:
    return attacks.PGD(epsilon=EPSILON, steps=steps)


def dense(epochs: int, steps: int, network: str, **arguments: Any) -> Run:
    stages = [recipes.dense_stage(epochs)]
    return Run(lambda seed: models.get(network, seed=seed, **arguments), stages, pgd(steps))


def pruned(start: str, ratio: float, epochs: int, slope: float | None, through: bool) -> Run:
    """A-l0 from a dense start, with a slope in the attack's backward pass, and in the weights'."""
    loss = AdversarialLoss(0.2, backward_slope=slope if through else None)
    method = AL0(ratio, schedule=CubicBudget(end=0.4), floors=0)
    stage = Stage("l0", method, epochs, 0.05, clipnorm=5.0, objective=loss)
    return Run(start, [stage], attacks.PGD(epsilon=EPSILON, steps=5, backward_slope=slope))


def few_bits(start: str, steps: int, before: int, epochs: int, bits: int = 4, **keep: int) -> Run:
    """Some channels of a robust network, trained on as they are and then with few bits."""
    (stage,) = FewBits(bits).stages(epochs)
    stages = [dataclasses.replace(stage, name="bits")]
    if before:
        stages.insert(0, dataclasses.replace(recipes.dense_stage(before), warmup_epochs=0))
    return Run(start, stages, pgd(steps), keep)


RUNS = {
    "dense166k": dense(8, 5, "mnist_cnn"),
    "s12k": dense(16, 3, "compact_cnn"),
    "s5k": dense(16, 3, "compact_cnn", filters=(6, 10), units=16),
    "s2k": dense(16, 3, "compact_cnn", filters=(4, 8), units=0),
    "al0-plain": pruned("dense166k", 0.01, 4, None, False),
    "al0-slope": pruned("dense166k", 0.01, 4, 0.05, False),
    "al0-through": pruned("dense166k", 0.01, 4, 0.05, True),
    # Within 32, 16, 8 and 4 KB; one for longer, and one without any slope.
    "al0-32": pruned("dense166k", 0.08, 4, 0.05, True),
    "al0-16": pruned("dense166k", 0.03, 4, 0.05, True),
    "al0-8": pruned("dense166k", 0.0125, 4, 0.05, True),
    "long-8": pruned("dense166k", 0.0135, 10, 0.05, True),
    "plain-8": pruned("dense166k", 0.0125, 4, None, False),
    "al0-4": pruned("al0-8", 0.0035, 4, 0.05, True),
    # Within 32, 16, 8 and 4 KB, from a wider network: 4 bits a weight, 8 at the ends. What the
    # stage "dense" of few16 and few8 left is within 32 and 16 KB with 8 bits a weight.
    "few32": few_bits("dense166k", 5, 4, 6, dense1=32),
    "few16": few_bits("dense166k", 5, 4, 6, conv2=20, dense1=22),
    "few8": few_bits("dense166k", 3, 5, 6, conv1=10, conv2=12, dense1=16),
    "few4": few_bits("s5k", 3, 0, 6, dense=10),
}


def folder(name: str) -> Path:
    return Path(WORK.value) / f"{name}-{SEED.value}"


def trained(name: str) -> keras.Model:
    """The plain model at the end of a run, or of one of its stages."""
    run, _, stage = name.partition("/")
    return load_plain(str(folder(run) / f"{stage or RUNS[run].stages[-1].name}.keras"))


def beginning(run: Run, data: Any) -> keras.Model:
    """What a run starts from. Influence counts on attacked images too."""
    start = trained(run.start) if isinstance(run.start, str) else run.start(SEED.value)
    if not run.keep:
        return start
    attack = attacks.PGD(epsilon=EPSILON, steps=10, step_size=EPSILON / 6)
    images, labels = data.x_train[:300], data.y_train[:300]
    attacked = np.asarray(attack(start, tf.constant(images), tf.constant(labels)))
    return trim_channels(start, np.concatenate([images, attacked]), run.keep)


def train(name: str, data: Any) -> None:
    run, out = RUNS[name], folder(name)
    recipes.run_stages(
        beginning(run, data),
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


def as_stored(model: keras.Model) -> keras.Model:
    """The model with the values of its file: tensors in 8 bits where that saves bytes."""
    stored = slim_model(model)
    for variable in stored.trainable_variables:
        value = variable.numpy()
        if value.size + DEQUANTIZE_BYTES < 4 * value.size:
            codes, scale = nearest_int8_grid(value)
            variable.assign(codes.astype(np.float32) * scale)
    return stored


def sizes(names: Sequence[str], data: Any) -> list[dict[str, Any]]:
    """Bytes of the file, and what its values have: clean on all test images, and attacked."""
    rows = []
    for name in names:
        run, _, stage = name.partition("/")
        path = folder(run) / f"stored{stage}.keras"
        stored = as_stored(trained(name))
        stored.save(path)
        file = atmc.export_tflite(
            stored, path.with_suffix(".tflite"), values="int4", names=False, inputs=data.x_test[:99]
        )
        if file.max_difference > 1e-4:
            raise ValueError(f"The file of {name} differs by {file.max_difference}.")
        exact = attacks.AutoAttack(epsilon=EPSILON)
        parts = measured(path, "autoattack", exact, data, batch_size=300)["parts"]
        quick = attacks.QuickAutoAttack(epsilon=EPSILON)
        answers = np.argmax(stored.predict(data.x_test, batch_size=500, verbose=0), axis=-1)
        row = {
            "run": name,
            "seed": SEED.value,
            "weights": sum(int(np.count_nonzero(w)) for w in stored.get_weights() if w.ndim > 1),
            "bytes": file.bytes,
            "clean": float(np.mean(answers == data.y_test)),
            "PGD-40": measured(path, "pgd40-None", pgd40(None), data)["robust"],
            "QuickAutoAttack": measured(path, "quick", quick, data)["robust"],
            "before Square": parts["fab-t"],
            "AutoAttack": parts["square"],
        }
        rows.append(row)
    return rows


def keep(name: str, rows: list[dict[str, Any]]) -> None:
    show(name, rows)
    if not OUT.value or not rows:
        return
    path = Path(OUT.value) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(path.read_text()) if path.exists() else {}
    if before.get("images") == IMAGES.value:  # rows of other calls stay
        new = {identity(row) for row in rows}
        rows = [row for row in before["rows"] if identity(row) not in new] + rows
    write_json(path, {"images": IMAGES.value, "rows": rows})


def identity(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row.get("run", row.get("model")), row.get("seed")


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
