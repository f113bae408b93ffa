# SPDX-License-Identifier: Apache-2.0
"""Sharing one budget of nonzeros out among layers."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["allocate_budget", "allocate_by_inverse"]


def allocate_budget(sizes: Sequence[int], k: int, exponent: float) -> list[int]:
    """Returns a budget for each layer, in proportion to a power of its size.

    Layers that would get more than they have are kept whole, and what they leave over goes to the
    others. The budgets add up to k exactly; what rounding leaves over goes to the largest layers.

    Args:
        sizes: number of weights of each layer, each at least 1.
        k: number of nonzeros for all layers together; none gets nothing while k allows it.
        exponent: p in [0, 1]: with 1 every layer keeps the same ratio, with 0 the same number.

    Returns:
        One budget a layer, in the order of `sizes`; min(k, sum of sizes) together.

    Raises:
        ValueError: if a value is out of range.

    Source: Liu et al., "Robust Binary Models by Pruning Randomly-initialized Networks", NeurIPS
    2022, adaptive pruning; there p is 0.1.

    Example:

    >>> allocate_budget([10, 100, 1000], 120, exponent=0.0)
    [10, 55, 55]
    >>> allocate_budget([10, 100, 1000], 111, exponent=1.0)
    [1, 10, 100]
    """
    if not 0 <= exponent <= 1:
        raise ValueError(f"`exponent` must lie in [0, 1]. Received {exponent!r}.")
    if k < 0 or any(size < 1 for size in sizes):
        raise ValueError(
            f"`k` must be at least 0 and each size at least 1. Received k={k}, sizes={list(sizes)}."
        )
    left = min(k, sum(sizes))
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    weights = [sizes[i] ** exponent for i in order]
    budgets = [0] * len(sizes)
    for place, index in enumerate(order):
        share = left * weights[place] / sum(weights[place:])
        others = len(order) - place - 1
        least = 1 if left > others else 0
        # A product such as 0.1 * 10 may fall just short of a whole number.
        budgets[index] = min(sizes[index], max(least, int(share * (1 + 1e-12))))
        left -= budgets[index]
    for index in reversed(order):
        more = min(left, sizes[index] - budgets[index])
        budgets[index] += more
        left -= more
    return budgets


def allocate_by_inverse(sizes: Sequence[int], k: int) -> list[int]:
    """Returns a budget for each layer, n / (f n + 1) of its n weights, with one f for all.

    Small layers are kept almost whole, and large ones get nearly the same number each.

    Args:
        sizes: number of weights of each layer, each at least 1.
        k: number of nonzeros for all layers together, at least the number of layers.

    Returns:
        One budget a layer, in the order of `sizes`, each at least 1; min(k, sum of sizes) together.
        What rounding leaves over goes where most was cut off.

    Raises:
        ValueError: if a value is out of range.

    Source: Chen et al., "Sparsity Winning Twice", ICLR 2022, where the rule has the name IGQ.

    Example:

    >>> allocate_by_inverse([10, 1000], 100)  # f is 0.0100
    [9, 91]
    """
    if k < len(sizes) or any(size < 1 for size in sizes):
        raise ValueError(
            f"`k` must be at least the number of layers, {len(sizes)}, and each size at least 1. "
            f"Received k={k}, sizes={list(sizes)}."
        )
    total = min(k, sum(sizes))
    shares = _inverse_shares(sizes, total)
    budgets = [min(size, max(1, int(share))) for size, share in zip(sizes, shares, strict=True)]
    order = sorted(range(len(sizes)), key=lambda i: budgets[i] - shares[i])
    while sum(budgets) != total:
        step = 1 if sum(budgets) < total else -1
        for i in order if step > 0 else reversed(order):
            if sum(budgets) != total and 1 <= budgets[i] + step <= sizes[i]:
                budgets[i] += step
    return budgets


def _inverse_shares(sizes: Sequence[int], total: int) -> list[float]:
    """Returns the shares before rounding: n / (f n + 1), f by bisection."""
    low, high = 0.0, len(sizes) / total  # each share is below 1 / f
    for _ in range(200):
        middle = (low + high) / 2
        if sum(n / (middle * n + 1) for n in sizes) > total:
            low = middle
        else:
            high = middle
    return [n / (high * n + 1) for n in sizes]
