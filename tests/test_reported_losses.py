# SPDX-License-Identifier: Apache-2.0
"""Losses that fit and evaluate report are those of Keras: means over examples, pass by pass."""

import keras
import numpy as np
import pytest
from tfmot_atmc.objectives import AdversarialLoss

import tfmot_atmc as atmc
from tfmot_atmc.attacks import FGSM

layers, losses = keras.layers, keras.losses
rng = np.random.default_rng(0)
X = rng.uniform(0.2, 0.8, (7, 5)).astype("float32")  # batches of four leave three
Y = rng.integers(0, 3, 7)
WEIGHTS = rng.uniform(0.1, 2.0, 7).astype("float32")
ATTACK = FGSM(epsilon=0.1)
SPARSE = losses.SparseCategoricalCrossentropy(from_logits=True)


def net(penalties=True):
    keras.utils.set_random_seed(0)
    kinds = {"kernel_regularizer": "l2", "activity_regularizer": "l1"} if penalties else {}
    hidden = layers.Dense(6, activation="tanh", **kinds)
    return keras.Sequential([keras.Input((5,)), hidden, layers.Dense(3)])


@pytest.fixture(scope="module")
def pair():
    """A model, its compressed copy at ratio 1, and its adversarial inputs."""
    plain = net()
    plain.compile("sgd", SPARSE)
    small = atmc.compress(plain, "al0", ratio=1.0, attack=ATTACK, objective=AdversarialLoss(0.5))
    small.compile(keras.optimizers.SGD(0.0), SPARSE)
    return plain, small, np.asarray(ATTACK(plain, X, Y))


@pytest.mark.parametrize("batch_size", [4, 7])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_evaluate_reports_what_keras_does_on_clean_and_on_attacked_inputs(
    pair, weights, batch_size
):
    plain, small, attacked = pair
    options = {"batch_size": batch_size, "sample_weight": weights, "verbose": 0}
    found = small.evaluate(X, Y, return_dict=True, **options)
    assert found["loss"] == pytest.approx(plain.evaluate(X, Y, **options), rel=1e-5)
    assert found["robust_loss"] == pytest.approx(plain.evaluate(attacked, Y, **options), rel=1e-5)
    assert found["robust_loss"] > found["loss"]


def test_fit_reports_the_objective_and_each_pass_with_its_own_penalties(pair):
    plain, small, attacked = pair
    plan = [atmc.callbacks.UpdateCompression()]
    options = {"batch_size": 4, "shuffle": False, "verbose": 0}
    history = small.fit(X, Y, callbacks=plan, **options).history
    clean, robust = (plain.evaluate(x, Y, batch_size=4, verbose=0) for x in (X, attacked))
    assert history["robust_loss"][0] == pytest.approx(robust, rel=1e-5)
    assert history["loss"][0] == pytest.approx((clean + robust) / 2, rel=1e-5)


def test_numpy_agrees_on_the_mean_over_examples():
    plain = net(penalties=False)
    small = atmc.compress(plain, "al0", ratio=1.0, attack=ATTACK)
    small.compile("sgd", SPARSE)
    z = plain(X).numpy().astype("float64")
    values = np.log(np.exp(z).sum(axis=1)) - z[np.arange(7), Y]
    order = np.argsort(values)  # the hardest alone in the last batch
    found = small.evaluate(X[order], Y[order], batch_size=6, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(values.mean(), rel=1e-5)


def segmentation():
    model = keras.Sequential([keras.Input((6, 6, 1)), layers.Conv2D(3, 3, padding="same")])
    return model, SPARSE, rng.random((7, 6, 6, 1)), rng.integers(0, 3, (7, 6, 6))


def multi_label():
    model = keras.Sequential([keras.Input((5,)), layers.Dense(3, activation="sigmoid")])
    return model, "binary_crossentropy", X, (rng.random((7, 3)) > 0.5).astype("float32")


def two_outputs():
    inputs = keras.Input((5,))
    model = keras.Model(inputs, [layers.Dense(3)(inputs), layers.Dense(1)(inputs)])
    return model, [SPARSE, "mse"], X, [Y, rng.random((7, 1)).astype("float32")]


@pytest.mark.parametrize("task", [segmentation, multi_label, two_outputs])
def test_training_and_validation_attack_any_task_by_its_own_loss(task):
    model, loss, x, y = task()
    x = x.astype("float32")
    small = atmc.compress(model, "al0", ratio=0.9, attack=FGSM(epsilon=0.05))
    small.compile(keras.optimizers.Adam(1e-3), loss)
    small.fit(x, y, batch_size=4, verbose=0, callbacks=[atmc.callbacks.UpdateCompression()])
    found = small.evaluate(x, y, batch_size=4, verbose=0, return_dict=True)
    assert found["robust_loss"] > found["loss"] > 0
    assert ("robust_accuracy" in found) == (task is multi_label)
