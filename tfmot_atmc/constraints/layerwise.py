# SPDX-License-Identifier: Apache-2.0
"""A budget of nonzeros for each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_atmc.constraints.base import AddWeight, Constraint, Factor, placed, trained
from tfmot_atmc.constraints.floors import (
    FLOORS,
    FlooredSparsity,
    budgets_of_layers,
    check_floors,
)
from tfmot_atmc.constraints.sparsity import GlobalSparsity, GradientGrowth
from tfmot_atmc.math import allocate_budget, project_l0

__all__ = ["LayerwiseSparsity", "sparsity"]


class LayerwiseSparsity(GlobalSparsity):
    """At most m_i nonzeros in the factors of layer i, where the m_i add up to k.

    The budgets are in proportion to a power of the layers' sizes; while the schedule's budget is
    above k, each layer's is as far above m_i.

    Args:
        ratio: as for `GlobalSparsity`.
        k: as for `GlobalSparsity`.
        schedule: as for `GlobalSparsity`.
        exponent: p in [0, 1] of `math.allocate_budget`: with 1 every layer keeps the same ratio,
            with 0 the same number of nonzeros.

    Raises:
        ValueError: as `GlobalSparsity`, or if `exponent` is out of range.

    Source: as `math.allocate_budget`.
    """

    def __init__(
        self,
        ratio: float | None = None,
        k: int | None = None,
        schedule: Any = "constant",
        exponent: float = 0.1,
    ):
        super().__init__(ratio, k, schedule)
        allocate_budget([1], 1, exponent)  # refuses an exponent out of range now
        self.exponent = exponent

    def build(self, factors: Sequence[Factor], dense_size: int, add_weight: AddWeight) -> None:
        if any(factor.cost != 1 for factor in factors):
            raise ValueError(
                "A budget for each layer counts nonzeros, so all entries must cost 1. Use one "
                "budget for all layers, `layer_exponent=None`, with other costs."
            )
        super().build(factors, dense_size, add_weight)

    def _layers(self) -> list[tuple[str, list[int], int]]:
        """Returns name, members among the factors that are trained, and budget of each layer."""
        factors = [factor for factor in self._factors if factor.trained]
        return budgets_of_layers(factors, self.budget, self.exponent)

    def _top(self, scores: Sequence[tf.Tensor], k: Any, compiled: bool = False) -> list[tf.Tensor]:
        layers = self._layers()
        entries = [sum(int(np.prod(scores[i].shape)) for i in members) for _, members, _ in layers]
        total, own = sum(entries), sum(budget for _, _, budget in layers)
        above = tf.cast(k, tf.float64) - own
        above = tf.clip_by_value(above / max(1, total - own), 0.0, 1.0)
        masks: dict[int, tf.Tensor] = {}
        for (_, members, budget), size in zip(layers, entries, strict=True):
            count = budget + tf.cast(tf.floor(above * (size - budget)), tf.int32)
            found = self._largest([scores[i] for i in members], count, compiled)
            masks.update(zip(members, found, strict=True))
        return [masks[i] for i in range(len(scores))]

    def finalized(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        final = trained(self._factors, values)
        for _, members, budget in self._layers():
            projected = project_l0([tf.constant(final[i]) for i in members], budget)
            for index, value in zip(members, projected, strict=True):
                final[index] = value.numpy()
        return placed(self._factors, final, values)

    def violation(self, values: Sequence[np.ndarray]) -> str | None:
        acting = trained(self._factors, values)
        for name, members, budget in self._layers():
            nonzeros = sum(int(np.count_nonzero(acting[i])) for i in members)
            if nonzeros > budget:
                return f"{nonzeros} nonzeros in {name}, budget {budget}"
        return None


def sparsity(
    ratio: float | None,
    k: int | None,
    schedule: Any,
    growth: GradientGrowth | None,
    layer_exponent: float | None,
    floors: float | None = None,
) -> Constraint:
    """Returns the constraint of one budget, with or without floors, or of one budget a layer.

    Args:
        ratio: as for `GlobalSparsity`.
        k: as for `GlobalSparsity`.
        schedule: as for `GlobalSparsity`.
        growth: as for `GlobalSparsity`; with a budget a layer it must be None.
        layer_exponent: None for one budget of all layers, or the `exponent` of
            `LayerwiseSparsity`.
        floors: share of the one budget that is assured to layers; 0 for none, as with growth; None
            for `FLOORS` where it is possible.

    Raises:
        ValueError: if a value is out of range, or growth or floors are asked for with a budget a
            layer, or floors with growth.
    """
    share = check_floors(FLOORS if floors is None else floors)
    if floors and (growth is not None or layer_exponent is not None):
        raise ValueError(
            "`floors` are of one budget for all layers whose support is free: leave out `growth` "
            f"and `layer_exponent`, or give floors=0. Received floors={floors!r}."
        )
    if layer_exponent is None:
        if growth is not None or not share:
            return GlobalSparsity(ratio, k, schedule, growth)
        return FlooredSparsity(ratio, k, schedule, share)
    if growth is not None:
        raise ValueError(
            "`growth` moves the support between layers and needs one global budget. Give either "
            "`growth` or `layer_exponent`."
        )
    return LayerwiseSparsity(ratio, k, schedule, layer_exponent)
