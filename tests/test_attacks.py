# SPDX-License-Identifier: Apache-2.0
"""Attacks: closed forms, the ball, determinism, graphs, and CleverHans as an oracle."""

import copy
import gc
import json
import pickle
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfmot_atmc import attacks
from tfmot_atmc.attacks import FGSM, PGD

WEIGHTS = np.array([[1.0, -1.0], [-2.0, 0.5], [0.0, 0.0]], np.float32)


def linear(x):
    return tf.matmul(x, tf.constant(WEIGHTS))


def batch(size=6, shape=(3,), seed=0, low=0.0, high=1.0):
    return np.random.default_rng(seed).uniform(low, high, (size, *shape)).astype("float32")


def small_cnn(activation=None, pool=True, seed=1):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            *([keras.layers.MaxPooling2D()] if pool else []),
            keras.layers.Dropout(0.5),
            keras.layers.Flatten(),
            keras.layers.Dense(5, kernel_initializer="orthogonal", activation=activation),
        ]
    )


@pytest.fixture(scope="module")
def cnn():
    return small_cnn()


@pytest.fixture(scope="module")
def images():
    x = batch(12, (8, 8, 2), seed=3)
    y = np.random.default_rng(4).integers(0, 5, 12)
    return x, y


def op_types(function, *arguments):
    graph = function.get_concrete_function(*arguments).graph
    return [op.type for op in graph.get_operations()]


def test_fgsm_is_the_exact_optimum_of_a_linear_model():
    x = batch(low=0.3, high=0.7)
    y = np.array([0, 1, 0, 1, 0, 1])
    x_adv = FGSM(epsilon=0.1)(linear, x, y).numpy()
    # The margin w0 - w1 is (2, -2.5, 0): each class loses against its sign.
    toward = np.where(y == 0, -1.0, 1.0)[:, None]
    np.testing.assert_allclose(x_adv, x + 0.1 * toward * np.sign([2.0, -2.5, 0.0]), atol=1e-7)
    margins = (x_adv - x) @ (WEIGHTS[:, 0] - WEIGHTS[:, 1])
    np.testing.assert_allclose(np.abs(margins), 0.1 * 4.5, rtol=1e-5)


@pytest.mark.parametrize("random_start", [False, True])
def test_pgd_reaches_epsilon_times_the_l1_norm_on_a_linear_model(random_start):
    x, y = batch(low=0.3, high=0.7), np.zeros(6, int)
    attack = PGD(epsilon=0.1, steps=8, step_size=0.05, random_start=random_start)
    drop = (x - attack(linear, x, y).numpy()) @ (WEIGHTS[:, 0] - WEIGHTS[:, 1])
    np.testing.assert_allclose(drop, 0.1 * 4.5, rtol=1e-4)


@settings(max_examples=12, deadline=None)
@given(
    epsilon=st.floats(0.0, 2.0, width=32),
    step_size=st.none() | st.floats(0.0, 5.0, width=32),
    seed=st.integers(0, 2**31),
    random_start=st.booleans(),
)
def test_result_stays_in_the_ball_and_exactly_in_the_bounds(epsilon, step_size, seed, random_start):
    x = np.concatenate([batch(4, seed=seed % 100), [[0, 1, 0], [1, 0, 1]]]).astype("float32")
    attack = PGD(epsilon=epsilon, steps=2, step_size=step_size, random_start=random_start)
    x_adv = attack(linear, x, np.arange(6) % 2, seed=seed).numpy()
    assert x_adv.dtype == np.float32
    assert x_adv.min() >= 0.0 and x_adv.max() <= 1.0
    assert np.abs(x_adv.astype(float) - x).max() <= epsilon * (1 + 1e-6) + 1e-7


def test_other_bounds_and_no_bounds_are_respected():
    x = batch(4, low=-1.0, high=1.0)
    y = np.zeros(4, int)
    wide = FGSM(epsilon=3.0, bounds=None)(linear, x, y).numpy()
    assert np.abs(wide).max() > 2.0
    boxed = FGSM(epsilon=3.0, bounds=([-1.0, -2.0, -1.0], [1.0, 2.0, 1.0]))(linear, x, y).numpy()
    np.testing.assert_allclose(boxed[:, :2], [[-1.0, 2.0]] * 4)
    np.testing.assert_array_equal(boxed[:, 2], x[:, 2])
    above = FGSM(epsilon=3.0, bounds=(-1.0, None))(linear, x, y).numpy()
    assert above.min() == -1.0 and above.max() > 2.0


def test_epsilon_zero_returns_the_input_exactly(cnn, images):
    x, y = images
    np.testing.assert_array_equal(PGD(epsilon=0.0)(cnn, x, y), x)
    np.testing.assert_array_equal(FGSM(epsilon=[0.0, 0.0], random_start=True)(cnn, x, y), x)


def test_epsilon_per_channel_bounds_each_channel(cnn, images):
    x, y = images
    change = np.abs(PGD(epsilon=[0.1, 0.0], steps=3)(cnn, x, y).numpy() - x)
    assert change[..., 1].max() == 0.0
    assert 0.05 < change[..., 0].max() <= 0.1 + 1e-6
    with pytest.raises(ValueError, match="3 entries but the last axis"):
        PGD(epsilon=[0.1, 0.1, 0.1])(cnn, x, y)


def test_same_seed_same_result_and_another_seed_another():
    x, y = batch(), np.zeros(6, int)
    attack = PGD(epsilon=0.2, steps=2, step_size=0.01, seed=5)
    first = attack(linear, x, y).numpy()
    np.testing.assert_array_equal(first, attack(linear, x, y))
    np.testing.assert_array_equal(first, attack(linear, x, y, seed=5))
    np.testing.assert_array_equal(first, PGD.from_config(attack.get_config())(linear, x, y))
    assert np.abs(first - attack(linear, x, y, seed=6).numpy()).max() > 0.01
    step = [attack(linear, x, y, seed=tf.constant([5, i])).numpy() for i in range(2)]
    np.testing.assert_array_equal(first, step[0])
    assert np.abs(step[0] - step[1]).max() > 0.01


def test_random_start_is_uniform_in_the_ball():
    x = np.full((200, 50), 0.5, np.float32)
    attack = PGD(epsilon=0.25, steps=1, step_size=0.0)
    noise = np.sort((attack(lambda t: t[:, :2], x, np.zeros(200, int)).numpy() - x).ravel())
    uniform = np.linspace(-0.25, 0.25, noise.size)
    # The 1e-6 quantile of the Kolmogorov-Smirnov distance for 10,000 draws is 0.027.
    assert np.abs(noise - uniform).max() / 0.5 < 0.027


def test_nests_keep_their_structure_and_integers_their_values():
    inputs = {
        "a": batch(4),
        "b": (batch(4, seed=1), np.array([[0], [1], [0], [1]], np.int32)),
    }

    def model(x):
        gain = tf.cast(x["b"][1], tf.float32) + 1.0
        return linear(x["a"] * gain + 2.0 * x["b"][0])

    x_adv = FGSM(epsilon=0.1)(model, inputs, [0, 1, 0, 1])
    assert set(x_adv) == {"a", "b"} and isinstance(x_adv["b"], tuple)
    np.testing.assert_array_equal(x_adv["b"][1], inputs["b"][1])
    assert x_adv["b"][1].dtype == tf.int32
    for new, old in ((x_adv["a"], inputs["a"]), (x_adv["b"][0], inputs["b"][0])):
        assert 0.05 < np.abs(new.numpy() - old).max() <= 0.1 + 1e-6


def test_inputs_that_do_not_reach_the_loss_only_stay_in_the_ball():
    x = (batch(4), batch(4, seed=1))
    x_adv = FGSM(epsilon=0.1)(lambda t: linear(t[0]), x, [0, 1, 0, 1])
    np.testing.assert_array_equal(x_adv[1], x[1])


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.int64, np.float32])
def test_sparse_column_and_one_hot_labels_agree(dtype):
    x, y = batch(), np.array([0, 1, 1, 0, 1, 0])
    attack = PGD(epsilon=0.1, steps=3)
    expected = attack(linear, x, y).numpy()
    np.testing.assert_array_equal(expected, attack(linear, x, y.astype(dtype)))
    np.testing.assert_array_equal(expected, attack(linear, x, y.astype(dtype)[:, None]))
    np.testing.assert_array_equal(expected, attack(linear, x, np.eye(2, dtype=dtype)[y]))


def test_softmax_model_is_attacked_by_its_logits(images):
    x, y = images
    plain, soft = small_cnn(), small_cnn("softmax")
    # So saturated that the softmax itself has a zero gradient.
    plain.layers[-1].set_weights([300 * w for w in plain.layers[-1].get_weights()])
    attack = PGD(epsilon=0.1, steps=3)
    soft.set_weights(plain.get_weights())
    expected = attack(plain, x, y).numpy()
    assert np.abs(soft(x).numpy()).max() > 0.999999
    np.testing.assert_array_equal(expected, attack(soft, x, y))
    hidden = [
        lambda t: tf.identity(tf.cast(soft(t), tf.float64)),
        lambda t: tf.reshape(tf.nn.softmax(tf.reshape(plain(t), [-1, 1, 5])), [-1, 5]),
    ]
    for model in hidden:
        np.testing.assert_array_equal(expected, attack(model, x, y))


def test_logits_of_and_probabilities_eagerly():
    logits = tf.constant([[2.0, -1.0]])
    assert attacks.logits_of(logits) is logits
    np.testing.assert_array_equal(attacks.logits_of(keras.activations.softmax(logits)), logits)
    assert attacks.looks_like_probabilities(tf.nn.softmax(logits))
    assert not attacks.looks_like_probabilities(logits)
    assert not attacks.looks_like_probabilities(np.zeros((0, 2)))


@pytest.mark.parametrize(("jit_compile", "unroll"), [(False, "auto"), (True, True), (True, False)])
def test_graph_and_xla_agree_with_eager(cnn, images, jit_compile, unroll):
    x, y = images
    attack = PGD(epsilon=0.1, steps=2, unroll=unroll, keep_best=unroll is True)
    step = tf.function(lambda a, b, s: attack(cnn, a, b, seed=s), jit_compile=jit_compile)
    x_adv = step(x, y, tf.constant([3, 0])).numpy()
    eager = attack(cnn, x, y, seed=3).numpy()
    if jit_compile:  # XLA rounds otherwise; a gradient at rounding level may change its sign.
        assert np.mean(np.abs(x_adv - eager) > 1e-6) < 0.01
    else:
        np.testing.assert_allclose(x_adv, eager, atol=1e-6)


def test_loop_equals_unrolled(cnn, images):
    x, y = images
    for options in ({}, {"keep_best": True}, {"restarts": 2}):
        results = [
            PGD(epsilon=0.1, steps=3, unroll=unroll, **options)(cnn, x, y).numpy()
            for unroll in (True, False)
        ]
        np.testing.assert_allclose(*results, atol=1e-6)


def test_auto_unrolls_max_pooling_and_loops_otherwise(images):
    x, y = images
    counts = {}
    for pool in (True, False):
        model = small_cnn(pool=pool)
        attack = PGD(epsilon=0.1, steps=6)
        function = tf.function(lambda a, b, m=model, t=attack: t(m, a, b))
        types = op_types(function, tf.constant(x), tf.constant(y))
        counts[pool] = (types.count("Sign"), any("While" in name for name in types))
    if tf.config.list_logical_devices("GPU"):
        assert counts[True] == (1, True)
    else:
        assert counts[True] == (6, False)
    assert counts[False] == (1, True)


def test_attack_asks_for_input_gradients_only(cnn, images):
    x, y = images
    # One pass for the attack, and unless it is told what to do, one to see if gradients are dead.
    for options, passes in (({"backward_slope": None}, 1), ({"backward_slope": 0.1}, 1), ({}, 2)):
        attack = FGSM(epsilon=0.1, **options)
        function = tf.function(lambda a, b, t=attack: t(cnn, a, b))
        types = op_types(function, tf.constant(x), tf.constant(y))
        assert types.count("Conv2DBackpropInput") == passes
    with tf.GradientTape() as tape:
        variable = tf.Variable(x)
        x_adv = FGSM(epsilon=0.1)(cnn, variable, y)
    assert tape.gradient(x_adv, variable) is None


def test_batch_norm_statistics_do_not_move_and_dropout_is_off(cnn, images):
    x, y = images
    before = [w.copy() for w in cnn.get_weights()]
    whole = PGD(epsilon=0.1, steps=3)(cnn, x, y).numpy()
    for old, new in zip(before, cnn.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    # Batch statistics or dropout would make an example depend on its neighbours.
    fgsm = FGSM(epsilon=0.1)
    one = np.concatenate([fgsm(cnn, x[i : i + 1], y[i : i + 1]).numpy() for i in range(3)])
    np.testing.assert_allclose(one, fgsm(cnn, x, y).numpy()[:3], atol=1e-6)
    assert whole.shape == x.shape


def test_models_without_a_training_argument_and_methods_work(images):
    class Plain(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(5)

        def call(self, inputs):
            return self.dense(keras.ops.reshape(inputs, (-1, 128)))

    x, y = images
    model = Plain()
    attack = FGSM(epsilon=0.1)
    expected = attack(model, x, y).numpy()
    np.testing.assert_array_equal(expected, attack(model.call, x, y))
    np.testing.assert_array_equal(expected, attack(model.__call__, x, y))


def test_eager_calls_trace_once_whatever_the_batch_size(images):
    x, y = images
    model, traces = small_cnn(), []

    class Counting(FGSM):
        def _perturb(self, problem, seed):
            traces.append(1)
            return super()._perturb(problem, seed)

    attack = Counting(epsilon=0.1, backward_slope=None)  # which traces once more, if need be
    for size in (12, 5, 1, 7):
        assert attack(model, x[:size], y[:size]).shape[0] == size
    assert len(traces) == 1
    model.layers[0].set_weights([w * 0 - 1 for w in model.layers[0].get_weights()])
    np.testing.assert_array_equal(
        attack(model, x, y), FGSM(epsilon=0.1, backward_slope=None)(model, x, y)
    )  # New weight values are seen through the old trace.
    assert len(traces) == 1


def test_traces_keep_no_model_alive(images):
    x, y = images
    attack, model = FGSM(epsilon=0.1), small_cnn()
    attack(model, x, y)
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None and len(attack._traces) == 0


def test_keep_best_is_never_weaker_than_the_last_iterate(cnn, images):
    x, y = images

    def loss(x_adv):
        return attacks.cross_entropy(tf.constant(y), cnn(x_adv, training=False)).numpy()

    options = {"epsilon": 0.2, "steps": 2, "step_size": 0.2, "seed": 2}
    last, best = PGD(**options), PGD(keep_best=True, **options)
    assert (loss(best(cnn, x, y)) >= loss(x) - 1e-6).mean() > 0.9
    many = PGD(restarts=3, **options)(cnn, x, y)
    wrong = cnn(many, training=False).numpy().argmax(-1) != y
    once = cnn(last(cnn, x, y), training=False).numpy().argmax(-1) != y
    assert wrong.sum() >= once.sum()


def test_restarts_prefer_a_misclassified_result_to_a_higher_loss():
    problem = attacks.Problem(
        lambda x: x,
        tf.zeros([2, 2]),
        tf.constant([0, 0]),
        epsilon=np.array(1.0),
        bounds=(None, None),
        loss=attacks.cross_entropy,
    )
    attack = PGD(epsilon=1.0, restarts=2)
    best = attack._no_best(problem)
    wrong, right = tf.constant([[0.0, 1.0]] * 2), tf.constant([[1.0, 0.0]] * 2)
    best = attack._better(best, [wrong], problem, wrong, tf.constant([1.0, 1.0]))
    best = attack._better(best, [right], problem, right, tf.constant([9.0, 9.0]))
    np.testing.assert_array_equal(best.leaves[0], wrong)
    louder = tf.constant([[0.0, 3.0]] * 2)
    best = attack._better(best, [louder], problem, louder, tf.constant([2.0, 0.5]))
    np.testing.assert_array_equal(best.leaves[0], [[0.0, 3.0], [0.0, 1.0]])
    nan = tf.constant([np.nan, np.nan])
    np.testing.assert_array_equal(
        attack._better(best, [louder], problem, louder, nan).leaves[0], best.leaves[0]
    )


def test_step_size_rules():
    assert PGD(epsilon=8 / 255, steps=7).step_size == pytest.approx(10 / 7 / 255)
    assert PGD(epsilon=76 / 255, steps=16).step_size * 255 == pytest.approx(5.9375)
    kurakin = PGD(epsilon=76 / 255, steps=16, rule="kurakin").step_size
    assert kurakin * 255 == pytest.approx(5.0)
    assert PGD(epsilon=4 / 255, rule="kurakin").step_size == pytest.approx(5 / 7 / 255)
    explicit = PGD(epsilon=0.1, rule="kurakin", step_size=0.5)
    assert explicit.step_size == 0.5
    np.testing.assert_allclose(PGD(epsilon=[0.7, 1.4]).step_size, [0.125, 0.25])


@pytest.mark.filterwarnings("ignore")
def test_cleverhans_agrees(cnn, images):
    fgm = pytest.importorskip("cleverhans.tf2.attacks.fast_gradient_method")
    pgd = pytest.importorskip("cleverhans.tf2.attacks.projected_gradient_descent")
    x, y = images

    def model(inputs):
        return cnn(inputs, training=False)

    theirs = fgm.fast_gradient_method(
        model, tf.constant(x), 0.1, np.inf, clip_min=0.0, clip_max=1.0, y=tf.constant(y)
    )
    np.testing.assert_allclose(FGSM(epsilon=0.1)(cnn, x, y), theirs, atol=1e-6)
    options = {"clip_min": 0.0, "clip_max": 1.0, "y": tf.constant(y), "sanity_checks": False}
    theirs = pgd.projected_gradient_descent(
        model, tf.constant(x), 0.1, 0.02, 7, np.inf, rand_init=0.0, **options
    )
    attack = PGD(epsilon=0.1, steps=7, step_size=0.02, random_start=False)
    np.testing.assert_allclose(attack(cnn, x, y), theirs, atol=1e-6)
    theirs = pgd.projected_gradient_descent(
        model, tf.constant(x), 0.1, 0.02, 12, np.inf, rand_init=1.0, rand_minmax=0.1, **options
    )
    ours = PGD(epsilon=0.1, steps=12, step_size=0.02)(cnn, x, y)
    losses = [
        float(tf.reduce_mean(attacks.cross_entropy(tf.constant(y), model(a))))
        for a in (ours, theirs)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_custom_loss_is_maximised():
    def minus_first_logit(y, logits):
        return -logits[:, 0]

    x = batch(low=0.4, high=0.6)
    attack = FGSM(epsilon=0.1, loss=minus_first_logit)
    np.testing.assert_allclose(attack(linear, x, [0] * 6), x + [[-0.1, 0.1, 0.0]], atol=1e-6)
    with pytest.raises(ValueError, match="minus_first_logit"):
        attacks.serialize(attack)


def test_configs_round_trip_through_json_copies_and_the_registry():
    attack = PGD(epsilon=[0.1, 0.2], bounds=(-1.0, None), steps=3, restarts=2, seed=4)
    plain = json.loads(json.dumps(attacks.serialize(attack)))
    again = attacks.get(plain)
    assert plain["class_name"] == "PGD" and repr(again) == repr(attack)
    assert attacks.get(attack) is attack
    assert isinstance(attacks.get("FGSM", epsilon=0.1), FGSM)
    for twin in (copy.deepcopy(attack), pickle.loads(pickle.dumps(attack))):
        assert twin is not attack and repr(twin) == repr(attack)
    with pytest.raises(ValueError, match="Unknown attack 'nope'. Known: .*fgsm, .*pgd"):
        attacks.get("nope")
    with pytest.raises(TypeError, match="name or a dict"):
        attacks.get(3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": -0.1}, "at least 0, in input units. Received -0.1"),
        ({"epsilon": float("nan")}, "one value a channel"),
        ({"epsilon": float("inf")}, "must be finite"),
        ({"epsilon": np.ones((2, 2))}, "one value a channel"),
        ({"epsilon": None}, "one value a channel"),
        ({"bounds": (1.0, 0.0)}, "low < high"),
        ({"bounds": 3}, "must be a pair"),
        ({"steps": 0}, "at least 1"),
        ({"restarts": 2, "random_start": False}, "repeat the same attack"),
        ({"rule": "x"}, "'atmc', 'kurakin' or 'quarter'"),
        ({"unroll": "x"}, "True, False or 'auto'"),
        ({"step_size": -1.0}, "`step_size` must be finite and at least 0"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PGD(**{"epsilon": 0.1, **options})


def test_bad_inputs_are_refused_with_the_remedy():
    attack, x, y = FGSM(epsilon=0.1), batch(), [0] * 6
    with pytest.raises(ValueError, match=r"span \[0, 255\].*bounds=\(0, 255\)"):
        attack(linear, np.array([[0.0, 255.0, 1.0]], np.float32), [0])
    with pytest.raises(ValueError, match="NaN"):
        attack(linear, np.full((1, 3), np.nan, np.float32), [0])
    with pytest.raises(ValueError, match=r"indices in \[0, 2\).*from 0 to 2"):
        attack(linear, x, [0, 1, 2, 0, 0, 0])
    with pytest.raises(ValueError, match="from -1"):
        attack(linear, x, [-1] * 6)
    with pytest.raises(ValueError, match="3 columns but the model has 2"):
        attack(linear, x, np.eye(3)[[0] * 6])
    with pytest.raises(ValueError, match="Labels must be"):
        attack(linear, x, np.zeros((6, 1, 1)))
    with pytest.raises(TypeError, match="floating inputs only"):
        attack(linear, np.zeros((6, 3), np.uint8), y)
    with pytest.raises(ValueError, match="at least two classes"):
        attack(lambda t: t[:, :1], x, y)
    with pytest.raises(TypeError, match="one tensor"):
        attack(lambda t: [t, t], x, y)
    with pytest.raises(ValueError, match="no gradient"):
        attack(lambda t: tf.cast(t > 0.5, tf.float32), x, y)
    with pytest.raises(ValueError, match="shape \\[2\\]"):
        attack(linear, x, y, seed=[1, 2, 3])
    with pytest.raises(TypeError, match="callable"):
        attack(3, x, y)


def test_mixed_precision_model_is_attacked_in_the_input_dtype(images):
    x, y = images
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = small_cnn()
    finally:
        keras.config.set_dtype_policy("float32")
    x_adv = PGD(epsilon=0.1, steps=3)(model, x, y)
    assert x_adv.dtype == tf.float32
    assert 0.05 < np.abs(x_adv.numpy() - x).max() <= 0.1 + 1e-6
