# SPDX-License-Identifier: Apache-2.0
"""Promises of the projection onto a shared l0 ball."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfmot_atmc.math import l0_masks, project_l0

ALGORITHMS = ("histogram", "bisection")


def _oracle_mask(arrays, k):
    flat = np.concatenate([np.ravel(a) for a in arrays]).astype(np.float64)
    mask = np.zeros(flat.size, bool)
    mask[np.argsort(-np.abs(flat), kind="stable")[:k]] = True
    return mask


def _join(tensors):
    return np.concatenate([np.ravel(t.numpy()) for t in tensors])


_entry = st.floats(-8, 8, width=32, allow_subnormal=False)


@settings(max_examples=15, deadline=None)
@given(st.lists(_entry, min_size=2, max_size=9), st.integers(0, 10), st.integers(1, 8))
def test_projection_is_the_nearest_feasible_point_by_brute_force(entries, k, cut):
    flat = np.array(entries, np.float32)
    cut = min(cut, flat.size - 1)
    parts = [flat[:cut], flat[cut:]]
    got = _join(project_l0([tf.constant(p) for p in parts], k)).astype(np.float64)
    squares = flat.astype(np.float64) ** 2
    keep = min(k, flat.size)
    best = min(
        squares.sum() - squares[list(support)].sum()
        for support in itertools.combinations(range(flat.size), keep)
    )
    assert np.count_nonzero(got) <= k
    assert np.sum((got - flat) ** 2) == pytest.approx(best, rel=1e-9, abs=1e-9)
    assert np.all((got == 0) | (got == flat))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_projection_keeps_exactly_k_on_ties(algorithm):
    tensors = [tf.constant([1.0, -1.0]), tf.constant([[1.0], [-1.0], [1.0]])]
    first, second = project_l0(tensors, 3, algorithm=algorithm)
    assert first.numpy().tolist() == [1.0, -1.0]
    assert second.numpy().tolist() == [[1.0], [0.0], [0.0]]
    masks = l0_masks(tensors, 4, algorithm=algorithm)
    assert _join(masks).tolist() == [True, True, True, True, False]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_projection_breaks_ties_between_tensors_in_list_order(algorithm):
    tensors = [tf.constant([2.0, 0.5]), tf.constant([-2.0, 3.0])]
    kept = project_l0(tensors, 2, algorithm=algorithm)
    assert _join(kept).tolist() == [2.0, 0.0, 0.0, 3.0]
    swapped = project_l0(tensors[::-1], 2, algorithm=algorithm)
    assert _join(swapped).tolist() == [-2.0, 3.0, 0.0, 0.0]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_projection_handles_the_extremes_of_k(algorithm):
    x = [tf.constant([3.0, 0.0, -1.0])]
    assert _join(project_l0(x, 0, algorithm=algorithm)).tolist() == [0.0, 0.0, 0.0]
    for k in (3, 4, tf.constant(3), tf.constant(2**40, tf.int64)):
        assert _join(project_l0(x, k, algorithm=algorithm)).tolist() == [3.0, 0.0, -1.0]
    assert _join(l0_masks(x, 2, algorithm=algorithm)).tolist() == [True, False, True]
    assert _join(l0_masks(x, 9, algorithm=algorithm)).tolist() == [True, True, True]
    # Zeros fill up a mask when there are too few nonzeros, the first ones first.
    zeros = [tf.constant([0.0, 5.0]), tf.constant([0.0, 0.0])]
    assert _join(l0_masks(zeros, 3, algorithm=algorithm)).tolist() == [True, True, True, False]


def test_projection_can_empty_a_whole_tensor():
    small, large = project_l0([tf.constant([0.1, 0.2]), tf.constant([1.0, 2.0])], 2)
    assert small.numpy().tolist() == [0.0, 0.0]
    assert large.numpy().tolist() == [1.0, 2.0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("kind", ["smooth", "ties", "sparse", "adversarial stride"])
def test_algorithms_agree_with_numpy_on_large_tensors(dtype, kind):
    rng = np.random.default_rng(3)
    arrays = [rng.normal(size=s).astype(dtype) for s in (70_000, 5, 2_003)]
    if kind == "ties":
        arrays = [np.round(a * 2) / 2 for a in arrays]
    elif kind == "sparse":
        arrays = [np.where(rng.random(a.shape) < 0.01, a, 0).astype(dtype) for a in arrays]
    elif kind == "adversarial stride":
        arrays[0][::61] *= 50  # a regular sample sees only the large ones
    tensors = [tf.constant(a) for a in arrays]
    flat = np.concatenate(arrays)
    for k in (1, 700, 4_000, 60_000):
        want = _oracle_mask(arrays, k)
        for algorithm in ALGORITHMS:
            assert np.array_equal(_join(l0_masks(tensors, k, algorithm=algorithm)), want)
            got = project_l0(tensors, k, algorithm=algorithm)
            assert got[0].dtype == tensors[0].dtype
            assert np.array_equal(_join(got), np.where(want, flat, 0))


def test_projection_is_idempotent():
    x = [tf.random.stateless_normal([300, 301], seed=[1, 2]), tf.ones([3])]
    once = project_l0(x, 900)
    twice = project_l0(once, 900)
    assert np.array_equal(_join(once), _join(twice))
    assert np.count_nonzero(_join(once)) == 900


def test_projection_distinguishes_neighbouring_floats():
    base = np.float32(0.1)
    values = [base, np.nextafter(base, np.float32(1)), np.nextafter(base, np.float32(0))]
    assert _join(l0_masks([tf.constant(values)], 1)).tolist() == [False, True, False]
    wide = [0.1, np.nextafter(0.1, 1), np.nextafter(0.1, 0)]
    mixed = [tf.constant(wide, tf.float64), tf.constant([0.5], tf.bfloat16)]
    for algorithm in ALGORITHMS:
        assert _join(l0_masks(mixed, 2, algorithm=algorithm)).tolist() == [False, True, False, True]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [4, 70_000])
def test_projection_refuses_entries_that_are_not_finite(bad, size):
    x = np.ones(size, np.float32)
    x[2] = bad
    with pytest.raises(ValueError, match="finite"):
        project_l0([tf.constant(x)], 2)
    compiled = tf.function(lambda t: l0_masks([t], 2))
    with pytest.raises(tf.errors.InvalidArgumentError):
        compiled(tf.constant(x))


def test_projection_refuses_bad_arguments():
    x = tf.constant([1.0])
    with pytest.raises(ValueError, match="empty"):
        project_l0([], 1)
    with pytest.raises(ValueError, match=">= 0"):
        project_l0([x], -1)
    with pytest.raises(ValueError, match=">= 0"):
        project_l0([x], tf.constant(-1))
    with pytest.raises(ValueError, match="algorithm"):
        project_l0([x], 1, algorithm="sort")
    with pytest.raises(TypeError, match="integer"):
        project_l0([x], 1.0)
    with pytest.raises(TypeError, match="floating"):
        project_l0([tf.constant([1])], 1)
    with pytest.raises(TypeError, match="list"):
        project_l0(x, 1)
    negative = tf.function(lambda k: project_l0([x], k))
    with pytest.raises(tf.errors.InvalidArgumentError):
        negative(tf.constant(-1))


def test_histogram_runs_in_a_graph_with_a_dynamic_k_and_unknown_shapes():
    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32), tf.TensorSpec([], tf.int32)])
    def project(x, k):
        return project_l0([x, tf.constant([0.5])], k)

    x = np.array([0.1, -0.9, 0.7], np.float32)
    assert _join(project(x, 2)).tolist() == pytest.approx([0.0, -0.9, 0.7, 0.0])
    assert _join(project(x, 3)).tolist() == pytest.approx([0.0, -0.9, 0.7, 0.5])


def test_bisection_compiles_with_xla():
    x = [tf.random.stateless_normal([40, 50], seed=[5, 6]), tf.ones([7]), -tf.ones([2, 2])]
    compiled = tf.function(
        lambda t, k: project_l0(t, k, algorithm="bisection"), jit_compile=True, autograph=False
    )
    for k in (0, 5, 640, 645, 3000):
        want = _oracle_mask([t.numpy() for t in x], k)
        assert np.array_equal(_join(compiled(x, tf.constant(k))), np.where(want, _join(x), 0))


def test_histogram_under_xla_is_an_error_not_a_crash():
    compiled = tf.function(lambda t: project_l0([t], 1), jit_compile=True, autograph=False)
    with pytest.raises((tf.errors.OpError, ValueError)):
        compiled(tf.ones([3]))
