# SPDX-License-Identifier: Apache-2.0
"""Channels that are kept or dropped as a whole, in all layers that they run through.

A channel is known by its number (`Site.channels`): residual sums, concatenations and flattening
tie layers together, so that one number stands in several of them. It has gone when no layer reads
it any more, and then whatever writes it can be removed without a change of the outputs, batch
normalisation and its shift included.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_atmc.constraints.base import Factor
from tfmot_atmc.kernels import Site

__all__ = ["ChannelGroups"]


class ChannelGroups:
    """The channels of a model that may go, what they cost, and where their weights are.

    Args:
        factors: the factors of a model, with their sites.

    Raises:
        ValueError: if no channel may go, a factor has no site, or is of a kind of kernel whose
            channels are not known.
    """

    def __init__(self, factors: Sequence[Factor]):
        self._factors = list(factors)
        self._sites: dict[str, Site] = {}
        for factor in factors:
            if factor.site is None:
                raise ValueError(f"Factor {factor.name!r} does not know its site.")
            self._sites.setdefault(factor.site.name, factor.site)
        numbers = [c for site in self._sites.values() for c in _numbers(site)]
        self.count = 1 + max((int(n.max(initial=-1)) for n in numbers), default=-1)
        if not self.count:
            raise ValueError(
                "No channel of the model may go: each is an input or an output, or something reads "
                "it of which nothing is known, such as a layer that is not compressed, or a class "
                "of your own. It must be a functional or sequential model."
            )
        for factor in factors:
            self._axes(factor)  # refuses other kernels now
        self._spaces = {
            tuple(dict.fromkeys(outputs[outputs >= 0].tolist()))
            for _, outputs in map(_numbers, self._sites.values())
            if (outputs >= 0).all()
        }
        self._spaces.discard(())

    @property
    def spaces(self) -> list[tuple[int, ...]]:
        """Numbers of the channels of each layer all of whose outputs may go; one must stay."""
        return sorted(self._spaces)

    @property
    def total(self) -> int:
        """Multiply-accumulates of all layers with all channels.

        Raises:
            ValueError: if operations cannot be counted.
        """
        return int(sum(_operations(site) for site in self._sites.values()))

    def macs(self, kept: Any) -> tf.Tensor:
        """Returns the multiply-accumulates that are left, a float64 scalar, differentiable.

        Args:
            kept: tensor `[count]`, 1 for channels that stay and 0 for those that have gone.
        """
        whole = tf.concat([tf.cast(kept, tf.float64), tf.ones([1], tf.float64)], 0)
        read, written = (tf.linalg.matvec(tf.constant(m), whole) for m in self._counts)
        return tf.reduce_sum(tf.constant(self._each) * read * written)

    @functools.cached_property
    def _counts(self) -> tuple[np.ndarray, np.ndarray]:
        """How often each site reads and writes each channel: float64 `[sites, count + 1]` both."""
        counts = []
        for reads in (True, False):
            rows = []
            for site in self._sites.values():
                numbers = site.channels.inputs if reads else site.channels.outputs
                if reads and not site.channels.mixes:
                    numbers = np.full(1, -1)
                placed = _placed(numbers, self.count)
                rows.append(np.bincount(placed, minlength=self.count + 1).astype(np.float64))
            counts.append(np.stack(rows))
        return counts[0], counts[1]

    @functools.cached_property
    def _each(self) -> np.ndarray:
        """Multiply-accumulates of one output with one input of each site: float64 `[sites]`."""
        return np.array(
            [
                _operations(site)
                / (len(site.channels.outputs) * (len(site.channels.inputs) ** site.channels.mixes))
                for site in self._sites.values()
            ]
        )

    def first_within(self, scores: tf.Tensor, assured: tf.Tensor, limit: Any) -> tf.Tensor:
        """Returns bool `[count]`: the most channels, by falling scores, that fit beside others.

        Args:
            scores: float `[count]`; among equals the lower number comes first.
            assured: bool `[count]`, channels that are kept in any case.
            limit: multiply-accumulates, a number or a scalar.
        """
        order = tf.argsort(scores, direction="DESCENDING", stable=True)
        rank = tf.scatter_nd(order[:, None], tf.range(self.count), [self.count])
        most = tf.cast(limit, tf.float64) + 0.5

        def of(number: tf.Tensor) -> tf.Tensor:
            return (rank < number) | assured

        # More of the first ones never take less.
        low, high = tf.constant(0), tf.constant(self.count + 1)
        for _ in range(self.count.bit_length() + 1):
            middle = (low + high) // 2
            fits = self.macs(of(middle)) <= most
            low, high = tf.where(fits, middle, low), tf.where(fits, high, middle)
        return of(low)

    def fixed(self) -> np.ndarray:
        """Returns which channels stay for now since a frozen layer has them: bool `[count]`."""
        found = np.zeros(self.count, bool)
        for factor in self._factors:
            if not factor.trained and factor.site is not None:
                for numbers in _numbers(factor.site):
                    found[numbers[numbers >= 0]] = True
        return found

    def with_one_each(self, kept: tf.Tensor, scores: tf.Tensor) -> tf.Tensor:
        """Returns bool `[count]`: what is kept, those that are fixed, and one at least a layer.

        Args:
            kept: bool `[count]`.
            scores: float `[count]`; a layer keeps the channel of its largest, among equals the
                first.
        """
        kept |= tf.constant(self.fixed())
        for space in self.spaces:
            index = tf.constant(space, tf.int64)
            best = tf.gather(index, tf.argmax(tf.gather(scores, index)))
            kept |= tf.equal(tf.range(self.count, dtype=tf.int64), best)
        return kept

    def masked(
        self, values: Sequence[Any], kept: tf.Tensor, *, outputs: bool = True
    ) -> list[tf.Tensor]:
        """Returns the factors without what belongs to channels that have gone.

        Args:
            values: one tensor a factor.
            kept: float `[count]`, 1 or 0.
            outputs: whether the weights that write a channel go too, beside those that read it.
        """
        whole = tf.concat([kept, tf.ones([1], kept.dtype)], 0)
        found = []
        for factor, value in zip(self._factors, values, strict=True):
            for axis, numbers, writes in self._axes(factor):
                if outputs or not writes:
                    mask = tf.gather(whole, _placed(numbers, self.count))
                    rank = len(factor.variable.shape)
                    sides = [-1 if i == axis else 1 for i in range(rank)]
                    value = value * tf.cast(tf.reshape(mask, sides), value.dtype)
            found.append(tf.convert_to_tensor(value))
        return found

    def weight_squares(self, values: Sequence[Any]) -> tf.Tensor:
        """Returns for each channel the sum of squares of the weights that go with it, float64.

        Args:
            values: one tensor a factor.
        """
        total = tf.zeros([self.count + 1], tf.float64)
        for factor, value in zip(self._factors, values, strict=True):
            squares = tf.square(tf.cast(value, tf.float64))
            for axis, numbers, _ in self._axes(factor):
                others = [i for i in range(len(factor.variable.shape)) if i != axis]
                each = tf.reduce_sum(squares, axis=others)
                index = _placed(numbers, self.count)
                total += tf.math.unsorted_segment_sum(each, index, self.count + 1)
        return total[: self.count]

    def costs(self) -> np.ndarray:
        """Returns what each channel costs where all others stay: float64 `[count]`."""
        found = np.zeros(self.count + 1)
        for site in self._sites.values():
            inputs, outputs = _numbers(site)
            for numbers in (inputs, outputs) if site.channels.mixes else (outputs,):
                index = _placed(numbers, self.count)
                np.add.at(found, index, _operations(site) / len(numbers))
        return found[: self.count]

    def _axes(self, factor: Factor) -> list[tuple[int, np.ndarray, bool]]:
        """Returns the axes of a factor along which channels lie: axis, numbers, whether written."""
        site = factor.site
        if site is None:
            return []
        inputs, outputs = _numbers(site)
        shape = tuple(factor.variable.shape)
        last = len(shape) - 1
        if shape == site.shape and last >= 1:
            reads = (last - 1, inputs, False)
            return [reads, (last, outputs, True)] if site.channels.mixes else [reads]
        if factor.part == "U" and len(shape) == 2:
            if len(outputs) < site.fan_in:
                return [(0, outputs, True), (1, outputs, True)]
            tiled = np.tile(inputs, site.fan_in // len(inputs))
            return [(0, tiled, False), (1, tiled, False)]
        if (inputs < 0).all() and (outputs < 0).all():
            return []
        raise ValueError(
            f"Channels are dropped from plain kernels and those of ATMC. {factor.name!r} of shape "
            f"{shape} is part of another kernel."
        )


def _numbers(site: Site) -> tuple[np.ndarray, np.ndarray]:
    return site.channels.inputs, site.channels.outputs


def _placed(numbers: np.ndarray, count: int) -> np.ndarray:
    """Returns numbers with the place behind the last one for those that must stay."""
    return np.where(numbers < 0, count, numbers)


def _operations(site: Site) -> int:
    if site.operations is None:
        raise ValueError(
            f"The number of output positions of {site.name!r} is not known, so its operations "
            "cannot be counted. Build the model for a fixed size of its inputs."
        )
    return site.operations
