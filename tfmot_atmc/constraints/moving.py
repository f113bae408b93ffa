# SPDX-License-Identifier: Apache-2.0
"""Supports that move during training: some connections are dropped, others open."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from tfmot_atmc.constraints.base import AddWeight, Factor, Moment, dense_cost
from tfmot_atmc.constraints.sparsity import check_budget, exact_budget
from tfmot_atmc.constraints.support import Support
from tfmot_atmc.math import allocate_by_inverse, l0_masks

__all__ = ["MovingSupport"]

_FIRST, _LAST = 0.5, 0.005  # share of a layer that is moved, at the start and at the end
_INTERVAL = 900 / 78_200  # of the steps of the paper's 200 epochs of 391
_WINDOW = 4  # differences between epochs
_EXTRA_DROP, _EXTRA_GROWTH = 0.4, 1.05


class MovingSupport(Support):
    """Sparse from the start: every so often the smallest weights are dropped and others opened.

    Each layer has an exact number of open weights, n / (f n + 1) of its n (see
    `math.allocate_by_inverse`), at random places first. At an event the share d of those that are
    smallest is closed, and as many of all that are closed then are opened at random, at 0; d falls
    along a cosine from 0.5 to 0.005. What the optimizer remembers of closed weights is set to zero
    after every step.

    Args:
        ratio: open weights as a ratio of the dense kernels' parameters, in (0, 1].
        k: their number; give `ratio` or `k`.
        interval: steps (int) between two events, or their fraction of the planned steps (float);
            None for 0.0115, which is 900 steps of the paper's. In the second half of the steps it
            is a third longer.
        adaptive: whether overfitting changes the number of open weights, in the second half, by the
            last four differences between epochs: where the gap between robust accuracy in training
            and in validation grew in half of them or more, 0.4 d more are dropped for good; where
            the loss under attack in validation did not fall in half of them or more, 5% more are
            opened than were dropped. Never more than the budget are open. It needs validation under
            attack.
        seed: seed of the places.

    Raises:
        ValueError: if not exactly one budget is given, or a value is out of range.

    Source: Chen et al., "Sparsity Winning Twice: Better Robust Generalization from More Efficient
    Training", ICLR 2022, Flying Bird and Flying Bird+; the numbers of open weights are exact here,
    and those of the second never exceed the budget, as they may there.
    """

    clears_momentum = True
    holds_from_the_start = True

    def __init__(
        self,
        ratio: float | None = None,
        k: int | None = None,
        interval: int | float | None = None,
        adaptive: bool = False,
        seed: int = 0,
    ):
        check_budget(ratio, k)
        fraction = isinstance(interval, float)
        if interval is not None and (interval <= 0 or (fraction and interval > 1)):
            raise ValueError(
                "`interval` must be a number of steps, at least 1, or a fraction of the planned "
                f"steps in (0, 1]. Received {interval!r}."
            )
        self.ratio, self.k, self.interval = ratio, k, interval
        self.adaptive, self.seed = adaptive, seed
        self.needs_horizon = True

    def build(self, factors: Sequence[Factor], dense_size: int, add_weight: AddWeight) -> None:
        sizes = [factor.size for factor in factors]
        budget = dense_cost(factors, dense_size)
        budget = exact_budget(round(self.ratio or 0, 9), budget) if self.k is None else self.k
        if budget < len(sizes):
            raise ValueError(
                f"A budget of {budget} weights leaves some of the {len(sizes)} layers without any, "
                f"and nothing passes through them. Received ratio={self.ratio}, k={self.k}."
            )
        self.budgets = allocate_by_inverse(sizes, budget)
        draws = np.random.default_rng([self.seed, 2])
        masks = []
        for factor, kept in zip(factors, self.budgets, strict=True):
            mask = np.zeros(factor.size, bool)
            mask[draws.permutation(factor.size)[:kept]] = True
            masks.append(tf.constant(mask.reshape(tuple(factor.variable.shape))))
        self._start(factors, masks, add_weight)
        # Rows of the last epochs: gap of robust accuracy, loss in validation; and how many.
        self._epochs = add_weight(
            name="epochs", shape=(_WINDOW + 1, 2), dtype="float32", initializer="zeros"
        )
        self._seen = add_weight(name="epochs_seen", shape=(), dtype="int32", initializer="zeros")

    def project(self, moment: Moment, gradients: Sequence[tf.Tensor] | None) -> None:
        self._apply()
        early = moment.step * 2 < moment.horizon
        interval = self._interval(moment)
        interval = tf.where(early, interval, interval * 4 // 3)
        event = (moment.step > 0) & (moment.step % interval == 0)
        values = [factor.read() for factor in self._factors]

        def moved() -> tuple[list[tf.Tensor], list[tf.Tensor]]:
            return self._moved(values, moment)

        def same() -> tuple[list[tf.Tensor], list[tf.Tensor]]:
            kept = [tf.identity(mask.value) for mask in self._masks]
            return kept, kept

        stays, masks = tf.cond(event, moved, same)
        for i, factor in enumerate(self._factors):
            if factor.trained:
                self._masks[i].assign(masks[i])
                factor.variable.assign(tf.where(stays[i], values[i], tf.zeros_like(values[i])))

    def _interval(self, moment: Moment) -> tf.Tensor:
        point = _INTERVAL if self.interval is None else self.interval
        return tf.maximum(moment.at(point), 1)

    def _moved(
        self, values: Sequence[tf.Tensor], moment: Moment
    ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Returns which weights stay at an event, and which are open after it."""
        progress = tf.cast(moment.step, tf.float32) / tf.cast(
            tf.maximum(moment.horizon, 1), tf.float32
        )
        wave = 0.5 * (1 + tf.cos(math.pi * tf.clip_by_value(progress, 0.0, 1.0)))
        share = _LAST + (_FIRST - _LAST) * wave
        shrinks, grows = self._overfitting(moment)
        algorithm = "bisection" if moment.compiled else "histogram"
        staying, found = [], []
        for i, (value, mask) in enumerate(zip(values, self._masks, strict=True)):
            held, budget = tf.reshape(mask.value, (-1,)), self.budgets[i]
            open_ = tf.reduce_sum(tf.cast(held, tf.int32))
            dropped = _ceil(share * tf.cast(open_, tf.float32))
            extra = tf.where(shrinks, _ceil(_EXTRA_DROP * share * tf.cast(open_, tf.float32)), 0)
            kept = tf.maximum(open_ - dropped - extra, 1)
            size = tf.abs(tf.reshape(value, (-1,))) + np.finfo(np.float32).tiny
            (stays,) = l0_masks([tf.where(held, size, 0.0)], kept, algorithm=algorithm)
            wanted = tf.where(grows, _ceil(_EXTRA_GROWTH * tf.cast(dropped, tf.float32)), dropped)
            wanted = tf.minimum(wanted, budget - kept)
            draws = tf.random.stateless_uniform(
                tf.shape(size), tf.stack([self.seed * 1009 + i, moment.step]), 0.5, 1.0
            )
            (opens,) = l0_masks([tf.where(stays, 0.0, draws)], wanted, algorithm=algorithm)
            staying.append(tf.reshape(stays, value.shape))
            found.append(tf.reshape(stays | opens, value.shape))
        return staying, found

    def _overfitting(self, moment: Moment) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns whether more are dropped for good, and whether more are opened."""
        late = (moment.step * 2 >= moment.horizon) & (self._seen.value > _WINDOW)
        steps = self._epochs.value[1:] - self._epochs.value[:-1]
        half = _WINDOW / 2
        widening = tf.reduce_sum(tf.cast(steps[:, 0] > 0, tf.float32)) >= half
        rising = tf.reduce_sum(tf.cast(steps[:, 1] >= 0, tf.float32)) >= half
        return late & widening, late & rising

    def epoch_ended(self, logs: Mapping[str, float]) -> None:
        if not self.adaptive:
            return
        names = ("robust_accuracy", "val_robust_accuracy", "val_robust_loss")
        missing = [name for name in names if name not in logs]
        if missing:
            raise ValueError(
                "adaptive=True looks at robust accuracy in training and in validation. Give "
                "`validation_data` to fit, and an attack to compress; this epoch reported no "
                f"{', '.join(missing)}."
            )
        gap = float(logs[names[0]]) - float(logs[names[1]])
        rows = keras.ops.convert_to_numpy(self._epochs)
        self._epochs.assign(np.concatenate([rows[1:], [[gap, float(logs[names[2]])]]]))
        self._seen.assign_add(1)

    def scalars(self) -> dict[str, float]:
        open_ = sum(int(np.count_nonzero(mask.numpy())) for mask in self._masks)
        return {"open_weights": float(open_)}


def _ceil(value: tf.Tensor) -> tf.Tensor:
    # Products such as 0.1 * 30 may lie just above a whole number.
    return tf.cast(tf.math.ceil(value * (1 - 1e-6)), tf.int32)
