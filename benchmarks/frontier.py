# SPDX-License-Identifier: Apache-2.0
"""Trains the networks of the frontier: robust accuracy against bytes, dense and sparse, on MNIST.

    python benchmarks/frontier.py --train dense166k,s12k,s5k,s2k --work /tmp/frontier

trains the named runs of `RUNS` one after another, each in a folder of its own. Stopped and started
again, it goes on where it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from absl import app, flags

import tfmot_atmc as atmc
from tfmot_atmc import attacks, models, recipes
from tfmot_atmc.recipes.pipeline import load_keras

EPSILON = 76 / 255

TRAIN = flags.DEFINE_list("train", [], "Names of runs, in order.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of weights, batches and attacks.")
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


def pruned(start: str, ratio: float, epochs: int, slope: float | None) -> Run:
    """A-l0 from a dense start, with or without a slope in the backward pass of the attack."""
    attack = attacks.PGD(epsilon=EPSILON, steps=5, backward_slope=slope)
    stages = [dataclasses.replace(s, learning_rate=0.05) for s in recipes.l0_stages(ratio, epochs)]
    return Run(start, stages, attack)


RUNS = {
    "dense166k": dense(8, 5, "mnist_cnn"),
    "s12k": dense(16, 3, "compact_cnn"),
    "s5k": dense(16, 3, "compact_cnn", filters=(6, 10), units=16),
    "s2k": dense(16, 3, "compact_cnn", filters=(4, 8), units=0),
    "al0-plain": pruned("dense166k", 0.01, 4, None),
    "al0-slope": pruned("dense166k", 0.01, 4, 0.05),
}


def folder(name: str) -> Path:
    return Path(WORK.value) / f"{name}-{SEED.value}"


def trained(name: str) -> keras.Model:
    """The plain model at the end of a run."""
    return atmc.strip_compression(load_keras(folder(name) / f"{RUNS[name].stages[-1].name}.keras"))


def train(name: str, data: Any) -> None:
    run = RUNS[name]
    recipes.run_stages(
        trained(run.start) if isinstance(run.start, str) else run.start(SEED.value),
        run.stages,
        data,
        attack=run.attack,
        validation_attack=attacks.PGD(epsilon=EPSILON, steps=10, step_size=EPSILON / 6),
        out_dir=folder(name),
        seed=SEED.value,
        verbose=2,
    )


def main(_: list[str]) -> None:
    if THREADS.value:
        tf.config.threading.set_intra_op_parallelism_threads(THREADS.value)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    data = atmc.datasets.load("mnist", validation_fraction=0.02)
    for name in TRAIN.value:
        train(name, data)


if __name__ == "__main__":
    app.run(main)
