# SPDX-License-Identifier: Apache-2.0
"""Which entries, or groups of entries, are worth most within a budget of costs.

What is worth most is what has the largest magnitude squared per cost. The threshold is found on the
bit patterns of these quotients in float64, one bit at a time: the shapes are static, so that XLA
compiles it, and the result does not depend on a sort.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

__all__ = ["select_within"]


class _Items(NamedTuple):
    """What is kept or dropped as one: an entry, or a group of entries."""

    worth: tf.Tensor  # magnitude squared per cost, float64
    cost: tf.Tensor  # float64
    member: Any  # of each entry the index of its item; None where entries are the items


def select_within(
    tensors: Sequence[tf.Tensor],
    budget: Any,
    costs: Sequence[Any] | None,
    groups: Sequence[Any] | None,
) -> list[tf.Tensor]:
    """Marks what is kept within a budget, see `project_l0`.

    Args:
        tensors: floating-point tensors of static shapes.
        budget: number or scalar tensor, at least 0.
        costs: one entry for each tensor, see `project_l0`; None where all cost one.
        groups: one entry for each tensor, see `project_l0`; None for none.

    Returns:
        Bool tensors of the shapes of `tensors`.

    Raises:
        ValueError: if costs or groups do not fit the tensors, or are out of range.
    """
    items = _items(list(tensors), _flat_costs(tensors, costs), _flat_groups(tensors, groups))
    limit = _as_budget(budget)
    affordable = items.cost <= limit
    keep = _best(items.worth, tf.where(affordable, items.cost, 0.0), affordable, limit)
    flat = keep if items.member is None else tf.gather(keep, items.member)
    parts = tf.split(flat, [_size(t) for t in tensors])
    return [tf.reshape(part, t.shape) for part, t in zip(parts, tensors, strict=True)]


def _size(tensor: tf.Tensor) -> int:
    size = tensor.shape.num_elements()
    if size is None:
        raise ValueError(f"Costs and groups need static shapes. Received {tensor.shape}.")
    return int(size)


def _as_budget(budget: Any) -> tf.Tensor:
    limit = tf.cast(tf.convert_to_tensor(budget), tf.float64)
    if limit.shape.rank != 0:
        raise ValueError(f"`budget` must be a scalar. Received shape {limit.shape}.")
    if tf.executing_eagerly() and not float(limit) >= 0:
        raise ValueError(f"`budget` must be at least 0. Received {float(limit)!r}.")
    return limit


def _flat_costs(tensors: Sequence[tf.Tensor], costs: Sequence[Any] | None) -> tf.Tensor:
    """Returns the cost of each entry of all tensors, float64."""
    if costs is None:
        return tf.ones([sum(map(_size, tensors))], tf.float64)
    if len(costs) != len(tensors):
        raise ValueError(
            f"`costs` must have one entry for each of the {len(tensors)} tensors. "
            f"Received {len(costs)}."
        )
    flat = []
    for tensor, cost in zip(tensors, costs, strict=True):
        if not tf.is_tensor(cost) or tf.executing_eagerly():
            values = np.asarray(cost, np.float64)
            if not (np.isfinite(values).all() and (values > 0).all()):
                raise ValueError("Costs must be finite and above 0.")
        each = tf.cast(tf.convert_to_tensor(cost), tf.float64)
        flat.append(tf.reshape(tf.broadcast_to(each, tensor.shape), [-1]))
    return tf.concat(flat, 0)


def _flat_groups(tensors: Sequence[tf.Tensor], groups: Sequence[Any] | None) -> np.ndarray | None:
    """Returns the group of each entry of all tensors, numbered by first appearance."""
    if groups is None:
        return None
    if len(groups) != len(tensors):
        raise ValueError(
            f"`groups` must have one entry for each of the {len(tensors)} tensors. "
            f"Received {len(groups)}."
        )
    total = sum(map(_size, tensors))
    flat, start = [], 0
    for tensor, group in zip(tensors, groups, strict=True):
        alone = -1 - np.arange(start, start + _size(tensor))  # names that no group has
        start += _size(tensor)
        if group is None:
            flat.append(alone)
            continue
        named = np.asarray(group)
        if named.dtype.kind not in "iu" or named.shape != tuple(tensor.shape):
            raise ValueError(
                f"A group must be an array of integers of its tensor's shape {tensor.shape}. "
                f"Received {named.dtype} of shape {named.shape}."
            )
        named = named.reshape(-1).astype(np.int64)
        flat.append(np.where(named < 0, alone, named))
    _, first, index = np.unique(np.concatenate(flat), return_index=True, return_inverse=True)
    rank = np.empty(first.size, np.int64)
    rank[np.argsort(first)] = np.arange(first.size)
    return rank[index.reshape(total)]


def _items(tensors: list[tf.Tensor], costs: tf.Tensor, groups: np.ndarray | None) -> _Items:
    flat = tf.concat([tf.reshape(tf.cast(t, tf.float64), [-1]) for t in tensors], 0)
    worth = tf.square(flat)
    if groups is None:
        return _Items(worth / costs, costs, None)
    count, member = int(groups.max(initial=-1)) + 1, tf.constant(groups)
    worth = tf.math.unsorted_segment_sum(worth, member, count)
    costs = tf.math.unsorted_segment_sum(costs, member, count)
    return _Items(worth / costs, costs, member)


def _best(worth: tf.Tensor, cost: tf.Tensor, affordable: tf.Tensor, limit: tf.Tensor) -> tf.Tensor:
    """Marks items in falling order of worth until one does not fit; ties by index."""
    pattern = tf.bitcast(worth, tf.int64)

    def spent(least: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(tf.where(pattern >= least, cost, 0.0))

    def body(bit: tf.Tensor, prefix: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        candidate = tf.bitwise.bitwise_or(
            prefix, tf.bitwise.left_shift(tf.ones([], tf.int64), tf.cast(62 - bit, tf.int64))
        )
        return bit + 1, tf.where(spent(candidate) > limit, candidate, prefix)

    # The largest pattern down to which all together cost too much: the first not to fit has it.
    _, edge = tf.while_loop(
        lambda bit, _: bit < 63,
        body,
        (tf.constant(0), tf.zeros([], tf.int64)),
        maximum_iterations=63,
    )
    above = pattern > edge
    left = limit - tf.reduce_sum(tf.where(above, cost, 0.0))
    level = tf.equal(pattern, edge)
    fits = tf.cumsum(tf.where(level, cost, 0.0)) <= left
    return affordable & (above | (level & fits))
