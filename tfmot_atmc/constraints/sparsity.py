# SPDX-License-Identifier: Apache-2.0
"""One global budget of nonzeros over all factors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmot_atmc.constraints.base import (
    AddWeight,
    Constraint,
    Factor,
    Moment,
    dense_cost,
    placed,
    trained,
)
from tfmot_atmc.constraints.schedules import BudgetSchedule, get_schedule
from tfmot_atmc.math import l0_masks, project_l0
from tfmot_atmc.utils.configurable import Configurable


def exact_budget(ratio: float, total: int) -> int:
    """Returns floor(ratio * total), free of binary rounding (0.1 means one tenth)."""
    return int(Fraction(str(ratio)) * total)


def check_budget(ratio: float | None, k: int | None, least: int = 1) -> None:
    """Raises ValueError unless exactly one of a ratio and a number is given, and within range.

    Args:
        ratio: in (0, 1], or None.
        k: a whole number, or None.
        least: the smallest `k`.
    """
    if (ratio is None) == (k is None):
        raise ValueError(f"Give `ratio` or `k`, not both. Received {ratio!r} and {k!r}.")
    if ratio is not None and not 0 < ratio <= 1:
        raise ValueError(f"`ratio` must lie in (0, 1]. Received {ratio!r}.")
    if k is not None and (isinstance(k, bool) or int(k) != k or k < least):
        raise ValueError(f"`k` must be a whole number, at least {least}. Received {k!r}.")


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
        self._dense_size = dense_size
        entries = sum(f.size * f.cost for f in self._factors)
        # Schedules reckon in int32: so many units of cost stand for one of theirs.
        self._unit = math.ceil(max(entries, 1) / 2**30)
        self.current = add_weight(
            name="budget",
            shape=(),
            dtype="int32",
            initializer=keras.initializers.Constant(math.ceil(entries / self._unit)),
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

    @property
    def total(self) -> int:
        """What the dense kernels of all layers that are not frozen cost: 1 an entry by default."""
        return dense_cost(self._factors, self._dense_size)

    @property
    def budget(self) -> int:
        """What all that is left in those layers may cost: the number of nonzeros by default."""
        if self.k is not None:
            return self.k
        ratio = self.ratio if self.ratio is not None else self.schedule.final_ratio
        return exact_budget(round(ratio or 0, 9), self.total)

    def _top(self, scores: Sequence[tf.Tensor], k: Any, compiled: bool = False) -> list[tf.Tensor]:
        """Returns what is worth most of the scores of all factors that are trained, within k."""
        costs = [factor.cost for factor in self._factors if factor.trained]
        if set(costs) - {1.0}:
            limit = tf.cast(k, tf.float64) * self._unit
            algorithm = "bisection" if compiled else "histogram"
            return l0_masks(scores, limit, costs, algorithm=algorithm)
        return self._largest(scores, k, compiled)

    def _largest(
        self, scores: Sequence[tf.Tensor], k: Any, compiled: bool = False
    ) -> list[tf.Tensor]:
        """Returns where the k largest magnitudes over all tensors are.

        One vector of all entries, and one trace for all callers and lengths, keep the graph of a
        deep model small.
        """
        if compiled not in self._tops:
            algorithm = "bisection" if compiled else "histogram"
            signature = [tf.TensorSpec([None]), tf.TensorSpec([], tf.int32)]
            self._tops[compiled] = tf.function(
                lambda flat, count: l0_masks([flat], count, algorithm=algorithm)[0],
                autograph=False,
                input_signature=None if compiled else signature,
                experimental_attributes=None if compiled else {"_noinline": True},
            )
        flat = tf.concat(
            [tf.reshape(tf.cast(score, tf.float32), (-1,)) for score in scores], axis=0
        )
        mask = self._tops[compiled](flat, tf.convert_to_tensor(k, tf.int32))
        parts = tf.split(mask, [int(np.prod(score.shape)) for score in scores])
        return [tf.reshape(part, score.shape) for part, score in zip(parts, scores, strict=True)]

    def project(self, moment: Moment, gradients: Sequence[tf.Tensor] | None) -> None:
        allowed, total = self.budget // self._unit, self.total // self._unit
        budget = self.schedule.budget(moment, allowed, total, self.current.value)
        self.current.assign(budget)
        values = [f.read() for f in self._factors if f.trained]
        if not values:
            return
        if self.growth is None:
            self._assign_within(values, self._top(values, budget, moment.compiled))
            return
        if gradients is None:
            raise ValueError("Growth by gradient needs the gradients of the step.")
        gradients = trained(self._factors, gradients)
        supports = trained(self._factors, self._masks)
        first = moment.at(self.growth.begin)
        fixed = moment.step > first
        event = fixed & (moment.step <= moment.at(self.growth.end))
        event = event & ((moment.step - first) % self.growth.interval == 0)

        def moved() -> list[tf.Tensor]:
            return self._moved_support(values, gradients, budget, moment)

        def kept() -> list[tf.Tensor]:
            return tf.cond(
                fixed,
                lambda: [tf.identity(mask.value) for mask in supports],
                lambda: self._top(values, budget, moment.compiled),
            )

        masks = tf.cond(event, moved, kept)
        for variable, mask in zip(supports, masks, strict=True):
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
        factors = trained(self._factors, self._factors)
        supports = trained(self._factors, self._masks)
        held = [tf.where(m.value, v, 0.0) for v, m in zip(values, supports, strict=True)]
        keep = [
            mask & (value != 0)
            for mask, value in zip(
                self._top(held, budget - moving, moment.compiled), held, strict=True
            )
        ]
        scores = [
            tf.where(stays, 0.0, g) if factor.growable else tf.zeros_like(g)
            for stays, g, factor in zip(keep, gradients, factors, strict=True)
        ]
        grow = self._top(scores, moving, moment.compiled)
        return [a | (b & (score != 0)) for a, b, score in zip(keep, grow, scores, strict=True)]

    def _assign_within(self, values: Sequence[tf.Tensor], masks: Sequence[tf.Tensor]) -> None:
        factors = trained(self._factors, self._factors)
        for factor, value, mask in zip(factors, values, masks, strict=True):
            factor.variable.assign(tf.where(mask, value, tf.zeros_like(value)))

    def deploy(self, values: Sequence[tf.Tensor], compiled: bool = False) -> list[tf.Tensor]:
        acting, allowed = trained(self._factors, values), self.budget // self._unit
        if not acting:
            return list(values)

        def pruned() -> list[tf.Tensor]:
            masks = self._top(acting, allowed, compiled)
            return [tf.where(m, v, tf.zeros_like(v)) for v, m in zip(acting, masks, strict=True)]

        found = tf.cond(
            self.current.value <= allowed,  # the factors are within the final budget already
            lambda: [tf.identity(value) for value in acting],
            pruned,
        )
        return placed(self._factors, found, values)

    def finalized(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        return self._projected(values, self.budget)

    def _projected(self, values: Sequence[np.ndarray], budget: int) -> list[np.ndarray]:
        tensors = [tf.constant(value) for value in trained(self._factors, values)]
        if not tensors:
            return list(values)
        costs = [factor.cost for factor in self._factors if factor.trained]
        found = project_l0(tensors, budget, costs if set(costs) - {1.0} else None)
        return placed(self._factors, [value.numpy() for value in found], values)

    def violation(self, values: Sequence[np.ndarray]) -> str | None:
        counts = [int(np.count_nonzero(value)) for value in values]
        acting = [(n, f.cost) for n, f in zip(counts, self._factors, strict=False) if f.trained]
        spent = sum(n if cost == 1 else n * cost for n, cost in acting)
        if spent > self.budget:
            unit = "nonzeros" if all(cost == 1 for _, cost in acting) else "of cost"
            return f"{spent} {unit}, budget {self.budget}"
        return None

    def scalars(self) -> dict[str, float]:
        return {"budget": float(keras.ops.convert_to_numpy(self.current))}
