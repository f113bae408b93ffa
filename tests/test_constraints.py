# SPDX-License-Identifier: Apache-2.0
"""Budgets, their schedules, growth and codebooks, on variables without any model."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmot_atmc.constraints import (
    Codebook,
    ConstantBudget,
    CubicBudget,
    Factor,
    GlobalSparsity,
    GradientGrowth,
    PruningScheduleBudget,
    get_schedule,
)
from tfmot_atmc.constraints.base import Moment
from tfmot_atmc.constraints.sparsity import exact_budget


def _moment(step, horizon=100, compiled=False):
    return Moment(tf.constant(step), tf.constant(horizon), compiled)


def _factors(**values):
    return [
        Factor(name, name[0], keras.Variable(np.float32(value)), name[0] != "C")
        for name, value in values.items()
    ]


def _add_weight(name, shape, dtype="float32", initializer="zeros"):
    return keras.Variable(initializer, shape=shape, dtype=dtype, name=name)


def _built(constraint, factors, dense_size=10):
    constraint.build(factors, dense_size, _add_weight)
    return constraint


def _values(factors):
    return [f.variable.numpy() for f in factors]


def _budgets(schedule, steps, k, total, horizon=100):
    current = tf.constant(total)
    return [int(schedule.budget(_moment(s, horizon), k, total, current)) for s in steps]


# --- budgets and schedules ------------------------------------------------------------------------


def test_budget_is_global_and_exact_with_ties():
    factors = _factors(V=[[1, -1], [1, 1]], C=[1, -3, 0, 1])
    sparsity = _built(GlobalSparsity(k=4), factors)
    sparsity.project(_moment(0), None)
    v, c = _values(factors)
    # -3 first, then of the ties of magnitude 1 those with the lower flat index.
    np.testing.assert_array_equal(v, [[1, -1], [1, 0]])
    np.testing.assert_array_equal(c, [0, -3, 0, 0])
    assert sparsity.violation(_values(factors)) is None
    assert sparsity.violation([np.ones(5)]) == "5 nonzeros, budget 4"
    assert sparsity.scalars() == {"budget": 4.0}


def test_budget_of_a_ratio_is_free_of_binary_rounding():
    assert exact_budget(0.1, 30) == 3
    assert exact_budget(0.29, 100) == 29  # int(0.29 * 100) is 28
    assert exact_budget(1.0, 7) == 7
    factors = _factors(V=np.arange(1, 31))
    sparsity = _built(GlobalSparsity(ratio=0.1), factors, dense_size=30)
    sparsity.project(_moment(0), None)
    assert sparsity.budget == 3 and np.count_nonzero(_values(factors)[0]) == 3


def test_cubic_budget_follows_the_hand_computed_cubic():
    # From 0.25 * 1000 = 250 to 10 between the steps 0 and 50: 10 + 240 (1 - q)^3.
    schedule = CubicBudget(0.25, begin=0, end=0.5)
    assert _budgets(schedule, [0, 25, 40, 49, 50, 99], 10, 1000) == [250, 40, 11, 10, 10, 10]
    # Before it begins nothing is pruned, and a budget above the first value is never exceeded.
    later = CubicBudget(0.25, begin=10, end=20)
    assert _budgets(later, [9, 10, 15, 20], 10, 1000) == [1000, 250, 40, 10]
    assert _budgets(CubicBudget(0.25, 0, 10), [0, 5], 400, 1000) == [400, 400]
    assert schedule.needs_horizon and not later.needs_horizon


def test_constant_budget_begins_when_told():
    assert _budgets(ConstantBudget(), [0, 1], 10, 1000) == [10, 10]
    assert _budgets(ConstantBudget(0.3), [29, 30], 10, 1000) == [1000, 10]
    assert not ConstantBudget(3).needs_horizon and ConstantBudget(0.3).needs_horizon


def test_tfmot_schedules_are_read_as_budgets():
    tfmot = pytest.importorskip("tensorflow_model_optimization").sparsity.keras
    constant = tfmot.ConstantSparsity(0.75, begin_step=4, end_step=-1, frequency=2)
    schedule = get_schedule(constant)
    assert isinstance(schedule, PruningScheduleBudget) and schedule.final_ratio == 0.25
    # Off its own pruning steps the last budget stays: here the total.
    assert _budgets(schedule, [3, 4, 5, 6], 10, 40) == [40, 10, 40, 10]
    decay = tfmot.PolynomialDecay(0.5, 0.9, begin_step=0, end_step=10, power=1, frequency=1)
    assert _budgets(get_schedule(decay), [0, 5, 10, 11], 10, 100) == [50, 30, 10, 100]
    config = get_schedule(decay).get_config()
    again = PruningScheduleBudget.from_config(config)
    assert again.get_config() == config
    sparsity = GlobalSparsity(schedule=decay)
    assert _built(sparsity, _factors(V=np.arange(100)), 100).budget == 10
    with pytest.raises(ValueError, match="exactly one budget"):
        GlobalSparsity(ratio=0.1, schedule=decay)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: GlobalSparsity(), "exactly one budget"),
        (lambda: GlobalSparsity(ratio=0.1, k=3), "exactly one budget"),
        (lambda: GlobalSparsity(ratio=0), r"\(0, 1\]"),
        (lambda: GlobalSparsity(ratio=1.5), r"\(0, 1\]"),
        (lambda: GlobalSparsity(k=-1), "whole number"),
        (lambda: GlobalSparsity(k=2.5), "whole number"),
        (lambda: CubicBudget(0.0), "initial_ratio"),
        (lambda: CubicBudget(begin=0.8, end=0.5), "must not lie before"),
        (lambda: ConstantBudget(-1), "begin"),
        (lambda: ConstantBudget(1.5), "begin"),
        (lambda: GradientGrowth(fraction=1.0), "fraction"),
        (lambda: GradientGrowth(interval=0), "interval"),
        (lambda: get_schedule("linear"), "cubic"),
        (lambda: Codebook(bits=0), "1..16"),
        (lambda: Codebook(bits=17), "1..16"),
        (lambda: Codebook(bits=2.0), "whole number"),
        (lambda: Codebook(algorithm="kmeans"), "admm"),
        (lambda: Codebook(rho=-1), "rho"),
        (lambda: Codebook(interval=0), "interval"),
        (lambda: Codebook(grid=0), "grid"),
    ],
)
def test_values_out_of_range_are_refused_at_once(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_object_that_is_no_schedule_is_refused():
    with pytest.raises(TypeError, match="final_sparsity"):
        get_schedule(3)


# --- growth -----------------------------------------------------------------------------


def test_growth_moves_the_support_keeps_the_budget_and_stays_out_of_c():
    growth = GradientGrowth(fraction=0.5, interval=2, begin=0, end=8)
    factors = _factors(V=[4, 3, 2, 1, 0, 0], C=[0, 0, 0, 0, 0, 0])
    sparsity = _built(GlobalSparsity(k=4, growth=growth), factors, 6)
    gradients = [tf.constant([0, 0, 0, 0, 1.0, 2.0]), tf.constant([9.0] * 6)]
    sparsity.project(_moment(0), gradients)
    np.testing.assert_array_equal(_values(factors)[0] != 0, [1, 1, 1, 1, 0, 0])
    # An event at step 2: 0.5 * (8 - 2) / 8 * 4 = 1.5, so one entry is dropped and one opened.
    sparsity.project(_moment(2), gradients)
    masks = [mask.numpy() for mask in sparsity._masks]
    np.testing.assert_array_equal(masks[0], [1, 1, 1, 0, 0, 1])
    assert not masks[1].any()
    factors[0].variable.assign([4, 3, 2, 7, 7, 0.5])
    factors[1].variable.assign([8] * 6)
    # Between events the support is fixed whatever the magnitudes.
    sparsity.project(_moment(3), gradients)
    np.testing.assert_array_equal(_values(factors)[0], [4, 3, 2, 0, 0, 0.5])
    assert np.count_nonzero(_values(factors)[1]) == 0
    with pytest.raises(ValueError, match="gradients"):
        sparsity.project(_moment(3), None)


@pytest.mark.parametrize("compiled", [False, True])
def test_growth_never_leaves_the_budget(compiled):
    rng = np.random.default_rng(0)
    factors = _factors(V=rng.normal(size=40), U=np.zeros((4, 4)), C=np.zeros(40))
    growth = GradientGrowth(fraction=0.3, interval=3, begin=0.1, end=0.9)
    sparsity = _built(GlobalSparsity(k=12, growth=growth), factors, 40)
    supports = set()
    for step in range(40):
        gradients = [tf.constant(rng.normal(size=f.variable.shape), tf.float32) for f in factors]
        sparsity.project(_moment(step, 40, compiled), gradients)
        assert sum(np.count_nonzero(v) for v in _values(factors)) <= 12
        supports.add(b"".join((v != 0).tobytes() for v in _values(factors)))
        for factor, gradient in zip(factors, gradients, strict=True):
            factor.variable.assign(factor.variable - 0.01 * gradient)
    assert len(supports) > 3
    assert sparsity._masks[1].numpy().any() and np.count_nonzero(_values(factors)[1])


# --- codebooks --------------------------------------------------------------------------


def test_admm_duals_follow_the_paper_over_three_updates():
    theta = np.array([1.0, 0.9, 0.1, -0.1, 0.0])
    factors = _factors(V=theta)
    book = _built(Codebook(1, "admm", begin=0, rho=0.5, interval=2), factors)
    assert float(book.penalty(_moment(0))) == 0.0
    u = np.zeros(5)
    for number in range(1, 4):
        for step in (2 * number - 1, 2 * number):
            book.after_projection(_moment(step))
        duplicate = _two_centres(theta + u)
        u = u + theta - duplicate
        state = book._states[0]
        np.testing.assert_allclose(state.duplicate.numpy(), duplicate, atol=1e-5)
        np.testing.assert_allclose(state.dual.numpy(), u, atol=1e-5)
        expected = 0.25 * np.sum((theta - duplicate + u) ** 2)
        np.testing.assert_allclose(book.penalty(_moment(0)), expected, rtol=1e-4)
        assert np.unique(duplicate[duplicate != 0]).size <= 2
        theta = theta + np.array([0.05, -0.02, 0.03, 0.0, -0.01])
        factors[0].variable.assign(theta)
    residual = np.linalg.norm(theta - book._states[0].duplicate.numpy())
    np.testing.assert_allclose(book.scalars()["admm_residual"], residual, rtol=1e-5)


def _two_centres(values):
    """ZeroKmeans with two free centres, by exhaustive assignment in float64."""
    best, found = np.inf, None
    for code in np.ndindex(*(3,) * values.size):
        code = np.array(code)
        made = np.zeros_like(values)
        for centre in (1, 2):
            if (code == centre).any():
                made[code == centre] = values[code == centre].mean()
        error = np.sum((values - made) ** 2)
        if error < best - 1e-12:
            best, found = error, made
    return found


@pytest.mark.parametrize("compiled", [False, True])
def test_shared_values_move_together_by_their_mean(compiled):
    factors = _factors(V=[1.0, 1.2, 0.0, -2.0, -2.2, 0.0])
    book = _built(Codebook(1, "shared", begin=3), factors)
    book.project(_moment(2, compiled=compiled), None)
    book.after_projection(_moment(2, compiled=compiled))
    np.testing.assert_allclose(_values(factors)[0], [1.0, 1.2, 0, -2.0, -2.2, 0])
    book.after_projection(_moment(3, compiled=compiled))
    np.testing.assert_allclose(_values(factors)[0], [1.1, 1.1, 0, -2.1, -2.1, 0], rtol=1e-6)
    factors[0].variable.assign([2.0, 3.0, 9.0, -1.0, -2.0, 9.0])
    book.project(_moment(4, compiled=compiled), None)
    np.testing.assert_allclose(_values(factors)[0], [2.5, 2.5, 0, -1.5, -1.5, 0], rtol=1e-6)
    assert book.violation(_values(factors)) is None
    np.testing.assert_allclose(np.sort(book.codebooks()["V"]), [-1.5, 2.5], rtol=1e-6)


@pytest.mark.parametrize("algorithm", ["shared", "admm"])
@pytest.mark.parametrize("grid", [None, 127])
def test_both_constraints_hold_at_once_at_any_moment(algorithm, grid):
    rng = np.random.default_rng(3)
    factors = _factors(V=rng.normal(size=(20, 6)), U=rng.normal(size=(6, 6)), C=np.zeros((20, 6)))
    book = _built(Codebook(2, algorithm, begin=2, interval=2, grid=grid), factors, 120)
    sparsity = _built(GlobalSparsity(k=30, schedule=CubicBudget(0.9, 0, 8)), factors, 120)
    for step in range(7):  # stops before the schedule ends: an interruption
        for constraint in (book, sparsity):
            constraint.project(_moment(step), None)
        for constraint in (book, sparsity):
            constraint.after_projection(_moment(step))
        final = book.finalized(sparsity.finalized(_values(factors)))
        assert sparsity.violation(final) is None and book.violation(final) is None
        assert sum(np.count_nonzero(v) for v in final) == 30
        for value in final:
            assert np.unique(value[value != 0]).size <= 4
            if grid and value.any():
                scales = np.abs(value[value != 0]).max() / np.arange(127, 0, -1)
                ratio = value[value != 0][None] / scales[:, None]
                assert np.abs(ratio - np.round(ratio)).max(axis=1).min() < 1e-4
        for factor in factors:
            noise = rng.normal(size=factor.variable.shape) * 0.1
            factor.variable.assign(factor.variable + np.float32(noise))


def test_violation_names_the_factor_and_adopted_values_stay():
    factors = _factors(V=[1.0, 2.0, 3.0, 0.0])
    book = _built(Codebook(1, "shared", begin=5), factors)
    assert book.violation(_values(factors)) == "V has 3 distinct values, at most 2"
    final = book.finalized(_values(factors))
    np.testing.assert_allclose(np.sort(final[0]), [0, 1, 2.5, 2.5])
    factors[0].variable.assign(final[0])
    book.adopt(final)
    book.project(_moment(0), None)
    np.testing.assert_array_equal(_values(factors)[0], final[0])


def test_constraints_and_schedules_survive_their_configs():
    for thing in (
        GlobalSparsity(ratio=0.1, schedule=CubicBudget(0.3, 2, 9), growth=GradientGrowth(0.1)),
        GlobalSparsity(k=5),
        Codebook(4, "admm", 0.5, 0.2, 3, 127),
        ConstantBudget(0.25),
        GradientGrowth(0.3, 7, 1, 9),
    ):
        serialized = keras.saving.serialize_keras_object(thing)
        again = keras.saving.deserialize_keras_object(serialized)
        assert type(again) is type(thing)
        assert keras.saving.serialize_keras_object(again) == serialized
        assert repr(again) == repr(thing)
