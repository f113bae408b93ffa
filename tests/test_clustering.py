# SPDX-License-Identifier: Apache-2.0
"""Promises of k-means with a centre pinned at zero."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfmot_atmc.math import assign_to_codebook, optimal_zero_kmeans, zero_kmeans


def _distinct(values):
    values = np.asarray(values)
    return np.unique(values[values != 0]).size


def _sse(values, result):
    return float(np.sum((np.asarray(values, np.float64) - np.asarray(result.values)) ** 2))


def _brute_force(values, num_clusters, compete):
    """Least squared error by the plain O(n^2 K) recursion over sorted intervals."""
    points = np.sort(values[values != 0].astype(np.float64))
    n = points.size
    cost = np.full((n + 1, n + 1), np.inf)
    free = np.zeros((n + 1, n + 1))
    for i in range(n):
        for j in range(i + 1, n + 1):
            part = points[i:j]
            cost[i, j] = np.sum((part - part.mean()) ** 2)
            free[i, j] = np.sum(part**2)
    # State: best[zero already used][stop].
    best = np.full((2, n + 1), np.inf)
    best[0, 0] = 0.0
    if compete:
        best[1] = free[0]
    for _ in range(num_clusters):
        new = best.copy()
        for stop in range(1, n + 1):
            for used in (0, 1):
                grown = np.min(best[used, :stop] + cost[:stop, stop])
                new[used, stop] = min(new[used, stop], grown)
        if compete:
            for stop in range(n + 1):
                zeroed = np.min(new[0, : stop + 1] + free[: stop + 1, stop])
                new[1, stop] = min(new[1, stop], zeroed)
        best = new
    return best[:, n].min()


_arrays = st.integers(0, 2**31).map(
    lambda seed: np.random.default_rng(seed).standard_t(
        3, size=np.random.default_rng(seed + 1).integers(1, 60)
    )
)


@settings(max_examples=10, deadline=None)
@given(_arrays, st.integers(1, 5), st.booleans())
def test_dynamic_programming_is_optimal(values, num_clusters, compete):
    values = values.astype(np.float32)
    where = None if compete else np.ones(values.shape, bool)
    result = optimal_zero_kmeans(values, num_clusters, where=where)
    want = _brute_force(values, num_clusters, compete)
    assert result.error == pytest.approx(want, rel=1e-4, abs=1e-9)
    assert _sse(values, result) == pytest.approx(float(result.error), rel=1e-6, abs=1e-12)
    assert _distinct(result.values) <= num_clusters


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.integers(20, 200), st.sampled_from([1, 2, 4, 16]), st.booleans())
def test_error_is_within_a_fifth_of_the_optimum(seed, size, num_clusters, compete):
    values = np.random.default_rng(seed).normal(size=size).astype(np.float32)
    where = None if compete else np.ones(size, bool)
    ours = zero_kmeans(values, num_clusters, where=where, max_iterations=50)
    best = optimal_zero_kmeans(values, num_clusters, where=where)
    assert float(ours.error) <= 1.2 * float(best.error) + 1e-12
    assert float(best.error) <= float(ours.error) * (1 + 1e-6) + 1e-12
    assert _distinct(ours.values) <= num_clusters
    assert _sse(values, ours) == pytest.approx(float(ours.error), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_few_distinct_values_come_back_exactly(static, masked):
    for values in ([0.0, 0.0], [0.3], [0.1, 0.1, 0.1], [-1.0, 1.0], [1e-3, 0, 2e-3, 1e6], [0.0]):
        x = tf.constant(values)
        where = tf.ones_like(x, tf.bool) if masked else None
        result = zero_kmeans(x, 4, where=where, static=static)
        assert result.values.numpy().tolist() == x.numpy().tolist()
        assert float(result.error) == 0.0
        assert result.codebook.shape == (4,)
        assert np.all(np.diff(result.codebook.numpy()) >= 0)


def test_all_zero_tensor_gives_zeros_and_an_empty_codebook():
    for grid in (None, 127):
        result = zero_kmeans(tf.zeros([3, 2]), 4, grid=grid)
        assert result.values.numpy().tolist() == np.zeros([3, 2]).tolist()
        assert result.codebook.numpy().tolist() == [0.0] * 4
        assert float(result.error) == 0.0
    assert zero_kmeans(tf.zeros([0]), 2).values.shape == (0,)


def test_outliers_get_their_own_centres():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=2000), [1e6, -2e6]]).astype(np.float32)
    result = zero_kmeans(x, 8)
    assert result.values.numpy()[-2:].tolist() == [1e6, -2e6]
    assert float(result.error) < 2 * float(optimal_zero_kmeans(x, 8).error)


def test_where_excludes_entries_and_never_prunes_the_others():
    x = tf.constant([[0.01, 5.0, -1.0], [1.2, 9.0, 0.0]])
    where = tf.constant([[True, False, True], [True, False, True]])
    result = zero_kmeans(x, 2, where=where)
    got = result.values.numpy()
    assert got[0, 1] == 0 and got[1, 1] == 0 and got[1, 2] == 0
    assert got[0, 0] == got[0, 2] == pytest.approx(-0.495)
    assert got[1, 0] == pytest.approx(1.2)
    assert float(result.error) == pytest.approx(2 * 0.505**2, rel=1e-5)
    # A centre that averages out to zero must stay a nonzero code.
    symmetric = zero_kmeans(tf.constant([-1.0, 1.0]), 1, where=tf.constant([True, True]))
    assert np.all(symmetric.values.numpy() != 0)


def test_zero_competes_when_nothing_is_excluded():
    result = zero_kmeans(tf.constant([0.1, -0.1, 4.0, 4.2]), 1)
    assert result.values.numpy().tolist() == pytest.approx([0.0, 0.0, 4.1, 4.1])
    assert result.codebook.numpy().tolist() == pytest.approx([4.1])
    assert float(result.error) == pytest.approx(0.04, rel=1e-4)


@pytest.mark.parametrize("grid", [None, 127])
def test_one_and_two_clusters_on_symmetric_input(grid):
    x = tf.constant([-2.0, -1.0, 1.0, 2.0])
    result = zero_kmeans(x, 2, grid=grid)
    assert result.values.numpy().tolist() == pytest.approx([-1.5, -1.5, 1.5, 1.5])
    assert float(zero_kmeans(x, 1, grid=grid).error) == pytest.approx(5.5)


def test_more_rounds_never_raise_the_error_and_a_warm_start_keeps_it():
    x = tf.random.stateless_normal([4000], seed=[1, 1])
    start = tf.constant([0.1, 0.2, 0.3, 5.0])
    before = float(tf.reduce_sum((x - assign_to_codebook(x, start)) ** 2))
    first = zero_kmeans(x, 4, initial_codebook=start)
    again = zero_kmeans(x, 4, initial_codebook=first.codebook)
    assert float(first.error) < before
    assert float(again.error) <= float(first.error)
    assert float(again.error) < 1.05 * float(zero_kmeans(x, 4).error)
    # Zeros and repeats in a codebook are unused places, not centres.
    padded = zero_kmeans(x, 4, initial_codebook=[0.0, 0.0, 1.0, 1.0])
    assert _distinct(padded.values) == 4


def test_values_agree_with_the_codebook_and_clustering_is_idempotent():
    x = tf.random.stateless_normal([50, 60], seed=[2, 2])
    for where in (None, tf.abs(x) > 0.5):
        result = zero_kmeans(x, 16, where=where)
        again = zero_kmeans(result.values, 16, where=where)
        assert set(np.unique(result.values)) <= set(result.codebook.numpy()) | {0.0}
        assert np.array_equal(result.values, assign_to_codebook(x, result.codebook, where=where))
        assert np.array_equal(result.values, again.values)
        assert np.array_equal(result.values, zero_kmeans(x, 16, where=where).values)


def test_grid_centres_are_integers_times_one_scale():
    x = tf.random.stateless_normal([3000], seed=[3, 3])
    where = tf.abs(x) > 0.3
    free = zero_kmeans(x, 16, where=where)
    result = zero_kmeans(x, 16, where=where, grid=127)
    codes = result.codebook.numpy()
    fits = [
        s
        for s in np.abs(codes).max() / np.arange(1, 128)
        if np.allclose(codes / s, np.round(codes / s), atol=1e-3)
    ]
    assert fits and not np.any(codes == 0)
    assert _distinct(result.values) <= 16
    assert float(result.error) < 1.05 * float(free.error)
    assert np.array_equal(result.values.numpy() != 0, where.numpy())
    again = zero_kmeans(result.values, 16, where=where, grid=127)
    assert float(again.error) < 1e-6 * float(result.error)
    coarse = zero_kmeans(x, 8, where=where, grid=1).codebook.numpy()
    assert np.unique(np.abs(coarse)).size == 1


def test_ties_go_to_the_smaller_magnitude():
    codebook = tf.constant([-3.0, -1.0, 1.0, 3.0])
    got = assign_to_codebook(tf.constant([2.0, -2.0, 0.5, -0.5, 0.6]), codebook)
    assert got.numpy().tolist() == [1.0, -1.0, 0.0, 0.0, 1.0]
    where = tf.constant([True, True, False])
    kept = assign_to_codebook(tf.constant([2.0, -0.1, 3.0]), codebook, where=where)
    assert kept.numpy().tolist() == [1.0, -1.0, 0.0]


def test_static_form_compiles_with_xla_and_agrees():
    x = tf.random.stateless_normal([2000], seed=[4, 4])
    where = tf.abs(x) > 1.0
    compiled = tf.function(
        lambda x, where: zero_kmeans(x, 4, where=where, static=True),
        jit_compile=True,
        autograph=False,
    )
    plain = zero_kmeans(x, 4, where=where)
    fused = compiled(x, where)
    assert float(fused.error) == pytest.approx(float(plain.error), rel=1e-3)
    assert _distinct(fused.values) == 4
    assert compiled(tf.zeros_like(x), where).values.numpy().any() == False  # noqa: E712
    refused = tf.function(lambda x: zero_kmeans(x, 4), jit_compile=True, autograph=False)
    with pytest.raises((tf.errors.OpError, ValueError)):
        refused(x)


def test_dtype_is_kept_and_bad_arguments_are_refused():
    assert zero_kmeans(tf.constant([0.1, 0.5], tf.float16), 1).values.dtype == tf.float16
    assert zero_kmeans(tf.constant([0.1, 0.5], tf.float64), 1).values.dtype == tf.float64
    with pytest.raises(ValueError, match="num_clusters"):
        zero_kmeans(tf.ones([2]), 0)
    with pytest.raises(ValueError, match="where"):
        zero_kmeans(tf.ones([2]), 1, where=tf.ones([3], tf.bool))
    with pytest.raises(TypeError, match="floating"):
        zero_kmeans(tf.ones([2], tf.int32), 1)
    with pytest.raises(ValueError, match="finite"):
        optimal_zero_kmeans(np.array([1.0, np.nan]), 1)


def test_export_clustering_of_many_values_beats_or_matches_the_fast_one():
    x = np.random.default_rng(5).normal(size=6000).astype(np.float32)
    fast = zero_kmeans(x, 16)
    best = optimal_zero_kmeans(x, 16, initial_codebook=fast.codebook.numpy())
    assert float(best.error) <= float(fast.error) * (1 + 1e-9)
    assert isinstance(best.values, np.ndarray) and best.values.dtype == np.float32
    assert _distinct(best.values) <= 16
