# SPDX-License-Identifier: Apache-2.0
"""The numeric contract of the C code, operator by operator, at any scales: TFLM's, bit for bit."""

import numpy as np
import pytest

from tests import c_code
from tests.c_operators import Int8, micro, one_operator
from tfmot_atmc.export import UnsupportedError
from tfmot_atmc.export.c import compiled
from tfmot_atmc.export.c.emitting import emit
from tfmot_atmc.export.c.lowering import lower
from tfmot_atmc.export.c.planning import plan_network
from tfmot_atmc.export.c.reading import read_network
from tfmot_atmc.export.c.reference import run_network

ALL = np.arange(-128, 128, dtype=np.int8)[None]
PIXEL = ALL[None, None]


class Draws:
    """Random scales from 2^-18 to 2^9, and zero points that are often at an end."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def scale(self, times=1.0, low=-18.0, high=9.0):
        return float(np.float32(times * 2.0 ** self.rng.uniform(low, high)))

    def zero(self):
        return int(self.rng.choice([-128, 127, 0, self.rng.integers(-128, 128)]))

    def codes(self, *shape):
        return self.rng.integers(-128, 128, shape).astype(np.int8)

    def activation(self):
        return {"fusedActivationFunction": int(self.rng.choice([0, 1, 3]))}


def relu(d):
    scale, shape = d.scale(), (1, 1, 1, 256)
    other = d.scale(scale, -6.0, 6.0) if d.rng.random() < 0.7 else scale
    return one_operator(
        "RELU", None, [Int8(shape, scale, d.zero())], Int8(shape, other, d.zero())
    ), PIXEL


def relu6(d):
    # TFLM clamps the codes of its input, so that both ends must have one scale.
    end = Int8((1, 1, 1, 256), d.scale(), d.zero())
    return one_operator("RELU6", None, [end], end), PIXEL


def sigmoid(d):
    source = Int8((1, 256), d.scale(), d.zero())
    return one_operator("LOGISTIC", None, [source], Int8((1, 256), 1 / 256, -128)), ALL


def softmax(d):
    count = int(d.rng.integers(2, 60))
    source = Int8((1, count), d.scale(), d.zero())
    options = ("SoftmaxOptions", {"beta": 1.0})
    data = one_operator("SOFTMAX", options, [source], Int8((1, count), 1 / 256, -128))
    return data, d.codes(40, count)


def mean(d):
    height, width, channels = (int(n) for n in d.rng.integers(1, (20, 20, 5)))
    scale, zero = d.scale(), d.zero()
    same = d.rng.random() < 0.5
    output = Int8((1, channels), scale, zero)
    if not same:
        output = Int8((1, channels), d.scale(scale, -5.0, 5.0), d.zero())
    source = Int8((1, height, width, channels), scale, zero)
    axes = Int8((2,), values=np.array([1, 2], np.int32))
    options = ("ReducerOptions", {"keepDims": False})
    return one_operator("MEAN", options, [source, axes], output), d.codes(
        20, height, width, channels
    )


def quantize(d):
    scale, shape = d.scale(), (1, 256)
    output = Int8(shape, d.scale(scale, -8.0, 8.0), d.zero())
    return one_operator(
        "QUANTIZE", ("QuantizeOptions", {}), [Int8(shape, scale, d.zero())], output
    ), ALL


def add_constant(d):
    scale, shape = d.scale(), (1, 1, 1, 256)
    constant = Int8((1, 1, 1, 1), d.scale(scale, -12.0, 12.0), d.zero(), d.codes(1, 1, 1, 1))
    output = Int8(shape, d.scale(scale, -6.0, 12.0), d.zero())
    source = Int8(shape, scale, d.zero())
    return one_operator("ADD", ("AddOptions", d.activation()), [source, constant], output), PIXEL


def multiply_constant(d):
    scale, other, shape = d.scale(), d.scale(high=4.0), (1, 1, 1, 256)
    constant = Int8(shape, other, d.zero(), d.codes(*shape))
    output = Int8(shape, d.scale(scale * other, -2.0, 12.0), d.zero())
    source = Int8(shape, scale, d.zero())
    return one_operator("MUL", ("MulOptions", d.activation()), [source, constant], output), PIXEL


def pool(d):
    size = int(d.rng.integers(2, 9))
    window, stride = int(d.rng.integers(1, size + 1)), int(d.rng.integers(1, 3))
    valid = bool(d.rng.random() < 0.5)
    out = (size - window) // stride + 1 if valid else -(-size // stride)
    scale, zero = d.scale(), d.zero()
    fields = {"padding": int(valid), "strideH": stride, "strideW": stride,
              "filterHeight": window, "filterWidth": window, **d.activation()}  # fmt: skip
    name = str(d.rng.choice(["AVERAGE_POOL_2D", "MAX_POOL_2D"]))
    ends = (Int8((1, n, n, 2), scale, zero) for n in (size, out))
    source, output = ends
    data = one_operator(name, ("Pool2DOptions", fields), [source], output)
    return data, d.codes(20, size, size, 2)


def convolution(d):
    size, channels, filters, window = (int(n) for n in d.rng.integers((3, 1, 1, 1), (12, 4, 4, 4)))
    kernel = d.codes(filters, window, window, channels)
    return _weighted(d, "CONV_2D", "Conv2DOptions", (size, size, channels), kernel,
                     (size, size, filters), {"padding": 0})  # fmt: skip


def depthwise(d):
    size, channels, times, window = (int(n) for n in d.rng.integers((3, 1, 1, 1), (12, 4, 3, 4)))
    kernel = d.codes(1, window, window, channels * times)
    out = size - window + 1
    fields = {"padding": 1, "depthMultiplier": times}
    return _weighted(d, "DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions", (size, size, channels),
                     kernel, (out, out, channels * times), fields)  # fmt: skip


def dense(d):
    columns, outputs = (int(n) for n in d.rng.integers(1, (40, 4)))
    kernel = d.codes(outputs, columns)
    return _weighted(d, "FULLY_CONNECTED", "FullyConnectedOptions", (columns,), kernel,
                     (outputs,), {})  # fmt: skip


def _weighted(d, name, kind, shape, kernel, out, fields):
    if kernel.ndim == 4:
        strides = ("strideH", "strideW", "dilationHFactor", "dilationWFactor")
        fields = {**fields, **dict.fromkeys(strides, 1)}
    kernel = np.maximum(kernel, -127) * (d.rng.random(kernel.shape) < 0.5)
    scale, own = d.scale(high=4.0), d.scale(high=4.0)
    count = out[-1]
    # One scale for all channels, or one for each.
    owns = own * 2.0 ** d.rng.uniform(-4.0, 0.0, count) if d.rng.random() < 0.5 else own
    owns = np.float32(owns)
    bias = d.rng.integers(-20000, 20000, count).astype(np.int32)
    axis = 3 if name == "DEPTHWISE_CONV_2D" else 0
    inputs = [
        Int8((1, *shape), scale, d.zero()),
        Int8(kernel.shape, owns, 0, kernel.astype(np.int8), axis),
        Int8((count,), np.float32(scale) * owns, 0, bias),
    ]
    output = Int8((1, *out), d.scale(scale * own, -1.0, 18.0), d.zero())
    data = one_operator(name, (kind, {**fields, **d.activation()}), inputs, output)
    return data, d.codes(15, *shape)


CASES = [relu, relu6, sigmoid, softmax, mean, quantize, add_constant, multiply_constant, pool,
         convolution, depthwise, dense]  # fmt: skip


def write(data, folder):
    source = emit(lower(plan_network(read_network(data))), "model", "")
    (folder / "model.c").write_text(source.code)
    (folder / "model.h").write_text(source.header)
    return compiled.CModel(folder / "model.c")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_integers_of_each_operator_are_those_of_tflm_at_any_scales(case):
    draws = Draws(7)
    for _ in range(40):
        data, codes = case(draws)
        np.testing.assert_array_equal(run_network(read_network(data), codes), micro(data, codes))


@c_code.needs_compiler
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_c_code_of_each_operator_computes_these_integers(case, tmp_path):
    draws = Draws(8)
    for _ in range(2):
        data, codes = case(draws)
        expected = run_network(read_network(data), codes)
        model = write(data, tmp_path)
        np.testing.assert_array_equal(model.codes(codes), expected)


def test_relu6_on_another_scale_is_computed_as_keras_does():
    shape = (1, 1, 1, 256)
    data = one_operator("RELU6", None, [Int8(shape, 0.1, -20)], Int8(shape, 6.0 / 255.0, -128))
    (found,) = run_network(read_network(data), PIXEL)
    real = np.clip(0.1 * (ALL[0].astype(np.float64) + 20), 0.0, 6.0)
    assert np.abs(6.0 / 255.0 * (found + 128.0) - real).max() <= 0.51 * 6.0 / 255.0


@c_code.needs_compiler
def test_a_sure_softmax_does_not_overflow_and_too_many_classes_are_refused(tmp_path):
    codes = np.full((3, 4), -128, np.int8)
    codes[0, 1], codes[1, 2], codes[2, :2] = 127, -100, (100, 99)
    data = one_operator("SOFTMAX", ("SoftmaxOptions", {"beta": 1.0}),
                        [Int8((1, 4), 0.5, 3)], Int8((1, 4), 1 / 256, -128))  # fmt: skip
    expected = run_network(read_network(data), codes)
    np.testing.assert_array_equal(expected[:2], [[-128, 127, -128, -128], [-128, -128, 127, -128]])
    write(data, tmp_path)
    found = c_code.run_sanitized(tmp_path / "model.c", codes, np.int8)
    np.testing.assert_array_equal(found, expected)
    many = one_operator("SOFTMAX", ("SoftmaxOptions", {"beta": 1.0}),
                        [Int8((1, 512), 0.5, 3)], Int8((1, 512), 1 / 256, -128))  # fmt: skip
    with pytest.raises(UnsupportedError, match="512 classes"):
        write(many, tmp_path)
