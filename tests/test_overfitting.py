# SPDX-License-Identifier: Apache-2.0
"""The watch over catastrophic overfitting: what it measures, tells and brings back."""

import warnings

import keras
import numpy as np
import pytest
from tfmot_atmc.callbacks import CatastrophicOverfitting

from tfmot_atmc import compress
from tfmot_atmc.attacks import FGSM, PGD

layers = keras.layers

# Two classes told apart by which of two numbers is larger. With epsilon 0.3 an attack makes up for
# a difference of 0.6: eight of the ten examples withstand it, if the weights look at nothing else.
X = np.array([[0.9, 0.1]] * 4 + [[0.1, 0.9]] * 4 + [[0.52, 0.48]] * 2, "float32")
Y = np.array([0] * 4 + [1] * 4 + [0] * 2)
ROBUST = np.eye(2)  # 8 of 10
LOPSIDED = np.array([[1.0, 0.0], [1.0, 0.0]])  # always class 0: 6 of 10
WRONG = -np.eye(2)  # 0 of 10


class _Weights(keras.callbacks.Callback):
    """Stands for training: gives the model the next weights at the end of each step."""

    def __init__(self, kernels):
        super().__init__()
        self.kernels, self.given = kernels, 0

    def on_train_batch_end(self, batch, logs=None):
        kernel = self.kernels[min(self.given, len(self.kernels) - 1)]
        self.model.trainable_variables[0].assign(kernel)
        self.given += 1


def _model(attack=None):
    plain = keras.Sequential([keras.Input((2,)), layers.Dense(2, use_bias=False)])
    model = compress(plain, "da", attack=attack or FGSM(epsilon=0.3))
    # Adam has a state that must come back too.
    model.compile(
        keras.optimizers.Adam(0.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    return model


def _fit(kernels, *, epochs=None, batch_size=10, model=None, **arguments):
    """Trains on given weights, one for each step; returns model, watch, history and warnings."""
    model = model or _model()
    watch = CatastrophicOverfitting(X, Y, **arguments)
    setter = _Weights(kernels)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        history = model.fit(
            X,
            Y,
            batch_size=batch_size,
            epochs=epochs or len(kernels),
            shuffle=False,
            callbacks=[setter, watch],
            verbose=0,
        ).history
    told = [str(w.message) for w in told if "Catastrophic overfitting" in str(w.message)]
    return model, watch, history, told


def test_a_fall_is_told_stops_training_and_brings_the_weights_back():
    model, watch, history, told = _fit([LOPSIDED, ROBUST, WRONG, ROBUST, ROBUST])
    assert watch.found
    assert watch.measured == [(0, 1, 0.6), (1, 1, 0.8), (2, 1, 0.0)]
    assert history["watched_accuracy"] == [0.6, 0.8, 0.0]
    assert history["catastrophic_overfitting"] == [0, 0, 1]
    assert len(told) == 1
    assert "PGD fell from 0.800 to 0.000 by step 1 of epoch 3" in told[0]
    assert "stops" in told[0]
    np.testing.assert_array_equal(model.trainable_variables[0], ROBUST)
    assert model.step == 2
    assert int(model.optimizer.iterations) == 2
    assert watch.accuracy() == 0.8


def test_a_fall_of_less_than_the_drop_is_no_overfitting():
    kernels = [ROBUST, LOPSIDED, ROBUST]
    model, watch, history, told = _fit(kernels, drop=0.25)  # 0.8 to 0.6
    assert not watch.found and not told
    assert history["catastrophic_overfitting"] == [0, 0, 0]
    assert model.step == 3
    _, strict, history, told = _fit(kernels, drop=0.15)
    assert strict.found and len(told) == 1
    assert len(history["loss"]) == 2


def test_without_stop_training_goes_on_and_each_fall_is_told_once():
    kernels = [ROBUST, WRONG, WRONG, ROBUST, WRONG]
    model, watch, history, told = _fit(kernels, stop=False)
    assert history["watched_accuracy"] == [0.8, 0.0, 0.0, 0.8, 0.0]
    assert history["catastrophic_overfitting"] == [0, 1, 1, 1, 1]
    assert len(told) == 2 and all("goes on" in message for message in told)
    np.testing.assert_array_equal(model.trainable_variables[0], WRONG)


def test_without_restore_the_fallen_weights_stay():
    model, _, history, told = _fit([ROBUST, WRONG, ROBUST], restore=False)
    assert len(history["loss"]) == 2 and len(told) == 1
    assert "again" not in told[0]
    np.testing.assert_array_equal(model.trainable_variables[0], WRONG)


def test_a_fall_within_an_epoch_is_seen_every_so_many_steps():
    # Five steps an epoch; only the second and the fourth are looked at, and the epoch's end.
    kernels = [ROBUST, ROBUST, WRONG, WRONG, ROBUST]
    model, watch, history, told = _fit(kernels, epochs=2, batch_size=2, every=2)
    assert watch.measured == [(0, 2, 0.8), (0, 4, 0.0)]
    assert "step 4 of epoch 1" in told[0]
    np.testing.assert_array_equal(model.trainable_variables[0], ROBUST)
    assert model.step == 2
    assert history["watched_accuracy"] == [0.0]


def test_a_gradual_fall_is_measured_from_the_highest():
    partly = np.array([[1.0, 0.0], [0.9, 0.1]])  # class 1 in sight, but not under attack: 6 of 10
    never = np.array([[0.0, 1.0], [0.0, 1.0]])  # always class 1: 4 of 10
    model, watch, _, told = _fit([ROBUST, partly, never, ROBUST], drop=0.25)
    assert [value for *_, value in watch.measured] == [0.8, 0.6, 0.4]
    assert "from 0.800 to 0.400" in told[0]
    np.testing.assert_array_equal(model.trainable_variables[0], ROBUST)


def test_the_attack_is_the_models_own_radius_unless_given():
    _, watch, _, _ = _fit([ROBUST])
    assert watch.attack.epsilon == 0.3 and watch.attack.steps == 5
    assert float(watch.attack.step_size) == pytest.approx(0.075)
    _, watch, _, _ = _fit([ROBUST], attack=PGD(epsilon=0.01, steps=2))
    assert watch.measured == [(0, 1, 1.0)]
    plain = keras.Sequential([keras.Input((2,)), layers.Dense(2)])
    plain.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match="Pass `attack`"):
        plain.fit(X, Y, callbacks=[CatastrophicOverfitting(X, Y)], verbose=0)
    # A plain Keras model and one-hot labels, in parts.
    watch = CatastrophicOverfitting(
        X, np.eye(2)[Y], attack=PGD(epsilon=0.01, steps=2), batch_size=3
    )
    plain.layers[-1].set_weights([ROBUST, np.zeros(2)])
    plain.optimizer.learning_rate = 0.0
    plain.fit(X, Y, callbacks=[watch], verbose=0)
    assert watch.measured == [(0, 1, 1.0)]


@pytest.mark.parametrize(
    "wrong", [{"drop": 0.0}, {"drop": 1.0}, {"every": 0}, {"batch_size": 0}, {"x": X[:0]}]
)
def test_bad_arguments_are_refused(wrong):
    arguments = {"x": X, "y": Y, **wrong}
    with pytest.raises(ValueError, match="Received"):
        CatastrophicOverfitting(**arguments)
