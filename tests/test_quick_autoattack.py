# SPDX-License-Identifier: Apache-2.0
"""The stand-in for AutoAttack: its parts, where it runs, and what it is never weaker than."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmot_atmc as atmc
from tfmot_atmc import attacks, recipes

EPSILON = 0.1


@pytest.fixture(scope="module")
def digits():
    """A few digits, and a network that is right on most of them."""
    data = atmc.datasets.load("digits")
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(6, 3, activation="relu"),
            keras.layers.MaxPooling2D(2),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    model.fit(data.x_train, data.y_train, batch_size=64, epochs=4, verbose=0)
    return model, data.x_test[:40], data.y_test[:40]


def test_its_parts_are_reported_one_by_one_and_are_those_of_autoattack(digits):
    model, x, y = digits
    attack = attacks.QuickAutoAttack(epsilon=EPSILON, steps=5, num_targets=2, queries=20)
    report = atmc.evaluate_robustness(model, (x, y), attacks=attack, verbose=0, checks=False)
    assert [part.name for part in report.attacks] == ["apgd-ce", "apgd-t", "square"]
    assert report.robust_accuracy == report.attacks[-1].accuracy <= report.attacks[0].accuracy
    alone = attacks.APGD(epsilon=EPSILON, steps=5, backward_slope=None)
    first = atmc.evaluate_robustness(model, (x, y), attacks=alone, verbose=0, checks=False)
    assert report.attacks[0].accuracy == first.robust_accuracy
    kinds = {name: type(part).__name__ for name, part in attack.attacks.items()}
    exact = attacks.AutoAttack(epsilon=EPSILON).attacks
    assert kinds.items() <= {name: type(part).__name__ for name, part in exact.items()}.items()


def test_called_in_a_graph_it_stays_in_the_ball_and_breaks_what_its_first_part_breaks(digits):
    model, x, y = digits
    attack = attacks.QuickAutoAttack(epsilon=EPSILON, steps=4, num_targets=2, queries=10)
    first = attack.attacks["apgd-ce"]
    found = tf.function(lambda x, y: attack(model, x, y))(tf.constant(x), tf.constant(y)).numpy()
    assert np.abs(found - x).max() <= EPSILON + 1e-6
    assert found.min() >= 0 and found.max() <= 1

    def right(inputs):
        return np.argmax(model.predict(inputs, verbose=0), axis=1) == y

    assert right(found).sum() <= right(np.asarray(first(model, x, y))).sum() + 1
    np.testing.assert_array_equal(found[~right(x)], x[~right(x)])  # broken before: left alone
    np.testing.assert_array_equal(found, attack(model, x, y))


def test_it_validates_a_model_that_is_trained_under_another_attack(digits):
    _, x, y = digits
    small = atmc.compress(
        atmc.models.small_cnn(seed=0),
        "al0",
        ratio=0.1,
        attack=attacks.PGD(epsilon=EPSILON, steps=1),
        validation_attack=attacks.QuickAutoAttack(
            epsilon=EPSILON, steps=2, num_targets=1, queries=3
        ),
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    small.compile(keras.optimizers.SGD(0.01), loss, metrics=["accuracy"])
    update = atmc.callbacks.UpdateCompression()
    log = small.fit(x, y, validation_data=(x, y), epochs=1, callbacks=[update], verbose=0)
    robust, clean = log.history["val_robust_accuracy"][0], log.history["val_accuracy"][0]
    assert 0 <= robust <= clean


def test_a_stage_says_under_which_attack_it_was_validated(tmp_path):
    data = atmc.datasets.load("digits", validation_fraction=0.2, limit=64)
    quick = attacks.QuickAutoAttack(epsilon=EPSILON, steps=2, num_targets=1, queries=3)
    arguments = {"attack": attacks.FGSM(epsilon=EPSILON), "out_dir": tmp_path, "verbose": 0}
    start, stage = atmc.models.small_cnn(seed=0), recipes.dense_stage(1)
    trained = recipes.run_stages(start, [stage], data, validation_attack=quick, **arguments)
    kept = json.loads((tmp_path / "dense.json").read_text())
    assert kept["validation_attack"] == repr(quick)
    assert len(kept["history"]["val_robust_accuracy"]) == 1
    again = recipes.run_stages(start, [stage], data, validation_attack=quick, **arguments)
    np.testing.assert_array_equal(trained.get_weights()[0], again.get_weights()[0])  # not run again


@pytest.mark.parametrize("classes", [2, 3])
def test_it_runs_on_models_of_few_classes(classes):
    rng = np.random.default_rng(classes)
    x, y = rng.random((9, 4), dtype="float32"), rng.integers(0, classes, 9)
    weights = tf.constant(rng.normal(size=(4, classes)), tf.float32)
    attack = attacks.QuickAutoAttack(epsilon=0.5, steps=5, queries=5)
    report = atmc.evaluate_robustness(
        lambda x: tf.matmul(x, weights), (x, y), attacks=attack, verbose=0, checks=False
    )
    assert [part.name for part in report.attacks] == ["apgd-ce", "apgd-t", "square"]
    assert report.robust_accuracy <= report.clean_accuracy
    objectives = [attack.parts_for(n)["apgd-t"].objective for n in (classes, 4)]
    assert objectives == ["margin", "dlr"]


def test_configuration_is_complete_and_bad_arguments_are_refused():
    attack = attacks.get("quickautoattack", epsilon=EPSILON, steps=7, num_targets=2, queries=9)
    again = attacks.get(attacks.serialize(attack))
    assert repr(again) == repr(attack)
    assert again.attacks["apgd-t"].backward_slope == 0.05
    assert again.attacks["apgd-ce"].backward_slope is None
    assert again.attacks["square"].queries == 9
    for bad in ({"steps": 0}, {"num_targets": 0}, {"queries": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            attacks.QuickAutoAttack(epsilon=EPSILON, **bad)
    with pytest.raises(TypeError, match="has no argument `targeted`"):
        attacks.QuickAutoAttack(epsilon=EPSILON, targeted=True)


def test_its_parts_are_made_once_for_each_number_of_classes_that_matters():
    attack = attacks.QuickAutoAttack(epsilon=EPSILON, steps=2, num_targets=1, queries=2)
    assert all(attack.parts_for(10)[name] is part for name, part in attack.attacks.items())
    few = attack.parts_for(3)
    assert few["apgd-t"].objective == "margin" and few["apgd-t"] is attack.parts_for(3)["apgd-t"]
    few.clear()  # what is given away is the caller's
    assert list(attack.parts_for(3)) == ["apgd-ce", "apgd-t", "square"]
    again = attacks.get(attacks.serialize(attack))
    assert again.parts_for(10)["square"] is not attack.parts_for(10)["square"]
