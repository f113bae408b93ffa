# SPDX-License-Identifier: Apache-2.0
"""Trains one compressed network on several devices, or on several machines.

    python examples/distributed.py                # all GPUs of this machine, or two virtual CPUs
    python examples/distributed.py --workers 2    # two workers on this machine, over localhost

On a cluster, set TF_CONFIG on every machine (docs/distribution.md) and start the first form there.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys

import keras
import tensorflow as tf
from absl import app, flags, logging

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import tfmot_atmc as atmc  # noqa: E402

FLAGS = flags.FLAGS
flags.DEFINE_integer("workers", 0, "Start so many workers on this machine.")
flags.DEFINE_integer("epochs", 3, "Epochs.")
flags.DEFINE_integer("limit", 320, "Use only so many examples.")
flags.DEFINE_integer("batch_size", 64, "Examples of one step, which the replicas share.")
flags.DEFINE_integer("stop_after", None, "End after so many epochs, as if killed; see --backup.")
flags.DEFINE_string("out", None, "A .keras file for the plain network; the chief writes it.")
flags.DEFINE_string("backup", None, "Folder for backups; a killed run goes on from there.")


def choose_strategy() -> tf.distribute.Strategy:
    """Returns the strategy that fits; it must be made before TensorFlow does anything else."""
    if "TF_CONFIG" in os.environ:
        return tf.distribute.MultiWorkerMirroredStrategy()
    if len(tf.config.list_physical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    half = tf.config.LogicalDeviceConfiguration()
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [half, half]
    )
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


class Stop(keras.callbacks.Callback):
    """Ends the program in the middle, to show that it goes on from its backup."""

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Ends the program after `--stop_after` epochs."""
        if epoch + 1 == FLAGS.stop_after:
            sys.exit(0)


def train(strategy: tf.distribute.Strategy) -> None:
    """Trains under a strategy; every worker runs this."""
    keras.utils.set_random_seed(0)  # every worker must shuffle alike
    data = atmc.datasets.load("digits", limit=FLAGS.limit)
    with strategy.scope():
        small = atmc.compress(
            atmc.models.small_cnn(seed=0),
            "atmc",
            ratio=0.1,
            bits=4,
            attack=atmc.attacks.PGD(epsilon=0.1, steps=2),
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        small.compile(keras.optimizers.Adam(5e-3), loss, metrics=["accuracy"])
    callbacks = [atmc.callbacks.UpdateCompression()]
    if FLAGS.backup:
        own = atmc.replicas.own_path(FLAGS.backup, strategy)
        callbacks.append(keras.callbacks.BackupAndRestore(own))
    callbacks.append(Stop())
    small.fit(
        data.x_train,
        data.y_train,
        batch_size=FLAGS.batch_size,
        epochs=FLAGS.epochs,
        callbacks=callbacks,
        verbose=0,
    )
    found = small.evaluate(
        data.x_test, data.y_test, batch_size=FLAGS.batch_size, verbose=0, return_dict=True
    )
    weights = hashlib.sha256(b"".join(w.tobytes() for w in small.get_weights())).hexdigest()
    report = small.compression_report()
    print(
        f"{strategy.num_replicas_in_sync} replicas, {small.step} steps, "
        f"{report.nonzeros} nonzeros, at most {report.max_distinct} values, "
        f"robust accuracy {found['robust_accuracy']:.3f}, weights {weights[:16]}, "
        f"copies that differ: {atmc.replicas.differing(small.weights)}",
        flush=True,
    )
    if FLAGS.out and atmc.replicas.is_chief(strategy):
        atmc.strip_compression(small).save(FLAGS.out)


def start_workers(number: int) -> int:
    """Starts this program once a worker; returns 0 when all went well."""
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("localhost", 0))
    addresses = [f"localhost:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    names = ("epochs", "limit", "batch_size", "stop_after", "out", "backup")
    given = [f"--{name}={FLAGS[name].value}" for name in names if FLAGS[name].value is not None]
    processes = []
    for index in range(number):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        processes.append(
            subprocess.Popen(
                [sys.executable, os.path.abspath(__file__), *given],
                env={**os.environ, "TF_CONFIG": json.dumps(task)},
            )
        )
    return max(process.wait() for process in processes)


def main(argv: list[str]) -> None:
    """Trains here, or starts workers that do."""
    del argv
    logging.set_verbosity(logging.WARNING)  # TensorFlow tells of every reduction
    if FLAGS.workers:
        sys.exit(start_workers(FLAGS.workers))
    train(choose_strategy())


if __name__ == "__main__":
    app.run(main)
