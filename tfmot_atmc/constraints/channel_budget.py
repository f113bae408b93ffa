# SPDX-License-Identifier: Apache-2.0
"""A budget of whole channels, kept by projection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmot_atmc.constraints.base import AddWeight, Constraint, Factor, Moment, placed, trained
from tfmot_atmc.constraints.channels import ChannelGroups
from tfmot_atmc.constraints.schedules import BudgetSchedule, get_schedule

__all__ = ["ChannelBudget"]

_UNITS = 10**6  # schedules reckon in whole numbers: of one, so many stand for all operations


class ChannelBudget(Constraint):
    """Channels within a ratio of the operations; the others are zero in all layers.

    The groups of the projection are the channels of the model, each over all layers that write or
    read it, tied over residual sums and concatenations. Those of the largest magnitude squared per
    operation are kept, as many as fit: a channel is worth the squares of its weights, and costs the
    multiply-accumulates that it takes where all others stay. What those that are kept take is then
    counted exactly, both sides of each layer, and is within the budget after every step.

    It stands before another budget, such as one of nonzeros, for structured and unstructured
    sparsity together: channels go first, and zeros are set in what is left.

    Args:
        ratio: multiply-accumulates of the channels that are left, as a ratio of those of all
            compressed layers, in (0, 1].
        schedule: how the budget shrinks, as for `GlobalSparsity`.
        least: share of each layer's channels that it keeps in any case, in [0, 1]; at least one.

    Raises:
        ValueError: if a value is out of range; and by `compress`, if no channel may go or what each
            layer keeps in any case takes more.

    Source: the projection of Gui et al., NeurIPS 2019, with groups and operations in place of
    single weights and their number.

    Example:

    >>> ChannelBudget(0.3, schedule="constant").get_config()["least"]
    0.1
    """

    def __init__(self, ratio: float, schedule: Any = "cubic", least: float = 0.1):
        if not 0 < ratio <= 1:
            raise ValueError(f"`ratio` must lie in (0, 1]. Received {ratio!r}.")
        if not 0 <= least <= 1:
            raise ValueError(f"`least` must lie in [0, 1]. Received {least!r}.")
        self.ratio, self.least = ratio, least
        self.schedule: BudgetSchedule = get_schedule(schedule)
        if self.schedule.final_ratio is not None:
            raise ValueError(
                "The schedule carries a ratio of its own. Give `ratio`, and a schedule without. "
                f"Received {schedule!r}."
            )
        self.needs_horizon = self.schedule.needs_horizon

    def build(self, factors: Sequence[Factor], dense_size: int, add_weight: AddWeight) -> None:
        self._factors = list(factors)
        self._groups = ChannelGroups(factors)
        self._total = self._groups.total
        self._costs = tf.constant(self._groups.costs())
        self.current = add_weight(
            name="channel_budget",
            shape=(),
            dtype="int32",
            initializer=keras.initializers.Constant(_UNITS),
        )
        assured = float(self._groups.macs(tf.cast(self._assured(self._worth()), tf.float32)))
        if assured > self.allowed:
            raise ValueError(
                f"{self.least:.0%} of the channels of each layer, one at least, take "
                f"{assured / self._total:.3f} of the operations. Received ratio={self.ratio}; "
                "allow more, or give a smaller `least`."
            )

    @property
    def allowed(self) -> float:
        """Multiply-accumulates that may be left in the end."""
        return int(self.ratio * _UNITS) / _UNITS * self._total

    @property
    def operations(self) -> float:
        """Multiply-accumulates of channels that hold weights now, as a ratio of the dense ones."""
        alive = self._groups.weight_squares([f.read() for f in self._factors]) > 0
        return float(self._groups.macs(tf.cast(alive, tf.float32))) / self._total

    def _worth(self, values: Sequence[Any] | None = None) -> tf.Tensor:
        given = [factor.read() for factor in self._factors] if values is None else values
        return self._groups.weight_squares(given) / self._costs

    def _assured(self, worth: tf.Tensor) -> tf.Tensor:
        """Returns which channels layers keep in any case: bool `[count]`."""
        kept = tf.zeros([self._groups.count], tf.bool)
        for space in self._groups.spaces:
            number = max(1, int(self.least * len(space)))
            index = tf.constant(space)
            best = tf.gather(index, tf.math.top_k(tf.gather(worth, index), number).indices)
            kept |= tf.scatter_nd(best[:, None], tf.ones([number], tf.int32), kept.shape) > 0
        return kept | tf.constant(self._groups.fixed())

    def kept(self, values: Sequence[Any], allowed: Any) -> tf.Tensor:
        """Returns which channels are kept within a budget: float32 `[count]`, 1 or 0.

        Args:
            values: one tensor a factor.
            allowed: multiply-accumulates, a number or a float64 scalar.
        """
        worth = self._worth(values)
        found = self._groups.first_within(worth, self._assured(worth), allowed)
        return tf.cast(found, tf.float32)

    def project(self, moment: Moment, gradients: Sequence[tf.Tensor] | None) -> None:
        last = int(self.ratio * _UNITS)
        budget = self.schedule.budget(moment, last, _UNITS, self.current.value)
        self.current.assign(budget)
        values = [factor.read() for factor in self._factors]
        allowed = tf.cast(budget, tf.float64) / _UNITS * self._total
        masked = self._groups.masked(values, self.kept(values, allowed))
        for factor, value in zip(self._factors, masked, strict=True):
            if factor.trained:
                factor.variable.assign(value)

    def deploy(self, values: Sequence[tf.Tensor], compiled: bool = False) -> list[tf.Tensor]:
        new = self._groups.masked(values, self.kept(values, self.allowed))
        return placed(self._factors, trained(self._factors, new), values)

    def finalized(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [keras.ops.convert_to_numpy(value) for value in self.deploy(list(values))]

    def violation(self, values: Sequence[np.ndarray]) -> str | None:
        alive = self._groups.weight_squares(values) > 0
        spent = float(self._groups.macs(tf.cast(alive, tf.float32)))
        if spent > self.allowed + 0.5:
            return f"channels of {spent:,.0f} multiply-accumulates, budget {self.allowed:,.0f}"
        return None

    def scalars(self) -> dict[str, float]:
        return {"operations": self.operations}
