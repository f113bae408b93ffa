# SPDX-License-Identifier: Apache-2.0
"""Staged training under WRM, TRADES and ATTA: by name, and resumed to the same weights."""

import dataclasses

import keras
import numpy as np
import pytest
from tfmot_atmc.augmentation import KeyedBatches
from tfmot_atmc.objectives import AdversarialLoss

from tfmot_atmc import attacks, datasets
from tfmot_atmc.attacks import ATTA, FGSM, PGD, WRM
from tfmot_atmc.constraints import CubicBudget
from tfmot_atmc.evaluation import evaluate_robustness
from tfmot_atmc.methods import AL0, DA
from tfmot_atmc.recipes import Stage, pipeline, run_stages
from tfmot_atmc.recipes.settings import CompressionSettings

layers = keras.layers


class Killed(Exception):
    """Stands for the end of the process."""


class _Kill(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == (1, 1):
            raise Killed


@pytest.fixture(scope="module")
def data():
    return datasets.load("digits", limit=48, validation_fraction=0)  # less to trace


def _model():
    keras.utils.set_random_seed(5)
    return keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(8), layers.Dense(10)]
    )


def _small(**options):
    method = AL0(ratio=0.3, schedule=CubicBudget(0.5))
    return Stage("small", method, 2, 0.05, batch_size=16, **options)


def _atta(**options):
    return ATTA(epsilon=0.1, num_examples=48, image_shape=(8, 8, 1), **options)


def _assert_same(first, second):
    assert [w.name for w in first.weights] == [w.name for w in second.weights]
    for mine, theirs in zip(first.weights, second.weights, strict=True):
        np.testing.assert_array_equal(mine, theirs, err_msg=mine.path)


@pytest.mark.parametrize(
    ("name", "objective", "augment"),
    [("wrm", "half", None), ("trades", "trades", None), ("atta", "half", "crop_flip")],
)
def test_an_interrupted_stage_resumes_to_the_same_weights(name, objective, augment, data, tmp_path):
    settings = CompressionSettings(attack=name, objective=objective, steps=1).resolved()
    attack = pipeline._training_attack(settings, data)
    if name == "atta":
        attack = _atta(padding=4)  # digits are not augmented by default

    def run(out, *killers):
        return run_stages(
            _model(),
            [_small()],
            data,
            attack=attack,
            validation_attack=FGSM(epsilon=0.1),
            objective=objective,
            augment=augment,
            out_dir=tmp_path / out,
            extra_callbacks=killers,
            verbose=0,
        )

    whole = run("whole")
    with pytest.raises(Killed):
        run("broken", _Kill())
    resumed = run("broken")
    _assert_same(whole, resumed)
    assert resumed.step == 6 and resumed.compression_report().nonzeros == int(0.3 * 592)
    assert not np.array_equal(_model().get_weights()[0], resumed.get_weights()[0])
    left = sorted(path.name for path in (tmp_path / "broken").iterdir())
    assert left == ["small.json", "small.keras"]
    loaded = keras.saving.load_model(tmp_path / "broken" / "small.keras")
    assert attacks.serialize(loaded.attack) == attacks.serialize(attack)


def test_perturbations_begin_anew_in_each_stage_and_clean_stages_have_none(data, tmp_path):
    attack = _atta()
    stages = [Stage("dense", DA(), 1, 0.01, batch_size=16).on_clean_inputs(), _small()]
    assert stages[0].make_attack(attack) is None
    own = stages[1].make_attack(attack)
    assert own is not attack and own.get_config() == attack.get_config()
    trained = run_stages(_model(), stages, data, attack=attack, out_dir=tmp_path, verbose=0)
    assert trained.attack.visits.numpy().tolist() == [2] * 48
    assert attack.visits.numpy().tolist() == [0] * 48
    np.testing.assert_array_less(np.abs(trained.attack.store.numpy()), 0.1 + 1e-3)
    assert trained.attack.store.numpy().any()


@pytest.mark.parametrize(("augment", "padding"), [(None, 0), ("crop_flip", 4)])
def test_stages_size_an_attack_without_data_and_validate_with_pgd(augment, padding, data, tmp_path):
    held_out = dataclasses.replace(data, x_validation=data.x_test[:8], y_validation=data.y_test[:8])

    def run(attack, out):
        out_dir = tmp_path / out
        return run_stages(
            _model(),
            [_small()],
            held_out,
            attack=attack,
            out_dir=out_dir,
            augment=augment,
            verbose=0,
        )

    trained = run(ATTA(epsilon=0.1), "without")
    own, measuring = trained.attack, trained.validation_attack
    assert (own.num_examples, own.image_shape, own.padding) == (48, (8, 8, 1), padding)
    assert isinstance(measuring, PGD) and (measuring.steps, float(measuring.epsilon)) == (10, 0.1)
    _assert_same(trained, run(_atta(padding=padding), "with"))


def test_perturbations_need_a_canvas_as_large_as_the_augmentation(data, tmp_path):
    with pytest.raises(ValueError, match="padding=4"):
        run_stages(
            _model(), [_small()], data, attack=_atta(), out_dir=tmp_path, augment="crop_flip"
        )
    x = np.arange(2 * 3 * 3, dtype="float32").reshape(2, 3, 3, 1) / 18
    attack = ATTA(epsilon=0.1, num_examples=2, image_shape=(3, 3, 1), padding=2)
    batches = KeyedBatches(x, np.arange(2), attack=attack, batch_size=2, fill=None)
    (images, index, window), _ = batches[0]
    for image, which, (top, left, _) in zip(images, index, window, strict=True):
        padded = np.pad(x[which], ((2, 2), (2, 2), (0, 0)), mode="reflect")
        np.testing.assert_array_equal(image, padded[top : top + 3, left : left + 3])


def _settings(out, **given):
    given = {"model": "small_cnn", "dense_epochs": 1, "epochs": 1, "bits": 32, "out": out} | given
    return CompressionSettings(**given).resolved()


def test_training_attacks_by_name_have_what_they_need(data):
    wrm = pipeline._training_attack(_settings("x", attack="wrm", steps=3), data)
    assert isinstance(wrm, WRM) and wrm.steps == 3
    atta = pipeline._training_attack(_settings("x", attack="ATTA"), data)
    assert (atta.num_examples, atta.image_shape, atta.steps) == (None, None, 1)
    assert (atta.padding, float(atta.epsilon)) == (0, 0.15)
    with pytest.raises(ValueError, match="no attack for tests"):
        pipeline.make_attack("atta", 0.1)
    with pytest.raises(ValueError, match="Unknown attack 'pdg'"):
        _settings("x", attack="pdg")
    plain, trades = (_settings("x", objective=name).stages() for name in ("adversarial", "trades"))
    assert isinstance(plain[1].objective, AdversarialLoss)
    assert [stage.objective for stage in trades] == [None] * 4
    clean = _settings("x", method="nap", bits=32, objective="trades").stages()
    assert all(isinstance(stage.objective, AdversarialLoss) for stage in clean)


def test_wrm_is_an_attack_for_tests_as_well(data):
    model = _model()
    test = data.x_test[:8], data.y_test[:8]
    named = evaluate_robustness(model, test, attacks="wrm", epsilon=0.1, verbose=0, checks=False)
    made = pipeline.make_attack("wrm", 0.1)
    assert named == evaluate_robustness(model, test, attacks=made, verbose=0, checks=False)
    assert [result.name for result in named.attacks] == ["WRM-7"]
