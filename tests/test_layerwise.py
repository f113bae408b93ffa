# SPDX-License-Identifier: Apache-2.0
"""One budget of nonzeros shared out among layers."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfmot_atmc import compress, methods, strip_compression
from tfmot_atmc.constraints import CubicBudget, Factor, GradientGrowth, LayerwiseSparsity
from tfmot_atmc.constraints.base import Moment
from tfmot_atmc.math import allocate_budget

# Kernels of a ResNet-34 for 10 classes: how many weights, in how many layers.
RESNET34 = {
    1_728: 1,
    5_120: 1,
    8_192: 1,
    32_768: 1,
    36_864: 6,
    73_728: 1,
    131_072: 1,
    147_456: 7,
    294_912: 1,
    589_824: 11,
    1_179_648: 1,
    2_359_296: 5,
}


@pytest.mark.parametrize(
    ("ratio", "exponent", "expected"),
    [
        (0.01, 0.1, (1728, 3965, 4156, 4774, 4831, 5178, 5485, 5550, 5948, 6375, 6833, 7325)),
        (0.01, 0.0, (1728, 5120, *[5880] * 9, 5881)),
        (0.01, 0.5, (390, 672, 851, 1702, 1805, 2553, 3404, 3610, 5106, 7222, 10213, 14445)),
        (0.01, 1.0, (17, 51, 81, 327, 368, 737, 1310, 1474, 2949, 5898, 11797, 23596)),
    ],
)
def test_budgets_of_a_resnet34_are_those_of_the_source(ratio, exponent, expected):
    sizes = [size for size, count in RESNET34.items() for _ in range(count)]
    total = int(ratio * sum(sizes))
    budgets = allocate_budget(sizes, total, exponent)
    assert sum(budgets) == total == 212_650
    for size, wanted in zip(RESNET34, expected, strict=True):
        found = [b for s, b in zip(sizes, budgets, strict=True) if s == size]
        assert all(abs(budget - wanted) <= 1 for budget in found)


@given(
    sizes=st.lists(st.integers(1, 10_000), min_size=1, max_size=12),
    part=st.floats(0, 1.2),
    exponent=st.floats(0, 1),
)
@settings(max_examples=200, deadline=None)
def test_budgets_add_up_fit_and_leave_no_layer_empty(sizes, part, exponent):
    k = int(part * sum(sizes))
    budgets = allocate_budget(sizes, k, exponent)
    assert sum(budgets) == min(k, sum(sizes))
    assert all(0 <= budget <= size for budget, size in zip(budgets, sizes, strict=True))
    assert min(budgets) >= 1 or k < len(sizes)
    order = np.argsort(sizes, kind="stable")
    assert (np.diff(np.asarray(budgets)[order]) >= -1).all()


def test_each_layer_keeps_its_own_largest_and_the_schedule_closes_in():
    def factor(name, values):
        return Factor(name, name[-1], keras.Variable(np.float32(values)), True)

    def add_weight(name, shape, dtype="float32", initializer="zeros"):
        return keras.Variable(initializer, shape=shape, dtype=dtype, name=name)

    first, mixing = factor("a:V", [9, 8, 7, 6]), factor("a:U", [0.5, 0.1])
    second = factor("b:V", [0.4, -0.3, 0.2, 0.1, 0.05, 0.01, 0.02, 0.03])
    constraint = LayerwiseSparsity(k=4, exponent=0.0, schedule=CubicBudget(1.0, 0, 2))
    constraint.build([first, mixing, second], 12, add_weight)
    assert constraint.deploy([f.read() for f in (first, mixing, second)])[0].numpy().sum() == 17
    for step in range(3):
        constraint.project(Moment(tf.constant(step), tf.constant(2)), None)
    np.testing.assert_allclose(first.read(), [9, 8, 0, 0])
    np.testing.assert_allclose(mixing.read(), [0, 0])
    np.testing.assert_allclose(second.read(), [0.4, -0.3, 0, 0, 0, 0, 0, 0])
    values = [f.variable.numpy() for f in (first, mixing, second)]
    assert constraint.violation(values) is None
    values[1] = np.ones(2, np.float32)
    assert constraint.violation(values) == "4 nonzeros in a, budget 2"
    assert [np.count_nonzero(v) for v in constraint.finalized(values)] == [2, 0, 2]


@pytest.mark.parametrize("method", [methods.AL0, methods.ATMC, methods.AP])
def test_methods_take_a_budget_for_each_layer(method, tmp_path):
    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(16), keras.layers.Dense(4, name="last")]
    )
    at_once = {} if method is methods.AP else {"schedule": "constant"}
    small = compress(model, method(k=40, layer_exponent=0.0, **at_once))
    small.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    rng = np.random.default_rng(0)
    small.fit(rng.normal(size=(32, 8)), rng.integers(0, 4, 32), epochs=2, verbose=0)
    small.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert again.method.layer_exponent == 0.0
    for kernels in (small.kernels, again.kernels):
        counts = [
            sum(int(np.count_nonzero(f.variable)) for f in kernel.factors) for kernel in kernels
        ]
        assert counts == [20, 20]
    assert np.count_nonzero(strip_compression(again).layers[-1].kernel) <= 20 * 4


def test_impossible_allocations_are_refused():
    with pytest.raises(ValueError, match=r"`exponent` must lie in \[0, 1\]. Received 1.5"):
        methods.ATMC(ratio=0.1, layer_exponent=1.5)
    with pytest.raises(ValueError, match=r"`exponent` must lie in \[0, 1\]. Received -1"):
        methods.NAP(ratio=0.1, layer_exponent=-1)
    with pytest.raises(ValueError, match="either `growth` or `layer_exponent`"):
        methods.AL0(ratio=0.1, layer_exponent=0.1, growth=GradientGrowth())
    with pytest.raises(ValueError, match="each size at least 1"):
        allocate_budget([4, 0], 2, 0.5)


def test_pruning_in_one_shot_keeps_the_largest_weights_of_each_layer():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3), keras.layers.Dense(2)])
    first = np.array([[9.0, -8.0, 7.0], [1.0, 2.0, -3.0]], "float32")
    second = np.array([[0.1, -0.4], [0.3, 0.2], [-0.5, 0.0]], "float32")
    for layer, kernel in zip(model.layers, (first, second), strict=True):
        layer.set_weights([kernel, np.zeros(kernel.shape[1], "float32")])
    of_each = strip_compression(compress(model, methods.AP(k=4, layer_exponent=0.0)))
    kernels = [layer.kernel.numpy() for layer in of_each.layers]
    np.testing.assert_array_equal(kernels[0], [[9, -8, 0], [0, 0, 0]])
    np.testing.assert_array_equal(kernels[1], np.float32([[0, -0.4], [0, 0], [-0.5, 0]]))
    of_all = strip_compression(compress(model, methods.AP(k=4, floors=0)))
    np.testing.assert_array_equal(of_all.layers[0].kernel, [[9, -8, 7], [0, 0, -3]])
    assert not np.any(of_all.layers[1].kernel)
