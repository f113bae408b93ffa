# SPDX-License-Identifier: Apache-2.0
"""Attacks and evaluations at their edges: few classes, tiny gradients, odd bounds, endless data."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmot_atmc as atmc
from tfmot_atmc.attacks import APGD, APGDT, FAB, FABT, FGSM, MIFGSM, PGD, AutoAttack, Square
from tfmot_atmc.evaluation import evaluate_robustness
from tfmot_atmc.evaluation.correctness import check_ball

rng = np.random.default_rng(0)
X = rng.uniform(0.3, 0.7, (24, 4)).astype("float32")


def linear(classes, scale=1.0, dtype="float32"):
    """Linear logits, for which the distance to the boundary is known."""
    weights = np.random.default_rng(classes).normal(size=(4, classes)).astype("float32")

    def model(x):
        return tf.cast(scale * ((tf.cast(x, tf.float32) - 0.5) @ weights), dtype)

    return model, weights


def breakable(weights, epsilon):
    """Which examples of X a perturbation within a box can break, exactly (bounds are far)."""
    logits = (X - 0.5) @ weights
    y = logits.argmax(axis=1)
    epsilon = np.broadcast_to(epsilon, 4)
    found = np.zeros(len(X), bool)
    for other in range(weights.shape[1]):
        difference = weights[:, y] - weights[:, [other]]
        gap = (logits[np.arange(len(X)), y] - logits[:, other]) - epsilon @ np.abs(difference)
        found |= (gap < 0) & (other != y)
    return y, found


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_autoattack_is_exact_on_linear_models_of_few_classes(classes):
    model, weights = linear(classes)
    y, wanted = breakable(weights, 0.05)
    report = evaluate_robustness(
        model, (X, y), attacks=AutoAttack(epsilon=0.05, steps=10, queries=20), verbose=0
    )
    assert report.robust_accuracy == pytest.approx(1 - wanted.mean())
    targeted = "apgd-t" if classes > 3 else "apgd-t-margin"
    assert [part.name for part in report.attacks] == ["apgd-ce", targeted, "fab-t", "square"]
    made = AutoAttack(epsilon=0.05, steps=10, queries=20)(model, X, y)
    assert ((model(made).numpy().argmax(axis=1) != y) == wanted).all()


def test_parts_that_need_more_classes_are_replaced_by_name():
    attack = AutoAttack(epsilon=0.1, version="rand")
    assert list(attack.parts_for(2)) == ["apgd-ce", "apgd-margin"]
    assert list(attack.parts_for(3)) == ["apgd-ce", "apgd-dlr"]
    plus = AutoAttack(epsilon=0.1, version="plus")
    assert list(plus.parts_for(3)) == [
        "apgd-ce",
        "apgd-dlr",
        "fab",
        "square",
        "apgd-t-margin",
        "fab-t",
    ]
    with pytest.raises(ValueError, match="objective='margin'"):
        APGD(epsilon=0.1, objective="dlr")(linear(2)[0], X, np.zeros(24, int))


@pytest.mark.parametrize("kind", [FAB, FABT, APGD, Square])
def test_one_epsilon_a_channel_is_held_and_used(kind):
    epsilon = [0.0, 0.02, 0.05, 0.1]
    model, weights = linear(3)
    y, wanted = breakable(weights, epsilon)
    attack = kind(epsilon=epsilon, **({"queries": 40} if kind is Square else {"steps": 20}))
    made = np.asarray(attack(model, X, y))
    check_ball("it", attack, X, made)
    assert (made[:, 0] == X[:, 0]).all() and not (made == X).all()
    wrong = model(made).numpy().argmax(axis=1) != y
    assert not (wrong & ~wanted).any()
    # Cross-entropy and random search are not exact here; the boundary's attacks are.
    assert wrong.sum() >= {Square: 0.4, APGD: 0.9}.get(kind, 1.0) * wanted.sum()


@pytest.mark.parametrize(
    "attack", [PGD(epsilon=0.1, norm="l2", steps=4), APGD(epsilon=0.1, norm="l2", steps=4)]
)
def test_l2_steps_do_not_depend_on_the_length_of_the_gradient(attack):
    model, weights = linear(3)
    y = breakable(weights, 0.0)[0]
    plain = attack(model, X, y)
    tiny = attack(linear(3, scale=1e-20)[0], X, y)
    lengths = np.linalg.norm(np.asarray(tiny) - X, axis=1)
    assert (lengths > 0.05).all()
    changed = attack.with_loss(lambda y, z: 1e-30 * tf.reduce_sum(z, axis=1))
    assert (np.linalg.norm(np.asarray(changed(model, X, y)) - X, axis=1) > 0.05).all()
    same = (model(plain).numpy().argmax(1) != y) == (model(tiny).numpy().argmax(1) != y)
    assert same.mean() > 0.9


def test_gradients_that_are_not_numbers_are_gone_around():
    model, weights = linear(3)

    def odd(x):  # the root has no derivative at zero
        return model(x) + 1e-6 * tf.sqrt(tf.square(x[:, :1]))

    y, x = breakable(weights, 0.05)[0], X * [0, 1, 1, 1]
    x = x.astype("float32")
    for attack in (FGSM(epsilon=0.05), MIFGSM(epsilon=0.05), APGD(epsilon=0.05, steps=10)):
        made = np.asarray(attack(odd, x, y))
        assert np.isfinite(made).all() and (made[:, 1:] != x[:, 1:]).all()
    report = evaluate_robustness(odd, (x, y), attacks=FGSM(epsilon=0.05), verbose=0)
    assert "is NaN or infinite for" in report.checks["gradients are finite"]


def test_half_precision_logits_that_overflow_do_not_stop_an_attack():
    model, weights = linear(3, scale=1e5, dtype="float16")
    y = breakable(weights, 0.0)[0]
    report = evaluate_robustness(
        model,
        (X, y),
        attacks=[PGD(epsilon=0.1, steps=3), Square(epsilon=0.1, queries=5)],
        verbose=0,
    )
    assert "NaN or infinity" in report.checks["outputs are finite"]


@pytest.mark.parametrize(
    ("mean", "deviation"), [(0.1307, 0.3081), (0.4914, 0.2471), (0.485, 0.229), (0.5, 0.5)]
)
def test_bounds_that_float32_cannot_hold_are_no_reason_to_refuse(mean, deviation):
    bounds = ((0 - mean) / deviation, (1 - mean) / deviation)
    pixels = np.concatenate([np.zeros((4, 4)), np.ones((4, 4)), rng.random((4, 4))])
    x = ((pixels.astype("float32") - np.float32(mean)) / np.float32(deviation)).astype("float32")
    model, _ = linear(3)
    y = model(x).numpy().argmax(axis=1)
    for attack in (PGD(epsilon=0.3, bounds=bounds), Square(epsilon=0.3, bounds=bounds, queries=5)):
        report = evaluate_robustness(model, (x, y), attacks=attack, checks=False, verbose=0)
        assert report.n == 12
    outside = PGD(epsilon=0.3, bounds=bounds)
    with pytest.raises(RuntimeError, match="left its ball or its bounds"):
        check_ball("it", outside, x, x + np.float32(0.01))


def test_a_dataset_without_end_is_refused_or_limited():
    model, weights = linear(3)
    y = breakable(weights, 0.0)[0]
    endless = tf.data.Dataset.from_tensor_slices((X, y)).batch(8).repeat()
    with pytest.raises(ValueError, match="has no end"):
        evaluate_robustness(model, endless, epsilon=0.1, verbose=0)
    report = evaluate_robustness(
        model, endless, epsilon=0.1, max_examples=20, checks=False, verbose=0
    )
    assert report.n == 20


def test_a_single_output_is_one_of_two_classes():
    model, weights = linear(2)
    y, wanted = breakable(weights, 0.05)
    one = lambda x: model(x)[:, 1:] - model(x)[:, :1]  # noqa: E731
    layers = keras.layers
    net = keras.Sequential([keras.Input((4,)), layers.Dense(1), layers.Activation("sigmoid")])
    kernel = weights[:, 1:] - weights[:, :1]
    net.layers[0].set_weights([kernel, -0.5 * kernel.sum(axis=0)])
    compiled = keras.Sequential([keras.Input((4,)), layers.Dense(1)])
    compiled.layers[0].set_weights(net.layers[0].get_weights())
    compiled.compile(loss=keras.losses.BinaryCrossentropy(from_logits=True))
    soft = np.where(y > 0, 0.9, 0.2)[:, None]
    exact, whole = FGSM(epsilon=0.05), AutoAttack(epsilon=0.05, steps=5, queries=5)
    for target, labels, attack in (
        (one, y, exact),
        (net, y[:, None], whole),
        (net, soft, exact),
        (compiled, y, exact),
    ):
        report = evaluate_robustness(target, (X, labels), attacks=attack, checks=False, verbose=0)
        assert report.clean_accuracy == 1.0
        assert report.robust_accuracy == pytest.approx(1 - wanted.mean())
    made = atmc.evaluation.AdversarialSet.make(net, (X, y), attack="fgsm", epsilon=0.05)
    assert made.evaluate(net).robust_accuracy == pytest.approx(1 - wanted.mean())


def test_targeted_attacks_on_true_labels_are_refused_at_every_door():
    model, weights = linear(3)
    y = breakable(weights, 0.0)[0]
    targeted = PGD(epsilon=0.1, targeted=True)
    for door in (
        lambda: evaluate_robustness(model, (X, y), attacks=targeted, verbose=0),
        lambda: atmc.evaluation.AdversarialSet.make(model, (X, y), attack=targeted),
        lambda: atmc.evaluation.robustness_curve(
            model, (X, y), attack=targeted, epsilons=[0.1], verbose=0
        ),
    ):
        with pytest.raises(ValueError, match="targeted=False"):
            door()
    model = linear(4)[0]
    made = APGDT(epsilon=0.2, steps=5)(model, X, y)  # towards the others by itself
    assert (model(made).numpy().argmax(axis=1) != y).any()
