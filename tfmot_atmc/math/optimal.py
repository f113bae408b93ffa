# SPDX-License-Identifier: Apache-2.0
"""Zero k-means by dynamic programming, for starting codebooks, for export and as an oracle."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfmot_atmc.math.clustering import ZeroKMeans, zero_kmeans

_MAX_DISTINCT = 2048
_POLISH_ROUNDS = 100


class _Points:
    """Ascending weighted points with prefix sums, so that any interval's cost is a look-up."""

    def __init__(self, values: np.ndarray, weights: np.ndarray) -> None:
        # Shifting by the mean would spoil the zero centre; scaling keeps the squares in range.
        self.scale = float(np.max(np.abs(values)))
        points = values / self.scale
        self.size = points.size
        self.count = np.concatenate([[0.0], np.cumsum(weights)])
        self.total = np.concatenate([[0.0], np.cumsum(weights * points)])
        self.square = np.concatenate([[0.0], np.cumsum(weights * points * points)])

    def cost(self, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """Squared error of the points start..stop-1 around their own mean."""
        count = self.count[stop] - self.count[start]
        total = self.total[stop] - self.total[start]
        square = self.square[stop] - self.square[start]
        # A single point is exact; the difference of prefix sums would leave rounding noise.
        cost = np.where(stop - start > 1, square - total**2 / np.maximum(count, 1e-300), 0.0)
        return np.maximum(cost, 0.0)

    def cost_to_zero(self, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        return np.maximum(self.square[stop] - self.square[start], 0.0)

    def mean(self, start: int, stop: int) -> float:
        count = self.count[stop] - self.count[start]
        return float((self.total[stop] - self.total[start]) / count * self.scale)


def _next_layer(points: _Points, before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """before[i]: least cost of the first i points; adds one cluster at the right end.

    The best split grows with the end point, so each level of the recursion looks at about
    2 * size pairs. A level is handled at once in NumPy.
    """
    size = points.size
    best = np.full(size + 1, np.inf)
    where = np.zeros(size + 1, np.int64)
    best[0] = 0.0
    tasks = np.array([[1, size + 1, 0, size]], np.int64)  # ends in [a, b), splits in [lo, hi]
    while tasks.size:
        first, last, low, high = tasks.T
        middle = (first + last) // 2
        high_here = np.minimum(high, middle - 1)
        widths = high_here - low + 1
        starts = np.concatenate([[0], np.cumsum(widths)[:-1]])
        task = np.repeat(np.arange(middle.size), widths)
        split = np.arange(widths.sum()) - starts[task] + low[task]
        cost = before[split] + points.cost(split, middle[task])
        least = np.minimum.reduceat(cost, starts)
        hits = np.flatnonzero(cost == least[task])
        _, unique = np.unique(task[hits], return_index=True)
        chosen = split[hits[unique]]
        best[middle] = least
        where[middle] = chosen
        left = np.stack([first, middle, low, chosen], 1)
        right = np.stack([middle + 1, last, chosen, high], 1)
        tasks = np.concatenate([left, right])
        tasks = tasks[tasks[:, 0] < tasks[:, 1]]
    return best, where


def _chain(points: _Points, layers: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    best = [np.concatenate([[0.0], np.full(points.size, np.inf)])]
    where: list[np.ndarray] = [np.zeros(points.size + 1, np.int64)]
    for _ in range(layers):
        # inf - inf never occurs: costs are finite, only `before` may be infinite.
        cost, split = _next_layer(points, best[-1])
        worse = best[-1] < cost
        best.append(np.where(worse, best[-1], cost))
        where.append(np.where(worse, -1, split))
    return best, where


def _walk(points: _Points, where: list[np.ndarray], layer: int, stop: int) -> list[float]:
    centres = []
    while stop > 0 and layer > 0:
        start = int(where[layer][stop])
        if start >= 0:
            centres.append(points.mean(start, stop))
            stop = start
        layer -= 1
    return centres


def _side(values: np.ndarray, weights: np.ndarray, layers: int) -> tuple[np.ndarray, list]:
    """Least cost of one sign's magnitudes for 0..layers clusters, zero taking the smallest."""
    if not values.size:
        return np.zeros(layers + 1), [[] for _ in range(layers + 1)]
    points = _Points(values, weights)
    best = np.full(layers + 1, np.inf)
    every = np.arange(points.size + 1)
    previous = points.cost_to_zero(np.zeros_like(every), every)
    costs, wheres = [previous], [np.full(points.size + 1, -1, np.int64)]
    for _ in range(layers):
        cost, split = _next_layer(points, costs[-1])
        worse = costs[-1] <= cost
        costs.append(np.where(worse, costs[-1], cost))
        wheres.append(np.where(worse, -1, split))
    centres = []
    for layer in range(layers + 1):
        best[layer] = costs[layer][-1] * points.scale**2
        centres.append(_walk(points, wheres, layer, points.size))
    return best, centres


def _exact_centres(
    values: np.ndarray, weights: np.ndarray, num_clusters: int, compete: bool
) -> np.ndarray:
    if not compete:
        points = _Points(values, weights)
        _, where = _chain(points, num_clusters)
        return np.array(_walk(points, where, num_clusters, points.size))
    # Zero takes an interval around zero, so the two signs only share the number of clusters.
    negative, positive = values < 0, values > 0
    left, left_centres = _side(-values[negative][::-1], weights[negative][::-1], num_clusters)
    right, right_centres = _side(values[positive], weights[positive], num_clusters)
    share = int(np.argmin(left + right[::-1]))
    return np.array(
        [-c for c in left_centres[share]] + right_centres[num_clusters - share], np.float64
    )


def _merge(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Merges many points into few bins that are narrow both in mass and in width."""
    half = _MAX_DISTINCT // 2 - 2
    mass = np.cumsum(weights)
    by_mass = np.floor((mass - weights) / mass[-1] * half)
    by_width = np.floor((values - values[0]) / (values[-1] - values[0]) * half)
    change = (np.diff(by_mass) != 0) | (np.diff(by_width) != 0) | (np.diff(np.sign(values)) != 0)
    starts = np.concatenate([[0], np.flatnonzero(change) + 1])
    merged = np.add.reduceat(weights, starts)
    return np.add.reduceat(weights * values, starts) / merged, merged


def optimal_zero_kmeans(
    values: np.ndarray,
    num_clusters: int,
    *,
    where: np.ndarray | None = None,
    initial_codebook: np.ndarray | None = None,
    grid: int | None = None,
) -> ZeroKMeans:
    """Zero k-means by dynamic programming in float64 NumPy.

    Optimal, up to the float32 rounding of the codebook, for at most 2048 distinct nonzero values;
    above that the values are first merged into narrow bins, and the result is polished by Lloyd
    rounds on the true values.

    Args:
      values: finite floating-point array of any shape.
      num_clusters: number of nonzero centres, >= 1.
      where: see `zero_kmeans`.
      initial_codebook: `(num_clusters,)` centres of a rival: Lloyd rounds from it are run as
        well, and the better result is returned.
      grid: see `zero_kmeans`. The result is then good but not guaranteed optimal.

    Returns:
      A `ZeroKMeans` of NumPy arrays; `values` keeps the dtype of the input.

    Raises:
      ValueError: see `zero_kmeans`; also for values that are not finite.

    Example:

    >>> optimal_zero_kmeans(np.array([0., 2., 3., 9.]), 2).values.tolist()
    [0.0, 2.5, 2.5, 9.0]
    """
    values = np.asarray(values)
    if not np.all(np.isfinite(values)):
        raise ValueError("`values` must be finite. Received NaN or infinite entries.")
    active = values != 0
    if where is not None:
        where = np.asarray(where)
        if where.dtype != np.bool_ or where.shape != values.shape:
            raise ValueError(
                f"`where` must be a bool array of shape {values.shape}. "
                f"Received {where.dtype} of shape {where.shape}."
            )
        active &= where
    points, weights = np.unique(values[active].astype(np.float64), return_counts=True)
    starts: list[np.ndarray | None] = [initial_codebook] if initial_codebook is not None else []
    if points.size > num_clusters >= 1:
        few = points.size <= _MAX_DISTINCT
        small = (points, weights) if few else _merge(points, weights)
        centres = _exact_centres(small[0], small[1], num_clusters, where is None)
        centres = np.sort(np.concatenate([centres, np.zeros(num_clusters - centres.size)]))
        starts.insert(0, centres.astype(np.float32))
    candidates = [
        zero_kmeans(
            values,
            num_clusters,
            where=where,
            initial_codebook=start,
            max_iterations=_POLISH_ROUNDS,
            grid=grid,
        )
        for start in starts or [None]
    ]
    best = min(candidates, key=lambda result: float(result.error))
    return ZeroKMeans(*(np.asarray(tf.convert_to_tensor(part)) for part in best))
