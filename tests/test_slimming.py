# SPDX-License-Identifier: Apache-2.0
"""Slimming: dead and constant channels go, outputs stay, and nothing unproven is touched."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

from tests.exporting import prune
from tfmot_atmc import compress, strip_compression
from tfmot_atmc.models import get as network
from tfmot_atmc.slimming import compare_models, layer_costs, slim_model


def outputs(model, seed=0, batch=3):
    rng = np.random.default_rng(seed)
    inputs = [rng.normal(size=(batch, *t.shape[1:])).astype("float32") for t in model.inputs]
    return model(inputs[0] if len(inputs) == 1 else inputs, training=False)


def agree(model, slimmed):
    for one, other in zip(
        keras.tree.flatten(outputs(model)), keras.tree.flatten(outputs(slimmed)), strict=True
    ):
        one, other = keras.ops.convert_to_numpy(one), keras.ops.convert_to_numpy(other)
        assert one.shape == other.shape
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-5 * max(1, np.abs(one).max()))
    return slimmed


def randomise(model, density, seed):
    """Sparse kernels, and biases and statistics that are not at their start."""
    rng = np.random.default_rng(seed)
    prune(model, density, seed=seed)
    for weight in model.weights:
        if len(weight.shape) == 1:
            values = rng.normal(size=weight.shape)
            weight.assign(np.abs(values) + 0.1 if "variance" in weight.path else values)
    return model


def kernels(model):
    return {cost.name: cost.kernel_shape for cost in layer_costs(model)}


def test_a_unit_that_nobody_reads_and_a_constant_unit_go():
    model = keras.Sequential(
        [keras.Input((2,)), layers.Dense(4, activation="relu"), layers.Dense(2, use_bias=False)]
    )
    first = np.array([[1.0, 2.0, 0.0, 0.0], [3.0, 4.0, 0.0, 0.0]])
    second = np.array([[1.0, 0.0], [0.0, 0.0], [5.0, 7.0], [11.0, 13.0]])
    # Unit 1 is unread; unit 2 is always relu(2) = 2; unit 3 is always relu(-1) = 0.
    model.layers[0].set_weights([first, np.array([0.5, 0.5, 2.0, -1.0])])
    model.layers[1].set_weights([second])
    slimmed = agree(model, slim_model(model))
    np.testing.assert_array_equal(slimmed.layers[0].kernel, [[1.0], [3.0]])
    np.testing.assert_array_equal(slimmed.layers[0].bias, [0.5])
    np.testing.assert_array_equal(slimmed.layers[1].kernel, [[1.0, 0.0]])
    np.testing.assert_array_equal(slimmed.layers[1].bias, [10.0, 14.0])
    assert [layer.name for layer in slimmed.layers] == [layer.name for layer in model.layers]
    assert isinstance(slimmed, keras.Sequential) and model.layers[0].units == 4


@pytest.mark.parametrize(("padding", "left"), [("valid", 1), ("same", 2)])
def test_a_constant_meets_zero_padding_only_where_it_is_zero(padding, left):
    model = keras.Sequential(
        [
            keras.Input((5, 5, 1)),
            layers.Conv2D(3, 3, padding="same", activation="relu"),
            layers.Conv2D(2, 3, padding=padding),
        ]
    )
    first = np.zeros((3, 3, 1, 3))
    first[1, 1, 0, 0] = 1.0
    # Channel 1 is 2 everywhere but becomes 0 beyond the border; channel 2 is 0 everywhere.
    model.layers[0].set_weights([first, np.array([0.0, 2.0, -1.0])])
    slimmed = agree(model, slim_model(model))
    assert kernels(slimmed)[model.layers[0].name] == (3, 3, 1, left)
    assert kernels(slimmed)[model.layers[1].name] == (3, 3, left, 2)


def test_batch_normalisation_turns_a_dead_channel_into_a_constant_that_moves_on():
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(3, 3, use_bias=False),
            layers.BatchNormalization(epsilon=0.0),
            layers.ReLU(),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(2),
        ]
    )
    randomise(model, 1.0, 0)
    kernel = model.layers[0].kernel.numpy()
    kernel[..., 1] = 0.0
    model.layers[0].set_weights([kernel])
    # (0 - 1) * 3 / 2 + 4 = 2.5 after normalisation, and 2.5 after the rest.
    statistics = [np.array(v) for v in model.layers[1].get_weights()]
    for values, value in zip(statistics, (3.0, 4.0, 1.0, 4.0), strict=True):
        values[1] = value
    model.layers[1].set_weights(statistics)
    slimmed = agree(model, slim_model(model))
    assert slimmed.layers[0].filters == 2 and slimmed.layers[1].gamma.shape == (2,)
    assert kernels(slimmed)[model.layers[5].name] == (8, 2)
    dense = model.layers[5]
    added = slimmed.layers[5].bias.numpy() - dense.bias.numpy()
    expected = 2.5 * dense.kernel.numpy().reshape(4, 3, 2)[:, 1].sum(axis=0)
    np.testing.assert_allclose(added, expected, rtol=1e-5)


def test_a_residual_sum_keeps_what_any_branch_needs():
    inputs = keras.Input((4, 4, 3))
    stem = layers.Conv2D(4, 1, name="stem")(inputs)
    branch = layers.Conv2D(4, 3, padding="same", name="branch")(stem)
    total = layers.Add()([stem, branch])
    model = keras.Model(inputs, layers.Dense(2, name="head")(total))
    for layer in model.layers:
        if layer.weights:
            layer.kernel.assign(np.ones(layer.kernel.shape))
    branch_kernel = np.ones((3, 3, 4, 4))
    branch_kernel[..., 0] = 0.0  # dead in the branch, alive in the stem
    model.get_layer("branch").set_weights([branch_kernel, np.zeros(4)])
    head = np.ones((4, 2))
    head[3] = 0.0  # unread after the sum, but the branch reads the stem's
    model.get_layer("head").set_weights([head, np.zeros(2)])
    slimmed = agree(model, slim_model(model))
    assert kernels(slimmed) == kernels(model)
    branch_kernel[:, :, 3] = 0.0  # now nobody reads it
    model.get_layer("branch").set_weights([branch_kernel, np.zeros(4)])
    slimmed = agree(model, slim_model(model))
    assert kernels(slimmed) == {
        "stem": (1, 1, 3, 3), "branch": (3, 3, 3, 3), "head": (3, 2),
    }  # fmt: skip


def test_a_shared_layer_loses_only_what_all_its_calls_can_lose():
    first, second = keras.Input((3,)), keras.Input((3,))
    left, right = layers.Dense(4, name="left")(first), layers.Dense(4, name="right")(second)
    shared = layers.Dense(2, name="shared")
    model = keras.Model([first, second], [shared(left), shared(right)])
    randomise(model, 1.0, 0)
    for name, unit in (("left", 0), ("right", 1)):
        kernel = model.get_layer(name).kernel.numpy()
        kernel[:, [unit, 2]] = 0.0
        model.get_layer(name).set_weights([kernel, np.array([1.0, 1.0, 2.0, 0.0])])
    slimmed = agree(model, slim_model(model))
    # Unit 2 is the constant 2 on both sides; units 0 and 1 are constant on one side only.
    assert kernels(slimmed) == {"left": (3, 3), "right": (3, 3), "shared": (3, 2)}


@pytest.mark.parametrize(
    "opaque",
    [
        layers.Softmax(),
        layers.Activation("softmax"),
        layers.Lambda(lambda x: x[:, ::-1]),
        layers.Lambda(lambda x: keras.ops.flip(x, axis=1)),
        layers.LayerNormalization(),
        layers.Reshape((2, 2)),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_channels_next_to_an_unknown_layer_stay(opaque):
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(4), opaque, layers.Flatten(), layers.Dense(2)]
    )
    model.layers[0].set_weights([np.zeros((3, 4)), np.arange(4.0)])
    head = np.zeros((4, 2))
    head[0] = 1.0
    model.layers[-1].set_weights([head, np.zeros(2)])
    slimmed = agree(model, slim_model(model))
    assert slimmed.layers[0].units == 4 and slimmed.layers[-1].kernel.shape == (4, 2)


def test_an_all_zero_layer_keeps_one_channel_and_a_subclass_is_left_alone():
    class Doubling(layers.Dense):
        def call(self, x):
            return 2 * super().call(x)

    model = keras.Sequential([keras.Input((3,)), layers.Dense(5), layers.Dense(2)])
    model.layers[1].set_weights([np.zeros((5, 2)), np.array([1.0, 2.0])])
    slimmed = agree(model, slim_model(model))
    assert kernels(slimmed)[model.layers[0].name] == (3, 1)
    model = keras.Sequential([keras.Input((3,)), Doubling(5), layers.Dense(2)])
    model.layers[1].set_weights([np.zeros((5, 2)), np.array([1.0, 2.0])])
    assert agree(model, slim_model(model)).layers[0].units == 5


def test_inner_models_are_slimmed_in_their_place():
    inner = keras.Sequential(
        [keras.Input((6, 6, 4)), layers.Conv2D(5, 3), layers.ReLU()], name="inner"
    )
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            layers.Conv2D(4, 1),
            inner,
            layers.GlobalAveragePooling2D(),
            layers.Dense(3),
        ]
    )
    randomise(model, 0.06, 4)
    slimmed = agree(model, slim_model(model))
    report = compare_models(model, slimmed)
    assert slimmed.get_layer("inner").layers[0].filters < 5
    assert report.parameters[1] < report.parameters[0] and report.macs[1] < report.macs[0]
    assert slimmed.count_params() == report.parameters[1]
    assert "inner" not in str(report) and "total" in str(report)


def architecture(draw):
    """A random network of a few blocks, with sparse kernels."""
    inputs = keras.Input((8, 8, 2))
    x = inputs
    share = layers.Conv2D(4, 3, padding="same", activation="relu")
    for _ in range(draw(st.integers(1, 4))):
        width = draw(st.integers(1, 6))
        padding = draw(st.sampled_from(["same", "valid"]))
        kind = draw(st.sampled_from(["plain", "residual", "concat", "depthwise", "pool", "shared"]))
        if x.shape[1] < 3:
            break
        if kind == "plain":
            strides = draw(st.integers(1, 2))
            x = layers.Conv2D(width, draw(st.sampled_from([1, 3])), strides, padding)(x)
        elif kind == "residual":
            y = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
            y = layers.BatchNormalization()(y)
            y = layers.Activation(draw(st.sampled_from(["relu", "tanh"])))(y)
            y = layers.Conv2D(x.shape[-1], 1)(y)
            x = draw(st.sampled_from([layers.Add, layers.Maximum, layers.Multiply]))()([x, y])
        elif kind == "concat":
            y = layers.Conv2D(width, 3, padding="same", activation="sigmoid")(x)
            x = layers.Concatenate()([x, y])
        elif kind == "depthwise":
            x = layers.ZeroPadding2D()(x)
            x = layers.DepthwiseConv2D(3, padding=padding, depth_multiplier=2)(x)
        elif kind == "pool":
            x = draw(st.sampled_from([layers.MaxPooling2D, layers.AveragePooling2D]))(
                2, padding=padding
            )(x)
        else:
            x = share(share(layers.Conv2D(4, 1)(x)))
    x = layers.Flatten()(x) if draw(st.booleans()) else layers.GlobalMaxPooling2D()(x)
    x = layers.Dropout(0.5)(x)
    model = keras.Model(inputs, layers.Dense(3)(layers.Dense(5, activation="relu")(x)))
    return randomise(model, draw(st.sampled_from([0.02, 0.1, 0.3])), draw(st.integers(0, 99)))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_outputs_stay_over_random_architectures_and_sparsity(data):
    model = architecture(data.draw)
    slimmed = agree(model, slim_model(model))
    assert slimmed.count_params() <= model.count_params() + sum(
        cost.kernel_shape[-1] for cost in layer_costs(model)
    )
    again = slim_model(slimmed)
    assert kernels(again) == kernels(slimmed)


def test_compressed_networks_get_smaller_and_save(tmp_path):
    model = prune(network("resnet20"), 0.005, seed=1)
    slimmed = agree(model, slim_model(model))
    assert slimmed.count_params() < 0.9 * model.count_params()
    slimmed.save(tmp_path / "slim.keras")
    agree(slimmed, keras.saving.load_model(tmp_path / "slim.keras"))
    compressed = compress(network("lenet"), "atmc", ratio=0.01)
    with pytest.raises(ValueError, match="strip_compression"):
        slim_model(compressed)
    slim_model(strip_compression(compressed))


def test_what_cannot_be_slimmed_is_refused():
    class Subclassed(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(TypeError, match=r"keras\.Model"):
        slim_model("model.keras")
    with pytest.raises(ValueError, match="graph"):
        slim_model(Subclassed())
    with pytest.raises(ValueError, match="built"):
        slim_model(keras.Sequential([layers.Dense(3)]))
