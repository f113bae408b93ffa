# SPDX-License-Identifier: Apache-2.0
"""Kernels of which scores keep some weights, and binary ones."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tfmot_atmc.kernels import (
    BinaryKernel,
    FactorizedKernel,
    MaskedKernel,
    PlainKernel,
    SeededKernel,
    score_mask,
    signs_from_seed,
)
from tfmot_atmc.math import allocate_budget

# Sizes of the kernels of ResNet-34 for 10 classes, and how many there are of each.
RESNET34 = {
    1728: 1,
    5120: 1,
    8192: 1,
    32768: 1,
    36864: 6,
    73728: 1,
    131072: 1,
    147456: 7,
    294912: 1,
    589824: 11,
    1179648: 1,
    2359296: 5,
}


@pytest.mark.parametrize(
    ("ratio", "exponent", "total", "expected"),
    [
        (
            0.5,
            0.1,
            10_632_544,
            (*list(RESNET34)[:9], 495_735, 531_315, 569_450),
        ),
        (
            0.2,
            0.9,
            4_253_017,
            (659, 1753, 2676, 9320, 10363, 19338, 32457, 36087, 67340, 125662, 234494, 437583),
        ),
    ],
)
def test_budgets_are_the_golden_ones_of_the_source(ratio, exponent, total, expected):
    sizes = [size for size, count in RESNET34.items() for _ in range(count)]
    assert int(ratio * sum(sizes)) == total
    budgets = allocate_budget(sizes, total, exponent)
    assert sum(budgets) == total  # what the source's rounding leaves over goes to the largest
    for size, wanted in zip(RESNET34, expected, strict=True):
        found = [b for s, b in zip(sizes, budgets, strict=True) if s == size]
        assert all(abs(budget - wanted) <= 1 for budget in found)


@given(
    scores=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=1, max_dims=3, max_side=5),
        elements=st.sampled_from([0.0, -0.0, 1e-40, -1e-40, 0.5, -0.5, 2.0, -3.0]).map(np.float32),
    ),
    kept=st.integers(1, 130),
)
@settings(max_examples=60, deadline=None)
def test_the_mask_keeps_an_exact_number_in_the_order_of_magnitude_and_place(scores, kept):
    size = np.abs(scores.ravel().astype(np.float64))
    size[size < np.finfo(np.float32).tiny] = 0
    wanted = np.zeros(size.shape)
    wanted[np.argsort(-size, kind="stable")[:kept]] = 1
    mask = score_mask(tf.constant(scores), kept).numpy()
    np.testing.assert_array_equal(mask.ravel(), wanted)
    assert mask.sum() == min(kept, scores.size)


def test_the_gradient_reaches_the_scores_straight_through_as_worked_out_by_hand():
    kernel = MaskedKernel(kept=2)
    weights = tf.constant([2.0, -1.0, 3.0, 5.0])
    scores = tf.Variable([-0.5, 0.1, 0.4, 0.0])
    upstream = tf.constant([1.0, 10.0, -1.0, 7.0])
    with tf.GradientTape() as tape:
        composed = kernel.compose({"W": weights, "S": scores})
        loss = tf.reduce_sum(upstream * composed)
    np.testing.assert_array_equal(composed, [2, 0, 3, 0])
    # sign(s) * w * upstream, also where the mask is 0; nothing where the score is 0
    np.testing.assert_array_equal(tape.gradient(loss, scores), [-2, -10, -3, 0])
    turned = kernel.compose({"W": weights, "S": -scores})
    np.testing.assert_array_equal(turned, composed)


def test_scores_start_as_magnitude_pruning_and_either_part_can_be_the_fixed_one():
    weights = np.float32([[0.5, -4.0], [1.0, 0.25], [-2.0, 0.0]])
    kernel = MaskedKernel(kept=3)
    start = kernel.initial_values(weights)
    np.testing.assert_allclose(start["S"], np.sqrt(6 / 3) * weights / 4, rtol=1e-6)
    np.testing.assert_array_equal(kernel.compose(start), [[0, -4], [1, 0], [-2, 0]])
    assert kernel.roles == {"W": "fixed", "S": "score"}
    tuning = MaskedKernel(kept=3, trained="weights")
    assert tuning.roles == {"W": "weight", "S": "fixed"}
    for one in (kernel, tuning):
        assert np.count_nonzero(one.counted(start)["W"]) == 3
        assert MaskedKernel.from_config(one.get_config()).roles == one.roles
    empty = kernel.initial_values(np.zeros((3, 2), np.float32))
    assert np.isfinite(empty["S"]).all()
    for bad in ({"kept": 0}, {"kept": 1.5}, {"kept": 2, "trained": "both"}):
        with pytest.raises(ValueError, match="kept|trained"):
            MaskedKernel(**bad)


def test_weights_come_from_the_seed_alone():
    kernel = SeededKernel(kept=5, seed=3, index=2)
    factors = kernel.initial_values(np.ones((3, 3, 1, 4), np.float32))
    assert {name: value.shape for name, value in factors.items()} == {"S": (3, 3, 1, 4), "F": ()}
    weights = kernel.weights((3, 3, 1, 4))
    assert set(np.unique(weights)) == {-1.0, 1.0}
    composed = kernel.compose(factors).numpy()
    assert np.count_nonzero(composed) == 5
    np.testing.assert_array_equal(composed[composed != 0], weights[composed != 0])
    again = SeededKernel.from_config(kernel.get_config())
    np.testing.assert_array_equal(again.compose(factors), composed)
    again.check(factors)
    for other in (kernel.but(seed=4), kernel.but(index=1), kernel.but(scale=0.5)):
        with pytest.raises(ValueError, match=r"other fixed weights than seed=.*Use the seed"):
            other.check(factors)
    # a constant magnitude, and scores no wider than asked for
    wide = SeededKernel(kept=5, scale=0.25, width=2.0, seed=3, index=2)
    np.testing.assert_array_equal(wide.weights((8,)), 0.25 * kernel.weights((8,)))
    scores = wide.initial_values(np.ones(1000, np.float32))["S"]
    assert np.abs(scores).max() <= 2 and np.abs(scores).max() > 1.9 and abs(scores.mean()) < 0.2
    for bad in ({"kept": 0}, {"kept": 1, "scale": 0}, {"kept": 1, "seed": -1}):
        with pytest.raises(ValueError, match="Received"):
            SeededKernel(**bad)


def test_the_stream_of_signs_is_that_of_philox_bit_by_bit():
    raw = np.random.Philox(np.random.SeedSequence([7, 1])).random_raw(2)
    bits = [(int(word) >> place) & 1 for word in raw for place in range(64)]
    np.testing.assert_array_equal(signs_from_seed(100, 7, 1), 2 * np.array(bits[:100]) - 1)
    assert abs(signs_from_seed(10_000, 0).mean()) < 0.03
    assert (signs_from_seed(64, 0, 0) != signs_from_seed(64, 0, 1)).any()


def test_binary_kernels_use_signs_and_train_what_is_behind_them():
    weights = tf.Variable([[-0.3, 0.0], [2.0, -1.0]])
    kernel = BinaryKernel()
    with tf.GradientTape() as tape:
        composed = kernel.compose({"latent": weights})
        loss = tf.reduce_sum(composed * [[1.0, 2.0], [3.0, 4.0]])
    np.testing.assert_array_equal(composed, [[-1, 1], [1, -1]])
    np.testing.assert_array_equal(tape.gradient(loss, weights), [[1, 2], [3, 4]])
    pruned = BinaryKernel(PlainKernel(), zeros=True)
    np.testing.assert_array_equal(pruned.compose({"latent": weights}), [[-1, 0], [1, -1]])
    masked = BinaryKernel(MaskedKernel(kept=2))
    factors = masked.initial_values(weights.numpy())
    np.testing.assert_array_equal(masked.compose(factors), [[0, 0], [1, -1]])
    assert masked.roles == {"latent": "fixed", "S": "score"}
    again = BinaryKernel.from_config(masked.get_config())
    np.testing.assert_array_equal(again.compose(factors), masked.compose(factors))
    with pytest.raises(ValueError, match="PlainKernel or a MaskedKernel"):
        BinaryKernel(FactorizedKernel())
