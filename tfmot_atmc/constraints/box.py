# SPDX-License-Identifier: Apache-2.0
"""Values between bounds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfmot_atmc.constraints.base import AddWeight, Constraint, Factor, Moment, placed, trained

__all__ = ["Box"]


class Box(Constraint):
    """Every entry lies in [-limit, limit]; those outside are set to the nearer end.

    Args:
        limit: the bound, above 0.

    Raises:
        ValueError: if it is not.

    Source: Courbariaux et al., "BinaryConnect", NeurIPS 2015, section 2.4, for weights behind
    binary ones.
    """

    def __init__(self, limit: float = 1.0):
        if not limit > 0:
            raise ValueError(f"`limit` must be above 0. Received {limit!r}.")
        self.limit = limit

    def build(self, factors: Sequence[Factor], dense_size: int, add_weight: AddWeight) -> None:
        self._factors = list(factors)

    def project(self, moment: Moment, gradients: Sequence[tf.Tensor] | None) -> None:
        for factor in self._factors:
            if factor.trained:
                factor.variable.assign(self._clipped(factor.read()))

    def _clipped(self, value: tf.Tensor) -> tf.Tensor:
        return tf.clip_by_value(value, -self.limit, self.limit)

    def deploy(self, values: Sequence[tf.Tensor], compiled: bool = False) -> list[tf.Tensor]:
        new = [self._clipped(value) for value in trained(self._factors, values)]
        return placed(self._factors, new, values)

    def finalized(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        new = [np.clip(v, -self.limit, self.limit) for v in trained(self._factors, values)]
        return placed(self._factors, new, values)

    def violation(self, values: Sequence[np.ndarray]) -> str | None:
        for factor, value in zip(self._factors, values, strict=True):
            outside = int(np.count_nonzero(np.abs(value) > self.limit))
            if outside and factor.trained:
                return f"{outside} entries of {factor.name} outside [-{self.limit}, {self.limit}]"
        return None
