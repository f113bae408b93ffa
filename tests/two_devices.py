# SPDX-License-Identifier: Apache-2.0
"""Tests that need two devices: run by test_distribution.py in a process of their own.

The CPU is split in two before TensorFlow starts, which cannot be undone.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tfmot_atmc.callbacks import UpdateCompression

from tfmot_atmc import compress, datasets, replicas, strip_compression
from tfmot_atmc.attacks import ATTA, FGSM, PGD
from tfmot_atmc.constraints import CubicBudget, GradientGrowth
from tfmot_atmc.methods import AL0, ALR, AP, ATMC, InTrainPruning

layers = keras.layers
LOGITS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
FAST = FGSM(epsilon=0.1)
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


@pytest.fixture(scope="module")
def two():
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture(scope="module")
def digits():
    data = datasets.load("digits", limit=64)
    return data.x_train[:64], data.y_train[:64]


def _compiled(method=None, attack=FAST, optimizer=None, extra=list, **options):
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), layers.AveragePooling2D(2), layers.Flatten(), layers.Dense(8)]
        + [*extra(), layers.ReLU(), layers.Dense(10)]
    )
    method = method or AL0(ratio=0.3, schedule="constant")
    small = compress(model, method, attack=attack, **options)
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9) if optimizer is None else optimizer()
    small.compile(optimizer, LOGITS, metrics=["accuracy"])
    return small


def _fit(small, digits, *callbacks, batch_size=16, epochs=2):
    return small.fit(
        *digits,
        batch_size=batch_size,
        epochs=epochs,
        shuffle=False,
        callbacks=[UpdateCompression(), *callbacks],
        verbose=0,
    ).history


def _assert_one_and_two_devices_agree(two, digits, *, batch_size=16, **options):
    """Trains on both; returns the model of two devices."""
    with two.scope():
        small = _compiled(**options)
    found = _fit(small, digits, batch_size=batch_size)
    alone = _compiled(**options)
    expected = _fit(alone, digits, batch_size=batch_size)
    assert replicas.differing(small.weights) == []
    assert small.step == alone.step
    for mine, theirs in zip(small.weights, alone.weights, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5, err_msg=mine.path)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, err_msg=name)
    return small


# --- the parts ------------------------------------------------------------------------------------


def _on_both(two, function, values):
    """The results of a function on both replicas, given a value each."""
    given = two.experimental_distribute_values_from_function(
        lambda context: tf.constant(values[context.replica_id_in_sync_group])
    )
    results = tf.function(lambda value: two.run(function, args=(value,)))(given)
    split = [two.experimental_local_results(part) for part in tf.nest.flatten(results)]
    return [[part.numpy() for part in parts] for parts in split]


def test_means_weigh_the_replicas_by_their_examples(two):
    def mean(x):
        share = replicas.share_of_batch(x)
        return share, *replicas.averaged([tf.reduce_mean(x), None, x[:0]], share)[::2]

    shares, means, _ = _on_both(two, mean, [[1.0, 2.0, 3.0], [6.0]])
    assert shares == [0.75, 0.25] and means == [3.0, 3.0]
    shares, means, _ = _on_both(two, mean, [[1.0, 3.0], []])  # the mean of nothing is NaN
    assert shares == [1.0, 0.0] and means == [2.0, 2.0]


def test_replicas_draw_different_numbers_at_every_step(two):
    steps = [_on_both(two, lambda s: replicas.own_step(s), [k, k])[0] for k in range(3)]
    assert steps == [[0, 1], [2, 3], [4, 5]]
    assert replicas.own_step(7) == 7


def test_states_move_by_the_mean_and_stay_bit_for_bit_where_nothing_moved(two):
    with two.scope():
        moving, still = keras.Variable(1.0, name="moving"), keras.Variable(0.1, name="still")

    def step(x):
        before = [(v, tf.identity(v.value)) for v in (moving, still)]
        moving.assign(moving.value + x[0])
        return replicas.averaged_states(before, replicas.share_of_batch(x))

    moved, stayed = _on_both(two, step, [[2.0, 0.0, 0.0], [6.0]])
    assert moved == [4.0, 4.0] and stayed == [np.float32(0.1)] * 2
    assert replicas.differing([moving, still]) == [moving.path]


def test_what_is_done_together_is_done_once_and_reaches_both(two):
    with two.scope():
        variable = keras.Variable(0.0)

    def step(x):
        replicas.together(lambda value: variable.assign_add(replicas.one(value)), x)
        return tf.convert_to_tensor(variable.value)

    assert _on_both(two, step, [3.0, 5.0]) == [[3.0, 3.0]]
    assert replicas.differing([variable]) == []


def test_one_machine_has_its_own_files(two):
    assert replicas.is_chief(two) and replicas.own_path("a/b.keras", two) == "a/b.keras"
    assert not replicas.has_other_workers(two)


def test_what_cannot_be_distributed_is_refused(two, digits):
    with two.scope():
        small = _compiled(optimizer=lambda: keras.optimizers.SGD(gradient_accumulation_steps=2))
        keyed = _compiled(attack=ATTA(epsilon=0.1, num_examples=64, image_shape=(8, 8, 1)))
    with pytest.raises(ValueError, match="gradient_accumulation_steps"):
        _fit(small, digits)
    with pytest.raises(ValueError, match="one device only"):
        _fit(keyed, digits)
    stranger = type("Optimizer", (), {})()
    with (
        pytest.raises(RuntimeError, match=r"Keras .* sums? gradients"),
        replicas.already_averaged(stranger),
    ):
        pass


# --- training -------------------------------------------------------------------------------------


def test_two_devices_train_to_the_weights_of_one(two, digits):
    small = _assert_one_and_two_devices_agree(two, digits)
    assert small.compression_report().nonzeros == int(0.3 * small.dense_size)


def test_two_devices_train_the_masks_of_channels_as_one(two, digits):
    method = InTrainPruning(ratio=0.3, begin=1, freeze=8, mask_rate=1.5)
    small = _assert_one_and_two_devices_agree(two, digits, method=method)
    masks = small.constraints[0].trained_variables[0].numpy()
    assert (masks < 0.9).any() and small.constraints[0].operations < 1


@pytest.mark.slow
def test_two_devices_share_their_codebooks_as_one_does(two, digits):
    method = AL0(ratio=0.3, bits=2, schedule="constant", codebook_begin=3)
    small = _assert_one_and_two_devices_agree(two, digits, method=method)
    report = small.compression_report()
    assert report.nonzeros == int(0.3 * small.dense_size) and report.max_distinct <= 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"method": ATMC(0.3, bits=2, schedule="constant", algorithm="admm", interval=2)},
        {"method": ATMC(0.3, schedule=CubicBudget(0.5, 0, 4), growth=GradientGrowth(0.3, 1, 2, 6))},
        {"method": AP(ratio=0.3), "attack_warmup": 3, "objective": "half"},
        {"method": ALR(ratio=0.6), "attack": None},
        {"extra": lambda: [layers.BatchNormalization(synchronized=True)]},
        {"batch_size": 21, "objective": "trades"},  # 11 + 10 examples, and at last 1 + 0
        {"optimizer": lambda: keras.optimizers.Adam(0.01, clipnorm=0.05, weight_decay=0.01)},
        {"optimizer": lambda: keras.optimizers.RMSprop(0.001, global_clipnorm=0.1, use_ema=True)},
        {
            "optimizer": lambda: keras.optimizers.LossScaleOptimizer(
                keras.optimizers.SGD(0.1), initial_scale=2.0**24
            )
        },
    ],
    ids=["admm", "growth", "ap", "alr", "batch_norm", "uneven", "adam", "rmsprop", "loss_scale"],
)
def test_two_devices_agree_with_one_for(options, two, digits):
    _assert_one_and_two_devices_agree(two, digits, **options)


@pytest.mark.slow
def test_statistics_of_each_part_of_a_batch_still_end_up_the_same_on_both(two, digits):
    with two.scope():
        small = _compiled(extra=lambda: [layers.BatchNormalization(), layers.Dropout(0.3)])
    _fit(small, digits)
    assert replicas.differing(small.weights) == []
    moved = [w for w in small.weights if w.name == "moving_mean"]
    assert np.abs(moved[0]).max() > 0


@pytest.mark.slow
def test_a_seed_gives_the_same_run_again_and_another_seed_another(two, digits):
    weights = []
    for seed in (0, 0, 1):
        with two.scope():
            small = _compiled(attack=PGD(epsilon=0.1, steps=1), seed=seed)
        _fit(small, digits)
        weights.append(small.model.get_weights()[0])
    np.testing.assert_array_equal(weights[0], weights[1])
    assert np.abs(weights[0] - weights[2]).max() > 0


@pytest.mark.slow
def test_an_update_that_is_not_finite_is_left_out_on_both(two, digits):
    with two.scope():
        small = _compiled(optimizer=lambda: keras.optimizers.SGD(1e38))
    with pytest.warns(UserWarning, match="diverged"):
        history = _fit(small, digits, epochs=6)
    assert small.diverged and len(history["loss"]) == 1
    assert replicas.differing(small.weights) == []
    assert all(np.isfinite(w).all() for w in small.get_weights())


@pytest.mark.slow
def test_inputs_out_of_bounds_on_one_device_stop_both(two, digits):
    with two.scope():
        small = _compiled()
    before = small.get_weights()
    x = digits[0].copy()
    x[12] *= 3  # in the second half of the first batch
    with pytest.raises(ValueError, match="within the bounds"):
        _fit(small, (x, digits[1]))
    assert small.step == 0
    for now, then in zip(small.model.get_weights(), before, strict=False):
        np.testing.assert_array_equal(now, then)


class _Killed(Exception):
    pass


class _Kill(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if epoch == 1:
            raise _Killed


@pytest.mark.slow
def test_killed_resumed_saved_and_loaded_runs_go_on_bit_for_bit(two, digits, tmp_path):
    method = AL0(0.3, bits=2, schedule=CubicBudget(0.5, 0.0, 0.5), codebook_begin=0.6)

    def model():
        with two.scope():
            return _compiled(method, PGD(epsilon=0.1, steps=1), lambda: keras.optimizers.Adam(0.01))

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "backup")

    whole = model()
    _fit(whole, digits, epochs=4)
    with pytest.raises(_Killed):
        _fit(model(), digits, backup(), _Kill(), epochs=4)
    resumed = model()
    _fit(resumed, digits, backup(), epochs=4)
    assert resumed.step == 16
    for mine, theirs in zip(whole.weights, resumed.weights, strict=True):
        np.testing.assert_array_equal(mine, theirs, err_msg=mine.path)

    resumed.save(tmp_path / "small.keras")
    alone = keras.saving.load_model(tmp_path / "small.keras")
    with two.scope():
        again = keras.saving.load_model(tmp_path / "small.keras")
    for other in (alone, again):
        for mine, theirs in zip(resumed.weights, other.weights, strict=True):
            np.testing.assert_array_equal(mine, theirs, err_msg=mine.path)
    _fit(again, digits, epochs=1)
    assert again.step == 20 and replicas.differing(again.weights) == []
    x = digits[0]
    plain = strip_compression(resumed)
    np.testing.assert_allclose(plain(x), resumed.predict(x, verbose=0), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_training_loop_of_ones_own_projects_on_both_alike(two, digits):
    with two.scope():
        small = _compiled()
        small.optimizer.build(small.trainable_variables)

    def on_each(x, y):
        with tf.GradientTape() as tape:
            logits = small(x, training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)) / 2
        gradients = tape.gradient(loss, small.trainable_variables)
        small.optimizer.apply(gradients, small.trainable_variables)
        small.apply_constraints()

    step = tf.function(lambda x, y: two.run(on_each, args=(x, y)), autograph=False)
    batches = tf.data.Dataset.from_tensor_slices(digits).batch(16)
    for x, y in two.experimental_distribute_dataset(batches):
        step(x, y)
    assert small.step == 4 and replicas.differing(small.weights) == []
    assert small.compression_report().nonzeros == int(0.3 * small.dense_size)


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy",
    [
        lambda: tf.distribute.MirroredStrategy(["CPU:1"]),
        lambda: tf.distribute.OneDeviceStrategy("CPU:1"),
    ],
    ids=["mirrored", "one_device"],
)
def test_a_strategy_of_one_device_changes_nothing(strategy, digits):
    with strategy().scope():
        small = _compiled()
    alone = _compiled()
    _fit(small, digits)
    _fit(alone, digits)
    for mine, theirs in zip(small.weights, alone.weights, strict=True):
        np.testing.assert_array_equal(mine, theirs, err_msg=mine.path)
