# SPDX-License-Identifier: Apache-2.0
"""Training on several devices and on several workers, each in processes of their own."""

import os
import pathlib
import re
import subprocess
import sys
import types

import keras
import pytest
import tensorflow as tf

from tfmot_atmc import replicas

TESTS = pathlib.Path(__file__).resolve().parent
WORKERS = ["--workers=2"]


def _run(*command, folder):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "PYTHONPATH": str(TESTS.parent)}
    environment.pop("TF_CONFIG", None)
    outcome = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stdout[-6000:] + outcome.stderr[-6000:]
    return outcome.stdout


def _on_two_devices(marker):
    file = str(TESTS / "two_devices.py")
    return _run("-m", "pytest", "-p", "no:cacheprovider", "-m", marker, file, folder=TESTS.parent)


def test_two_devices_hold_the_same_weights_as_one():
    assert re.search(r"\d+ passed", _on_two_devices("not slow"))


@pytest.mark.slow
def test_two_devices_hold_the_same_weights_as_one_whatever_is_trained():
    assert re.search(r"\d+ passed", _on_two_devices("slow"))


@pytest.mark.slow
def test_two_workers_train_to_the_weights_of_two_devices_and_resume(tmp_path):
    example = str(TESTS.parent / "examples" / "distributed.py")
    small = ["--epochs=2", "--limit=128"]

    def lines(*arguments):
        return [
            line
            for line in _run(example, *small, *arguments, folder=tmp_path).splitlines()
            if "replicas" in line
        ]

    (devices,) = lines()
    workers = lines(*WORKERS, "--out=small.keras", "--backup=backup")
    assert workers == [devices, devices] and "copies that differ: []" in devices
    assert keras.saving.load_model(tmp_path / "small.keras").count_params() > 0
    assert not (tmp_path / "backup").exists()  # training is completed

    assert lines(*WORKERS, "--backup=b", "--stop_after=1") == []
    assert sorted(path.name for path in tmp_path.glob("b*")) == ["b", "b-worker-1"]
    assert lines(*WORKERS, "--backup=b") == workers


@pytest.mark.parametrize(
    ("cluster", "task", "chief", "path"),
    [
        ({"worker": ["a:1", "b:1"]}, ("worker", 0), True, "runs/best.keras"),
        ({"worker": ["a:1", "b:1"]}, ("worker", 1), False, "runs/best-worker-1.keras"),
        ({"chief": ["a:1"], "worker": ["b:1"]}, ("chief", 0), True, "runs/best.keras"),
        ({"chief": ["a:1"], "worker": ["b:1"]}, ("worker", 0), False, "runs/best-worker-0.keras"),
    ],
)
def test_each_worker_has_files_of_its_own(cluster, task, chief, path):
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(cluster), task_type=task[0], task_id=task[1]
    )
    strategy = types.SimpleNamespace(cluster_resolver=resolver)
    assert replicas.is_chief(strategy) is chief
    assert replicas.own_path("runs/best.keras", strategy) == path
    assert replicas.is_chief() and replicas.own_path("best.keras") == "best.keras"


def test_without_a_strategy_nothing_is_changed():
    values = [1.0, None]
    assert replicas.share_of_batch([]) is None
    assert replicas.averaged(values, None) == values and replicas.first(values) == values
    assert replicas.undivided(3.0) == 3.0 and replicas.one(4.0) == 4.0
    assert replicas.own_step(5) == 5 and replicas.reported({"loss": 1.0}) == {"loss": 1.0}
    seen = []
    replicas.together(seen.append, 6.0)
    assert seen == [6.0]
    replicas.check_optimizer(keras.optimizers.SGD(gradient_accumulation_steps=2))
