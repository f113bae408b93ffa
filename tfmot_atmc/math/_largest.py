# SPDX-License-Identifier: Apache-2.0
"""Which entries of several tensors have the k largest magnitudes.

The k largest magnitudes are found on the bit patterns of ``|x|``: for non-negative IEEE floats the
integer order of the bits is the order of the values, so counting integers is enough and the result
is exact. Three ways of finding the threshold live here:

* filtered: a small sample gives a value that almost surely lies just below the threshold; only the
  entries above it are looked at again. Falls back to the next way when the sample was misleading.
* histogram: 16 bits of the pattern at a time, from the top.
* bisection (`_bisection.py`): a few bits at a time, with static shapes only, for XLA.
"""

from __future__ import annotations

import numbers
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfmot_atmc.math._bisection import largest_masks

_LEVEL_BITS = 16
_LEVEL_BINS = 1 << _LEVEL_BITS
_TABLE_SIDE = 1 << (_LEVEL_BITS // 2)
# Below this many entries a sample is no cheaper than the histogram itself.
_FILTER_MIN_SIZE = 1 << 16
_FILTER_MAX_FRACTION = 0.06
_SAMPLE_STRIDE = 61
_BLOCK = 8


class _Bits(NamedTuple):
    """Bit patterns of the magnitudes of all tensors, each flattened."""

    flat: list[tf.Tensor]
    dtype: tf.DType
    width: int
    infinity: int


class _Threshold(NamedTuple):
    """The k-th largest pattern and what a selection by it needs."""

    pattern: tf.Tensor
    ties: tf.Tensor  # how many of the entries equal to the pattern belong to the top k
    equal: tf.Tensor  # how many entries equal the pattern
    finite: tf.Tensor


def _as_count(k: int | tf.Tensor) -> tf.Tensor:
    """Returns k as a scalar int64 tensor, refusing negative counts."""
    if isinstance(k, (bool, np.bool_)) or isinstance(k, (float, np.floating)):
        raise TypeError(f"`budget` must be an integer. Received {k!r}.")
    if isinstance(k, numbers.Integral):
        if k < 0:
            raise ValueError(f"`budget` must be >= 0. Received {int(k)}.")
        return tf.constant(int(k), tf.int64)
    k = tf.convert_to_tensor(k)
    if not k.dtype.is_integer:
        raise TypeError(f"`budget` must be an integer tensor. Received dtype {k.dtype.name}.")
    if k.shape.rank not in (0, None):
        raise ValueError(f"`budget` must be a scalar. Received shape {k.shape}.")
    k = tf.cast(k, tf.int64)
    if tf.executing_eagerly():
        if int(k) < 0:
            raise ValueError(f"`budget` must be >= 0. Received {int(k)}.")
        return k
    check = tf.debugging.assert_non_negative(k, message="`budget` must be >= 0.")
    with tf.control_dependencies([check]):
        return tf.identity(k)


def _bit_patterns(tensors: list[tf.Tensor]) -> _Bits:
    # Casting up to float32 or float64 is exact, so it changes neither order nor ties.
    wide = any(t.dtype == tf.float64 for t in tensors)
    real = tf.float64 if wide else tf.float32
    dtype = tf.int64 if wide else tf.int32
    flat = [tf.bitcast(tf.abs(tf.reshape(tf.cast(t, real), [-1])), dtype) for t in tensors]
    infinity = 0x7FF << 52 if wide else 0xFF << 23
    return _Bits(flat, dtype, 64 if wide else 32, infinity)


def _bincount(values: tf.Tensor) -> tf.Tensor:
    # Entries >= size are ignored by the kernel: that is how a level skips all other buckets.
    counts = tf.raw_ops.DenseBincount(
        input=values,
        size=tf.constant(_LEVEL_BINS, values.dtype),
        weights=tf.zeros([0], tf.int32),
    )
    return tf.cast(counts, tf.int64)


def _bucket_of(counts: tf.Tensor, wanted: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Highest bin with at least `wanted` entries from it upwards, and the count above that bin."""
    above = tf.zeros([], tf.int64)
    bucket = tf.zeros([], tf.int32)
    # Two short sums instead of one over all bins: the long cumulative sum costs more than a pass.
    table = tf.reshape(counts, [_TABLE_SIDE, _TABLE_SIDE])
    for level in range(2):
        sums = tf.gather(table, bucket) if level else tf.reduce_sum(table, 1)
        at_least = tf.cumsum(sums, reverse=True)
        index = tf.math.count_nonzero(at_least + above >= wanted, dtype=tf.int32) - 1
        index = tf.maximum(index, 0)
        above += tf.gather(at_least, index) - tf.gather(sums, index)
        bucket = bucket * _TABLE_SIDE + index
    return bucket, above


def _histogram_threshold(flat: list[tf.Tensor], bits: _Bits, k: tf.Tensor) -> _Threshold:
    """Finds the largest pattern with at least k entries >= it."""
    prefix = tf.zeros([], bits.dtype)
    remaining = k
    finite = tf.constant(True)
    equal = tf.zeros([], tf.int64)
    top = bits.width - _LEVEL_BITS
    for shift in range(top, -1, -_LEVEL_BITS):
        counts = tf.zeros([_LEVEL_BINS], tf.int64)
        for part in flat:
            # Equal high bits cancel; any other bucket is left with a number past the last bin.
            inside = part if shift == top else tf.bitwise.bitwise_xor(part, prefix)
            if shift:
                inside = tf.bitwise.right_shift(inside, tf.constant(shift, bits.dtype))
            counts += _bincount(inside)
        if shift == top:
            finite = tf.equal(tf.reduce_sum(counts[bits.infinity >> shift :]), 0)
        bucket, above = _bucket_of(counts, tf.maximum(remaining, 1))
        remaining -= above
        equal = tf.gather(counts, bucket)
        shifted = tf.bitwise.left_shift(tf.cast(bucket, bits.dtype), tf.constant(shift, bits.dtype))
        prefix = tf.bitwise.bitwise_or(prefix, shifted)
    return _Threshold(prefix, remaining, equal, finite)


def _masks_at(flat: list[tf.Tensor], threshold: tf.Tensor, ties: tf.Tensor) -> list[tf.Tensor]:
    """Entries above the threshold and the first `ties` entries equal to it, in list order."""
    masks = []
    for part in flat:
        equal = tf.equal(part, threshold)
        order = tf.cumsum(tf.cast(equal, tf.int64))
        masks.append((part > threshold) | (equal & (order <= ties)))
        ties -= order[-1] if part.shape[0] else tf.zeros([], tf.int64)
    return masks


def _histogram_masks(bits: _Bits, k: tf.Tensor, values: bool) -> tuple[list[tf.Tensor], tf.Tensor]:
    found = _histogram_threshold(bits.flat, bits, k)
    # Which zeros are kept makes no difference to values, only to masks.
    simple = tf.equal(found.equal, found.ties) | (tf.equal(found.pattern, 0) & values)
    masks = tf.cond(
        simple,
        lambda: [part >= found.pattern for part in bits.flat],
        lambda: _masks_at(bits.flat, found.pattern, found.ties),
    )
    return list(masks), found.finite


def _lower_bound(bits: _Bits, k: tf.Tensor, total: tf.Tensor) -> tf.Tensor:
    """A pattern that lies below the threshold with near certainty, and only just below."""
    sample = tf.concat([part[::_SAMPLE_STRIDE] for part in bits.flat], 0)
    size = tf.size(sample)
    fraction = tf.cast(k, tf.float32) / tf.cast(total, tf.float32)
    expected = fraction * tf.cast(size, tf.float32)
    # Five standard deviations of the hypergeometric count, and a few for very small counts.
    rank = tf.cast(expected + 5.0 * tf.sqrt(expected) + 8.0, tf.int32)
    rank = tf.minimum(rank, size)
    return tf.reduce_min(tf.math.top_k(sample, rank, sorted=False).values)


def outside_xla(number: tf.Tensor, data: tf.Tensor) -> tf.Tensor:
    """Identity on a scalar int64 that XLA refuses to compile.

    XLA may abort the whole process on the data-dependent shapes used here; an operation it does
    not have turns that into an exception. The result must depend on it, and it on `data` (1-D),
    or it is optimised away.
    """
    if tf.executing_eagerly():
        return number
    digits = tf.reduce_sum(tf.strings.length(tf.strings.as_string(data[:1])))
    return tf.minimum(number, number + tf.cast(digits, tf.int64))


def indices_of_true(mask: tf.Tensor) -> tf.Tensor:
    """Ascending int64 indices of the True entries of a 1-D mask, cheap when they are few."""
    if mask.shape[0] is not None and mask.shape[0] < 1024:
        return tf.where(mask)[:, 0]
    # tf.where costs per element looked at: first find the 8-byte words that hold any True.
    octets = tf.cast(mask, tf.uint8)
    octets = tf.pad(octets, [[0, -tf.size(octets) % _BLOCK]])
    octets = tf.reshape(octets, [-1, _BLOCK])
    rows = tf.where(tf.not_equal(tf.bitcast(octets, tf.int64), 0))[:, 0]
    inner = tf.where(tf.not_equal(tf.gather(octets, rows), 0))
    return tf.gather(rows, inner[:, 0]) * _BLOCK + inner[:, 1]


def _filtered_indices(
    bits: _Bits, k: tf.Tensor, total: tf.Tensor
) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor, tf.Tensor]:
    """Candidate indices per tensor, their patterns concatenated, their counts and the bound."""
    bound = tf.maximum(_lower_bound(bits, k, total), 1)
    indices = [indices_of_true(part >= bound) for part in bits.flat]
    patterns = [tf.gather(part, at) for part, at in zip(bits.flat, indices, strict=True)]
    return indices, tf.concat(patterns, 0), tf.stack([tf.size(p) for p in patterns]), bound


def _select(
    tensors: list[tf.Tensor], bits: _Bits, k: tf.Tensor, total: tf.Tensor, values: bool
) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Top-k values (or masks) through the sample filter, flat; and whether all are finite."""
    indices, patterns, counts, bound = _filtered_indices(bits, k, total)
    found = tf.size(patterns, tf.int64)
    # With bound 1 every nonzero is a candidate: enough for values, as zeros stay zero anyway.
    enough = (found >= k) | (tf.equal(bound, 1) if values else tf.constant(False))

    def finish(masks: list[tf.Tensor]) -> list[tf.Tensor]:
        if not values:
            return masks
        flat = [tf.reshape(t, [-1]) for t in tensors]
        return [tf.where(m, t, tf.zeros([], t.dtype)) for m, t in zip(masks, flat, strict=True)]

    def from_candidates() -> tuple[list[tf.Tensor], tf.Tensor]:
        cut = _histogram_threshold([patterns], bits, tf.minimum(k, found))
        flags = _masks_at([patterns], cut.pattern, cut.ties)[0]
        keep = tf.split(flags, counts, num=len(tensors))
        out = []
        for tensor, at, flags in zip(tensors, indices, keep, strict=True):
            at = tf.boolean_mask(at, flags)
            shape = tf.reshape(tf.size(tensor, tf.int64), [1])
            flat = tf.reshape(tensor, [-1])
            kept = tf.gather(flat, at) if values else tf.ones_like(at, tf.bool)
            out.append(tf.scatter_nd(at[:, None], kept, shape))
        return out, cut.finite

    def from_all() -> tuple[list[tf.Tensor], tf.Tensor]:
        masks, finite = _histogram_masks(bits, k, values)
        return finish(masks), finite

    return tf.cond(enough, from_candidates, from_all)


def largest(tensors: list[tf.Tensor], k: int | tf.Tensor, algorithm: str, values: bool) -> list:
    """Returns tensors with all but the k largest magnitudes zero, or masks of those.

    Args:
        tensors: floating-point tensors.
        k: a Python int or a scalar integer tensor, at least 0.
        algorithm: see `math.l0_masks`.
        values: whether to return values; else bool masks.
    """
    count = _as_count(k)
    bits = _bit_patterns(tensors)
    total = tf.add_n([tf.size(part, tf.int64) for part in bits.flat])
    count = tf.minimum(count, total)
    if algorithm != "bisection":
        count = outside_xla(count, bits.flat[0])

    def dense() -> tuple[list[tf.Tensor], tf.Tensor]:
        if algorithm == "bisection":
            masks, finite = largest_masks(bits.flat, count, not values), tf.constant(True)
        else:
            masks, finite = _histogram_masks(bits, count, values)
        if not values:
            return masks, finite
        flat = [tf.reshape(t, [-1]) for t in tensors]
        out = [tf.where(m, t, tf.zeros([], t.dtype)) for m, t in zip(masks, flat, strict=True)]
        return out, finite

    static = sum(t.shape.num_elements() or 0 for t in tensors)
    if algorithm == "bisection" or static < _FILTER_MIN_SIZE:
        out, finite = dense()
    else:
        few = tf.cast(count, tf.float32) <= _FILTER_MAX_FRACTION * tf.cast(total, tf.float32)
        out, finite = tf.cond(few, lambda: _select(tensors, bits, count, total, values), dense)
    if algorithm != "bisection":
        out = refuse_non_finite(list(out), finite)
    return [
        tf.ensure_shape(tf.reshape(o, tf.shape(t)), t.shape)
        for o, t in zip(out, tensors, strict=True)
    ]


def refuse_non_finite(out: list[tf.Tensor], finite: tf.Tensor) -> list[tf.Tensor]:
    """Returns `out`, or raises where what it is made of was not finite."""
    message = "Cannot rank NaN or infinite entries by magnitude; the tensors must be finite."
    if tf.executing_eagerly():
        if not bool(finite):
            raise ValueError(message)
        return out
    with tf.control_dependencies([tf.debugging.Assert(finite, [message])]):
        return [tf.identity(o) for o in out]
