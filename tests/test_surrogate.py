# SPDX-License-Identifier: Apache-2.0
"""A slope in the backward pass: what it changes, and what it leaves alone."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfmot_atmc as atmc
from tfmot_atmc import attacks
from tfmot_atmc.attacks import surrogate
from tfmot_atmc.attacks.outputs import cross_entropy, logits_function
from tfmot_atmc.attacks.problem import Problem
from tfmot_atmc.methods.objectives import AdversarialLoss
from tfmot_atmc.recipes import pipeline, stages
from tfmot_atmc.recipes.settings import CompressionSettings

SLOPE = 0.25
# What follows a dense layer, and the part of its gradient that is plain at -2, 1 and 9.
FORMS = {
    "layer": (keras.layers.ReLU(), (0, 1, 1)),
    "name": ("relu", (0, 1, 1)),
    "operation": (keras.ops.relu, (0, 1, 1)),
    "tensorflow": (tf.nn.relu, (0, 1, 1)),
    "maximum": (lambda x: tf.maximum(x, 0.0), (0, 1, 1)),
    "capped": (keras.layers.ReLU(max_value=3.0), (0, 1, 0)),
    "clipped": (lambda x: keras.ops.clip(x, 0.0, 3.0), (0, 1, 0)),
    "relu6": ("relu6", (0, 1, 0)),
    "hard_sigmoid": ("hard_sigmoid", (1 / 6, 1 / 6, 0)),
    "leaky": (keras.layers.LeakyReLU(0.1), (0.1, 1, 1)),
    "steep": (keras.layers.LeakyReLU(0.5), (0.5, 1, 1)),
}


def _gradients(model, x, slope, jit_compile=False):
    """Logits and input gradients, plain and with a slope."""

    @tf.function(jit_compile=jit_compile, autograph=False)
    def both(x):
        problem = Problem(
            logits_function(model),
            x,
            tf.zeros(tf.shape(x)[:1], tf.int64),
            epsilon=np.array(0.1),
            bounds=(None, None),
            loss=lambda _, logits: tf.reduce_sum(logits, axis=1),
        )
        return problem.gradient(problem.x), problem.with_slope(slope).gradient(problem.x)

    (plain_logits, _, plain), (logits, _, sloped) = both(tf.constant(x))
    np.testing.assert_array_equal(plain_logits, logits)
    return plain[0].numpy(), sloped[0].numpy()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("jit_compile", [False, True])
def test_every_form_of_relu_passes_the_slope_where_it_is_off(form, jit_compile):
    activation, plain = FORMS[form]
    layer = activation if callable(activation) else keras.layers.Activation(activation)
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Lambda(layer)(inputs))
    x = np.array([[-2.0, 1.0, 9.0]], "float32")
    found, sloped = _gradients(model, x, SLOPE, jit_compile)
    np.testing.assert_allclose(found[0], plain, rtol=1e-6)
    if form == "hard_sigmoid":  # (x + 3) / 6, between 0 and 1
        plain = (1 / 6, 1 / 6, SLOPE / 6)
    np.testing.assert_allclose(sloped[0], np.maximum(plain, SLOPE if max(plain) == 1 else 0), 1e-6)


def test_a_slope_of_zero_gives_the_plain_gradients_to_the_bit():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.MaxPooling2D(2),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )
    x = np.random.default_rng(0).normal(size=(5, 8, 8, 1)).astype("float32")
    np.testing.assert_array_equal(*_gradients(model, x, 0.0))
    plain, sloped = _gradients(model, x, 0.05)
    assert (plain == 0).mean() > (sloped == 0).mean()
    assert np.abs(plain - sloped).max() > 0


def test_max_pooling_gives_the_slope_to_all_but_the_largest():
    pool = keras.layers.MaxPooling1D(2)
    model = lambda x: tf.squeeze(pool(x[:, :, None]), -1)  # noqa: E731
    x = np.array([[1.0, 3.0, 5.0, 4.0], [2.0, 0.0, 1.0, 1.5]], "float32")
    plain, sloped = _gradients(model, x, SLOPE)
    np.testing.assert_array_equal(plain, [[0, 1, 1, 0], [1, 0, 0, 1]])
    np.testing.assert_allclose(sloped, [[SLOPE, 1, 1, SLOPE], [1, SLOPE, SLOPE, 1]])


def test_maxima_of_two_tensors_keep_their_gradient():
    model = lambda x: tf.maximum(x, tf.reduce_sum(x, axis=1, keepdims=True) / 2)  # noqa: E731
    x = np.array([[5.0, 1.0, 1.0], [1.0, 5.0, 1.0]], "float32")
    plain, sloped = _gradients(model, x, SLOPE)
    np.testing.assert_allclose(plain, [[2, 1, 1], [1, 2, 1]])
    np.testing.assert_allclose(sloped, plain)


def _sparse_network():
    """Two hidden units; the second is off, and it alone sees the second input.

    The first class has the logit 1 - h1 + h2, the second h1: its margin at (0.5, 0.5) is 0.6.
    """
    inputs = keras.Input((2,))
    hidden = keras.layers.Dense(2, activation="relu")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2)(hidden))
    model.set_weights(
        [
            np.array([[0.0, 0.0], [0.0, 1.0]], "float32"),
            np.array([0.0, -0.6], "float32"),
            np.array([[0.0, 0.0], [-4.0, 4.0]], "float32"),
            np.array([0.6, 0.0], "float32"),
        ]
    )
    return model


def test_auto_finds_what_dead_gradients_hide_and_reports_the_worse_of_both():
    model, x, y = _sparse_network(), np.full((3, 2), 0.5, "float32"), [0, 0, 0]
    common = {"epsilon": 0.3, "steps": 4, "random_start": False}

    def right(attack):
        return (np.argmax(model(attack(model, x, y)), axis=1) == 0).tolist()

    assert right(attacks.PGD(backward_slope=None, **common)) == [True] * 3
    assert right(attacks.PGD(backward_slope=0.05, **common)) == [False] * 3
    assert right(attacks.PGD(**common)) == [False] * 3
    for kind in (attacks.APGD, attacks.BIM, attacks.MIFGSM):
        assert right(kind(epsilon=0.3, steps=4)) == [False] * 3
    in_a_graph = tf.function(lambda x, y: attacks.PGD(**common)(model, x, y))
    assert np.argmax(model(in_a_graph(tf.constant(x), tf.constant(y))), axis=1).tolist() == [1] * 3


def test_auto_leaves_live_gradients_alone():
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(16, activation="relu"), keras.layers.Dense(3)]
    )
    rng = np.random.default_rng(0)
    x, y = rng.random((9, 6), dtype="float32"), rng.integers(0, 3, 9)
    for kind in (attacks.PGD, attacks.APGD):
        plain = kind(epsilon=0.2, steps=3, backward_slope=None)(model, x, y)
        np.testing.assert_array_equal(plain, kind(epsilon=0.2, steps=3)(model, x, y))


def test_slopes_are_kept_in_the_configuration_and_bad_ones_refused():
    attack = attacks.PGD(epsilon=0.1, backward_slope=0.2)
    assert attacks.get(attacks.serialize(attack)).backward_slope == 0.2
    assert attacks.PGD(epsilon=0.1).backward_slope == "auto"
    assert "backward_slope" not in attacks.PGD(epsilon=0.1).get_config()
    assert attacks.PGD(epsilon=0.1, backward_slope=None).get_config()["backward_slope"] is None
    assert attacks.AutoAttack(epsilon=0.1).backward_slope is None
    parts = attacks.AutoAttack(epsilon=0.1, backward_slope=0.2).attacks
    assert [part.backward_slope for part in parts.values()] == [0.2, 0.2, 0.2, None]
    for bad in (0, -0.1, 1.5, True, "sometimes", [0.1]):
        with pytest.raises(ValueError, match="`backward_slope` must be None, 'auto' or a number"):
            attacks.PGD(epsilon=0.1, backward_slope=bad)
    with pytest.raises(TypeError, match="Square has no argument `backward_slope`"):
        attacks.Square(epsilon=0.1, backward_slope=0.1)


def test_eager_use_of_a_slope_says_what_to_do():
    problem = Problem(
        logits_function(lambda x: tf.nn.relu(x)),
        tf.constant([[1.0, -1.0]]),
        tf.constant([0]),
        epsilon=np.array(0.1),
        bounds=(None, None),
        loss=cross_entropy,
    )
    with pytest.raises(RuntimeError, match=r"wrap it in `tf\.function`"):
        problem.with_slope(0.1).gradient(problem.x)
    assert float(surrogate.zero_share([tf.constant([[0.0, -0.0], [1.0, 2.0]])])) == 0.5


def _after_a_step(activation, slope, **options):
    """Kernels of a network after one train step, at an objective's slope."""
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(6, name="first")(inputs)
    outputs = keras.layers.Dense(3, name="last")(keras.layers.Lambda(activation)(hidden))
    model = keras.Model(inputs, outputs)
    rng = np.random.default_rng(3)
    model.set_weights([rng.normal(size=w.shape).astype("float32") for w in model.get_weights()])
    small = atmc.compress(
        model,
        "al0",
        ratio=0.9,
        attack=attacks.FGSM(epsilon=0.1, backward_slope=None),
        objective=AdversarialLoss(0.25, backward_slope=slope),
        in_place=True,  # a function of a test cannot be saved, and so not copied
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    small.compile(keras.optimizers.SGD(0.1), loss, **options)
    x, y = rng.random((8, 4), dtype="float32"), rng.integers(0, 3, 8)
    small.plan(10)
    small.fit(x, y, batch_size=8, epochs=1, verbose=0)
    return [small.model.get_layer(name).kernel.numpy() for name in ("first", "last")]


def _sloped_relu(x):
    @tf.custom_gradient
    def relu(x):
        return tf.nn.relu(x), lambda grad: tf.where(x > 0, grad, 0.25 * grad)

    return relu(x)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_weights_learn_through_the_slope_of_an_objective(jit_compile):
    plain = _after_a_step(tf.nn.relu, None, jit_compile=jit_compile)
    sloped = _after_a_step(tf.nn.relu, 0.25, jit_compile=jit_compile)
    assert np.abs(sloped[0] - plain[0]).max() > 1e-4
    wanted = _after_a_step(tf.nn.relu, 0.25, jit_compile=False)
    for found, expected in zip(sloped, wanted, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_slope_of_an_objective_is_a_relu_with_that_gradient():
    x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    layer = keras.layers.Dense(3)
    layer.build((None, 4))

    @tf.function
    def both(x):
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(tf.square(_sloped_relu(layer(x))))
        wanted = tape.gradient(value, layer.trainable_variables)
        marked = surrogate.marking(lambda x: tf.nn.relu(layer(x)))
        value = tf.reduce_sum(tf.square(marked(x) + 1.0))
        value -= tf.reduce_sum(2 * marked(x))
        variables = [variable.value for variable in layer.trainable_variables]
        return wanted, surrogate.gradients(value, variables, 0.25)

    for wanted, found in zip(*both(tf.constant(x)), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_the_slope_of_an_objective_is_refused_where_it_cannot_be():
    with pytest.raises(ValueError, match="trained in a graph, on one device"):
        _after_a_step(tf.nn.relu, 0.25, run_eagerly=True)
    for bad in ("auto", 0, 2.0):
        with pytest.raises(ValueError, match="`backward_slope`"):
            AdversarialLoss(0.5, backward_slope=bad)
    kept = AdversarialLoss(0.5, backward_slope=0.1).get_config()
    assert kept == {"clean_weight": 0.5, "backward_slope": 0.1}


def test_what_follows_the_dense_start_of_a_run_is_attacked_and_learns_through_its_slope():
    data = SimpleNamespace(bounds=(0, 1))
    settings = CompressionSettings(dataset="digits", method="al0", backward_slope=0.05).resolved()
    dense, pruned = settings.stages()
    assert dense.objective is None and pruned.objective.backward_slope == 0.05
    assert pruned.objective.clean_weight == 0.2
    attack = pipeline._training_attack(settings, data)
    assert attack.backward_slope == "auto" and stages.sloped(dense, attack).attack is None
    assert stages.sloped(pruned, attack).attack.backward_slope == 0.05
    plain = CompressionSettings(dataset="digits", method="al0").resolved()
    assert plain.stages()[1].objective.backward_slope is None
    assert stages.sloped(plain.stages()[1], attack).attack is None
    for options, message in (
        ({"backward_slope": 2.0}, r"a number in \(0, 1\]"),
        ({"backward_slope": 0.1, "objective": "trades"}, "does not go with the objective 'trades'"),
    ):
        with pytest.raises(ValueError, match=message):
            CompressionSettings(**options).resolved()


def test_a_look_for_dead_gradients_is_traced_once_a_model_and_warns_of_nothing(caplog):
    calls = []

    def dense(width):
        def model(x):
            calls.append(width)
            return tf.nn.relu(x @ tf.ones((4, width))) @ -tf.eye(width)

        return model

    attack = attacks.PGD(epsilon=0.1, steps=1)
    for width in range(2, 9):
        model = dense(width)
        attack(model, np.full((3, 4), 0.5, "float32"), [0, 1, 0])
        traced = len(calls)
        for size in (1, 2, 5):
            attack(model, np.full((size, 4), 0.5, "float32"), [1] * size)
        assert len(calls) == traced
    assert "retracing" not in caplog.text


def test_sparse_networks_on_mnist_learn_through_a_slope_unless_told_otherwise():
    def pruned(**options):
        return CompressionSettings(dataset="mnist", **options).resolved().stages()[1]

    assert pruned(method="al0").objective.backward_slope == 0.05
    assert pruned(method="al0").learning_rate == pytest.approx(0.15 / 3)
    assert pruned(method="al0", learning_rate=1.0).learning_rate == 0.15
    others = [
        {"method": "ap"},
        {"method": "atmc"},
        {"method": "al0", "backward_slope": 0.0},
        {"method": "al0", "preset": "paper"},
        {"method": "al0", "attack": "wrm", "backward_slope": 0},
    ]
    for options in others:
        objective = pruned(**options).objective
        assert objective is None or objective.backward_slope is None
        assert CompressionSettings(dataset="mnist", **options).resolved().learning_rate == 1.0
