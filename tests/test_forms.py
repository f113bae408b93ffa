# SPDX-License-Identifier: Apache-2.0
"""Forms of deployment: products as two layers, chosen by bytes or operations, outputs the same."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

from tests.exporting import quick_export
from tests.test_slimming import agree
from tfmot_atmc import compress, deploy, strip_compression
from tfmot_atmc.export import stored_bytes
from tfmot_atmc.kernels import FactorizedKernel, LowRankKernel, PlainKernel
from tfmot_atmc.slimming import factor_layers, slim_model


def sparse_array(rng, shape, density):
    return (rng.normal(size=shape) * (rng.random(shape) < density)).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(6, 4), (4, 6), (3, 3, 2, 5), (2, 1, 2, 9)]))
def test_a_product_multiplies_to_the_composed_kernel(seed, shape):
    rng = np.random.default_rng(seed)
    for kernel in (FactorizedKernel(), LowRankKernel()):
        start = kernel.initial_values(np.ones(shape, np.float32))
        factors = {name: sparse_array(rng, value.shape, 0.4) for name, value in start.items()}
        a, b = kernel.product(factors)
        assert a.shape[:-1] == shape[:-1] and b.shape == (a.shape[-1], shape[-1])
        np.testing.assert_allclose(a @ b, kernel.compose(factors).numpy(), rtol=1e-4, atol=1e-5)
        assert a.shape[-1] == 1 or (np.abs(a).reshape(-1, a.shape[-1]).max(0) > 0).all()
    assert PlainKernel().product({"W": np.ones(shape)}) is None


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(3, 3, 4, 6), (2, 3, 5, 4), (1, 3, 9, 4)]))
def test_a_separable_product_multiplies_to_the_composed_kernel(seed, shape):
    rng, kernel = np.random.default_rng(seed), LowRankKernel(separable=True)
    start = kernel.initial_values(np.ones(shape, np.float32))
    factors = {name: sparse_array(rng, value.shape, 0.4) for name, value in start.items()}
    a, b = kernel.product(factors)
    height, width, inputs, outputs = shape
    assert a.shape[:-1] == (height, 1, inputs) and b.shape == (1, width, a.shape[-1], outputs)
    product = np.einsum("hir,wro->hwio", a[:, 0], b[0])
    np.testing.assert_allclose(product, kernel.compose(factors).numpy(), rtol=1e-4, atol=1e-5)


def test_the_product_of_a_known_kernel():
    v = np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 0.0]])
    u = np.array([[0.0, 3.0], [0.0, 0.0]])
    c = np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 5.0]])
    a, b = FactorizedKernel().product({"V": v, "U": u, "C": c})
    np.testing.assert_array_equal(a, [[1, 0], [2, 0], [0, 5]])
    np.testing.assert_array_equal(b, [[1, 3], [0, 1]])


def network():
    inputs = keras.Input((8, 8, 3))
    shared = layers.Conv2D(6, 3, padding="same", activation="relu", name="shared")
    x = layers.Conv2D(6, 3, 2, "same", dilation_rate=1, activation="tanh", name="strided")(inputs)
    x = layers.Add()([x, shared(shared(x))])
    inner = keras.Sequential([keras.Input((4, 4, 6)), layers.Conv2D(5, 2, name="deep")], name="in")
    x = layers.Flatten()(inner(x))
    return keras.Model(inputs, layers.Dense(4, name="head")(x))


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("options", [{"strides": (2, 3)}, {"dilation_rate": (2, 1)}, {}])
def test_a_vertical_and_a_horizontal_filter_do_what_their_product_does(padding, options):
    conv = layers.Conv2D(
        5,
        (3, 4),
        padding=padding,
        activation="relu",
        bias_initializer="ones",
        name="conv",
        **options,
    )
    model, rng = keras.Sequential([keras.Input((11, 13, 4)), conv]), np.random.default_rng(0)
    a, b = rng.normal(size=(3, 1, 4, 2)), rng.normal(size=(1, 4, 2, 5))
    conv.kernel.assign(np.einsum("hir,wro->hwio", a[:, 0], b[0]))
    two = agree(model, factor_layers(model, {"conv": (a, b)}))
    assert [layer.kernel_size for layer in two.layers] == [(3, 1), (1, 4)]
    assert two.layers[0].strides == (conv.strides[0], 1) and not two.layers[0].use_bias
    with pytest.raises(ValueError, match="must give the shape"):
        factor_layers(model, {"conv": (a, b[:, :3])})


def test_layers_run_as_two_in_every_place_where_they_are_called():
    model, rng = network(), np.random.default_rng(0)
    products = {}
    for name in ("strided", "shared", "deep", "head"):
        layer = next(la for la in model._flatten_layers() if la.name == name)
        shape = layer.kernel.shape
        a, b = rng.normal(size=(*shape[:-1], 2)), rng.normal(size=(2, shape[-1]))
        products[name] = a.astype(np.float32), b.astype(np.float32)
        layer.kernel.assign(a @ b)
    two = agree(model, factor_layers(model, products))
    names = [layer.name for layer in two._flatten_layers()]
    assert {name + "_first" for name in products} <= set(names)
    agree(model, slim_model(two))


def test_wrong_products_are_refused():
    model = network()
    with pytest.raises(ValueError, match="must be the name"):
        factor_layers(model, {"nobody": (np.ones((2, 1)), np.ones((1, 2)))})
    with pytest.raises(ValueError, match="must give the shape"):
        factor_layers(model, {"head": (np.ones((2, 1)), np.ones((1, 2)))})
    with pytest.raises(ValueError, match="graph"):
        factor_layers(keras.Sequential([layers.Dense(2)]), {})


def low_rank_model(optimize):
    """ATMC with a dense U of two rows: multiplied out it is dense, as two layers it is tiny."""
    model = keras.Sequential(
        [keras.Input((200,)), layers.Dense(100, name="wide"), layers.Dense(4, name="head")]
    )
    compressed = compress(model, "atmc", k=900)
    rng = np.random.default_rng(0)
    for kernel in compressed.kernels:
        if kernel.layer.name == "wide":
            v, u = np.zeros((200, 100)), np.zeros((100, 100))
            v[rng.permutation(200)[:40], 0] = rng.normal(size=40)
            u[0, 1:] = rng.normal(size=99)
            kernel.variables["V"].assign(v)
            kernel.variables["U"].assign(u)
    return compressed, deploy(compressed, optimize=optimize)


@pytest.mark.parametrize("optimize", ["size", "latency", "balanced"])
def test_a_product_is_deployed_as_two_layers_where_that_is_cheaper(tmp_path, optimize):
    compressed, deployment = low_rank_model(optimize)
    forms = {form.layer: form for form in deployment.forms}
    assert forms["wide"].factored and not forms["head"].factored
    assert forms["wide"].inner_channels == 1
    assert forms["wide"].composed_macs == 20_000 and forms["wide"].factored_macs == 300
    plain = strip_compression(compressed)
    agree(plain, deployment.model)
    composed = quick_export(plain, tmp_path / "composed.tflite", slim=None)
    factored = quick_export(deployment.model, tmp_path / "factored.tflite", slim=None)
    assert factored.bytes < composed.bytes / 2
    text = str(deployment)
    assert "factored" in text and "composed" in text and len(text.splitlines()) == 3


def test_predicted_bytes_are_those_of_the_file(tmp_path):
    compressed, deployment = low_rank_model("size")
    form = next(form for form in deployment.forms if form.layer == "wide")
    sizes = [
        quick_export(model, tmp_path / "model.tflite", slim=None).bytes
        for model in (strip_compression(compressed), deployment.model)
    ]
    predicted = form.composed_bytes - form.factored_bytes
    assert abs((sizes[0] - sizes[1]) - predicted) < 300


def test_stored_bytes_are_the_smallest_of_all_ways():
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(64, 32)).astype(np.float32)
    assert stored_bytes(dense) == dense.nbytes
    assert stored_bytes(dense, values="int8") < dense.nbytes / 3
    sparse = sparse_array(rng, (64, 32), 0.02)
    assert stored_bytes(sparse, values="float32") < 800


def test_low_rank_methods_deploy_as_two_layers():
    compressed = compress(
        keras.Sequential([keras.Input((64,)), layers.Dense(48)]), "alr", ratio=0.1
    )
    compressed.finalize()
    deployment = deploy(compressed, optimize="size")
    assert deployment.forms[0].factored and deployment.forms[0].inner_channels <= 3


def test_a_separable_low_rank_model_deploys_as_filters_along_each_axis(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((9, 10, 8)),
            layers.Conv2D(16, (3, 5), activation="relu", name="conv"),
            layers.Flatten(),
            layers.Dense(4, name="head"),
        ]
    )
    compressed = compress(model, "alr", ratio=0.5, ranks=[2, 1], separable=True)
    deployment = deploy(compressed, optimize="latency")
    form = deployment.forms[0]
    # Along 10 columns in 7 rows by 3 x 1, then at 6 x 7 places by 1 x 5.
    assert form.factored and form.inner_channels == 2
    assert form.factored_macs == 3 * 8 * 2 * 7 * 10 + 5 * 2 * 16 * 7 * 6
    assert form.composed_macs == 3 * 5 * 8 * 16 * 7 * 6
    plain = strip_compression(compressed)
    agree(plain, deployment.model)
    assert deployment.model.get_layer("conv_first").kernel.shape == (3, 1, 8, 2)
    whole = quick_export(plain, tmp_path / "whole.tflite", slim=None)
    parts = quick_export(deployment.model, tmp_path / "parts.tflite", slim=None)
    assert parts.bytes < whole.bytes
    agree(strip_compression(compressed), deployment.model)
    with pytest.raises(ValueError, match="optimize"):
        deploy(compressed, optimize="speed")
