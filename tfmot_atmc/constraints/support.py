# SPDX-License-Identifier: Apache-2.0
"""Constraints that say which weights may be nonzero, and one that chooses them at the start."""

from __future__ import annotations

from collections.abc import Sequence

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
from tfmot_atmc.constraints.floors import FLOORS, budgets_of_layers, check_floors, raised
from tfmot_atmc.constraints.sparsity import check_budget, exact_budget
from tfmot_atmc.math import allocate_budget, l0_masks


class Support(Constraint, abstract=True):
    """A constraint that keeps which entries of each factor may be nonzero.

    Subclasses call `_start` in `build`, and may move the masks afterwards.
    """

    clears_momentum: bool = False
    """Whether what the optimizer keeps of entries outside the support is set to zero too."""

    def _start(
        self, factors: Sequence[Factor], masks: Sequence[tf.Tensor], add_weight: AddWeight
    ) -> None:
        """Keeps the masks, one a factor, and sets what is outside to zero."""
        self._factors, self._masks = list(factors), []
        for i, (factor, mask) in enumerate(zip(factors, masks, strict=True)):
            variable = add_weight(
                name=f"support_{i}", shape=factor.variable.shape, dtype="bool", initializer="ones"
            )
            variable.assign(mask)
            self._masks.append(variable)
        self._apply()

    def _apply(self) -> None:
        for factor, mask in zip(self._factors, self._masks, strict=True):
            if not factor.trained:
                continue
            value = factor.read()
            factor.variable.assign(tf.where(mask.value, value, tf.zeros_like(value)))

    def project(self, moment: Moment, gradients: Sequence[tf.Tensor] | None) -> None:
        self._apply()

    def cleared(self) -> list[tuple[keras.Variable, tf.Tensor]]:
        if not self.clears_momentum:
            return []
        pairs = zip(self._factors, self._masks, strict=True)
        return [(factor.variable, mask.value) for factor, mask in pairs if factor.trained]

    def finalized(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        pairs = zip(
            trained(self._factors, values), trained(self._factors, self._masks), strict=True
        )
        kept = [np.where(mask.numpy(), v, 0).astype(v.dtype) for v, mask in pairs]
        return placed(self._factors, kept, values)

    def violation(self, values: Sequence[np.ndarray]) -> str | None:
        for factor, value, mask in zip(self._factors, values, self._masks, strict=True):
            outside = int(np.count_nonzero(value[~mask.numpy()]))
            if outside and factor.trained:
                return f"{outside} nonzeros of {factor.name} outside the support"
        return None


class FixedSupport(Support):
    """Keeps the k largest magnitudes of the starting weights, and never changes which.

    Magnitude pruning in one shot, over all layers unless `layer_exponent` is given: the support is
    chosen when the model is wrapped; training moves the values within it. Momentum of pruned
    entries is left alone, they are set to zero again after every step.

    Args:
        ratio: nonzeros as a ratio of the dense kernels' parameters, in (0, 1]; the budget is
            floor(ratio * parameters).
        k: number of nonzeros; give `ratio` or `k`, not both.
        layer_exponent: None for one budget over all layers, or the p of `math.allocate_budget`, in
            [0, 1], for a budget of its own in each.
        floors: share of the budget over all layers that is assured to them, see `FlooredSparsity`;
            0 for none, None for the default.

    Raises:
        ValueError: if not exactly one budget is given, or a value is out of range.

    Source: "AP" and "NAP" in Gui et al., NeurIPS 2019, section 4.1.
    """

    def __init__(
        self,
        ratio: float | None = None,
        k: int | None = None,
        layer_exponent: float | None = None,
        floors: float | None = None,
    ):
        check_budget(ratio, k, least=0)
        if layer_exponent is not None:
            allocate_budget([1], 1, layer_exponent)  # refuses an exponent out of range now
        check_floors(FLOORS if floors is None else floors)
        self.ratio, self.k, self.layer_exponent = ratio, k, layer_exponent
        self.floors = floors

    def build(self, factors: Sequence[Factor], dense_size: int, add_weight: AddWeight) -> None:
        self._factors = list(factors)
        ratio, total = round(self.ratio or 0, 9), dense_cost(factors, dense_size)
        self.budget = exact_budget(ratio, total) if self.k is None else int(self.k)
        self._start(factors, self._largest(), add_weight)

    def _largest(self) -> list[tf.Tensor]:
        values = [factor.read() for factor in self._factors]
        costs = [factor.cost for factor in self._factors]
        if self.layer_exponent is None:
            share = FLOORS if self.floors is None else self.floors
            if share:
                values = raised(values, self._factors, self.budget, share, l0_masks)
            return l0_masks(values, self.budget, costs if set(costs) - {1.0} else None)
        masks: dict[int, tf.Tensor] = {}
        for _, members, budget in budgets_of_layers(
            self._factors, self.budget, self.layer_exponent
        ):
            found = l0_masks([values[i] for i in members], budget)
            masks.update(zip(members, found, strict=True))
        return [masks[i] for i in range(len(values))]
