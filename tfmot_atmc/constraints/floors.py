# SPDX-License-Identifier: Apache-2.0
"""One budget of nonzeros, a part of which is assured to each layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_atmc.constraints.base import Factor, placed, trained
from tfmot_atmc.constraints.sparsity import GlobalSparsity
from tfmot_atmc.math import allocate_budget

__all__ = ["FLOORS", "FlooredSparsity", "budgets_of_layers", "check_floors", "raised"]

FLOORS = 0.75
"""Share of the budget that is assured to layers where nothing else is asked for.

It was chosen by benchmarks/layer_budgets.py, over networks with and without small layers.
"""

_EXPONENT = 0.5


def budgets_of_layers(
    factors: Sequence[Factor], k: int, exponent: float
) -> list[tuple[str, list[int], int]]:
    """Returns each layer's name, which of the factors are its own, and its budget of nonzeros.

    Args:
        factors: the factors of all layers; of each layer the main one comes first.
        k: nonzeros of all layers together.
        exponent: p of `math.allocate_budget`.
    """
    layers: dict[str, list[int]] = {}
    for index, factor in enumerate(factors):
        layers.setdefault(factor.name.rpartition(":")[0], []).append(index)
    kernels = [int(np.prod(factors[members[0]].variable.shape)) for members in layers.values()]
    budgets = allocate_budget(kernels, k, exponent)
    return list(zip(layers, layers.values(), budgets, strict=True))


def check_floors(floors: float) -> float:
    """Returns the share, a number in [0, 1].

    Raises:
        ValueError: if it is another.
    """
    if isinstance(floors, bool) or not 0 <= floors <= 1:
        raise ValueError(
            "`floors` is the share of the budget that is assured to layers, in [0, 1]; 0 is one "
            f"budget for all of them. Received {floors!r}."
        )
    return float(floors)


def raised(
    scores: Sequence[tf.Tensor],
    factors: Sequence[Factor],
    budget: float,
    floors: float,
    top: Callable[[list[tf.Tensor], int], list[tf.Tensor]],
    needed: Sequence[tf.Tensor] | None = None,
) -> list[tf.Tensor]:
    """Returns magnitudes in which what is assured to a layer is above everything else.

    The share `floors` of the budget is divided among the layers in proportion to the roots of their
    sizes; of each layer the largest entries are raised.

    Args:
        scores: one tensor a factor.
        factors: the factors.
        budget: what all entries that are kept may cost.
        floors: the share that is assured, in [0, 1].
        top: returns where the largest entries of some tensors are, given their number.
        needed: None, or whether each layer's entries must be raised: a bool scalar a layer.
    """
    costs = [factor.cost for factor in factors]
    dearest, cheapest = max(costs), min(costs)
    layers = budgets_of_layers(factors, int(floors * budget / dearest), _EXPONENT)
    sizes = [tf.abs(score) for score in scores]
    above = 2 * tf.reduce_max(tf.stack([tf.reduce_max(size) for size in sizes]))
    found = list(sizes)
    for number, (_, members, count) in enumerate(layers):

        def higher(members: list[int] = members, count: int = count) -> list[tf.Tensor]:
            masks = top([sizes[i] for i in members], count)
            # What is worth most for its cost is kept first.
            worths = [above * (factors[i].cost / cheapest) ** 0.5 for i in members]
            triples = zip(masks, worths, members, strict=True)
            return [tf.where(mask, worth, sizes[i]) for mask, worth, i in triples]

        def as_they_are(members: list[int] = members) -> list[tf.Tensor]:
            return [tf.identity(sizes[i]) for i in members]

        parts = higher() if needed is None else tf.cond(needed[number], higher, as_they_are)
        for index, part in zip(members, parts, strict=True):
            found[index] = part
    return found


class FlooredSparsity(GlobalSparsity):
    """At most k nonzeros over all factors together, of which each layer is assured some.

    One budget for all layers empties small ones, such as depthwise convolutions, and a network
    without them answers the same to everything. Here a share of the budget is divided among the
    layers, by the roots of their sizes, and each keeps at least so many of its largest entries; the
    rest goes to the largest of all that is left.

    Args:
        ratio: as for `GlobalSparsity`.
        k: as for `GlobalSparsity`.
        schedule: as for `GlobalSparsity`.
        floors: share of the final budget that is assured to layers, in [0, 1].

    Raises:
        ValueError: as `GlobalSparsity`, or if `floors` is out of range.
    """

    def __init__(
        self,
        ratio: float | None = None,
        k: int | None = None,
        schedule: Any = "constant",
        floors: float = FLOORS,
    ):
        super().__init__(ratio, k, schedule)
        self.floors = check_floors(floors)

    def _top(self, scores: Sequence[tf.Tensor], k: Any, compiled: bool = False) -> list[tf.Tensor]:
        factors = [factor for factor in self._factors if factor.trained]

        def top(some: list[tf.Tensor], count: int) -> list[tf.Tensor]:
            return self._largest(some, count, compiled)

        if {factor.cost for factor in factors} != {1.0}:
            higher = raised(scores, factors, self.budget, self.floors, top)
            return super()._top(higher, k, compiled)
        # Mostly the budget of all layers leaves each its share by itself; looking is cheap.
        kept = self._largest(scores, k, compiled)
        layers = budgets_of_layers(factors, int(self.floors * self.budget), _EXPONENT)
        found = [tf.add_n([_count(kept[i]) for i in members]) for _, members, _ in layers]
        counts, assured = tf.stack(found), tf.constant([count for *_, count in layers], tf.int32)
        missing = tf.reduce_sum(tf.maximum(assured - counts, 0))
        # As many entries make room, so a layer that has more to spare keeps its share.
        needed = None if compiled else tf.unstack(counts < assured + missing)

        def again() -> list[tf.Tensor]:
            higher = raised(scores, factors, self.budget, self.floors, top, needed)
            return self._largest(higher, k, compiled)

        return tf.cond(missing > 0, again, lambda: [tf.identity(mask) for mask in kept])

    def finalized(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        acting = [tf.constant(value) for value in trained(self._factors, values)]
        if not acting:
            return list(values)
        masks = self._top(acting, self.budget // self._unit)
        kept = [tf.where(m, v, tf.zeros_like(v)) for m, v in zip(masks, acting, strict=True)]
        return placed(self._factors, [value.numpy() for value in kept], values)


def _count(mask: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.cast(mask, tf.int32))
