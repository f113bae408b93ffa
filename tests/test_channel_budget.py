# SPDX-License-Identifier: Apache-2.0
"""Whole channels as groups of the projection, alone and before a budget of nonzeros."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import tfmot_atmc as atmc
from tests.residual import compiled, data, residual
from tests.test_in_train_pruning import NETWORKS, macs, network
from tfmot_atmc import methods
from tfmot_atmc.constraints import ChannelBudget, Codebook, FlooredSparsity
from tfmot_atmc.methods import AL0, ATMC


def channels_only(ratio, least=0.0):
    method = AL0(ratio=1.0, schedule="constant")
    method.channel_budgets = lambda: [ChannelBudget(ratio, "constant", least)]
    return method


def budget_of(model, ratio, least=0.0):
    small = atmc.compress(model, channels_only(ratio, least))
    return small, small.constraints[0]


def test_the_channels_worth_most_per_operation_are_kept_as_many_as_fit():
    small, budget = budget_of(residual(), 0.6)
    groups = budget._groups
    values = [factor.read() for factor in small._factors()]
    worth = groups.weight_squares(values).numpy() / groups.costs()
    order = np.argsort(-worth, kind="stable")
    assured = {max(space, key=lambda c: worth[c]) for space in groups.spaces}
    best = None
    for number in range(groups.count + 1):  # the longest beginning of the order that fits
        kept = np.isin(np.arange(groups.count), [*order[:number], *assured])
        if float(groups.macs(tf.constant(kept, tf.float32))) <= 0.6 * groups.total:
            best = kept
    np.testing.assert_array_equal(budget.kept(values, 0.6 * groups.total) > 0, best)
    assert 0 < best.sum() < groups.count


def test_the_worth_and_the_cost_of_a_channel_are_those_of_all_its_layers():
    small, budget = budget_of(residual(), 0.9)
    groups, kernels = budget._groups, {k.layer.name: k for k in small.kernels}
    number = int(kernels["stem"].site.channels.outputs[1])
    squares = {name: np.square(k.compose().numpy()) for name, k in kernels.items()}
    expected = squares["stem"][..., 1].sum() + squares["depth"][:, :, 1].sum()
    expected += squares["point"][..., 1, :].sum() + squares["point"][..., 1].sum()
    expected += squares["twice"][:, :, 1].sum()
    values = [factor.read() for factor in small._factors()]
    assert float(groups.weight_squares(values)[number]) == pytest.approx(expected, rel=1e-5)
    cost = 27 * 64 + 9 * 64 + 2 * 4 * 64 + 9 * 4 * 16
    assert groups.costs()[number] == pytest.approx(cost)


@settings(max_examples=6, deadline=None)
@given(NETWORKS, st.integers(0, 99), st.sampled_from([0.2, 0.5, 0.8]))
def test_the_budget_is_exact_on_any_network_and_removal_keeps_the_outputs(built, seed, ratio):
    keras.utils.set_random_seed(seed)
    model = network(*built)
    try:
        small, budget = budget_of(model, ratio)
    except ValueError as error:
        assert "allow more" in str(error)
        return
    values = [factor.numpy() for factor in (f.variable for f in small._factors())]
    final = budget.finalized(values)
    assert budget.violation(final) is None
    for one, other in zip(budget.finalized(final), final, strict=True):
        np.testing.assert_array_equal(one, other)  # once more changes nothing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = atmc.strip_compression(small)
    smaller = atmc.slim_model(plain)
    assert macs(smaller) <= ratio * macs(model) + 1
    x = np.random.default_rng(seed).random((3, 6, 6, 2), np.float32)
    np.testing.assert_allclose(smaller(x), plain(x), atol=1e-5 * (1 + np.abs(plain(x)).max()))


@pytest.mark.parametrize("name", ["al0", "atmc"])
def test_channels_go_first_and_zeros_are_set_in_what_is_left(name):
    x, y = data((8, 8, 3), classes=5)
    bits = {"bits": 4, "codebook_begin": 0} if name == "atmc" else {}
    method = methods.get(name, ratio=0.2, channels=0.5, schedule="constant", **bits)
    kinds = [ChannelBudget, *([Codebook] if bits else []), FlooredSparsity]
    assert [type(c) for c in method.constraints()] == kinds
    small = compiled(atmc.compress(residual(), method))
    small.fit(x, y, epochs=2, verbose=0)
    dense = residual()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        smaller = atmc.slim_model(atmc.strip_compression(small))
    assert macs(smaller) <= 0.5 * macs(dense)
    report = small.compression_report()
    assert 0 < report.nonzeros <= 0.2 * report.dense_parameters
    assert report.max_distinct <= (16 if bits else report.nonzeros)
    assert small.constraints[0].operations <= 0.5


def test_one_schedule_drops_channels_from_all_of_them_on():
    method = AL0(ratio=0.2, channels=0.5)
    (budget, _) = method.constraints()
    assert budget.schedule.initial_ratio == 1.0 and budget.schedule.end == method.schedule.end
    small = compiled(atmc.compress(residual(), method))
    small.plan(10)
    x, y = data((8, 8, 3), classes=5)
    seen = []
    for _ in range(6):
        small.train_on_batch(x, y)
        seen.append(int(small.constraints[0].current.numpy()))
    assert seen == sorted(seen, reverse=True) and seen[0] == 10**6 and seen[-1] == 500_000
    assert small.constraints[0].operations <= 0.5
    settled = ATMC(ratio=0.2, channels=0.5).stages(8)[-1].method
    assert settled.constraints()[0].schedule.get_config() == settled.schedule.get_config()
    assert "channels" not in AL0(ratio=0.2).get_config()
    assert AL0(ratio=0.2, channels=0.5).get_config()["channels"] == 0.5


def test_what_cannot_be_held_is_refused():
    with pytest.raises(ValueError, match=r"least.*Received ratio=0\.05|allow more"):
        atmc.compress(residual(), AL0(ratio=1.0, channels=0.01))
    with pytest.raises(ValueError, match="`ratio` must lie"):
        AL0(ratio=1.0, channels=0.0)
    with pytest.raises(ValueError, match="`least` must lie"):
        ChannelBudget(0.5, least=2)
    with pytest.raises(ValueError, match="`channels` is for methods"):
        atmc.recipes.CompressionSettings(method="ap", channels=0.5).resolved()
