# SPDX-License-Identifier: Apache-2.0
"""One-dimensional k-means with a centre pinned at zero ("ZeroKmeans")."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import tensorflow as tf

from tfmot_atmc.math._largest import indices_of_true, outside_xla
from tfmot_atmc.math._lloyd import (
    Histogram,
    away_from_zero,
    build_histogram,
    cluster_moments,
    density_centres,
    lloyd,
)

_GRID_ROUNDS = 4
_GRID_DIVISORS = 256
_F64 = tf.float64


class ZeroKMeans(NamedTuple):
    """Result of `zero_kmeans`.

    Attributes:
      values: the clustered values, same shape and dtype as the input.
      codebook: float32 `(num_clusters,)`, ascending nonzero centres. Unused places repeat the
        largest centre; all zeros when there was nothing to cluster.
      error: scalar float64, sum of squared differences between input and `values`. Entries
        excluded by `where` do not count.
    """

    values: tf.Tensor
    codebook: tf.Tensor
    error: tf.Tensor


def _nearest(x: tf.Tensor, centres: tf.Tensor) -> tf.Tensor:
    """Index of the nearest centre; ties go to the smaller magnitude. All float64, ascending."""
    middles = tf.pad(0.5 * (centres[1:] + centres[:-1]), [[0, 1]], constant_values=math.inf)
    index = tf.searchsorted(middles, x)
    following = tf.minimum(index + 1, centres.shape[0] - 1)
    tie = tf.equal(tf.gather(middles, index), x)
    smaller = tf.abs(tf.gather(centres, following)) < tf.abs(tf.gather(centres, index))
    return tf.where(tie & smaller, following, index)


def _assign(
    x: tf.Tensor, active: tf.Tensor, codebook: tf.Tensor, compete: bool
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns values (float64), index (-1 where zero) and the squared error of the active."""
    centres = tf.cast(codebook, _F64)
    index = _nearest(x, centres)
    values = tf.gather(centres, index)
    to_zero = tf.logical_not(active)
    if compete:
        to_zero |= tf.abs(x) <= tf.abs(x - values)
    values = tf.where(to_zero, tf.zeros_like(values), values)
    error = tf.reduce_sum(tf.where(active, tf.square(x - values), tf.zeros_like(x)))
    return values, tf.where(to_zero, -1, index), error


def _polish(
    x: tf.Tensor, active: tf.Tensor, codebook: tf.Tensor, compete: bool, scale: tf.Tensor
) -> tf.Tensor:
    """One exact Lloyd round on the entries themselves."""
    _, index, _ = _assign(x, active, codebook, compete)
    count_sum = tf.math.unsorted_segment_sum(
        tf.stack([tf.ones_like(x), x], axis=1), index, codebook.shape[0]
    )
    count, total = tf.unstack(count_sum, axis=1)
    old = tf.cast(codebook, _F64)
    means = tf.where(count > 0, total / tf.maximum(count, 1.0), old)
    return tf.sort(away_from_zero(tf.cast(means, tf.float32), scale))


def _distinct_codebook(
    x: tf.Tensor, active: tf.Tensor, num_clusters: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """The distinct active values as a codebook, and whether they fit into it."""
    filled = tf.sort(tf.where(active, x, tf.fill(tf.shape(x), tf.constant(math.inf, _F64))))
    fresh = tf.concat([[True], filled[1:] > filled[:-1]], 0) & tf.math.is_finite(filled)
    place = tf.cumsum(tf.cast(fresh, tf.int32)) - 1
    distinct = tf.reduce_sum(tf.cast(fresh, tf.int32))
    place = tf.where(fresh & (place < num_clusters), place, -1)
    book = tf.math.unsorted_segment_max(filled, place, num_clusters)
    last = tf.gather(book, tf.clip_by_value(distinct, 1, num_clusters) - 1)
    book = tf.where(tf.range(num_clusters) < distinct, book, last)
    return tf.cast(book, tf.float32), distinct <= num_clusters


def _initial_centres(hist: Histogram, num_clusters: int, initial: tf.Tensor | None) -> tf.Tensor:
    density = tf.cast(density_centres(hist, num_clusters), tf.float32)
    density = tf.sort(away_from_zero(density, hist.scale))
    if initial is None:
        return density
    initial = tf.reshape(tf.cast(tf.convert_to_tensor(initial), tf.float32), [num_clusters])
    usable = tf.reduce_any(tf.not_equal(initial, 0))
    spare = tf.gather(initial, tf.argmax(tf.abs(initial)))
    return tf.where(usable, tf.sort(tf.where(tf.equal(initial, 0), spare, initial)), density)


def _grid_scales(centres: tf.Tensor, peak: tf.Tensor, levels: int) -> tf.Tensor:
    divisors = tf.range(levels, max(levels - _GRID_DIVISORS, 0), -1, dtype=_F64)
    top = tf.reduce_max(tf.abs(centres))
    beyond = tf.cast(tf.linspace(1.0, 1.5, 64), _F64) * levels
    return tf.maximum(tf.concat([top / divisors, top / beyond, peak / divisors], 0), 1e-300)


def _grid_integers(centres: tf.Tensor, scales: tf.Tensor, levels: int) -> tf.Tensor:
    one = tf.ones([], _F64)
    integers = tf.clip_by_value(tf.round(centres / scales), -float(levels), float(levels))
    return tf.where(tf.equal(integers, 0), tf.where(centres < 0, -one, one), integers)


def _to_grid(hist: Histogram, codebook: tf.Tensor, levels: int) -> tf.Tensor:
    """Centres rounded to integers times the scale with the least squared error."""
    for _ in range(_GRID_ROUNDS):
        old = tf.cast(codebook, _F64)
        moments = cluster_moments(hist, old)
        count = moments[:, 0]
        means = moments[:, 1] / tf.maximum(count, 1.0)
        means = tf.where(count > 0, means, old)
        scales = _grid_scales(means, hist.scale, levels)[:, None]
        integers = _grid_integers(means, scales, levels)
        # For fixed integers the best scale is a weighted least-squares fit.
        power = tf.reduce_sum(count * integers**2, 1, keepdims=True)
        product = tf.reduce_sum(count * means * integers, 1, keepdims=True)
        fitted = product / tf.maximum(power, 1e-300)
        scales = tf.concat([scales, tf.where(fitted > 0, fitted, scales)], 0)
        integers = _grid_integers(means, scales, levels)
        loss = tf.reduce_sum(count * (means - integers * scales) ** 2, 1)
        best = tf.argmin(loss)
        scale = tf.cast(scales[best, 0], tf.float32)
        # The product in float32, as a dequantiser forms it.
        codebook = tf.sort(tf.cast(integers[best], tf.float32) * scale)
    return codebook


class _Task(NamedTuple):
    """One vector to cluster, float64, and what its centres are searched on."""

    x: tf.Tensor
    active: tf.Tensor
    hist: Histogram


def _task(x: tf.Tensor, active: tf.Tensor, compete: bool) -> _Task:
    return _Task(x, active, build_histogram(x, active, compete))


def _search(
    hist: Histogram, num_clusters: int, initial: tf.Tensor | None, max_iterations: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the centres to start from and those found, by the histogram alone; float32."""
    start = _initial_centres(hist, num_clusters, initial)
    centres = lloyd(hist, tf.cast(start, _F64), max_iterations)
    return start, tf.sort(away_from_zero(tf.cast(centres, tf.float32), hist.scale))


def _pair(start: tf.Tensor, found: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    return start, found


def _solve(
    task: _Task,
    num_clusters: int,
    grid: int | None,
    searched: Callable[[], tuple[tf.Tensor, tf.Tensor]],
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns values (float64), codebook and error; `searched` gives what `_search` returns."""
    x, active, hist = task
    compete = hist.compete

    def search() -> tf.Tensor:
        start, found = searched()
        found = _polish(x, active, found, compete, hist.scale)
        if grid is not None:
            return _to_grid(hist, found, grid)
        before, after = (_assign(x, active, book, compete)[2] for book in (start, found))
        return tf.where(after <= before, found, start)

    if grid is not None:
        codebook = search()
    else:
        counts = hist.moments[1:, 0] - hist.moments[:-1, 0]
        few = tf.math.count_nonzero(counts > 0) <= num_clusters
        book, fits = tf.cond(
            few,
            lambda: _distinct_codebook(x, active, num_clusters),
            lambda: (tf.zeros([num_clusters]), tf.constant(False)),
        )
        codebook = tf.cond(fits, lambda: book, search)
    codebook = tf.where(tf.reduce_any(active), codebook, tf.zeros_like(codebook))
    values, _, error = _assign(x, active, codebook, compete)
    return values, codebook, error


def _check(num_clusters: int, max_iterations: int, grid: int | None) -> None:
    for name, number, least in (
        ("num_clusters", num_clusters, 1),
        ("max_iterations", max_iterations, 0),
        ("grid", grid if grid is not None else 1, 1),
    ):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ValueError(f"`{name}` must be an integer >= {least}. Received {number!r}.")


def _as_values(values: tf.Tensor, where: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
    values = tf.convert_to_tensor(values)
    if not values.dtype.is_floating:
        raise TypeError(f"`values` must be floating-point. Received dtype {values.dtype.name}.")
    active = tf.not_equal(values, tf.zeros([], values.dtype))
    if where is not None:
        where = tf.convert_to_tensor(where)
        if where.dtype != tf.bool or not where.shape.is_compatible_with(values.shape):
            raise ValueError(
                f"`where` must be a bool tensor of shape {values.shape}. "
                f"Received {where.dtype.name} of shape {where.shape}."
            )
        active &= where
    return values, active


def zero_kmeans(
    values: tf.Tensor,
    num_clusters: int,
    *,
    where: tf.Tensor | None = None,
    initial_codebook: tf.Tensor | None = None,
    max_iterations: int = 20,
    grid: int | None = None,
    static: bool = False,
) -> ZeroKMeans:
    """Clusters values to at most `num_clusters` distinct nonzero values; zero is always free.

    The quantisation step of ATMC (Gui et al., 2019, Sec. 3.3). Deterministic. A zero always stays
    zero. With no more than `num_clusters` distinct nonzeros, all exact in float32, the values come
    back bit for bit, which also makes it idempotent; and the error is never larger than with the
    initial centres. Neither holds with `grid`.

    Args:
      values: finite floating-point tensor of any shape.
      num_clusters: number of nonzero centres, a Python int >= 1.
      where: bool tensor of the shape of `values`. False entries become zero and are not
        clustered; True nonzero entries go to the nearest nonzero centre, never to zero. None: all
        entries, and each goes to the nearest of the centres and zero.
      initial_codebook: `(num_clusters,)` centres to start from, e.g. those of the last call; zeros
        in it count as unused. None: quantiles of the cube root of a smoothed density.
      max_iterations: most Lloyd rounds, stopping early at a fixed point.
      grid: largest integer code n (e.g. 127). The centres are then nonzero integers in [-n, n]
        times one positive float32 scale. None: free centres.
      static: True keeps every shape static, which `tf.function(jit_compile=True)` needs. False
        first gathers the entries to cluster, much faster when they are few; XLA refuses it.

    Returns:
      A `ZeroKMeans(values, codebook, error)`.

    Raises:
      ValueError: a count out of range, or `where` of the wrong shape or dtype.
      TypeError: `values` not floating-point.

    Example:

    >>> result = zero_kmeans(tf.constant([0., 1., 1.5, -4.]), 2, where=tf.constant([True] * 4))
    >>> result.values.numpy().tolist(), float(result.error)
    ([0.0, 1.25, 1.25, -4.0], 0.125)
    """
    _check(num_clusters, max_iterations, grid)
    values, active = _as_values(values, where)
    flat = tf.reshape(values, [-1])
    active = tf.reshape(active, [-1])
    compete = where is None

    def solve(x: tf.Tensor, active: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        task = _task(x, active, compete)
        options = (num_clusters, initial_codebook, max_iterations)
        return _solve(task, num_clusters, grid, lambda: _search(task.hist, *options))

    if static:
        out, codebook, error = solve(tf.cast(flat, _F64), active)
        out = tf.cast(out, values.dtype)
    else:
        at = indices_of_true(active)
        x = tf.cast(tf.gather(flat, at), _F64)
        found, codebook, error = solve(x, tf.ones_like(x, tf.bool))
        shape = tf.reshape(outside_xla(tf.size(flat, tf.int64), flat), [1])
        out = tf.scatter_nd(at[:, None], tf.cast(found, values.dtype), shape)
    out = tf.ensure_shape(tf.reshape(out, tf.shape(values)), values.shape)
    return ZeroKMeans(out, codebook, error)


def zero_kmeans_of_all(
    tensors: Sequence[tf.Tensor],
    num_clusters: int,
    *,
    zeros_stay_alone: bool,
    initial_codebooks: Sequence[tf.Tensor] | None = None,
    max_iterations: int = 20,
    grid: int | None = None,
) -> list[ZeroKMeans]:
    """Returns `zero_kmeans(..., static=True)` of several tensors, as one short program for XLA.

    The searches on the histograms are one loop over the tensors, so that a program for many of
    them is not many times as long.

    Args:
      tensors: finite floating-point tensors of static shapes.
      num_clusters: see `zero_kmeans`.
      zeros_stay_alone: True for `where=tensor != 0`, False for `where=None`.
      initial_codebooks: one for each tensor; None to start afresh.
      max_iterations: see `zero_kmeans`.
      grid: see `zero_kmeans`.
    """
    _check(num_clusters, max_iterations, grid)
    tasks = []
    for tensor in tensors:
        flat = tf.cast(tf.reshape(tensor, [-1]), _F64)
        tasks.append(_task(flat, tf.not_equal(flat, 0), not zeros_stay_alone))
    if initial_codebooks is None:
        initial_codebooks = [tf.zeros([num_clusters])] * len(tasks)

    def one(elements: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, tf.Tensor]:
        moments, scale, initial = elements
        hist = Histogram(moments, scale, not zeros_stay_alone)
        return _search(hist, num_clusters, initial, max_iterations)

    starts, founds = tf.map_fn(
        one,
        (
            tf.stack([task.hist.moments for task in tasks]),
            tf.stack([task.hist.scale for task in tasks]),
            tf.stack([tf.cast(book, tf.float32) for book in initial_codebooks]),
        ),
        fn_output_signature=(tf.float32, tf.float32),
    )
    results = []
    for i, (task, tensor) in enumerate(zip(tasks, tensors, strict=True)):
        searched = partial(_pair, starts[i], founds[i])
        found, codebook, error = _solve(task, num_clusters, grid, searched)
        values = tf.cast(tf.reshape(found, tensor.shape), tensor.dtype)
        results.append(ZeroKMeans(values, codebook, error))
    return results


def assign_to_codebook(
    values: tf.Tensor, codebook: tf.Tensor, *, where: tf.Tensor | None = None
) -> tf.Tensor:
    """Replaces each value by the nearest centre; zeros stay zero.

    Args:
      values: floating-point tensor of any shape.
      codebook: ascending centres, as `zero_kmeans` returns them.
      where: see `zero_kmeans`.

    Returns:
      A tensor with the shape and dtype of `values`. Ties go to the smaller magnitude.

    Example:

    >>> assign_to_codebook(tf.constant([.2, .8, -.6]), tf.constant([-1., 1.])).numpy().tolist()
    [0.0, 1.0, -1.0]
    """
    values, active = _as_values(values, where)
    codebook = tf.convert_to_tensor(codebook)
    flat = tf.cast(tf.reshape(values, [-1]), _F64)
    out, _, _ = _assign(flat, tf.reshape(active, [-1]), codebook, where is None)
    return tf.cast(tf.reshape(out, tf.shape(values)), values.dtype)
