# SPDX-License-Identifier: Apache-2.0
"""One global budget of nonzeros over all factors."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmot_atmc.constraints.base import AddWeight, Constraint, Factor, Moment
from tfmot_atmc.constraints.schedules import BudgetSchedule, get_schedule
from tfmot_atmc.math import l0_masks, project_l0
from tfmot_atmc.utils.configurable import Configurable


def exact_budget(ratio: float, total: int) -> int:
    """Returns floor(ratio * total), free of binary rounding (0.1 means one tenth)."""
    return int(Fraction(str(ratio)) * total)


class GradientGrowth(Configurable):
    """Moves the support: drops small entries and opens those with the largest gradient.

    Every `interval` steps between `begin` and `end`, a share of the budget is taken from the
    smallest magnitudes and given to zero entries with the largest gradient magnitudes. Between
    those events the support is fixed. In ATMC entries grow in V and U, not in C, whose gradient
    repeats V's while U is zero.

    Args:
        fraction: share of the budget moved at the first event, in (0, 1); falls linearly to zero.
        interval: steps between two events.
        begin: step (int) or fraction of the planned steps (float).
        end: step (int) or fraction of the planned steps (float).

    Source: Evci et al., "Rigging the Lottery", ICML 2020, applied to ATMC's factors.
    """

    def __init__(
        self,
        fraction: float = 0.1,
        interval: int = 100,
        begin: int | float = 0.5,
        end: int | float = 0.8,
    ):
        if not 0 < fraction < 1:
            raise ValueError(f"`fraction` must lie in (0, 1). Received {fraction!r}.")
        if interval < 1:
            raise ValueError(f"`interval` must be at least 1. Received {interval!r}.")
        self.fraction, self.interval = fraction, interval
        self.begin, self.end = begin, end
        self.needs_horizon = isinstance(begin, float) or isinstance(end, float)


class GlobalSparsity(Constraint):
    """At most k nonzeros over all factors together, kept by projection after every step.

    The projection keeps the k largest magnitudes of all factors; momentum of pruned entries is
    left alone, so they can come back.

    Args:
        ratio: final budget as a ratio of the dense kernels' parameters, in (0, 1]; the budget is
            floor(ratio * parameters).
        k: final budget as a number of nonzeros; give `ratio` or `k`, not both.
        schedule: a `BudgetSchedule`, `"cubic"`, `"constant"`, or a TFMOT `PruningSchedule`, whose
            final sparsity then takes the place of `ratio`.
        growth: None, or a `GradientGrowth`.

    Raises:
        ValueError: if not exactly one budget is given, or it is out of range.

    Source: Gui et al., NeurIPS 2019, equations 4 and 7.
    """

    def __init__(
        self,
        ratio: float | None = None,
        k: int | None = None,
        schedule: Any = "constant",
        growth: GradientGrowth | None = None,
    ):
        self.schedule: BudgetSchedule = get_schedule(schedule)
        given = [value for value in (ratio, k, self.schedule.final_ratio) if value is not None]
        if len(given) != 1:
            raise ValueError(
                "Give exactly one budget: `ratio`, `k`, or a pruning schedule that carries its "
                f"own final sparsity. Received ratio={ratio!r}, k={k!r}, schedule={schedule!r}."
            )
        if ratio is not None and not 0 < ratio <= 1:
            raise ValueError(f"`ratio` must lie in (0, 1]. Received {ratio!r}.")
        if k is not None and (isinstance(k, bool) or int(k) != k or k < 0):
            raise ValueError(f"`k` must be a whole number, at least 0. Received {k!r}.")
        self.ratio, self.k = ratio, k
        self.growth = growth
        self.needs_horizon = self.schedule.needs_horizon or bool(growth and growth.needs_horizon)

    def build(self, factors: Sequence[Factor], dense_size: int, add_weight: AddWeight) -> None:
        self._factors = list(factors)
        self._total = dense_size
        ratio = self.ratio if self.ratio is not None else self.schedule.final_ratio
        exact = exact_budget(round(ratio or 0, 9), dense_size)
        self.budget = exact if self.k is None else self.k
        entries = sum(int(np.prod(f.variable.shape)) for f in self._factors)
        self.current = add_weight(
            name="budget", shape=(), dtype="int32", initializer=keras.initializers.Constant(entries)
        )
        self._masks = []
        self._tops: dict[bool, Any] = {}
        if self.growth is not None:
            self._masks = [
                add_weight(
                    name=f"support_{i}", shape=f.variable.shape, dtype="bool", initializer="ones"
                )
                for i, f in enumerate(self._factors)
            ]

    def _top(self, scores: Sequence[tf.Tensor], k: Any, compiled: bool = False) -> list[tf.Tensor]:
        """Returns where the k largest magnitudes over all tensors are.

        One vector of all entries, and one trace for all callers, keep the graph of a deep model
        small.
        """
        if compiled not in self._tops:
            algorithm = "bisection" if compiled else "histogram"
            self._tops[compiled] = tf.function(
                lambda flat, count: l0_masks([flat], count, algorithm=algorithm)[0],
                autograph=False,
                experimental_attributes=None if compiled else {"_noinline": True},
            )
        flat = tf.concat([tf.reshape(score, (-1,)) for score in scores], axis=0)
        mask = self._tops[compiled](flat, tf.convert_to_tensor(k, tf.int32))
        parts = tf.split(mask, [int(np.prod(score.shape)) for score in scores])
        return [tf.reshape(part, score.shape) for part, score in zip(parts, scores, strict=True)]

    def project(self, moment: Moment, gradients: Sequence[tf.Tensor] | None) -> None:
        budget = self.schedule.budget(moment, self.budget, self._total, self.current.value)
        self.current.assign(budget)
        values = [f.read() for f in self._factors]
        if self.growth is None:
            self._assign_within(values, self._top(values, budget, moment.compiled))
            return
        if gradients is None:
            raise ValueError("Growth by gradient needs the gradients of the step.")
        first = moment.at(self.growth.begin)
        fixed = moment.step > first
        event = fixed & (moment.step <= moment.at(self.growth.end))
        event = event & ((moment.step - first) % self.growth.interval == 0)

        def moved() -> list[tf.Tensor]:
            return self._moved_support(values, gradients, budget, moment)

        def kept() -> list[tf.Tensor]:
            return tf.cond(
                fixed,
                lambda: [tf.identity(mask.value) for mask in self._masks],
                lambda: self._top(values, budget, moment.compiled),
            )

        masks = tf.cond(event, moved, kept)
        for variable, mask in zip(self._masks, masks, strict=True):
            variable.assign(mask)
        self._assign_within(values, masks)

    def _moved_support(
        self,
        values: list[tf.Tensor],
        gradients: Sequence[tf.Tensor],
        budget: tf.Tensor,
        moment: Moment,
    ) -> list[tf.Tensor]:
        """Returns the support after one event of dropping and growing."""
        growth = self.growth or GradientGrowth()
        first, last = moment.at(growth.begin), moment.at(growth.end)
        left = tf.cast(last - moment.step, tf.float32) / tf.cast(
            tf.maximum(last - first, 1), tf.float32
        )
        share = growth.fraction * tf.clip_by_value(left, 0.0, 1.0)
        moving = tf.cast(share * tf.cast(budget, tf.float32), tf.int32)
        held = [tf.where(m.value, v, 0.0) for v, m in zip(values, self._masks, strict=True)]
        keep = [
            mask & (value != 0)
            for mask, value in zip(
                self._top(held, budget - moving, moment.compiled), held, strict=True
            )
        ]
        scores = [
            tf.where(stays, 0.0, g) if factor.growable else tf.zeros_like(g)
            for stays, g, factor in zip(keep, gradients, self._factors, strict=True)
        ]
        grow = self._top(scores, moving, moment.compiled)
        return [a | (b & (score != 0)) for a, b, score in zip(keep, grow, scores, strict=True)]

    def _assign_within(self, values: Sequence[tf.Tensor], masks: Sequence[tf.Tensor]) -> None:
        for factor, value, mask in zip(self._factors, values, masks, strict=True):
            factor.variable.assign(tf.where(mask, value, tf.zeros_like(value)))

    def deploy(self, values: Sequence[tf.Tensor], compiled: bool = False) -> list[tf.Tensor]:
        def pruned() -> list[tf.Tensor]:
            masks = self._top(values, self.budget, compiled)
            return [tf.where(m, v, tf.zeros_like(v)) for v, m in zip(values, masks, strict=True)]

        return tf.cond(
            self.current.value <= self.budget,  # the factors are within the final budget already
            lambda: [tf.identity(value) for value in values],
            pruned,
        )

    def finalized(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        tensors = [tf.constant(value) for value in values]
        return [value.numpy() for value in project_l0(tensors, self.budget)]

    def violation(self, values: Sequence[np.ndarray]) -> str | None:
        nonzeros = sum(int(np.count_nonzero(value)) for value in values)
        if nonzeros > self.budget:
            return f"{nonzeros} nonzeros, budget {self.budget}"
        return None

    def scalars(self) -> dict[str, float]:
        return {"budget": float(keras.ops.convert_to_numpy(self.current))}
