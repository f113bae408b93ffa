# SPDX-License-Identifier: Apache-2.0
"""Flying Bird and BCS, whose connections move, and HARP, which learns how many each layer keeps."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_training import ATTACK, DATA, X, Y, fitted, network

from tfmot_atmc import compress, methods, strip_compression
from tfmot_atmc.constraints import Factor, MovingSupport, RateTarget, Rewiring
from tfmot_atmc.constraints.base import Moment
from tfmot_atmc.kernels import RatedKernel, Site
from tfmot_atmc.math import allocate_by_inverse
from tfmot_atmc.recipes import run_stages

# Kernels of a ResNet-34 for ten classes: sizes, and how many there are.
RESNET34 = {1728: 1, 5120: 1, 8192: 1, 32768: 1, 36864: 6, 73728: 1, 131072: 1, 147456: 7}
RESNET34 |= {294912: 1, 589824: 11, 1179648: 1, 2359296: 5}


def added(**arguments):
    initializer = arguments.pop("initializer")
    return keras.Variable(initializer, **arguments)


def at(step, horizon):
    return Moment(tf.constant(step, tf.int32), tf.constant(horizon, tf.int32))


def opened(constraint):
    return [int(np.count_nonzero(mask.numpy())) for mask in constraint._masks]


def test_budgets_by_inverse_are_the_published_ones_and_add_up_exactly():
    sizes = [size for size, count in RESNET34.items() for _ in range(count)]
    assert sum(sizes) == 21_265_088
    found = dict(zip(sizes, allocate_by_inverse(sizes, 212_650), strict=True))
    golden = {1728: 1357.2, 5120: 2829.7, 8192: 3569.5, 36864: 5399.3, 2359296: 6308.9}
    for size, kept in golden.items():
        assert abs(found[size] - kept) <= 1.0
    assert sum(allocate_by_inverse(sizes, 212_650)) == 212_650
    assert allocate_by_inverse([3, 3], 6) == [3, 3] == allocate_by_inverse([3, 3], 9)
    with pytest.raises(ValueError, match="at least the number of layers"):
        allocate_by_inverse([5, 5, 5], 2)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=8), st.floats(0.001, 1.0))
@settings(deadline=None, max_examples=60)
def test_budgets_by_inverse_are_exact_within_layers_and_grow_with_size(sizes, share):
    k = max(len(sizes), int(share * sum(sizes)))
    found = allocate_by_inverse(sizes, k)
    assert sum(found) == k
    assert all(1 <= budget <= size for budget, size in zip(found, sizes, strict=True))
    ordered = sorted(zip(sizes, found, strict=True))
    assert all(b - a >= -1 for (_, a), (_, b) in zip(ordered, ordered[1:], strict=False))


def moving(values, **arguments):
    factors = [
        Factor(f"{i}:W", "W", keras.Variable(np.float32(value))) for i, value in enumerate(values)
    ]
    constraint = MovingSupport(**arguments)
    constraint.build(factors, sum(factor.size for factor in factors), added)
    return constraint, factors


def test_an_event_drops_the_smallest_weights_and_opens_as_many_at_zero():
    constraint, (factor,) = moving([np.arange(1.0, 41.0)], k=8, interval=10)
    mask = constraint._masks[0].numpy()
    np.testing.assert_array_equal(factor.variable != 0, mask)
    held = np.sort(factor.variable.numpy()[mask])
    constraint.project(at(9, 100), None)
    np.testing.assert_array_equal(constraint._masks[0], mask)  # no event
    constraint.project(at(10, 100), None)
    after = constraint._masks[0].numpy()
    # d = .005 + .495 (1 + cos(.1 pi)) / 2 = .4879: 4 of 8 go, the 4 largest stay.
    assert np.count_nonzero(after) == 8
    np.testing.assert_array_equal(np.sort(factor.variable.numpy())[-4:], held[4:])
    assert np.count_nonzero(factor.variable) == 4
    constraint.project(at(100, 100), None)  # in the second half an interval is 13 steps
    np.testing.assert_array_equal(constraint._masks[0], after)
    constraint.project(at(91, 100), None)
    assert np.count_nonzero(constraint._masks[0]) == 8
    assert constraint.violation([np.ones(40)]) is not None


def test_overfitting_shrinks_or_refills_the_adaptive_kind_and_never_beyond_its_budget():
    def after(gaps, losses, step=80):
        constraint, _ = moving([np.arange(1.0, 101.0)], k=40, interval=10, adaptive=True)
        for gap, loss in zip(gaps, losses, strict=True):
            logs = {"robust_accuracy": 0.5 + gap, "val_robust_accuracy": 0.5}
            constraint.epoch_ended({**logs, "val_robust_loss": loss})
        constraint.project(at(step // 13 * 13, 100), None)
        return opened(constraint)[0]

    falling, rising = [5, 4, 3, 2, 1], [1, 2, 3, 4, 5]
    assert after(falling, falling) == 40
    assert after(rising, falling) < 40  # d = .0608 at step 78: 3 go and come back, 1 more goes
    assert after(rising, falling) == 39
    assert after(falling, rising) == 40  # 5% more than dropped would exceed the budget
    assert after(rising[:4], falling[:4]) == 40  # four differences need five epochs
    assert after(rising, falling, step=39) == 40  # in the first half it does not look
    constraint, _ = moving([np.ones(9)], k=3, adaptive=True)
    with pytest.raises(ValueError, match="val_robust_accuracy, val_robust_loss"):
        constraint.epoch_ended({"loss": 1.0, "robust_accuracy": 0.3})


def test_flying_bird_keeps_its_counts_at_every_step_and_forgets_closed_momentum(tmp_path):
    start = network()
    model = compress(start, methods.FlyingBird(ratio=0.25, interval=2), attack=ATTACK)
    budgets = allocate_by_inverse([36, 192], 57)
    assert opened(model.constraints[0]) == budgets
    first = [mask.numpy() for mask in model.constraints[0]._masks]
    counts = fitted(model, epochs=4)
    assert all(now <= most for row in counts for now, most in zip(row, budgets, strict=True))
    assert opened(model.constraints[0]) == budgets
    assert any(
        (a != b.numpy()).any() for a, b in zip(first, model.constraints[0]._masks, strict=True)
    )
    for kernel, mask in zip(model.kernels, model.constraints[0]._masks, strict=True):
        place = [v is kernel.variables["W"] for v in model.optimizer._trainable_variables]
        momentum = model.optimizer.momentums[place.index(True)].numpy()
        assert (momentum[~mask.numpy()] == 0).all() and (momentum != 0).any()
        assert (kernel.compose().numpy()[~mask.numpy()] == 0).all()
    plain = strip_compression(model)
    outputs = model.predict(X, verbose=0)
    np.testing.assert_allclose(plain.predict(X, verbose=0), outputs, atol=1e-5)
    model.save(tmp_path / "bird.keras")
    again = keras.saving.load_model(tmp_path / "bird.keras")
    np.testing.assert_array_equal(again.predict(X, verbose=0), outputs)
    with pytest.raises(ValueError, match="leaves some of the 2 layers"):
        compress(network(), methods.FlyingBird(k=1))


def test_the_adaptive_bird_needs_validation_and_resumes_to_the_same_weights(tmp_path):
    model = compress(network(), "flying_bird_plus", ratio=0.25, attack=ATTACK)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss)
    with pytest.raises(ValueError, match="Give `validation_data`"):
        model.fit(X[:32], Y[:32], batch_size=16, epochs=1, verbose=0)
    method = methods.FlyingBirdPlus(ratio=0.25, interval=1)
    common = {"attack": ATTACK, "verbose": 0}
    whole = run_stages(network(), method.stages(6), DATA, out_dir=tmp_path / "a", **common)
    again = run_stages(network(), method.stages(6), DATA, out_dir=tmp_path / "b", **common)
    for one, two in zip(whole.kernels, again.kernels, strict=True):
        np.testing.assert_array_equal(one.compose(), two.compose())
    assert int(whole.constraints[0]._seen.numpy()) == 6


def test_rewiring_replaces_dead_connections_exactly_and_keeps_every_sign():
    rng = np.random.default_rng(0)
    start = [rng.normal(size=(4, 5)), rng.normal(size=(5, 30)), rng.normal(size=(30, 3))]
    factors = [Factor(f"{i}:W", "W", keras.Variable(np.float32(v))) for i, v in enumerate(start)]
    constraint = Rewiring(k=60, noise=0.0)
    constraint.build(factors, 260, added)
    # 0.6 of 20, half of 60/260 of 150, 0.6 of 90: 12, 17.3 and 54, scaled to 60 together.
    assert opened(constraint) == [8, 12, 38]
    live = factors[0].variable.numpy() != 0
    changed = np.where(live, -np.sign(start[0]) * 0.3, 0.0)  # all of the first layer cross zero
    factors[0].variable.assign(changed)
    before = [factor.variable.numpy() for factor in factors]
    constraint.project(at(0, 0), None)
    assert sum(opened(constraint)) == 60
    for i, factor in enumerate(factors):
        value = factor.variable.numpy()
        np.testing.assert_array_equal(np.sign(value), np.sign(start[i]) * (value != 0))
        if i:
            held = before[i] != 0
            np.testing.assert_array_equal(value[held], before[i][held])
            np.testing.assert_allclose(np.abs(value[~held & (value != 0)]), 1e-12)
    assert (np.abs(factors[0].variable.numpy()) <= 1e-12).all()


def test_bcs_has_its_budget_after_every_step_and_its_files_agree(tmp_path):
    start = network()
    signs = [start.get_layer(name).kernel.numpy() >= 0 for name in ("conv", "head")]
    model = compress(start, methods.BCS(ratio=0.25), attack=ATTACK)
    assert all(sum(row) == 57 for row in fitted(model))
    for kernel, positive in zip(model.kernels, signs, strict=True):
        value = kernel.compose().numpy()
        assert ((value > 0) == (positive & (value != 0))).all()
    outputs = model.predict(X, verbose=0)
    np.testing.assert_allclose(strip_compression(model).predict(X, verbose=0), outputs, atol=1e-5)
    model.save(tmp_path / "bcs.keras")
    again = keras.saving.load_model(tmp_path / "bcs.keras")
    np.testing.assert_array_equal(again.predict(X, verbose=0), outputs)
    clone = methods.BCS.from_config(methods.BCS(k=9, noise=0.1).get_config())
    assert (clone.k, clone.noise) == (9, 0.1)
    with pytest.raises(ValueError, match="`noise`"):
        methods.BCS(k=9, noise=-1.0)


def test_a_rated_kernel_uses_as_many_weights_as_its_rate_says_and_passes_both_gradients():
    kernel = RatedKernel(least=0.1, start=0.5)
    weights = np.float32([[1.0, -2.0], [0.5, 3.0]])
    factors = {name: tf.Variable(v) for name, v in kernel.initial_values(weights).items()}
    with tf.GradientTape() as tape:
        composed = kernel.compose(factors)
        loss = tf.reduce_sum(composed * tf.constant([[1.0, 2.0], [3.0, 4.0]]))
    np.testing.assert_array_equal(composed, [[0, -2], [0, 3]])
    scores, rate = tape.gradient(loss, [factors["S"], factors["R"]])
    mask_gradient = np.float32([[1, -4], [1.5, 12]])
    np.testing.assert_allclose(scores, mask_gradient * np.sign(weights), rtol=1e-5)
    inside = 0.4 / 0.9  # of the sigmoid: d rate / d R = 0.9 s (1 - s)
    np.testing.assert_allclose(rate, 10.5 * 0.9 * inside * (1 - inside), rtol=1e-5)
    for bad in ({"least": 0.0, "start": 0.5}, {"least": 0.2, "start": 0.1}):
        with pytest.raises(ValueError, match="`least` and `start`"):
            RatedKernel(**bad)


@given(st.lists(st.integers(5, 3000), min_size=1, max_size=6), st.floats(0.01, 0.9), st.data())
@settings(deadline=None, max_examples=40)
def test_rates_are_shifted_to_exactly_the_budget(sizes, ratio, data):
    raws = [np.float32(data.draw(st.floats(-6, 6))) for _ in sizes]
    factors = [
        Factor(f"{i}:R", "R", keras.Variable(raw), site=Site(f"{i}", f"{i}", "Dense", (n, 1)))
        for i, (raw, n) in enumerate(zip(raws, sizes, strict=True))
    ]
    k = max(len(sizes), int(ratio * sum(sizes)))
    constraint = RateTarget(k=k)
    constraint.build(factors, sum(sizes), added)
    found = constraint.finalized(raws)
    assert constraint.violation(found) is None
    counts = constraint._counts([tf.constant(v) for v in found]).numpy()
    assert counts.sum() == k and (counts >= 1).all() and (counts <= sizes).all()
    again = constraint.finalized(found)
    np.testing.assert_array_equal(constraint._counts([tf.constant(v) for v in again]), counts)


def test_harp_learns_rates_with_scores_and_then_trains_weights_under_its_mask(tmp_path):
    method = methods.HARP(ratio=0.2)
    assert [(s.name, s.epochs) for s in method.stages(2)] == [("scores", 1), ("weights", 2)]
    start = network()
    dense = [start.get_layer(name).kernel.numpy() for name in ("conv", "head")]
    common = {"attack": ATTACK, "verbose": 0, "out_dir": tmp_path}
    scored = run_stages(start, method.stages(2)[:1], DATA, **common)
    assert {v.name for v in scored.trainable_variables} == {
        "beta",
        "gamma",
        "kernel_S",
        "kernel_R",
    }
    for kernel, weights in zip(scored.kernels, dense, strict=True):
        np.testing.assert_array_equal(kernel.variables["W"], weights)
    counts = [np.count_nonzero(k.compose()) for k in scored.kernels]
    assert sum(counts) == 45 == scored.compression_report().nonzeros
    tuned = run_stages(start, method.stages(2), DATA, **common)
    for one, two in zip(scored.kernels, tuned.kernels, strict=True):
        np.testing.assert_array_equal(one.compose().numpy() != 0, two.compose().numpy() != 0)
        assert (one.compose().numpy() != two.compose().numpy()).any()
    outputs = tuned.predict(X, verbose=0)
    np.testing.assert_allclose(strip_compression(tuned).predict(X, verbose=0), outputs, atol=1e-5)
    again = keras.saving.load_model(tmp_path / "weights.keras")
    np.testing.assert_array_equal(again.predict(X, verbose=0), outputs)


def test_the_penalty_on_rates_is_what_is_used_beyond_the_budget_and_drives_it_down():
    model = compress(network(), methods.HARP(ratio=0.05, gamma=5.0), attack=ATTACK)
    constraint = model.constraints[0]
    # Both layers start with a tenth: 22.8 of 228 for a budget of 11.
    np.testing.assert_allclose(constraint.penalty(at(0, 100)), 5 * (22.8 / 11 - 1), rtol=1e-4)
    np.testing.assert_allclose(constraint.penalty(at(50, 100)), 50 * (22.8 / 11 - 1), rtol=1e-4)
    before = constraint.scalars()["used_weights"]
    rows = fitted(model, epochs=3, rate=0.02)
    assert before == 23 and sum(rows[-1]) < before
    assert sum(np.count_nonzero(k.compose()) for k in model.kernels) == 11
    with pytest.raises(ValueError, match="`gamma` must be at least 0"):
        methods.HARP(ratio=0.05, gamma=-1.0)
