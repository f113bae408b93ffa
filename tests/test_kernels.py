# SPDX-License-Identifier: Apache-2.0
"""The composed kernels: W = (U + I)V + C, its gradients, and the thin convolution."""

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

from tfmot_atmc.kernels import FactorizedKernel, PlainKernel, thin_conv2d

# fan_in below, equal to and above the number of outputs; the last is a convolution.
SHAPES = {(2, 5): 2, (3, 3): 3, (7, 4): 4, (3, 2, 2, 5): 5, (1, 1, 3, 6): 3}


def _random(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _oracle(v, u, c):
    """(U + I)V + C in float64, written for the matrix of shape (outputs, fan_in)."""
    outputs = v.shape[-1]
    tall = v.reshape(-1, outputs).astype(np.float64).T
    rest = c.reshape(-1, outputs).astype(np.float64).T
    u = u.astype(np.float64)
    if outputs < tall.shape[1]:  # U on the side of the outputs, transposed as Keras stores it
        made = (u.T + np.eye(outputs)) @ tall + rest
    else:
        made = tall @ (u.T + np.eye(tall.shape[1])) + rest
    return made.T.reshape(v.shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_start_reproduces_the_trained_kernel_bit_for_bit(shape):
    kernel = _random(shape)
    factors = FactorizedKernel().initial_values(kernel)
    assert list(factors) == ["V", "U", "C"]
    assert factors["U"].shape == (SHAPES[shape],) * 2
    assert not factors["U"].any() and not factors["C"].any()
    composed = FactorizedKernel().compose(factors)
    np.testing.assert_array_equal(composed, kernel)
    assert composed.dtype == tf.float32


@pytest.mark.parametrize("shape", SHAPES)
def test_composition_equals_the_float64_oracle(shape):
    side = SHAPES[shape]
    v, u, c = _random(shape, 1), _random((side, side), 2), _random(shape, 3)
    composed = FactorizedKernel().compose({"V": v, "U": u, "C": c})
    assert composed.shape == shape
    np.testing.assert_allclose(composed, _oracle(v, u, c), rtol=1e-5, atol=1e-5)


def test_composition_of_a_case_done_by_hand():
    # outputs (1) < fan_in (2): M = V + V U + C.
    tall = FactorizedKernel().compose(
        {"V": np.float32([[1], [2]]), "U": np.float32([[3]]), "C": np.float32([[10], [0]])}
    )
    np.testing.assert_array_equal(tall, [[14], [8]])
    # outputs (2) >= fan_in (1): M = V + U V + C.
    wide = FactorizedKernel().compose(
        {"V": np.float32([[1, 2]]), "U": np.float32([[-1]]), "C": np.float32([[0, 5]])}
    )
    np.testing.assert_array_equal(wide, [[0, 5]])


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_of_v_and_c_are_equal_at_the_start(shape):
    factors = {
        name: tf.constant(value)
        for name, value in FactorizedKernel().initial_values(_random(shape)).items()
    }
    target = _random(shape, 9)
    with tf.GradientTape() as tape:
        tape.watch(list(factors.values()))
        loss = tf.reduce_sum(tf.square(FactorizedKernel().compose(factors) - target))
    by_v, by_u, by_c = tape.gradient(loss, [factors[name] for name in ("V", "U", "C")])
    np.testing.assert_array_equal(by_v, by_c)
    # dL/dU is the product of the residual with V, so it is not zero: U can grow.
    residual = (2 * (_random(shape) - target)).reshape(-1, shape[-1])
    matrix = _random(shape).reshape(-1, shape[-1])
    tall = shape[-1] < matrix.shape[0]
    expected = matrix.T @ residual if tall else residual @ matrix.T
    np.testing.assert_allclose(by_u, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(by_u).max() > 0


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**16))
def test_composition_is_affine_in_each_factor(fan_in, outputs, seed):
    side = min(fan_in, outputs)
    v, c = _random((fan_in, outputs), seed), _random((fan_in, outputs), seed + 1)
    u = _random((side, side), seed + 2)
    compose = FactorizedKernel().compose
    whole = compose({"V": v, "U": u, "C": c}).numpy()
    without_c = compose({"V": v, "U": u, "C": np.zeros_like(c)}).numpy()
    np.testing.assert_allclose(whole - without_c, c, atol=1e-4)
    twice = compose({"V": 2 * v, "U": u, "C": np.zeros_like(c)}).numpy()
    np.testing.assert_allclose(twice, 2 * without_c, rtol=1e-4, atol=1e-4)


def test_plain_kernel_is_its_own_factor_and_growth_stays_out_of_c():
    kernel = _random((3, 4))
    assert PlainKernel().main == "W"
    np.testing.assert_array_equal(
        PlainKernel().compose(PlainKernel().initial_values(kernel)), kernel
    )
    assert FactorizedKernel().growable == {"U", "V"}
    assert repr(FactorizedKernel()) == "FactorizedKernel()"


def test_factorised_kernel_of_one_dimension_is_refused():
    with pytest.raises(ValueError, match="at least two dimensions.*PlainKernel"):
        FactorizedKernel().initial_values(np.ones(3, np.float32))


@pytest.mark.parametrize("size, kernel", [((7, 6), (3, 2)), ((5, 5), (5, 5)), ((4, 4), (1, 1))])
def test_thin_convolution_equals_tf_nn_conv2d_with_both_gradients(size, kernel):
    x = tf.constant(_random((2, *size, 1), 4))
    w = tf.constant(_random((*kernel, 1, 3), 5))

    def results(convolve):
        with tf.GradientTape() as tape:
            tape.watch([x, w])
            y = convolve(x, w)
            loss = tf.reduce_sum(y * tf.cos(y))
        return [y, *tape.gradient(loss, [x, w])]

    found = results(tf.function(thin_conv2d))
    expected = results(lambda x, w: tf.nn.conv2d(x, w, 1, "VALID"))
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def test_thin_convolution_takes_a_batch_of_unknown_size():
    w = tf.constant(_random((2, 2, 1, 3), 5))

    @tf.function(input_signature=[tf.TensorSpec((None, 5, 5, 1))])
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(thin_conv2d(x, w))
        return tape.gradient(y, x)

    result = gradient(tf.ones((3, 5, 5, 1)))
    assert result.shape == (3, 5, 5, 1)
    # A corner is seen by one tap only, an inner pixel by all of them.
    np.testing.assert_allclose(result[0, 0, 0, 0], tf.reduce_sum(w[0, 0]), rtol=1e-5)
    np.testing.assert_allclose(result[0, 2, 2, 0], tf.reduce_sum(w), rtol=1e-5)
