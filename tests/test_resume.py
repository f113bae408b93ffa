# SPDX-License-Identifier: Apache-2.0
"""Interrupted trainings that end in the same weights as unbroken ones."""

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
from tfmot_atmc.callbacks import UpdateCompression

from tfmot_atmc import compress, datasets
from tfmot_atmc.attacks import FGSM, PGD
from tfmot_atmc.constraints import CubicBudget, GradientGrowth
from tfmot_atmc.methods import AL0, DA
from tfmot_atmc.recipes import Stage, run, run_stages

layers = keras.layers
ROOT = pathlib.Path(__file__).resolve().parent.parent


class Killed(Exception):
    """Stands for the end of the process."""


class _Kill(keras.callbacks.Callback):
    def __init__(self, epoch, batch=1):
        super().__init__()
        self.at, self.epoch = (epoch, batch), None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            raise Killed


@pytest.fixture(scope="module")
def data():
    return datasets.load("digits", limit=80)


def _model():
    keras.utils.set_random_seed(5)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Flatten(),
            layers.Dense(12, activation="relu", name="one"),
            layers.BatchNormalization(name="norm"),
            layers.Dropout(0.2, seed=3),
            layers.Dense(10, name="two"),
        ]
    )


def _compressed(bits=2):
    method = AL0(
        ratio=0.2,
        bits=bits,
        schedule=CubicBudget(0.5, 0.0, 0.5),
        growth=GradientGrowth(0.3, 2, 0.3, 0.8),
        codebook_begin=0.6,
    )
    small = compress(_model(), method, attack=PGD(epsilon=0.1, steps=1), layers=["two"])
    small.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return small


def _assert_same(first, second):
    assert [w.name for w in first.weights] == [w.name for w in second.weights]
    for mine, theirs in zip(first.weights, second.weights, strict=True):
        np.testing.assert_array_equal(mine, theirs, err_msg=mine.path)


def test_killed_and_resumed_equals_unbroken_bit_for_bit(data, tmp_path):
    x, y = data.x_train[:64], data.y_train[:64]

    def train(*killers, backup_first=False):
        small = _compressed()
        callbacks = [UpdateCompression(), keras.callbacks.BackupAndRestore(tmp_path / "backup")]
        callbacks = callbacks[::-1] if backup_first else callbacks
        small.fit(
            x,
            y,
            batch_size=16,
            epochs=4,
            shuffle=False,
            callbacks=[*callbacks, *killers],
            verbose=0,
        )
        return small

    whole = train()
    assert whole.step == whole.horizon == 16
    with pytest.raises(Killed):
        train(_Kill(2))
    resumed = train(backup_first=True)
    assert resumed.step == 16
    _assert_same(whole, resumed)
    report = resumed.compression_report()
    assert report.nonzeros <= 24 and report.max_distinct <= 4


def test_weights_only_checkpoints_restore_everything_compression_needs(data, tmp_path):
    x, y = data.x_train[:64], data.y_train[:64]
    first = _compressed(bits=32)
    checkpoint = keras.callbacks.ModelCheckpoint(
        tmp_path / "{epoch}.weights.h5", save_weights_only=True
    )
    first.fit(x, y, batch_size=16, epochs=2, callbacks=[checkpoint, UpdateCompression()], verbose=0)
    again = _compressed(bits=32)
    again.load_weights(tmp_path / "1.weights.h5")
    assert again.step == 4 and again.horizon == 8
    first.save_weights(tmp_path / "end.weights.h5")
    again.load_weights(tmp_path / "end.weights.h5")
    _assert_same(first, again)


def _stages():
    attack_free = {"batch_size": 16, "optimizer": "adam"}
    return [
        Stage("dense", DA(), 2, 0.01, warmup_epochs=0.5, **attack_free),
        Stage("small", AL0(ratio=0.2, schedule=CubicBudget(0.5)), 3, 0.05, batch_size=16),
    ]


def _run(data, out, *killers, stages=None):
    return run_stages(
        _model(),
        stages or _stages(),
        data,
        attack=FGSM(epsilon=0.1),
        out_dir=out,
        extra_callbacks=killers,
        verbose=0,
    )


class _KillProcess(_Kill):
    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def killed_run(out):
    """Starts a run in a process of its own, which is killed in its second epoch."""
    _run(datasets.load("digits", limit=80), pathlib.Path(out), _KillProcess(1))


def test_stages_killed_and_resumed_equal_unbroken_ones(data, tmp_path):
    whole = _run(data, tmp_path / "whole")
    broken = tmp_path / "broken"
    script = f"from tests.test_resume import killed_run; killed_run({str(broken)!r})"
    killed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (broken / "dense.keras").exists()
    resumed = _run(data, broken)
    _assert_same(whole, resumed)
    assert resumed.compression_report().nonzeros == int(0.2 * resumed.dense_size)
    for name, epochs in (("dense", 2), ("small", 3)):
        mine, theirs = (
            json.loads((folder / f"{name}.json").read_text())["history"]
            for folder in (tmp_path / "whole", broken)
        )
        assert mine == theirs
        assert len(mine["loss"]) == len(mine["val_robust_accuracy"]) == epochs
    left = sorted(path.name for path in broken.iterdir())
    assert left == ["dense.json", "dense.keras", "small.json", "small.keras"]


def test_a_finished_stage_is_not_run_again_and_other_settings_are_refused(data, tmp_path):
    stages = _stages()[:1]
    first = _run(data, tmp_path, stages=stages)
    stamp = (tmp_path / "dense.keras").stat().st_mtime_ns

    class Forbidden(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            raise AssertionError("trained again")

    again = _run(data, tmp_path, Forbidden(), stages=stages)
    _assert_same(first, again)
    assert (tmp_path / "dense.keras").stat().st_mtime_ns == stamp
    other = [Stage("dense", DA(), 2, 0.02, warmup_epochs=0.5, optimizer="adam", batch_size=16)]
    with pytest.raises(ValueError, match=r"other settings \(learning_rate\)"):
        _run(data, tmp_path, stages=other)
    assert (tmp_path / "dense.keras").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("part", ["x_train", "y_train", "x_validation", "y_validation"])
def test_a_finished_stage_is_not_taken_back_for_other_data(part, data, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "_run_stage", lambda *arguments: _Done())
    _run(data, tmp_path, stages=_stages()[:1])
    monkeypatch.setattr(keras.saving, "load_model", lambda path, **_: path)
    assert _run(data, tmp_path, stages=_stages()[:1]) == tmp_path / "dense.keras"
    changed = getattr(data, part).copy()
    changed.reshape(-1)[-1] = 0 if changed.reshape(-1)[-1] else 1
    other = dataclasses.replace(data, **{part: changed})
    with pytest.raises(ValueError, match=r"other settings \(data\)"):
        _run(other, tmp_path, stages=_stages()[:1])


class _Done:
    """Stands for a stage that has been trained."""

    history: dict = {}

    def remove(self):
        pass


def test_a_diverged_stage_is_no_result_and_keeps_the_last_good_model(data, tmp_path):
    wild = [Stage("wild", DA(), 2, 1e30, optimizer="sgd", clipnorm=None, batch_size=16)]
    with pytest.warns(UserWarning, match="diverged"):
        with pytest.raises(FloatingPointError, match="Lower the learning rate"):
            _run(data, tmp_path, stages=wild)
    assert not (tmp_path / "wild.keras").exists() and not (tmp_path / "wild.json").exists()
    kept = keras.saving.load_model(tmp_path / "wild.diverged.keras", compile=False)
    assert all(np.isfinite(np.asarray(w, np.float64)).all() for w in kept.get_weights())
