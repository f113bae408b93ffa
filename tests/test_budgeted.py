# SPDX-License-Identifier: Apache-2.0
"""Promises of the projection onto a budget of costs, by entries and by groups."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfmot_atmc.math import l0_masks, project_l0


def greedy(arrays, budget, costs=None, groups=None):
    """Masks by a plain loop in float64: items by worth, until one does not fit."""
    flat = np.concatenate([np.ravel(a) for a in arrays]).astype(np.float64)
    cost = np.concatenate(
        [
            np.ravel(np.broadcast_to(np.float64(1 if costs is None else costs[i]), np.shape(a)))
            for i, a in enumerate(arrays)
        ]
    )
    ids = np.arange(flat.size) - flat.size - 1
    if groups is not None:
        start = 0
        for array, group in zip(arrays, groups, strict=True):
            if group is not None:
                mine = np.ravel(group)
                at = np.arange(start, start + mine.size)
                ids[at] = np.where(mine < 0, ids[at], mine)
            start += np.size(array)
    order = list(dict.fromkeys(ids))
    items = [(ids == i).nonzero()[0] for i in order]
    spent = [cost[item].sum() for item in items]
    worth = [(flat[item] ** 2).sum() / c for item, c in zip(items, spent, strict=True)]
    keep, left = np.zeros(flat.size, bool), float(budget)
    for i in sorted(range(len(items)), key=lambda i: (-worth[i], i)):
        if spent[i] > budget:
            continue
        if spent[i] > left:
            break
        keep[items[i]] = True
        left -= spent[i]
    return keep


def joined(tensors):
    return np.concatenate([np.ravel(t.numpy()) for t in tensors])


ENTRY = st.integers(-6, 6).map(lambda n: n / 2)
COST = st.sampled_from([0.5, 1.0, 2.0, 3.0, 8.0])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_entries_and_groups_are_kept_as_a_plain_loop_keeps_them(data):
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    arrays = [np.float32(data.draw(st.lists(ENTRY, min_size=n, max_size=n))) for n in sizes]
    costs = [
        data.draw(st.one_of(COST, st.lists(COST, min_size=n, max_size=n).map(np.array)))
        for n in sizes
    ]
    named = st.lists(st.integers(-1, 3), min_size=1, max_size=1)
    groups = [
        data.draw(
            st.one_of(st.none(), st.lists(st.integers(-1, 3), min_size=n, max_size=n).map(np.array))
        )
        for n in sizes
    ]
    del named
    budget = data.draw(st.sampled_from([0, 0.5, 1, 3, 4.5, 7, 100]))
    tensors = [tf.constant(a) for a in arrays]
    for c, g in ((costs, None), (None, groups), (costs, groups)):
        want = greedy(arrays, budget, c, g)
        assert joined(l0_masks(tensors, budget, c, g)).tolist() == want.tolist()
        flat = np.concatenate(arrays)
        got = joined(project_l0(tensors, budget, c, g))
        assert np.array_equal(got, np.where(want, flat, 0))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(ENTRY, st.integers(1, 4)), min_size=1, max_size=9), st.integers(0, 12))
def test_what_is_kept_is_worth_the_best_but_for_one_entry(entries, budget):
    values, costs = map(np.array, zip(*entries, strict=True))
    mask = joined(l0_masks([tf.constant(values, tf.float32)], budget, [costs]))
    worth = values.astype(np.float64) ** 2
    best = max(
        sum(worth[list(some)])
        for n in range(len(values) + 1)
        for some in itertools.combinations(range(len(values)), n)
        if costs[list(some)].sum() <= budget
    )
    spent = costs[mask].sum()
    assert spent <= budget
    out = ~mask & (costs <= budget)
    assert worth[mask].sum() >= best - worth[out].max(initial=0) - 1e-9
    if spent == budget and (costs <= budget).all():
        assert worth[mask].sum() == pytest.approx(best)


def test_a_case_done_by_hand():
    x = [tf.constant([3.0, 1.0]), tf.constant([2.0, 4.0, 1.0])]
    # Magnitude squared per cost: 9/3, 1/3; 4, 16, 1.
    assert joined(project_l0(x, 5, costs=[3, 1])).tolist() == [3, 0, 2, 4, 0]
    assert joined(project_l0(x, 4.9, costs=[3, 1])).tolist() == [0, 0, 2, 4, 0]  # it stops there
    # An entry that costs more than the whole budget does not stop the others.
    assert joined(project_l0(x, 2, costs=[[3, 9], 1])).tolist() == [0, 0, 2, 4, 0]
    # Rows 0 and 1 of one matrix with an entry each of another: worth 5/3, 17/3.
    rows = [tf.constant([[1.0, 0.0], [4.0, 1.0]]), tf.constant([2.0, 0.0])]
    groups = [np.array([[0, 0], [1, 1]]), np.array([0, 1])]
    assert joined(project_l0(rows, 3, groups=groups)).tolist() == [0, 0, 4, 1, 0, 0]
    assert joined(project_l0(rows, 5, groups=groups)).tolist() == [0, 0, 4, 1, 0, 0]
    assert joined(project_l0(rows, 6, groups=groups)).tolist() == [1, 0, 4, 1, 2, 0]


def test_among_equals_the_first_is_kept():
    x = [tf.constant([1.0, -2.0]), tf.constant([2.0, 1.0])]
    masks = l0_masks(x, 9, costs=[[1, 4], [4, 1]])
    assert joined(masks).tolist() == [True, True, True, False]
    groups = [np.array([7, 3]), np.array([3, 7])]
    assert joined(l0_masks(x, 2, groups=groups)).tolist() == [False, True, True, False]
    even = [tf.ones(2), tf.ones(2)]
    assert joined(l0_masks(even, 2, groups=groups)).tolist() == [True, False, False, True]


def test_costs_of_one_keep_what_no_costs_keep():
    rng = np.random.default_rng(0)
    x = [tf.constant(np.round(rng.normal(size=s), 1), tf.float32) for s in ((40, 3), (7,))]
    for budget in (0, 1, 50, 126, 127, 500):
        plain, costed = l0_masks(x, budget), l0_masks(x, budget, costs=[1, np.ones(7)])
        assert np.array_equal(joined(plain), joined(costed))
        assert np.array_equal(joined(plain), joined(l0_masks(x, budget, groups=[None, None])))


@pytest.mark.parametrize("grouped", [False, True])
def test_xla_compiles_it_to_the_same_result(grouped):
    rng = np.random.default_rng(1)
    arrays = [rng.normal(size=(30, 8)).astype(np.float32), rng.normal(size=9).astype(np.float32)]
    groups = [np.tile(np.arange(8), (30, 1)), np.arange(9) % 8] if grouped else None
    costs = [4.0, np.arange(1.0, 10.0)]

    @tf.function(jit_compile=True, autograph=False)
    def compiled(a, b, budget):
        return project_l0([a, b], budget, costs, groups, algorithm="bisection")

    for budget in (0, 10, 300, 1005, 2000):
        got = joined(compiled(*map(tf.constant, arrays), tf.constant(budget)))
        want = greedy(arrays, budget, costs, groups)
        assert np.array_equal(got != 0, want)
        assert np.array_equal(got, joined(project_l0(arrays, budget, costs, groups)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"costs": [1, 2]}, "one entry for each"),
        ({"costs": [0]}, "above 0"),
        ({"costs": [np.nan]}, "finite"),
        ({"groups": [[0, 1]]}, "its tensor's shape"),
        ({"groups": [[0.5, 1, 2]]}, "integers"),
        ({"groups": []}, "one entry for each"),
        ({"costs": [1], "budget": -1}, "at least 0"),
        ({"costs": [1], "budget": [1, 2]}, "scalar"),
        ({"costs": [1], "algorithm": "sort"}, "algorithm"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        project_l0([tf.constant([1.0, 2.0, 3.0])], **{"budget": 2, **arguments})


def test_entries_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="finite"):
        project_l0([tf.constant([1.0, np.nan])], 1, costs=[2])
