# SPDX-License-Identifier: Apache-2.0
"""The k largest of integer patterns with static shapes and without sorting, for XLA.

The k-th largest pattern is found three bits at a time, from the top: how many of the entries that
agree so far have which digit next. The eight counts of a group of entries fit into one integer, so
that a round is one sum over the entries, read once; there is no sort, no scatter and no prefix sum
over them, and a round is a few launches on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf

__all__ = ["largest_masks"]

_DIGIT_BITS = 3
_DIGITS = 1 << _DIGIT_BITS
# A count takes a byte, and the eighth one must leave the sign alone: at most 127 entries.
_COUNT_BITS = 8
_GROUP = 64
# Enough to number the entries of all tensors together.
_PLACE_BITS = 40


def largest_masks(
    patterns: Sequence[tf.Tensor], k: tf.Tensor, zeros_matter: bool
) -> list[tf.Tensor]:
    """Returns bool masks of the k largest entries over all tensors together.

    Among equal entries the lower index, counted through the list, wins.

    Args:
        patterns: non-negative integer vectors of one dtype.
        k: scalar int64, how many; at most the number of entries.
        zeros_matter: False if more than k entries may be marked where these are zeros.
    """
    threshold, ties, equal = _kth_largest(patterns, k, 8 * patterns[0].dtype.size - 1)
    simple = tf.equal(ties, equal)
    if not zeros_matter:
        simple |= tf.equal(threshold, 0)
    masks = tf.cond(
        simple,
        lambda: [part >= threshold for part in patterns],
        lambda: _with_first_ties(patterns, threshold, ties),
    )
    return list(masks)


def _kth_largest(
    patterns: Sequence[tf.Tensor], k: tf.Tensor, width: int
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the k-th largest pattern, how many equal to it belong to the k largest, and to it.

    For k = 0 that is the largest one, of which none belongs to them. Negative entries are left out.
    """
    rounds = -(-width // _DIGIT_BITS)
    dtype = patterns[0].dtype

    def body(step: tf.Tensor, prefix: tf.Tensor, wanted: tf.Tensor, _: tf.Tensor) -> tuple:
        shift = tf.cast((rounds - 1 - step) * _DIGIT_BITS, dtype)
        counts = tf.add_n([_digit_counts(part, prefix, shift) for part in patterns])
        at_least = tf.cumsum(counts, reverse=True)
        digit = tf.math.count_nonzero(at_least >= wanted, dtype=tf.int32) - 1
        digit = tf.maximum(digit, 0)
        equal = tf.gather(counts, digit)
        prefix = tf.bitwise.left_shift(prefix, tf.constant(_DIGIT_BITS, dtype))
        prefix = tf.bitwise.bitwise_or(prefix, tf.cast(digit, dtype))
        return step + 1, prefix, wanted - (tf.gather(at_least, digit) - equal), equal

    start = tf.maximum(k, 1)
    zero = tf.zeros([], tf.int64)
    _, threshold, left, equal = tf.while_loop(
        lambda step, *_: step < rounds,
        body,
        (tf.constant(0), tf.zeros([], dtype), start, zero),
        maximum_iterations=rounds,
        parallel_iterations=1,
    )
    return threshold, k - (start - left), equal


def _digit_counts(part: tf.Tensor, prefix: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
    """Returns how many entries that begin with `prefix` have which digit next, int64 `[8]`."""
    size = tf.size(part) if part.shape[0] is None else part.shape[0]
    part = tf.pad(part, [[0, -size % _GROUP]], constant_values=-1)
    # In two shifts, since one by all bits of the dtype is not defined.
    upto = tf.bitwise.right_shift(part, shift)
    agrees = tf.equal(tf.bitwise.right_shift(upto, tf.constant(_DIGIT_BITS, part.dtype)), prefix)
    digit = tf.bitwise.bitwise_and(upto, tf.constant(_DIGITS - 1, part.dtype))
    place = tf.cast(digit, tf.int64) * _COUNT_BITS
    one = tf.bitwise.left_shift(tf.ones([], tf.int64), place)
    packed = tf.where(agrees, one, tf.zeros([], tf.int64))
    sums = tf.reduce_sum(tf.reshape(packed, [-1, _GROUP]), axis=1)
    places = tf.range(_DIGITS, dtype=tf.int64)[:, None] * _COUNT_BITS
    counts = tf.bitwise.right_shift(sums[None], places)
    mask = tf.constant((1 << _COUNT_BITS) - 1, tf.int64)
    return tf.reduce_sum(tf.bitwise.bitwise_and(counts, mask), axis=1)


def _with_first_ties(
    patterns: Sequence[tf.Tensor], threshold: tf.Tensor, ties: tf.Tensor
) -> list[tf.Tensor]:
    """Returns the entries above the threshold and the first `ties` of those equal to it."""
    # Zero, but not for a compiler, which would else number the entries in constants of their size.
    start = tf.minimum(ties, 0)
    total = tf.add_n([tf.size(part, tf.int64) for part in patterns])
    orders = []
    for part in patterns:
        order = total - _places(part, start)
        orders.append(tf.where(tf.equal(part, threshold), order, -tf.ones([], tf.int64)))
        start += tf.size(part, tf.int64)
    last, _, _ = _kth_largest(orders, ties, _PLACE_BITS)
    return [
        (part > threshold) | ((order >= last) & (ties > 0))
        for part, order in zip(patterns, orders, strict=True)
    ]


def _places(part: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    """Returns the number of each entry, int64, from `start`."""
    size = part.shape[0]
    if size is None:
        return start + tf.range(tf.size(part, tf.int64))
    side = max(math.isqrt(size), 1)
    rows = tf.range(-(-size // side), dtype=tf.int64)[:, None] * side + start
    return tf.reshape(rows + tf.range(side, dtype=tf.int64), [-1])[:size]
