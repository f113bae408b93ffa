# SPDX-License-Identifier: Apache-2.0
"""Masks of channels that are trained towards a target of operations, and what is left."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

import tfmot_atmc as atmc
from tests.residual import compiled, data, residual
from tfmot_atmc.constraints import ChannelGroups, ChannelMasks
from tfmot_atmc.constraints.operations import binarised
from tfmot_atmc.methods import InTrainPruning
from tfmot_atmc.slimming import layer_costs


def slim_resnet(widths=(8, 16)):
    blocks = [1] * len(widths)
    return atmc.models.resnet(blocks, widths=widths, option_a=True, input_shape=(8, 8, 3), seed=0)


def groups_of(model):
    small = atmc.compress(model, InTrainPruning(ratio=0.5))
    return small, ChannelGroups([f for k in small.kernels for f in k.factors])


def macs(model):
    return sum(cost.macs for cost in layer_costs(model))


# --- what goes together ---------------------------------------------------------------------------


def test_channels_of_a_residual_sum_have_one_number_and_ends_have_none():
    small, groups = groups_of(residual())
    channels = {k.layer.name: k.site.channels for k in small.kernels}
    np.testing.assert_array_equal(channels["stem"].inputs, [-1] * 3)
    np.testing.assert_array_equal(channels["head"].outputs, [-1] * 5)
    stem = channels["stem"].outputs
    for name in ("depth", "point"):
        np.testing.assert_array_equal(channels[name].outputs, stem)
    np.testing.assert_array_equal(channels["twice"].inputs, stem)
    np.testing.assert_array_equal(channels["head"].inputs, channels["twice"].outputs)
    assert groups.count == 8 and not channels["depth"].mixes
    assert len(groups.spaces) == 2  # the sum, and what the head reads


def test_a_shortcut_without_parameters_ties_the_stages_it_joins():
    small, groups = groups_of(slim_resnet())
    found = {k.layer.name: k.site.channels for k in small.kernels}
    first = found["stem_conv"].outputs
    second = found["classifier"].inputs
    np.testing.assert_array_equal(second[4:12], first)  # zeros are added on both sides
    assert not set(second[:4]) & set(first) and not set(second[12:]) & set(first)
    assert groups.count == 16 + 8 + 16  # both stages, and the inside of each block


def test_what_an_uncompressed_layer_reads_stays():
    model = residual()
    small = atmc.compress(model, InTrainPruning(ratio=0.5), layers=["stem", "point", "head"])
    channels = {k.layer.name: k.site.channels for k in small.kernels}
    assert (channels["stem"].outputs == -1).all()  # `twice` reads it
    assert (channels["head"].inputs >= 0).all()
    whole = keras.Sequential([keras.Input((4,)), layers.Dense(3)])
    with pytest.raises(ValueError, match="No channel of the model may go"):
        atmc.compress(whole, "in_train_pruning")


def test_dense_operations_are_those_of_the_papers_networks():
    for build, golden in ((atmc.models.resnet20, 40_551_040), (atmc.models.resnet56, 125_485_696)):
        model = build(seed=0)
        small, groups = groups_of(model)
        assert groups.total == golden == int(groups.macs(tf.ones([groups.count])))
        assert small.constraints[0].operations == 1.0


def test_operations_follow_both_sides_of_a_layer():
    _, groups = groups_of(residual())
    kept = np.ones(groups.count, np.float32)
    kept[list(groups.spaces[0][1:])] = 0  # one channel of four is left in one of the spaces
    found = float(groups.macs(tf.constant(kept)))
    spatial = (108 * 64 + 36 * 64) / 4 + 16 * 64 / 16 + 144 * 16 / 4 + 20
    pooled = 108 * 64 + 36 * 64 + 16 * 64 + 144 * 16 / 4 + 20 / 4
    assert found in (spatial, pooled)


# --- gradients and steps --------------------------------------------------------------------------


def test_masks_are_exactly_binary_and_pass_gradients_inside_only():
    masks = tf.constant([1.0, 0.7, 0.5, 0.49, 0.0, -0.2, 1.3, 0.1])
    kept = tf.constant([True, True, True, False, False, False, True, True])
    with tf.GradientTape() as tape:
        tape.watch(masks)
        hard = binarised(masks, kept)
        total = tf.reduce_sum(hard * tf.range(1.0, 9.0))
    np.testing.assert_array_equal(hard, [1, 1, 1, 0, 0, 0, 1, 1])
    np.testing.assert_array_equal(tape.gradient(total, masks), [0, 2, 3, 4, 0, 0, 0, 8])


def test_a_layer_keeps_its_largest_mask_whatever_it_is():
    _, groups = groups_of(residual())
    scores = tf.constant(np.linspace(0.1, 0.4, groups.count), tf.float32)
    kept = groups.with_one_each(scores >= 0.5, scores).numpy()
    assert kept.sum() == 2 and all(kept[list(space)].sum() == 1 for space in groups.spaces)
    assert all(kept[max(space)] for space in groups.spaces)


def one_step(xla=False, **arguments):
    x, y = data((8, 8, 3), classes=5)
    method = InTrainPruning(**{"begin": 0, "freeze": 100, "mask_rate": 0.1, **arguments})
    small = compiled(atmc.compress(residual(), method))
    small.jit_compile = xla
    masks = small.constraints[0].trained_variables[0]
    assert not any(masks is variable for variable in small.trainable_variables)
    small.plan(100)
    small.train_on_batch(x, y)
    first = masks.numpy()
    small.train_on_batch(x, y)
    return small, first, masks.numpy()


def test_a_mask_at_one_moves_only_by_its_regularization():
    _, first, second = one_step(ratio=0.1, scale=100.0, regularization=0.01)
    np.testing.assert_allclose(first, 1 - 0.1 * 2 * 0.01, rtol=1e-6)
    assert (second < first - 0.05).all()  # then the operations push it
    _, *still = one_step(ratio=0.1, scale=100.0, regularization=0.0)
    assert all((masks == 1).all() for masks in still)


def test_a_step_compiles_with_xla_to_the_same_masks():
    keras.utils.set_random_seed(0)
    _, _, plain = one_step(ratio=0.1, scale=100.0)
    keras.utils.set_random_seed(0)
    small, _, compiled_masks = one_step(ratio=0.1, scale=100.0, xla=True)
    assert small.jit_compile is True
    np.testing.assert_allclose(plain, compiled_masks, atol=1e-5)


def test_before_its_begin_and_after_the_freeze_no_mask_moves():
    for moments in ({"begin": 50}, {"begin": 0, "freeze": 0}):
        small, *masks = one_step(ratio=0.1, scale=100.0, **moments)
        assert all((mask == 1).all() for mask in masks)
        assert float(small.constraints[0].penalty(small._moment())) == 0.0


def test_what_writes_a_dropped_channel_is_zero_once_deployed_and_not_before():
    small, groups = groups_of(residual())
    (constraint,) = small.constraints
    masks = np.ones(groups.count, np.float32)
    masks[groups.spaces[0][0]] = 0.2
    constraint.trained_variables[0].assign(masks)
    values = [factor.read() for factor in small._factors()]
    names = [kernel.layer.name for kernel in small.kernels]
    training = dict(zip(names, constraint.in_training(values), strict=True))
    deployed = dict(zip(names, constraint.deploy(values), strict=True))
    writer = next(n for n in names if groups.spaces[0][0] in _outputs(small, n) and n != "depth")
    assert np.count_nonzero(training[writer]) > np.count_nonzero(deployed[writer])
    x = np.random.default_rng(0).random((4, 8, 8, 3), np.float32)
    small.model.get_layer(writer).bias.assign(np.full(4, 3.0))  # must not leak
    plain = atmc.strip_compression(small)
    np.testing.assert_allclose(small(x), plain(x), atol=1e-5)
    np.testing.assert_allclose(small(x), small(x, training=True), atol=1e-5)
    np.testing.assert_allclose(atmc.slim_model(plain)(x), plain(x), atol=1e-5)
    assert constraint.violation([v.numpy() for v in values]) is not None


def _outputs(small, name):
    return next(k.site.channels.outputs for k in small.kernels if k.layer.name == name)


# --- any network ----------------------------------------------------------------------------------


BLOCKS = st.sampled_from(["sum", "join", "depth", "twice", "plain", "shortcut"])
NETWORKS = st.tuples(
    st.integers(1, 4),
    st.integers(1, 2),
    st.lists(st.tuples(BLOCKS, st.sampled_from(["relu", "sigmoid"])), min_size=1, max_size=3),
    st.booleans(),
)


def network(width, strides, blocks, flat):
    """A small network with sums, concatenations, depthwise layers and flattening."""
    x = inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(width, 3, padding="same", strides=strides)(x)
    for kind, activation in blocks:
        x = layers.Activation(activation)(x)
        y = layers.Conv2D(x.shape[-1], 3, padding="same", use_bias=False)(x)
        y = layers.BatchNormalization()(y)
        if kind == "sum":
            x = layers.Add()([x, y])
        elif kind == "join":
            x = layers.Concatenate()([x, y])
        elif kind in ("depth", "twice"):
            times = 1 + (kind == "twice")
            x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=times)(y)
        elif kind == "shortcut":
            wide = layers.Conv2D(x.shape[-1] + 3, 1)(y)
            zeros = atmc.models.SubsampleShortcut(x.shape[-1] + 3, strides=1)
            x = layers.Add()([zeros(x), wide])
        else:
            x = y
    x = layers.Flatten()(x) if flat else layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(3)(x))


@settings(max_examples=12, deadline=None)
@given(NETWORKS, st.integers(0, 99))
def test_operations_and_outputs_are_those_of_the_smaller_network(built, seed):
    keras.utils.set_random_seed(seed)
    model = network(*built)
    rng = np.random.default_rng(seed)
    for variable in model.variables:  # moving means and shifts too
        if variable.dtype == "float32":
            variable.assign(variable + np.abs(rng.normal(0, 0.3, variable.shape)))
    small, groups = groups_of(model)
    assert groups.total == macs(model)
    masks = rng.random(groups.count).astype("float32")
    small.constraints[0].trained_variables[0].assign(masks)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = atmc.strip_compression(small)
    smaller = atmc.slim_model(plain)
    left = small.constraints[0].operations * groups.total
    assert macs(smaller) <= round(left) == pytest.approx(left, abs=1e-3)
    x = rng.random((5, 6, 6, 2), np.float32)
    scale = 1 + np.abs(plain(x)).max()
    np.testing.assert_allclose(small(x) / scale, plain(x) / scale, atol=1e-5)
    np.testing.assert_allclose(smaller(x) / scale, plain(x) / scale, atol=1e-5)


# --- whole trainings ------------------------------------------------------------------------------


def trained(scale=None, regularization=1e-3, ratio=0.3, epochs=10, callbacks=(), **options):
    x, y = data((8, 8, 3), n=128, classes=10)
    method = InTrainPruning(ratio=ratio, scale=scale, regularization=regularization, **options)
    small = atmc.compress(slim_resnet(), method, attack="fgsm", epsilon=0.01)
    compiled(small)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        small.fit(
            x, y, epochs=epochs, batch_size=16, shuffle=False, verbose=0, callbacks=[*callbacks]
        )
    return small, [str(w.message) for w in said if "ChannelMasks" in str(w.message)]


def test_a_small_scale_misses_the_target_a_larger_one_reaches_it_and_says_nothing():
    missed, said = trained(scale=0.05)
    assert missed.constraints[0].operations > 0.9 and "larger `scale` (now 0.05)" in said[0]
    reached, silent = trained(scale=6.0)
    assert reached.constraints[0].operations <= 0.32 and not silent
    stuck, _ = trained(scale=6.0, regularization=0.0, epochs=3)
    assert stuck.constraints[0].operations == 1.0
    smaller = atmc.slim_model(atmc.strip_compression(reached))
    dense = macs(slim_resnet())
    assert macs(smaller) / dense == pytest.approx(reached.constraints[0].operations, abs=1e-6)
    report = reached.compression_report()
    assert report.dense_macs == dense and report.macs == macs(smaller)
    again = atmc.compress(reached, InTrainPruning(ratio=0.3))  # goes on with what is left
    assert again.constraints[0].operations == reached.constraints[0].operations


def test_a_saved_model_goes_on_to_the_same_masks(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                self.model.save(tmp_path / "half.keras")

    whole, _ = trained(epochs=4, callbacks=[Stop()])
    half = keras.saving.load_model(tmp_path / "half.keras")
    assert (half.step, half.horizon) == (16, 32)
    before = half.constraints[0].trained_variables[0].numpy()
    assert ((before > 0) & (before < 1)).any()
    x, y = data((8, 8, 3), n=128, classes=10)
    half.fit(x, y, batch_size=16, epochs=4, initial_epoch=2, shuffle=False, verbose=0)
    for one, other in zip(whole.weights, half.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy(), err_msg=one.path)


def test_max_macs_and_max_bytes_know_what_its_ratio_is():
    small = atmc.compress(slim_resnet(), "in_train_pruning", max_macs="50K")
    assert small.method.ratio * macs(slim_resnet()) == pytest.approx(50_000, rel=1e-6)
    with pytest.raises(ValueError, match="no `ratio` of weights"):
        atmc.compress(slim_resnet(), "in_train_pruning", max_bytes="64KB")
    wrongs = ({"ratio": 0.0}, {"scale": -1.0}, {"mask_rate": 0.0}, {"begin": 0.9, "freeze": 0.1})
    for wrong in wrongs:
        with pytest.raises(ValueError, match=next(iter(wrong)).removeprefix("mask_")):
            InTrainPruning(**wrong)
    assert ChannelMasks(0.3).get_config()["scale"] is None


def test_masks_that_cross_together_stay_as_far_as_the_target_has_room():
    small, groups = groups_of(residual())
    (constraint,) = small.constraints
    masks = np.linspace(0.3, 0.4, groups.count).astype("float32")
    constraint.trained_variables[0].assign(masks)
    kept = constraint._kept().numpy()
    spent = float(groups.macs(tf.constant(kept)))
    assert spent <= 0.5 * groups.total and 0 < kept.sum() < groups.count
    largest = max(np.flatnonzero(kept == 0), key=lambda channel: masks[channel])
    more = kept.copy()
    more[largest] = 1
    assert float(groups.macs(tf.constant(more))) > 0.5 * groups.total
    constraint.trained_variables[0].assign(np.full(groups.count, 0.6))
    assert constraint.operations == 1.0  # none below the threshold: nothing goes
