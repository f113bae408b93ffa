# SPDX-License-Identifier: Apache-2.0
"""AutoAttack and its parts: references in NumPy, the ball, determinism, the ensemble."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import reference_attacks as reference
from tfmot_atmc import attacks
from tfmot_atmc.attacks import APGD, APGDT, FAB, FABT, AutoAttack, Problem, Square, fold_in
from tfmot_atmc.attacks.fab import move_to_hyperplane
from tfmot_atmc.attacks.margins import dlr, likely_targets, margin, targeted_dlr
from tfmot_atmc.attacks.outputs import cross_entropy
from tfmot_atmc.evaluation.targets import as_target

NETWORK = reference.Network(12)
EPSILON = 0.15


def model(x):
    """The reference network for images [batch, 2, 3, 2]."""
    flat = tf.reshape(x, (-1, 12)) - 0.5
    hidden = tf.tanh(flat @ tf.constant(NETWORK.first, tf.float32))
    return hidden @ tf.constant(NETWORK.second, tf.float32)


@pytest.fixture(scope="module")
def images():
    x = np.random.default_rng(1).uniform(size=(24, 12)).astype("float32")
    y = NETWORK.logits(x).argmax(1)
    return x.reshape(-1, 2, 3, 2), y


def quick(name, norm="linf", epsilon=EPSILON, **options):
    made = {
        "apgd": lambda: APGD(epsilon=epsilon, norm=norm, steps=12, **options),
        "apgdt": lambda: APGDT(epsilon=epsilon, norm=norm, steps=12, **options),
        "fab": lambda: FAB(epsilon=epsilon, norm=norm, steps=8, **options),
        "fabt": lambda: FABT(epsilon=epsilon, norm=norm, steps=8, **options),
        "square": lambda: Square(epsilon=epsilon, norm=norm, queries=60, **options),
    }
    return made[name]()


PARTS = ("apgd", "apgdt", "fab", "fabt", "square")


def right(x, y):
    return model(x).numpy().argmax(1) == y


# --- losses ------------------------------------------------------------------------------------


def test_losses_on_logits_have_their_hand_computed_values():
    logits = tf.constant([[4.0, 1.0, 2.0, 0.0], [1.0, 3.0, 2.0, 2.5]])
    labels = tf.constant([0, 0], tf.int64)
    np.testing.assert_allclose(margin(labels, logits), [2.0, -2.0])
    # -(4 - 2) / (4 - 1) and -(1 - 3) / (3 - 2)
    np.testing.assert_allclose(dlr(labels, logits), [-2 / 3, 2.0], rtol=1e-6)
    # -(4 - 1) / (4 - (1 + 0) / 2) and -(1 - 2.5) / (3 - (2 + 1) / 2)
    targets = tf.constant([1, 3], tf.int64)
    np.testing.assert_allclose(targeted_dlr(labels, targets, logits), [-3 / 3.5, 1.0], rtol=1e-6)
    np.testing.assert_array_equal(likely_targets(labels, logits, 2), [[2, 1], [1, 3]])
    assert likely_targets(labels, logits, 9).shape == (2, 3)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.5, 100.0))
def test_losses_on_logits_agree_with_numpy_and_have_no_scale(seed, scale):
    rng = np.random.default_rng(seed)
    z, y = rng.normal(size=(6, 5)), rng.integers(0, 5, 6)
    target = (y + rng.integers(1, 5, 6)) % 5
    labels, logits = tf.constant(y), tf.constant(z, tf.float32)
    np.testing.assert_allclose(dlr(labels, logits), reference.dlr(z, y)[0], rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(dlr(labels, scale * logits), dlr(labels, logits), rtol=2e-3)
    np.testing.assert_allclose(
        targeted_dlr(labels, tf.constant(target), logits),
        reference.dlr(z, y, target)[0],
        rtol=2e-3,
        atol=1e-4,
    )


def test_losses_on_logits_need_enough_classes(images):
    two = tf.zeros((1, 2))
    with pytest.raises(ValueError, match="DLR loss needs at least 3 classes. The model has 2"):
        dlr(tf.constant([0], tf.int64), two)
    with pytest.raises(ValueError, match="at least 4 classes"):
        APGDT(epsilon=0.1, steps=2)(lambda x: model(x)[:, :3], images[0], images[1] % 3)


# --- APGD --------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["ce", "dlr"])
@pytest.mark.parametrize("steps", [10, 60])
def test_apgd_follows_the_reference_from_the_same_start(images, objective, steps):
    x, y = images
    epsilon = 0.05
    attack = APGD(epsilon=epsilon, steps=steps, objective=objective, seed=3)
    problem = Problem(
        model,
        tf.constant(x),
        tf.constant(y),
        epsilon=np.array(epsilon),
        bounds=(np.array(0.0), np.array(1.0)),
        loss=cross_entropy,
    )
    direction = problem.random_direction(fold_in(tf.constant([3, 0], tf.int64), 0))[0]
    start = np.clip(x + epsilon * direction.numpy(), 0, 1).reshape(-1, 12).astype(float)
    loss = reference.cross_entropy if objective == "ce" else reference.dlr
    wanted, wrong = reference.apgd(NETWORK, x.reshape(-1, 12), y, start, epsilon, steps, loss)
    assert 0 < wrong.sum() < len(y)
    found = attack(model, x, y).numpy().reshape(-1, 12)
    np.testing.assert_array_equal(~right(found, y), wrong)
    values = [loss(NETWORK.logits(points), y)[0][~wrong] for points in (found, wanted)]
    np.testing.assert_allclose(*values, atol=1e-5)
    # In long runs the last, tiny steps compare losses that differ by float32 rounding alone; and
    # DLR is flat, its gradient rounding, where the label has the third largest logit.
    same = (np.abs(found - wanted).max(axis=1) <= 1e-5)[~wrong]
    assert same.all() if steps == 10 else same.mean() >= 0.8


def test_apgd_never_ends_below_its_start_and_restarts_only_help(images):
    x, y = images
    before = cross_entropy(tf.constant(y), model(x)).numpy()
    one = APGD(epsilon=0.05, steps=6)(model, x, y).numpy()
    many = APGD(epsilon=0.05, steps=6, restarts=4)(model, x, y).numpy()
    after = cross_entropy(tf.constant(y), model(one)).numpy()
    assert (after >= before - 1e-6).all()
    assert (right(many, y) <= right(one, y)).all()


def test_averaged_gradients_of_a_deterministic_model_change_nothing(images):
    x, y = images
    one = APGD(epsilon=EPSILON, steps=5)(model, x, y).numpy()
    three = APGD(epsilon=EPSILON, steps=5, eot=3)(model, x, y).numpy()
    np.testing.assert_allclose(three, one, atol=1e-4)


# --- FAB ---------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["linf", "l2"]), st.floats(0.0, 1.5))
def test_moves_to_a_hyperplane_are_the_shortest_within_the_box(seed, norm, shift):
    rng = np.random.default_rng(seed)
    t = rng.uniform(size=(4, 6))
    t[0] = np.round(t[0])  # corners of the box
    w = rng.normal(size=(4, 6))
    w[1, :3] = 0.0
    b = (w * t).sum(1) + shift * rng.normal(size=4) * 3
    box = np.zeros((1, 6)), np.ones((1, 6))
    found = move_to_hyperplane(
        *(tf.constant(value, tf.float32) for value in (t, w, b, *box)), norm
    ).numpy()
    for i in range(4):
        wanted = reference.hyperplane_move(t[i], w[i], b[i], 0.0, 1.0, norm)
        np.testing.assert_allclose(found[i], wanted, atol=2e-4)
    assert (t + found >= -1e-6).all() and (t + found <= 1 + 1e-6).all()


def test_moves_along_nothing_are_nothing():
    t = tf.constant([[0.5, 0.5]])
    move = move_to_hyperplane(t, tf.zeros_like(t), tf.constant([1.0]), t * 0, t * 0 + 1)
    np.testing.assert_array_equal(move, [[0.0, 0.0]])


@pytest.mark.parametrize(("norm", "distance"), [("linf", 0.1), ("l2", 0.2)])
def test_fab_finds_the_exact_distance_of_a_linear_boundary(norm, distance):
    x = np.full((1, 4), 0.5, "float32")

    def linear(v):  # the boundary lies where the sum is 1.6, that is 0.4 below
        total = tf.reduce_sum(v, axis=1) - 1.6
        return tf.stack([total, -total, -total - 9.0], axis=1)

    for kind in (FAB, FABT):
        just = kind(epsilon=distance * 1.03, norm=norm, steps=20)(linear, x, [0]).numpy()
        assert linear(just)[0, 0] < 0
        short = kind(epsilon=distance * 0.99, norm=norm, steps=20)(linear, x, [0]).numpy()
        np.testing.assert_array_equal(short, x)


# --- Square ------------------------------------------------------------------------------------


def test_squares_shrink_by_the_schedule():
    queries = [0, 10, 11, 50, 51, 200, 201, 500, 501, 1000, 1001, 2000, 2001, 4000, 4001]
    halvings = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7]
    attack = Square(epsilon=0.1)
    found = [float(attack.share(tf.constant(query))) for query in queries]
    np.testing.assert_allclose(found, 0.8 / 2.0 ** np.array(halvings), rtol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_square_sees_outputs_only_and_lowers_every_margin(images, norm):
    x, y = images

    def file_like(v):  # no gradient, and no static shape
        function = lambda v: NETWORK.logits(v.reshape(-1, 12)).astype("float32")  # noqa: E731
        return tf.ensure_shape(tf.numpy_function(function, [v], tf.float32), [None, 5])

    attack = Square(epsilon=0.1 if norm == "linf" else 0.3, norm=norm, queries=150)
    assert not attack.needs_gradients
    found = attack(file_like, x, y).numpy()
    before, after = (margin(tf.constant(y), model(v)).numpy() for v in (x, found))
    assert np.mean(after < before) > 0.9 and not right(found, y).all()
    np.testing.assert_allclose(found, attack(model, x, y).numpy(), atol=1e-5)


def test_square_takes_vectors_sequences_and_nests():
    x = np.random.default_rng(0).uniform(size=(5, 7)).astype("float32")
    nest = {"a": x, "b": x[:, :6].reshape(5, 3, 2)}

    def both(v):
        total = tf.reduce_sum(v["a"], 1) + tf.reduce_sum(v["b"], (1, 2))
        return tf.stack([total - 6.0, 6.0 - total], axis=1)

    y = np.asarray(both(nest)).argmax(1)
    for norm, epsilon in (("linf", 0.4), ("l2", 1.0)):
        found = Square(epsilon=epsilon, norm=norm, queries=80)(both, nest, y)
        change = np.concatenate([(found[k].numpy() - nest[k]).reshape(5, -1) for k in nest], axis=1)
        length = np.abs(change).max(1) if norm == "linf" else np.linalg.norm(change, axis=1)
        assert length.max() <= epsilon * (1 + 1e-5)
        assert (np.asarray(both(found)).argmax(1) != y).any()


# --- all of them -------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", PARTS)
def test_parts_stay_in_ball_and_bounds_and_repeat_by_seed(images, name, norm):
    x, y = images
    x = x.copy()
    x[0], x[1] = 0.0, 1.0
    epsilon = EPSILON if norm == "linf" else 0.4
    attack = quick(name, norm, epsilon)
    found = attack(model, x, y).numpy()
    assert found.dtype == np.float32 and found.min() >= 0.0 and found.max() <= 1.0
    change = (found - x).reshape(len(x), -1).astype(float)
    length = np.abs(change).max(1) if norm == "linf" else np.linalg.norm(change, axis=1)
    assert length.max() <= epsilon * (1 + 1e-5)
    assert right(found, y).sum() < len(y)
    np.testing.assert_array_equal(found, attack(model, x, y))
    again = attacks.get(json.loads(json.dumps(attacks.serialize(attack))))
    assert repr(again) == repr(attack)


@pytest.mark.parametrize("name", PARTS)
def test_parts_take_one_example_none_and_epsilon_zero(images, name):
    x, y = images
    attack = quick(name)
    assert attack(model, x[:1], y[:1]).shape == (1, 2, 3, 2)
    assert attack(model, x[:0], y[:0]).shape == (0, 2, 3, 2)
    np.testing.assert_array_equal(quick(name, epsilon=0.0)(model, x, y), x)


def test_the_ensemble_is_at_least_as_strong_as_its_parts_and_monotone_in_epsilon(images):
    x, y = images
    kept = []
    for epsilon in (0.0, 0.04, 0.08, 0.16):
        attack = AutoAttack(epsilon=epsilon, steps=12, queries=60)
        survivors = right(attack(model, x, y), y)
        kept.append(survivors.sum())
        if epsilon == 0.08:
            alone = [right(part(model, x, y), y).sum() for part in attack.attacks.values()]
            assert kept[-1] <= min(alone)
    assert kept[0] == len(y) and sorted(kept, reverse=True) == kept and kept[-1] < kept[0]


def test_versions_have_their_parts():
    standard = AutoAttack(epsilon=0.1, norm="l2", bounds=(-1.0, 1.0), seed=4)
    assert list(standard.attacks) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    for part in standard.attacks.values():
        assert part.norm == "l2" and part.seed == 4 and part.bounds == standard.bounds
        assert getattr(part, "restarts", 1) == 1 and getattr(part, "steps", 100) == 100
    assert standard.attacks["square"].queries == 5000
    assert standard.attacks["apgd-t"].num_targets == standard.attacks["fab-t"].num_targets == 9
    plus = AutoAttack(epsilon=0.1, version="plus").attacks
    assert list(plus) == ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
    assert [plus[name].restarts for name in ("apgd-ce", "apgd-dlr", "fab")] == [5, 5, 5]
    rand = AutoAttack(epsilon=0.1, version="rand").attacks
    assert [(name, part.eot) for name, part in rand.items()] == [("apgd-ce", 20), ("apgd-dlr", 20)]
    again = attacks.get(json.loads(json.dumps(attacks.serialize(standard))))
    assert repr(again) == repr(standard)


def test_the_ensemble_refuses_graphs(images):
    x, y = images
    attack = AutoAttack(epsilon=0.1, steps=2, queries=2)
    with pytest.raises(ValueError, match="runs eagerly only"):
        tf.function(lambda v: attack(model, v, y))(x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: APGD(epsilon=0.1, steps=0), "at least 1"),
        (lambda: APGD(epsilon=0.1, objective="x"), "must be one of"),
        (lambda: APGD(epsilon=0.1, rho=1.0), "`rho` must lie"),
        (lambda: APGDT(epsilon=0.1, num_targets=0), "at least 1"),
        (lambda: FAB(epsilon=0.1, beta=1.0), "0 < beta < 1"),
        (lambda: FABT(epsilon=0.1, num_targets=0), "at least 1"),
        (lambda: Square(epsilon=0.1, queries=0), "at least 1"),
        (lambda: Square(epsilon=0.1, p_init=0.0), "`p_init`"),
        (lambda: AutoAttack(epsilon=0.1, version="x"), "`version` must be one of"),
        (lambda: AutoAttack(epsilon=0.1, norm="l1"), "'linf' or 'l2'"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
    with pytest.raises(TypeError, match="has no argument `targeted`"):
        APGD(epsilon=0.1, targeted=True)


def test_an_evaluation_traces_a_model_once_for_batches_of_every_size(images, caplog):
    x, y = (np.asarray(part) for part in images)
    traces = []

    @keras.saving.register_keras_serializable("test")
    class Counted(keras.layers.Layer):
        def call(self, inputs):
            traces.append(tuple(inputs.shape))
            return model(inputs)

    counted = keras.Sequential([keras.Input(x.shape[1:]), Counted()])
    target = as_target(counted)
    traces.clear()
    with caplog.at_level("WARNING", logger="tensorflow"):
        for _ in range(3):
            for rows in (7, 3, 5, 1, 2, 4):
                assert np.allclose(target.predict(x[:rows]), model(x[:rows]), atol=1e-5)
    assert traces == [(None, *x.shape[1:])]
    assert not caplog.records
    ensemble = AutoAttack(epsilon=EPSILON, steps=2, queries=3)
    first = np.asarray(ensemble(counted, x[:8], y[:8]))
    before = len(traces)
    again = np.asarray(ensemble(counted, x[:8], y[:8]))
    assert np.array_equal(first, again) and len(traces) == before + 1
