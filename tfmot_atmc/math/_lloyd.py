# SPDX-License-Identifier: Apache-2.0
"""Lloyd's rounds on a histogram: the search behind `zero_kmeans`.

Prefix sums of the moments make a round cost a few table look-ups per centre. The histogram is
equal-width in ``sign(x) |x|**(1/4)``: one far outlier then leaves thousands of bins for the bulk,
where equal-width bins would leave one.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import tensorflow as tf

_HALF = 1 << 15
_BINS = 2 * _HALF
# Coarse on purpose: with finer cells the counts in the tails are mostly sampling noise.
_DENSITY_CELLS = 128
_SWAP_ITERATIONS = 6
_SWAP_GAIN = 1e-3
_MAX_SWAPS = 16
_FEW_POINTS = 1024
_MAX_PATIENCE = 5
_F64 = tf.float64


class Histogram(NamedTuple):
    """Prefix sums of the moments over the bins: row i holds the total of bins below i."""

    moments: tf.Tensor  # (bins + 1, 3) float64: count, sum, sum of squares
    scale: tf.Tensor  # largest magnitude, > 0
    compete: bool  # whether zero competes for entries


def _bin_of(x: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    root = tf.sqrt(tf.sqrt(tf.minimum(tf.abs(x) / scale, 1.0)))
    steps = tf.cast(tf.minimum(root * _HALF, _HALF - 1.0), tf.int32)
    return tf.where(x < 0, _HALF - 1 - steps, _HALF + steps)


def build_histogram(x: tf.Tensor, active: tf.Tensor, compete: bool) -> Histogram:
    """Histogram of the active entries of a float64 vector."""
    peak = tf.reduce_max(tf.where(active, tf.abs(x), tf.zeros_like(x)))
    scale = tf.where(peak > 0, peak, tf.ones_like(peak)) if x.shape[0] != 0 else tf.ones([], _F64)
    bins = tf.where(active, _bin_of(x, scale), -1)  # a negative segment is dropped
    rows = tf.stack([tf.ones_like(x), x, x * x], axis=1)
    moments = tf.math.unsorted_segment_sum(rows, bins, _BINS)
    return Histogram(tf.pad(tf.cumsum(moments, axis=0), [[1, 0], [0, 0]]), scale, compete)


def cluster_moments(hist: Histogram, centres: tf.Tensor) -> tf.Tensor:
    """Moments (K, 3) of the entries nearest to each of the ascending centres."""
    middles = 0.5 * (centres[1:] + centres[:-1])
    low = tf.concat([tf.constant([-math.inf], _F64), middles], 0)
    high = tf.concat([middles, tf.constant([math.inf], _F64)], 0)
    if hist.compete:
        low = tf.where(centres > 0, tf.maximum(low, 0.5 * centres), low)
        high = tf.where(centres < 0, tf.minimum(high, 0.5 * centres), high)

    def edge(limit: tf.Tensor) -> tf.Tensor:
        at = _bin_of(limit, hist.scale)
        at = tf.where(limit >= hist.scale, _BINS, at)
        return tf.where(limit <= -hist.scale, 0, at)

    return tf.gather(hist.moments, edge(high)) - tf.gather(hist.moments, edge(low))


def density_centres(hist: Histogram, num_clusters: int) -> tf.Tensor:
    """Quantiles of density**(1/3), the asymptotically best density of quantiser points."""
    stride = _BINS // _DENSITY_CELLS
    counts = hist.moments[stride::stride, 0] - hist.moments[:-1:stride, 0]
    steps = tf.cast(tf.range(_DENSITY_CELLS + 1), _F64) / (_DENSITY_CELLS // 2) - 1.0
    edges = tf.sign(steps) * steps**4 * hist.scale
    widths = edges[1:] - edges[:-1]
    mass = tf.pow(counts / widths, 1.0 / 3.0) * widths
    total = tf.reduce_sum(mass)
    mass = tf.where(total > 0, mass / tf.where(total > 0, total, tf.ones_like(total)), mass)
    upto = tf.cumsum(mass)
    wanted = (tf.cast(tf.range(num_clusters), _F64) + 0.5) / num_clusters
    cell = tf.minimum(tf.searchsorted(upto, wanted), _DENSITY_CELLS - 1)
    inside = tf.gather(mass, cell)
    part = (wanted - (tf.gather(upto, cell) - inside)) / tf.maximum(inside, 1e-300)
    part = tf.clip_by_value(part, 0.0, 1.0)
    return tf.gather(edges, cell) + part * tf.gather(widths, cell)


def away_from_zero(centres: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """Replaces a centre that averages out to exactly zero: it must stay a nonzero code."""
    return tf.where(tf.equal(centres, 0), tf.cast(scale, centres.dtype) * 2.0**-24, centres)


def _donors(hist: Histogram, moments: tf.Tensor, centres: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Squared error of each region a centre could be added to, and the centre to add there.

    The regions are the clusters and, where zero competes, the two halves of its own cluster.
    """
    base = centres
    if hist.compete:
        everything = tf.stack([hist.moments[_HALF], hist.moments[-1] - hist.moments[_HALF]])
        negative = tf.cast(centres < 0, _F64)[:, None]
        taken = [tf.reduce_sum(moments * side, 0) for side in (negative, 1.0 - negative)]
        moments = tf.concat([moments, everything - tf.stack(taken)], 0)
        base = tf.concat([centres, tf.zeros([2], _F64)], 0)
    count, total, square = tf.unstack(moments, axis=1)
    safe = tf.maximum(count, 1.0)
    mean = total / safe
    spread = tf.maximum(square - total * mean, 0.0)
    error = tf.where(tf.equal(base, 0), square, spread)
    # Away from zero, so that the new centre has the sign of its donor.
    added = mean + tf.sign(mean) * tf.sqrt(spread / safe)
    worth = (count > 0) & (error > 0) & tf.not_equal(added, base)
    return tf.where(worth, error, -tf.ones_like(error)), added


def _reseed(hist: Histogram, moments: tf.Tensor, centres: tf.Tensor) -> tf.Tensor:
    """Moves each empty centre into one of the regions with the largest squared error."""
    error, added = _donors(hist, moments, centres)
    worst = tf.argsort(error, direction="DESCENDING", stable=True)
    empty = tf.equal(moments[:, 0], 0)
    donor = tf.gather(worst, tf.maximum(tf.cumsum(tf.cast(empty, tf.int32)) - 1, 0))
    use = empty & (tf.gather(error, donor) > 0)
    return tf.sort(tf.where(use, tf.gather(added, donor), centres))


def _swap(hist: Histogram, moments: tf.Tensor, centres: tf.Tensor, rank: tf.Tensor) -> tf.Tensor:
    """Takes the centre that is least missed and adds one where the error is rank-th largest."""
    error, added = _donors(hist, moments, centres)
    count = moments[:, 0]
    # What joining a cluster with its right neighbour costs (Ward), or with its left one.
    both = tf.maximum(count[1:] + count[:-1], 1.0)
    join = count[1:] * count[:-1] / both * tf.square(centres[1:] - centres[:-1])
    far = tf.constant([math.inf], _F64)
    missed = tf.minimum(tf.concat([join, far], 0), tf.concat([far, join], 0))
    if hist.compete:
        missed = tf.minimum(missed, moments[:, 2])
    gone = tf.argmin(missed, output_type=tf.int32)
    order = tf.argsort(error, direction="DESCENDING", stable=True)
    place = tf.gather(order, tf.minimum(rank, tf.size(order) - 1))
    moved = tf.where(tf.equal(tf.range(centres.shape[0]), gone), tf.gather(added, place), centres)
    useful = tf.not_equal(gone, place) & (tf.gather(error, place) > 0)
    return tf.where(useful, tf.sort(moved), centres)


def _rounds(hist: Histogram, centres: tf.Tensor, max_iterations: int) -> tf.Tensor:
    def body(step: tf.Tensor, old: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, ...]:
        moments = cluster_moments(hist, old)
        count = moments[:, 0]
        new = tf.where(count > 0, moments[:, 1] / tf.maximum(count, 1.0), old)
        new = tf.sort(away_from_zero(new, hist.scale))
        new = tf.cond(
            tf.reduce_any(tf.equal(count, 0)), lambda: _reseed(hist, moments, new), lambda: new
        )
        return step + 1, new, tf.reduce_any(tf.not_equal(new, old))

    _, centres, _ = tf.while_loop(
        lambda step, _, changed: changed,
        body,
        (tf.constant(0), centres, tf.constant(True)),
        maximum_iterations=max_iterations,
    )
    return centres


def _binned_error(hist: Histogram, moments: tf.Tensor, centres: tf.Tensor) -> tf.Tensor:
    count, total, _ = tf.unstack(moments, axis=1)
    return hist.moments[-1, 2] + tf.reduce_sum(centres * (count * centres - 2.0 * total))


def lloyd(hist: Histogram, centres: tf.Tensor, max_iterations: int) -> tf.Tensor:
    """Lloyd's rounds, then swaps of one centre each for as long as they pay."""
    centres = _rounds(hist, centres, max_iterations)
    moments = cluster_moments(hist, centres)
    if not max_iterations:
        return centres

    # A few points have many poor fixed points, and trying again costs least there.
    few = hist.moments[-1, 0] <= _FEW_POINTS
    patience = tf.where(few, _MAX_PATIENCE, 1)

    def body(
        step: tf.Tensor, best: tf.Tensor, moments: tf.Tensor, error: tf.Tensor, failed: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        trial = _rounds(hist, _swap(hist, moments, best, failed), _SWAP_ITERATIONS)
        trial_moments = cluster_moments(hist, trial)
        trial_error = _binned_error(hist, trial_moments, trial)
        better = trial_error < error * (1.0 - _SWAP_GAIN)
        return (
            step + 1,
            tf.where(better, trial, best),
            tf.where(better, trial_moments, moments),
            tf.where(better, trial_error, error),
            tf.where(better, 0, failed + 1),
        )

    state = (tf.constant(0), centres, moments, _binned_error(hist, moments, centres))
    return tf.while_loop(
        lambda step, best, moments, error, failed: failed < patience,
        body,
        (*state, tf.constant(0)),
        maximum_iterations=_MAX_SWAPS,
    )[1]
