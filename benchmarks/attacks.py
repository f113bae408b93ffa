# SPDX-License-Identifier: Apache-2.0
r"""Times a PGD attack of this library beside CleverHans and ART, in one process.

All attack the same LeNet on the same batch with the same number of steps of the same size. A
variant is traced several times, since how well a graph is rewritten varies from trace to trace,
and the variants take turns, since a shared machine's speed varies from minute to minute: compare
within a run only. CleverHans is given the benefit of a `tf.function` around it.

    python benchmarks/attacks.py --out attacks.json
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import sys
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from tfmot_atmc import models  # noqa: E402
from tfmot_atmc.attacks import PGD, cross_entropy  # noqa: E402

FLAGS = flags.FLAGS
flags.DEFINE_integer("batch_size", 128, "Examples in the attacked batch.", lower_bound=1)
flags.DEFINE_integer("steps", 16, "Steps of the attack.", lower_bound=1)
flags.DEFINE_float("epsilon", 76 / 255, "Radius in input units.")
flags.DEFINE_integer("traces", 3, "Times each variant is traced anew.", lower_bound=1)
flags.DEFINE_integer("repeats", 5, "Timed runs of each trace.", lower_bound=1)
flags.DEFINE_bool("jit_compile", False, "Also time our attack compiled by XLA.")
flags.DEFINE_string("out", None, "JSON file to write the figures to.")

Attack = Callable[[tf.Tensor, tf.Tensor], np.ndarray]


def ours(model: keras.Model, jit_compile: bool = False, **options: object) -> Callable[[], Attack]:
    """Returns a maker of fresh traces of our attack."""

    def make() -> Attack:
        attack = PGD(epsilon=FLAGS.epsilon, steps=FLAGS.steps, **options)
        function = tf.function(lambda x, y: attack(model, x, y), jit_compile=jit_compile)
        return lambda x, y: function(x, y).numpy()

    return make


def ours_eager(model: keras.Model) -> Attack:
    """Returns our attack called outside any graph."""
    attack = PGD(epsilon=FLAGS.epsilon, steps=FLAGS.steps)
    return lambda x, y: attack(model, x, y).numpy()


def cleverhans(model: keras.Model) -> Attack:
    """Returns CleverHans's attack within a tf.function."""
    from cleverhans.tf2.attacks.projected_gradient_descent import projected_gradient_descent

    step = float(PGD(epsilon=FLAGS.epsilon, steps=FLAGS.steps).step_size)

    @tf.function
    def function(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        return projected_gradient_descent(
            lambda t: model(t, training=False),
            x,
            FLAGS.epsilon,
            step,
            FLAGS.steps,
            np.inf,
            clip_min=0.0,
            clip_max=1.0,
            y=y,
            rand_init=1.0,
            rand_minmax=FLAGS.epsilon,
            sanity_checks=False,
        )

    return lambda x, y: function(x, y).numpy()


def art(model: keras.Model) -> Attack:
    """Returns ART's attack on its TensorFlow 2 classifier."""
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import TensorFlowV2Classifier

    classifier = TensorFlowV2Classifier(
        model=lambda x, training=False: model(x, training=False),
        nb_classes=10,
        input_shape=model.input_shape[1:],
        loss_object=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        clip_values=(0.0, 1.0),
    )
    attack = ProjectedGradientDescent(
        classifier,
        eps=FLAGS.epsilon,
        eps_step=float(PGD(epsilon=FLAGS.epsilon, steps=FLAGS.steps).step_size),
        max_iter=FLAGS.steps,
        num_random_init=1,
        batch_size=FLAGS.batch_size,
        verbose=False,
    )
    return lambda x, y: attack.generate(x.numpy(), y.numpy())


def variants(model: keras.Model) -> dict[str, Callable[[], Attack]]:
    """Returns makers of all variants that can run here."""
    makers = {
        "ours": ours(model),
        "ours, eager call": lambda: ours_eager(model),
        "ours, loop": ours(model, unroll=False),
    }
    if FLAGS.jit_compile:
        makers["ours, XLA"] = ours(model, jit_compile=True, unroll=True)
    for name, maker, package in (
        ("CleverHans in tf.function", cleverhans, "cleverhans"),
        ("ART", art, "art"),
    ):
        try:
            __import__(package)
        except ImportError:
            print(f"{name} is left out: {package} is not installed.")
        else:
            makers[name] = lambda maker=maker: maker(model)
    return makers


def measure(
    makers: dict[str, Callable[[], Attack]], model: keras.Model, x: tf.Tensor, y: tf.Tensor
) -> dict[str, dict[str, float]]:
    """Returns the figures of each variant, in milliseconds a batch."""
    wall: dict[str, list[float]] = {name: [] for name in makers}
    cpu: dict[str, list[float]] = {name: [] for name in makers}
    loss = {}
    for _ in range(FLAGS.traces):
        attacks = {name: make() for name, make in makers.items()}
        for name, attack in attacks.items():
            x_adv = attack(x, y)
            loss[name] = float(tf.reduce_mean(cross_entropy(y, model(x_adv, training=False))))
        for _ in range(FLAGS.repeats):
            for name, attack in attacks.items():
                start, cpu_start = time.perf_counter(), time.process_time()
                attack(x, y)
                wall[name].append(1e3 * (time.perf_counter() - start))
                cpu[name].append(1e3 * (time.process_time() - cpu_start))
    return {
        name: {
            "wall_min_ms": min(wall[name]),
            "wall_median_ms": statistics.median(wall[name]),
            "cpu_min_ms": min(cpu[name]),
            "cpu_median_ms": statistics.median(cpu[name]),
            "adversarial_loss": loss[name],
        }
        for name in makers
    }


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {argv[1:]}")
    logging.getLogger("art").setLevel(logging.WARNING)
    keras.utils.set_random_seed(0)
    model = models.lenet()
    rng = np.random.default_rng(0)
    x = tf.constant(rng.uniform(size=(FLAGS.batch_size, *model.input_shape[1:])), tf.float32)
    y = tf.constant(rng.integers(0, 10, FLAGS.batch_size))
    figures = measure(variants(model), model, x, y)
    reference = figures["ours"]
    for row in figures.values():
        for key in ("wall_min_ms", "wall_median_ms", "cpu_min_ms", "cpu_median_ms"):
            row[key.replace("_ms", "_ratio")] = row[key] / reference[key]
    print(f"PGD-{FLAGS.steps} on {model.name}, batch {FLAGS.batch_size}; ms and ratio to ours")
    print(f"{'':<26} {'wall min':>14} {'median':>14} {'CPU min':>14} {'median':>14}   loss")
    for name, row in figures.items():
        cells = " ".join(
            f"{row[key + '_ms']:8.1f} {row[key + '_ratio']:4.2f}x"
            for key in ("wall_min", "wall_median", "cpu_min", "cpu_median")
        )
        print(f"{name:<26} {cells}  {row['adversarial_loss']:.4f}")
    if FLAGS.out:
        with open(FLAGS.out + ".tmp", "w", encoding="utf-8") as file:
            json.dump({"flags": FLAGS.flags_into_string().split(), "figures": figures}, file)
        os.replace(FLAGS.out + ".tmp", FLAGS.out)


if __name__ == "__main__":
    app.run(main)
