# SPDX-License-Identifier: Apache-2.0
"""Rates of layers that training learns, driven to one budget for all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfmot_atmc.constraints.base import AddWeight, Constraint, Factor, Moment
from tfmot_atmc.constraints.sparsity import check_budget, exact_budget
from tfmot_atmc.kernels import kept_of, rate_of, raw_of

__all__ = ["LARGEST", "RateTarget"]

LARGEST = 0.999
"""Rate above which that of a layer is not started; a sigmoid ends below 1."""

_EPOCHS = 20  # of the paper, over which the factor of the penalty grows
_SHIFTS = 60  # halvings of [-40, 40]


class RateTarget(Constraint):
    """The numbers of weights that `RatedKernel`s use add up to the budget in the end.

    Training adds g max(used / budget - 1, 0) to the loss, where g grows from `gamma` to 20 times
    that over the planned steps, for as long as more are used than the budget has. What is deployed
    has exactly the budget: all rates are shifted alike, before their sigmoid.

    Args:
        ratio: weights that are used as a ratio of all, in (0, 1].
        k: their number; give `ratio` or `k`.
        least: the smallest rate of a layer, as a share of the budget's, in (0, 1).
        gamma: factor of the penalty in the first of 20 parts of training, at least 0.

    Raises:
        ValueError: if not exactly one budget is given, or a value is out of range.

    Source: Zhao and Wressnegger, "Holistic Adversarially Robust Pruning", ICLR 2023, section 3;
    the exact end is ours.
    """

    role = "rate"
    needs_horizon = True

    def __init__(
        self,
        ratio: float | None = None,
        k: int | None = None,
        least: float = 0.1,
        gamma: float = 0.01,
    ):
        check_budget(ratio, k)
        if not 0 < least < 1 or gamma < 0:
            raise ValueError(
                "`least` must lie in (0, 1), and `gamma` must be at least 0. Received "
                f"least={least!r}, gamma={gamma!r}."
            )
        self.ratio, self.k, self.least, self.gamma = ratio, k, float(least), float(gamma)

    def build(self, factors: Sequence[Factor], dense_size: int, add_weight: AddWeight) -> None:
        self._factors = list(factors)
        self._sizes = [factor.site.size if factor.site else 1 for factor in factors]
        total = sum(self._sizes)
        budget = exact_budget(round(self.ratio or 0, 9), total) if self.k is None else self.k
        self.budget = min(int(budget), total)
        self._least = self.least * min(self.budget / total, LARGEST)
        self._reached = add_weight(name="reached", shape=(), dtype="float32", initializer="zeros")

    def _counts(self, raws: Sequence[tf.Tensor]) -> tf.Tensor:
        pairs = zip(raws, self._sizes, strict=True)
        return tf.stack([kept_of(raw, self._least, size) for raw, size in pairs])

    def penalty(self, moment: Moment) -> tf.Tensor | None:
        pairs = zip(self._factors, self._sizes, strict=True)
        used = tf.add_n([rate_of(f.read(), self._least) * float(size) for f, size in pairs])
        excess = tf.maximum(used / float(self.budget) - 1, 0.0)
        return self._factor(moment) * excess

    def _factor(self, moment: Moment) -> tf.Tensor:
        done = tf.cast(moment.step, tf.float32) / tf.cast(tf.maximum(moment.horizon, 1), tf.float32)
        growing = self.gamma * tf.clip_by_value(_EPOCHS * done, 1.0, float(_EPOCHS))
        return tf.where(self._reached.value > 0, self._reached.value, growing)

    def after_projection(self, moment: Moment) -> None:
        used = tf.reduce_sum(self._counts([factor.read() for factor in self._factors]))
        self._reached.assign(
            tf.where(used <= self.budget, self._factor(moment), self._reached.value)
        )

    def deploy(self, values: Sequence[tf.Tensor], compiled: bool = False) -> list[tf.Tensor]:
        low, high = tf.constant(-40.0), tf.constant(40.0)
        for _ in range(_SHIFTS):
            middle = (low + high) / 2
            within = tf.reduce_sum(self._counts([v + middle for v in values])) <= self.budget
            low, high = tf.where(within, middle, low), tf.where(within, high, middle)
        counts = tf.unstack(self._counts([v + low for v in values]))
        left = self.budget - tf.add_n(counts)
        for i in sorted(range(len(counts)), key=lambda i: -self._sizes[i]):
            more = tf.clip_by_value(left, 1 - counts[i], self._sizes[i] - counts[i])
            counts[i], left = counts[i] + more, left - more
        pairs = zip(counts, self._sizes, strict=True)
        return [
            raw_of(tf.cast(count, tf.float32) / float(size), self._least) for count, size in pairs
        ]

    def finalized(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        found = self.deploy([tf.constant(value, tf.float32) for value in values])
        return [value.numpy().astype(old.dtype) for value, old in zip(found, values, strict=True)]

    def violation(self, values: Sequence[np.ndarray]) -> str | None:
        used = int(tf.reduce_sum(self._counts([tf.constant(v, tf.float32) for v in values])))
        return None if used == self.budget else f"{used} weights are used, budget {self.budget}"

    def scalars(self) -> dict[str, float]:
        counts = self._counts([factor.read() for factor in self._factors])
        return {"used_weights": float(tf.reduce_sum(counts))}
