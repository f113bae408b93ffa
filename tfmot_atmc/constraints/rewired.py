# SPDX-License-Identifier: Apache-2.0
"""Connections of fixed signs that die when they cross zero, and are drawn anew elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfmot_atmc.constraints.base import AddWeight, Factor, Moment, dense_cost
from tfmot_atmc.constraints.sparsity import check_budget, exact_budget
from tfmot_atmc.constraints.support import Support
from tfmot_atmc.math import l0_masks

__all__ = ["Rewiring"]

_NEW = 1e-12
_OUTER, _STEM_WIDE = 0.6, 0.2  # densities of the first and last layer, and of those as wide


class Rewiring(Support):
    """At most k connections, each with a sign of its own that never changes.

    The signs are those of the starting weights. A connection that crosses zero is dead; as many as
    are missing are drawn anew among all dead ones of all layers, at 1e-12 with their signs. The
    start keeps 0.6 of the first and of the last layer, 0.2 of others with as many outputs as the
    first, and half of the budget's ratio of the rest, all scaled down alike where that is more than
    k.

    Args:
        ratio: connections as a ratio of the dense kernels' parameters, in (0, 1].
        k: their number; give `ratio` or `k`.
        noise: deviation of the normal noise on live connections at each step; the default is the
            paper's at a learning rate of 0.1.
        seed: seed of places and noise.

    Raises:
        ValueError: if not exactly one budget is given, or a value is out of range.

    Source: Ozdenizci and Legenstein, "Training Adversarially Robust Sparse Networks via Bayesian
    Connectivity Sampling", ICML 2021, after Bellec et al., "Deep Rewiring", ICLR 2018. There a
    layer is drawn first, by size, then a connection in it; here all dead ones are alike. There the
    start may exceed the budget.
    """

    clears_momentum = True
    holds_from_the_start = True

    def __init__(
        self,
        ratio: float | None = None,
        k: int | None = None,
        noise: float = 1e-7,
        seed: int = 0,
    ):
        check_budget(ratio, k)
        if noise < 0:
            raise ValueError(f"`noise` must be at least 0. Received {noise!r}.")
        self.ratio, self.k, self.noise, self.seed = ratio, k, noise, seed

    def build(self, factors: Sequence[Factor], dense_size: int, add_weight: AddWeight) -> None:
        total = dense_cost(factors, dense_size)
        budget = exact_budget(round(self.ratio or 0, 9), total) if self.k is None else self.k
        self.budget = min(int(budget), total)
        counts = _starting_counts(factors, self.budget, self.budget / max(total, 1))
        draws = np.random.default_rng([self.seed, 3])
        masks, self._signs = [], []
        for i, (factor, kept) in enumerate(zip(factors, counts, strict=True)):
            mask = np.zeros(factor.size, bool)
            mask[draws.permutation(factor.size)[:kept]] = True
            masks.append(tf.constant(mask.reshape(tuple(factor.variable.shape))))
            signs = add_weight(
                name=f"positive_{i}", shape=factor.variable.shape, dtype="bool", initializer="ones"
            )
            signs.assign(factor.read() >= 0)
            self._signs.append(signs)
        self._start(factors, masks, add_weight)

    def project(self, moment: Moment, gradients: Sequence[tf.Tensor] | None) -> None:
        live, values = [], []
        for i, factor in enumerate(self._factors):
            value, mask = factor.read(), self._masks[i].value
            if factor.trained and self.noise:
                seed = tf.stack([self.seed * 1009 + i, moment.step])
                value += self.noise * tf.random.stateless_normal(value.shape, seed)
            sign = tf.where(self._signs[i].value, 1.0, -1.0)
            live.append(mask & (value * sign > 0) if factor.trained else mask)
            values.append(value)
        drawn = self._drawn(live, moment)
        for i, factor in enumerate(self._factors):
            if not factor.trained:
                continue
            fresh = tf.where(self._signs[i].value, _NEW, -_NEW)
            factor.variable.assign(
                tf.where(live[i], values[i], tf.where(drawn[i], fresh, tf.zeros_like(fresh)))
            )
            self._masks[i].assign(live[i] | drawn[i])

    def _drawn(self, live: Sequence[tf.Tensor], moment: Moment) -> list[tf.Tensor]:
        """Returns which dead connections are drawn, so that as many live as the budget has."""
        missing = self.budget - tf.add_n([tf.reduce_sum(tf.cast(m, tf.int32)) for m in live])
        scores = []
        for i, (factor, mask) in enumerate(zip(self._factors, live, strict=True)):
            seed = tf.stack([self.seed * 1009 + i, -1 - moment.step])
            draws = tf.random.stateless_uniform(mask.shape, seed, 0.5, 1.0)
            scores.append(tf.where(mask | (not factor.trained), 0.0, draws))
        algorithm = "bisection" if moment.compiled else "histogram"
        found = l0_masks(scores, tf.maximum(missing, 0), algorithm=algorithm)
        return [mask & (score > 0) for mask, score in zip(found, scores, strict=True)]

    def scalars(self) -> dict[str, float]:
        live = sum(int(np.count_nonzero(mask.numpy())) for mask in self._masks)
        return {"live_connections": float(live)}


def _starting_counts(factors: Sequence[Factor], budget: int, ratio: float) -> list[int]:
    """Returns how many connections of each factor live at the start; at most `budget` together."""
    outputs = [factor.variable.shape[-1] for factor in factors]
    wanted = []
    for i, factor in enumerate(factors):
        outer = i in (0, len(factors) - 1)
        density = _OUTER if outer else _STEM_WIDE if outputs[i] == outputs[0] else ratio / 2
        wanted.append(density * factor.size)
    scale = min(1.0, budget / max(sum(wanted), 1e-9))
    return [min(factor.size, int(n * scale)) for factor, n in zip(factors, wanted, strict=True)]
