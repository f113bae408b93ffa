# SPDX-License-Identifier: Apache-2.0
"""Momentum, WRM, TRADES, l2 balls and targets: closed forms, NumPy, CleverHans, training."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from tfmot_atmc.callbacks import UpdateCompression
from tfmot_atmc.objectives import TradesLoss, get_objective

from tfmot_atmc import attacks, compress, datasets
from tfmot_atmc.attacks import BIM, FGSM, MIFGSM, PGD, RFGSM, TRADES, WRM, Problem
from tfmot_atmc.attacks.outputs import cross_entropy
from tfmot_atmc.attacks.trades import kl_divergence

RNG = np.random.default_rng(5)
FIRST, SECOND = RNG.normal(size=(6, 5)), RNG.normal(size=(5, 4))
X = RNG.uniform(0.2, 0.8, (9, 6)).astype("float32")


def model(x):
    hidden = tf.tanh(x @ tf.constant(FIRST, tf.float32))
    return hidden @ tf.constant(SECOND, tf.float32)


Y = model(X).numpy().argmax(1)


def gradient(x):
    """The cross-entropy's input gradient by hand, in float64."""
    hidden = np.tanh(x @ FIRST)
    z = hidden @ SECOND
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return (((p - np.eye(4)[Y]) @ SECOND.T) * (1 - hidden**2)) @ FIRST.T


def problem(norm="l2", epsilon=0.3, x=X, y=Y):
    bounds = (np.array(0.0), np.array(1.0))
    return Problem(
        model,
        tf.constant(x),
        tf.constant(y),
        epsilon=np.array(epsilon),
        bounds=bounds,
        loss=cross_entropy,
        norm=norm,
    )


def test_wrm_follows_the_update_by_hand():
    gamma, steps = 0.7, 6
    x = X.astype(float)
    for t in range(steps):
        x = x + (gamma * gradient(x) - (x - X)) / np.sqrt(t + 1)
        x = np.clip(x, 0, 1)
    found = WRM(gamma=gamma, steps=steps)(model, X, Y).numpy()
    np.testing.assert_allclose(found, x, atol=1e-5)
    np.testing.assert_array_equal(WRM(gamma=0.0)(model, X, Y), X)
    assert "epsilon" not in WRM().get_config() and WRM().epsilon == np.inf
    for name in ("norm", "targeted"):
        with pytest.raises(TypeError, match=f"no argument `{name}`"):
            WRM(**{name: "l2" if name == "norm" else True})


def test_momentum_follows_the_update_by_hand():
    epsilon, steps, decay = 0.2, 5, 0.9
    x, momentum = X.astype(float), 0.0
    for _ in range(steps):
        g = gradient(x)
        momentum = decay * momentum + g / np.abs(g).sum(1, keepdims=True)
        x = np.clip(x + epsilon / steps * np.sign(momentum), 0, 1)
        x = np.clip(x, X - epsilon, X + epsilon)
    found = MIFGSM(epsilon=epsilon, steps=steps, decay=decay)(model, X, Y).numpy()
    np.testing.assert_allclose(found, x, atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_iterations_agree_with_cleverhans(norm):
    module = "cleverhans.tf2.attacks.projected_gradient_descent"
    pgd = pytest.importorskip(module).projected_gradient_descent
    momentum = pytest.importorskip(
        "cleverhans.tf2.attacks.momentum_iterative_method"
    ).momentum_iterative_method
    code = np.inf if norm == "linf" else 2
    common = {"norm": code, "clip_min": 0.0, "clip_max": 1.0, "y": Y, "sanity_checks": False}
    theirs = pgd(model, tf.constant(X), 0.3, 0.1, 5, rand_init=False, **common)
    ours = BIM(epsilon=0.3, norm=norm, steps=5, step_size=0.1)(model, X, Y)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    theirs = momentum(
        model, tf.constant(X), eps=0.3, eps_iter=0.06, nb_iter=5, decay_factor=1.0, **common
    )
    ours = MIFGSM(epsilon=0.3, norm=norm, steps=5)(model, X, Y)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_trades_starts_beside_the_input_and_moves_the_prediction_without_labels():
    attack = TRADES(epsilon=0.1, steps=5, seed=2)
    found = attack(model, X, Y).numpy()
    np.testing.assert_array_equal(found, attack(model, X, (Y + 1) % 4))
    assert np.abs(found - X).max() <= 0.1 * (1 + 1e-6)
    clean = model(X)
    random = X + np.random.default_rng(0).uniform(-0.1, 0.1, X.shape).astype("float32")
    assert (kl_divergence(clean, model(found)) > kl_divergence(clean, model(random))).numpy().all()
    assert np.abs(TRADES(epsilon=0.1, steps=1, step_size=0.0)(model, X, Y) - X).max() < 0.01
    assert TRADES(epsilon=0.031).step_size == pytest.approx(0.007, abs=1e-4)
    p, q = np.array([0.5, 0.5]), np.array([0.9, 0.1])
    value = kl_divergence(tf.math.log([p]), tf.math.log([q])).numpy()[0]
    assert value == pytest.approx(np.sum(p * np.log(p / q)), rel=1e-6)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.floats(0.01, 2.0), st.integers(0, 10**6))
def test_l2_projection_scales_into_the_ball_and_clips(epsilon, seed):
    points = (X + np.random.default_rng(seed).normal(size=X.shape)).astype("float32")
    found = problem(epsilon=epsilon).project([tf.constant(points)])[0].numpy()
    change = points.astype(float) - X
    length = np.linalg.norm(change, axis=1, keepdims=True)
    wanted = np.clip(X + change * np.minimum(1, epsilon / length), 0, 1)
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert np.linalg.norm(found - X, axis=1).max() <= epsilon * (1 + 1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda **k: FGSM(**k),
        lambda **k: RFGSM(**k),
        lambda **k: PGD(steps=4, **k),
        lambda **k: MIFGSM(steps=4, **k),
        lambda **k: TRADES(steps=4, **k),
    ],
)
def test_l2_attacks_stay_in_ball_and_bounds_and_do_harm(make):
    attack = make(epsilon=0.5, norm="l2")
    found = attack(model, X, Y).numpy()
    assert found.min() >= 0 and found.max() <= 1
    assert np.linalg.norm(found - X, axis=1).max() <= 0.5 * (1 + 1e-5)
    loss = cross_entropy(tf.constant(Y), model(found)) - cross_entropy(tf.constant(Y), model(X))
    assert float(tf.reduce_mean(loss)) > 0
    np.testing.assert_array_equal(found, attack(model, X, Y))
    again = attacks.get(json.loads(json.dumps(attacks.serialize(attack))))
    assert repr(again) == repr(attack)
    with pytest.raises(ValueError, match="must be a scalar"):
        make(epsilon=[0.1] * 6, norm="l2")


def test_l2_noise_is_uniform_in_the_ball():
    x = np.full((4000, 3), 0.5, np.float32)
    start = problem(epsilon=0.4, x=x, y=np.zeros(4000, int)).random_start(tf.constant([1, 2]))
    change = start[0].numpy() - x
    radius = np.sort(np.linalg.norm(change, axis=1) / 0.4)
    uniform = np.arange(1, 4001) / 4000
    # The 1e-6 quantile of the Kolmogorov-Smirnov distance for 4,000 draws is 0.043.
    assert np.abs(radius**3 - uniform).max() < 0.043
    assert np.abs((change / np.linalg.norm(change, axis=1)[:, None]).mean(0)).max() < 0.05


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_targeted_attacks_reach_the_class_wanted(norm):
    wanted = (Y + 1) % 4
    before = cross_entropy(tf.constant(wanted), model(X)).numpy()
    for attack in (
        PGD(epsilon=2.0, steps=30, step_size=0.1, norm=norm, targeted=True, bounds=None),
        MIFGSM(epsilon=2.0, steps=30, norm=norm, targeted=True, bounds=None),
    ):
        found = attack(model, X, wanted).numpy()
        assert np.mean(model(found).numpy().argmax(1) == wanted) > 0.7
    small = FGSM(epsilon=0.01, norm=norm, targeted=True)(model, X, wanted).numpy()
    assert (cross_entropy(tf.constant(wanted), model(small)).numpy() < before).all()


def test_problems_can_be_taken_apart_and_put_together():
    whole = problem("linf")
    rows = tf.constant([4, 1])
    part = whole.take(rows)
    np.testing.assert_array_equal(part.x[0], X[[4, 1]])
    np.testing.assert_array_equal(part.y, Y[[4, 1]])
    np.testing.assert_array_equal(part.upper[0], whole.upper[0].numpy()[[4, 1]])
    np.testing.assert_allclose(part.evaluate(part.x)[0], model(X).numpy()[[4, 1]], atol=1e-6)
    mask = tf.constant([True, False])
    chosen = part.select(mask, [part.x[0] + 1], part.x)[0]
    np.testing.assert_allclose(chosen, X[[4, 1]] + [[1.0], [0.0]], rtol=1e-6)
    for norm in ("linf", "l2"):
        direction = problem(norm).random_direction(tf.constant([0, 7]))
        np.testing.assert_allclose(problem(norm).lengths(direction), np.ones(9), rtol=1e-5)


@pytest.mark.parametrize(
    "attack", [MIFGSM(epsilon=0.1, steps=3), WRM(steps=3), TRADES(epsilon=0.1)]
)
def test_attacks_compile_with_xla_to_the_same_result(attack):
    compiled = tf.function(lambda x: attack(model, x, Y), jit_compile=True)
    np.testing.assert_allclose(compiled(X), attack(model, X, Y), atol=1e-4)


@pytest.mark.parametrize(
    ("attack", "objective"),
    [(WRM(gamma=1.3, steps=3), "adversarial"), (TRADES(epsilon=0.1, steps=3), "trades")],
)
def test_they_train_through_fit_and_are_saved_with_the_model(attack, objective, tmp_path):
    data = datasets.load("digits", limit=160)
    small = compress(
        keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]),
        "atmc",
        ratio=0.5,
        attack=attack,
        validation_attack=PGD(epsilon=0.1, steps=3),
        objective=objective,
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    small.compile(keras.optimizers.Adam(0.02), loss, metrics=["accuracy"])
    history = small.fit(
        data.x_train,
        data.y_train,
        epochs=4,
        batch_size=32,
        validation_data=(data.x_validation, data.y_validation),
        callbacks=[UpdateCompression()],
        verbose=0,
    ).history
    assert history["loss"][-1] < history["loss"][0]
    assert 0 <= history["val_robust_accuracy"][-1] <= history["accuracy"][-1] + 0.2
    small.save(tmp_path / "small.keras")
    again = keras.saving.load_model(tmp_path / "small.keras")
    assert repr(again.attack) == repr(attack) and repr(again.objective) == repr(small.objective)


def test_trades_loss_is_the_clean_loss_plus_the_divergence():
    objective = TradesLoss(beta=2.0)
    other = np.clip(X + 0.1, 0, 1)
    found = objective(
        model, lambda y, z: tf.reduce_mean(cross_entropy(tf.constant(y), z)), X, other, Y
    )
    clean, moved = model(X), model(other)
    expected = tf.reduce_mean(cross_entropy(tf.constant(Y), clean))
    expected += 2.0 * tf.reduce_mean(kl_divergence(clean, moved))
    np.testing.assert_allclose(found.loss, expected, rtol=1e-6)
    assert get_objective("trades").beta == 6.0
    with pytest.raises(ValueError, match="`beta` must be at least 0"):
        TradesLoss(-1.0)
