# SPDX-License-Identifier: Apache-2.0
"""What compression adds to an adversarial train step, interleaved in one process.

    python benchmarks/training.py --model lenet --out training-lenet.json

Every variant takes the same PGD step on the same batch: a bare hand-written step, our step without
compression, ATMC with 32 and with 8 bits. Variants take turns; the table gives medians and the
ratio to the bare step, round by round. Each variant is traced several times, since the speed of a
trace varies.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from rich.console import Console
from rich.table import Table

import tfmot_atmc as atmc
from tfmot_atmc.utils.files import write_json

MODEL = flags.DEFINE_enum("model", "lenet", ["lenet", "resnet20"], "Which network.")
BATCH = flags.DEFINE_integer("batch_size", 128, "Examples a step.")
STEPS = flags.DEFINE_integer("steps", 0, "PGD steps; 0 for the paper's (16 LeNet, 7 ResNet-20).")
ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds of one step of every variant, per trace.")
TRACES = flags.DEFINE_integer("traces", 2, "Traces of every variant.")
OUT = flags.DEFINE_string("out", None, "File for the figures, as JSON.")

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def attack() -> atmc.attacks.Attack:
    steps = STEPS.value or {"lenet": 16, "resnet20": 7}[MODEL.value]
    return atmc.attacks.PGD(epsilon=76 / 255 if MODEL.value == "lenet" else 4 / 255, steps=steps)


def bare_step(x: tf.Tensor, y: tf.Tensor) -> Callable[[], Any]:
    """PGD, gradient, SGD: nothing else."""
    model = atmc.models.get(MODEL.value, seed=0)
    optimizer = keras.optimizers.SGD(1e-4, momentum=0.9)
    optimizer.build(model.trainable_variables)
    pgd = attack()

    @tf.function(autograph=False)
    def step(seed: tf.Tensor) -> tf.Tensor:
        attacked = pgd(model, x, y, seed=seed)
        with tf.GradientTape() as tape:
            loss = LOSS(y, model(attacked, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    return lambda: step(tf.constant([0, 0], tf.int64)).numpy()


def compressed_step(method: Any, x: tf.Tensor, y: tf.Tensor) -> Callable[[], Any]:
    """One step as `fit` takes it, under a method."""
    model = atmc.compress(atmc.models.get(MODEL.value, seed=0), method, attack=attack())
    model.compile(keras.optimizers.SGD(1e-4, momentum=0.9), LOSS, jit_compile=False)
    model.plan(1)
    model.optimizer.build(model.trainable_variables)

    @tf.function(autograph=False)
    def step() -> Any:
        return model.train_step((x, y))["loss"]

    return lambda: step().numpy()


def variants() -> dict[str, Callable[..., Callable[[], Any]]]:
    constant: dict[str, Any] = {"schedule": "constant", "codebook_begin": 0}
    methods = {
        "no compression": atmc.methods.DA(),
        "ATMC-32": atmc.methods.ATMC(0.01, schedule="constant"),
        "ATMC-8, shared values": atmc.methods.ATMC(0.01, bits=8, **constant),
        "ATMC-8, ADMM": atmc.methods.ATMC(0.01, bits=8, algorithm="admm", **constant),
    }
    made: dict[str, Any] = {"bare step": bare_step}
    for name, method in methods.items():
        made[name] = lambda x, y, method=method: compressed_step(method, x, y)
    return made


def main(_: list[str]) -> None:
    random = np.random.default_rng(0)
    shape = (28, 28, 1) if MODEL.value == "lenet" else (32, 32, 3)
    x = tf.constant(random.random((BATCH.value, *shape)), tf.float32)
    y = tf.constant(random.integers(0, 10, BATCH.value))
    wall: dict[str, list[float]] = {name: [] for name in variants()}
    cpu: dict[str, list[float]] = {name: [] for name in wall}
    for _ in range(TRACES.value):
        steps = {name: make(x, y) for name, make in variants().items()}
        for step in steps.values():
            for _ in range(12):  # past the first ADMM update and the tying of values
                step()
        for _ in range(ROUNDS.value):
            for name, step in steps.items():
                start, start_cpu = time.perf_counter(), time.process_time()
                step()
                wall[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - start_cpu)
    rows, table = [], Table(title=f"{MODEL.value}, batch {BATCH.value}, {attack()!r}")
    headings = (
        "variant",
        "wall ms",
        "CPU ms",
        "to no compression (wall)",
        "(CPU)",
        "to bare (wall)",
    )
    for heading in headings:
        table.add_column(heading)

    def ratio(times: dict[str, list[float]], name: str, to: str) -> float:
        return float(np.median(np.array(times[name]) / np.array(times[to])))

    for name in wall:
        row = {
            "variant": name,
            "wall_ms": 1e3 * float(np.median(wall[name])),
            "cpu_ms": 1e3 * float(np.median(cpu[name])),
            "wall_ratio": ratio(wall, name, "no compression"),
            "cpu_ratio": ratio(cpu, name, "no compression"),
            "wall_ratio_to_bare": ratio(wall, name, "bare step"),
        }
        rows.append(row)
        table.add_row(name, *[f"{v:.3f}" if v < 10 else f"{v:.0f}" for v in list(row.values())[1:]])
    Console().print(table)
    if OUT.value:
        write_json(OUT.value, {"model": MODEL.value, "attack": repr(attack()), "rows": rows})


if __name__ == "__main__":
    app.run(main)
