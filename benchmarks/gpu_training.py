# SPDX-License-Identifier: Apache-2.0
"""A training on CIFAR-10 as lowered programs: its steps, what it deploys, and AutoAttack.

    python benchmarks/gpu_training.py --out lowered_training --data data

The data lies on the device as bytes; a step takes the numbers of its images, crops and mirrors
them, attacks, moves and projects: all in one program. `gpu_replay_training.py` runs them.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from PIL import Image

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from gpu_lowering import lower, write  # noqa: E402  (defines --out and --only)
from gpu_programs import EPSILON, LOSS, network, precision  # noqa: E402

import tfmot_atmc as atmc  # noqa: E402

FLAGS = flags.FLAGS
flags.DEFINE_string("data", None, "Folder to pack CIFAR-10 into; not packed without.")
flags.DEFINE_integer("test_images", 1000, "Test images to pack.")
flags.DEFINE_string("network", "resnet18", "The network.")
flags.DEFINE_integer("image", 32, "Height and width of the images.")
flags.DEFINE_integer("examples", 50_000, "Images of the training set on the device.")
flags.DEFINE_integer("batch", 128, "Images in a train step.")
flags.DEFINE_integer("attacked", 250, "Images in a call of an attack.")
flags.DEFINE_enum("train_precision", "bfloat16", ["float32", "tf32", "bfloat16"], "Of training.")
flags.DEFINE_integer("steps", 100, "Steps of APGD and FAB.")
flags.DEFINE_integer("queries", 5000, "Queries of Square.")

_PADDING = 4


def methods() -> dict[str, Any]:
    """Returns the methods that are trained."""
    m = atmc.methods
    return {
        "dense": m.DA(),
        "ATMC 5%": m.ATMC(0.05),
        "ATMC 1%": m.ATMC(0.01),
        "A-l0 5%": m.AL0(0.05),
        "A-l0 1%": m.AL0(0.01),
        "AP 5%": m.AP(0.05),
        "AP 1%": m.AP(0.01),
    }


def augmented(images: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    """Returns images cropped at random after zero padding, half of them mirrored.

    Args:
        images: `[batch, side, side, channels]`.
        number: scalar integer, of the step; the same number draws the same crops.
    """
    batch, side = images.shape[0], images.shape[1]
    draws = tf.random.stateless_uniform(
        [batch, 3], tf.stack([number, 1]), 0, 2**31 - 1, tf.int32, alg="philox"
    )
    padded = tf.pad(images, [[0, 0], [_PADDING] * 2, [_PADDING] * 2, [0, 0]])
    start = draws[:, :2] % (2 * _PADDING + 1)
    along = tf.range(side)
    columns = tf.where(draws[:, 2:] % 2 == 1, side - 1 - along, along)
    cropped = tf.gather(padded, start[:, :1] + along, axis=1, batch_dims=1)
    return tf.gather(cropped, start[:, 1:2] + columns, axis=2, batch_dims=1)


def step_of(small: Any) -> Callable[..., Any]:
    """Returns a train step from the whole data set, the images' numbers, step and rate."""

    def step(
        images: tf.Tensor, labels: tf.Tensor, index: tf.Tensor, number: tf.Tensor, rate: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        x = tf.cast(tf.gather(images, index), tf.float32) / 255.0
        small.optimizer.learning_rate.assign(rate)
        return small.train_step((augmented(x, number), tf.gather(labels, index)))

    return step


def training_programs() -> dict[str, Callable[[], tuple]]:
    """Returns what makes each program: `(function, inputs, variables by name)`."""
    side, examples = FLAGS.image, FLAGS.examples
    made: dict[str, Callable[[], tuple]] = {}

    def train(method: Any) -> tuple:
        attack = atmc.attacks.RFGSM(epsilon=EPSILON)
        small = atmc.compress(network(FLAGS.network, side), method=method, attack=attack)
        # Keras decays apart from the gradient: ten times the rate of what goes through momentum.
        small.compile(
            keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=5e-3), LOSS, jit_compile=True
        )
        small.plan(1000)
        small.optimizer.build(small.trainable_variables)
        inputs = (
            np.zeros((examples, side, side, 3), np.uint8),
            np.zeros(examples, np.int32),
            np.arange(FLAGS.batch, dtype=np.int32),
            np.int32(0),
            np.float32(0.1),
        )
        return step_of(small), inputs, [*small.variables, *small.optimizer.variables]

    for name, method in methods().items():
        made[f"train {name}"] = lambda method=method: train(method)
    x = np.zeros((FLAGS.attacked, side, side, 3), np.float32)
    y = np.zeros(FLAGS.attacked, np.int32)
    seed = np.zeros(2, np.int64)

    def on_plain(function: Callable[..., Any], *inputs: np.ndarray) -> tuple:
        net = network(FLAGS.network, side)
        return lambda *a: function(lambda i: net(i, training=False), *a), inputs, net.variables

    def attack(attack: Any) -> Callable[[], tuple]:
        return lambda: on_plain(lambda f, x, y, s: attack(f, x, y, seed=s), x, y, seed)

    made["predict"] = lambda: on_plain(lambda f, x: f(x), x)
    made["attack pgd"] = attack(
        atmc.attacks.PGD(epsilon=EPSILON, steps=20, step_size=2 / 255, unroll=False)
    )
    parts = atmc.attacks.AutoAttack(epsilon=EPSILON, steps=FLAGS.steps, queries=FLAGS.queries)
    for name, part in parts.attacks.items():
        made[f"attack {name}"] = attack(part)
    return made


def pack(folder: Path) -> None:
    """Packs CIFAR-10, shuffled, as two halves in strips of lossless WebP, and its labels."""
    data = atmc.datasets.load("cifar10", validation_fraction=0.0)
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(0).permutation(len(data.x_train))
    tested = np.random.default_rng(1).permutation(len(data.x_test))[: FLAGS.test_images]

    def strips(name: str, images: np.ndarray, numbers: np.ndarray, length: int = 500) -> None:
        pieces = []
        for at in range(0, len(numbers), length):
            part = np.round(255 * images[numbers[at : at + length]]).astype(np.uint8)
            packed = io.BytesIO()
            strip = Image.fromarray(part.reshape(-1, *part.shape[2:]))
            strip.save(packed, "WEBP", lossless=True, quality=100, method=4)
            pieces.append(np.frombuffer(packed.getvalue(), np.uint8))
        sizes = np.array([len(piece) for piece in pieces])
        np.savez(folder / name, lengths=sizes, data=np.concatenate(pieces), numbers=numbers)

    half = len(order) // 2
    strips("a.npz", data.x_train, order[:half])
    strips("b.npz", data.x_train, order[half:])
    strips("test.npz", data.x_test, tested)
    np.savez_compressed(folder / "labels.npz", y=data.y_train, test_y=data.y_test[tested])


def main(_: Sequence[str]) -> None:
    if FLAGS.data:
        pack(Path(FLAGS.data))
    for name, make in training_programs().items():
        if FLAGS.only and not any(part in name for part in FLAGS.only):
            continue
        how = FLAGS.train_precision if name.startswith("train") else "tf32"
        how = "float32" if name == "predict" else how
        keras.utils.clear_session()
        with precision(how):
            function, inputs, variables = make()
            lowered = lower(function, inputs)
        paths = {id(v.value): v.path for v in variables}
        names = [paths.get(id(v), "") for v in lowered.variables]
        write(Path(FLAGS.out), name, lowered, False, {"names": names, "precision": how})
        print(name, len(lowered.module), flush=True)


if __name__ == "__main__":
    app.run(main)
