# SPDX-License-Identifier: Apache-2.0
"""Trained masks of channels, driven towards a target of operations."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from tfmot_atmc.constraints.base import AddWeight, Constraint, Factor, Moment, placed, trained
from tfmot_atmc.constraints.channels import ChannelGroups

__all__ = ["ChannelMasks", "binarised"]

_THRESHOLD = 0.5
# By so much a mask of a ResNet-20 is pushed at a scale of 50. The share of the steps that it takes
# to fall to the threshold was tried on digits: in much fewer all channels of a layer go at once.
_PUSH, _FALL = 0.15, 1 / 12


def binarised(masks: tf.Tensor, kept: tf.Tensor) -> tf.Tensor:
    """Returns 1 where a channel is kept and 0 elsewhere, with the gradient of the masks.

    The gradient is passed straight through where a mask lies within (0, 1), and blocked elsewhere.

    Args:
        masks: float tensor.
        kept: bool tensor of its shape.
    """
    inside = tf.where((masks > 0) & (masks < 1), masks, tf.stop_gradient(masks))
    return tf.cast(kept, masks.dtype) + (inside - tf.stop_gradient(inside))  # exactly 0 or 1


class ChannelMasks(Constraint):
    """A mask for each channel, trained with the weights until the operations meet a target.

    Masks start at 1 and are used as 1 from 1/2 on and as 0 below. A layer always keeps its largest,
    and where less than the target would be left, the largest masks below 1/2 count as 1 as well.
    Channels that are added up in a residual sum have one mask. While training, what reads a channel
    is multiplied by its mask, so that neither a bias nor the shift of a batch normalisation leaks
    through; deployed, the weights that write it are zero too, and `slim_model` removes it.

    Beside the loss of the task the masks minimise

        scale * max(0, operations - ratio) + regularization * (sum of squares of all masks),

    with operations as a ratio of the dense ones, by plain gradient descent at a rate of their own,
    which falls linearly to zero until they freeze. A mask at 1 has no gradient: it is the
    regularization that lets it move at all.

    Args:
        ratio: target of the multiply-accumulates that are left, as a ratio of those of all
            compressed layers, in (0, 1].
        scale: weight of the operations loss, b in the paper; if it is small the target is missed,
            and if it is large all channels of a layer go at once. None for one at which a channel
            of average cost is pushed by 0.15, as in ResNet-20 at the paper's 50.
        begin: step (int) or fraction of the planned steps (float) from which masks are trained.
        freeze: step or fraction from which they stay as they are.
        regularization: weight of the squares of the masks.
        rate: learning rate of the masks at first; the paper's is 0.01. None for one at which such a
            channel falls from 1 to a half in a twelfth of the steps in which masks are trained.

    Raises:
        ValueError: if a value is out of range; and by `compress`, if no channel may go.

    Source: "in-train pruning" as described in docs/guide.md; the begin, the freeze, the rate and
    scales of 10 and 50 are those of the paper, the granularity and the shape of the loss our own.
    """

    def __init__(
        self,
        ratio: float,
        scale: float | None = None,
        begin: int | float = 20 / 300,
        freeze: int | float = 0.8,
        regularization: float = 1e-3,
        rate: float | None = None,
    ):
        if not 0 < ratio <= 1:
            raise ValueError(f"`ratio` must lie in (0, 1]. Received {ratio!r}.")
        for name, value in (("scale", scale), ("regularization", regularization)):
            if value is not None and not value >= 0:
                raise ValueError(f"`{name}` must be at least 0. Received {value!r}.")
        if rate is not None and not rate > 0:
            raise ValueError(f"`rate` must be above 0. Received {rate!r}.")
        if type(begin) is type(freeze) and begin > freeze:
            raise ValueError(f"`begin` must not be after `freeze`. Received {begin} and {freeze}.")
        self.ratio, self.scale = ratio, scale
        self.begin, self.freeze = begin, freeze
        self.regularization, self.rate = regularization, rate
        self.needs_horizon = isinstance(begin, float) or isinstance(freeze, float)

    def build(self, factors: Sequence[Factor], dense_size: int, add_weight: AddWeight) -> None:
        self._factors = list(factors)
        self._groups = ChannelGroups(factors)
        self._total = self._groups.total
        costs = self._groups.costs() / self._total
        share = float(np.square(costs).sum() / costs.sum())
        self._scale = _PUSH / share if self.scale is None else self.scale
        self._masks = add_weight(
            name="channel_masks", shape=(self._groups.count,), initializer="ones", trainable=True
        )
        # What had gone before stays so, when a model goes on.
        alive = self._groups.weight_squares([factor.read() for factor in factors]) > 0
        self._masks.assign(tf.cast(alive, tf.float32))

    @property
    def trained_variables(self) -> list[keras.Variable]:
        """The masks."""
        return [self._masks]

    @property
    def operations(self) -> float:
        """Multiply-accumulates that are left now, as a ratio of the dense ones."""
        return float(self._groups.macs(self._kept())) / self._total

    def _kept(self) -> tf.Tensor:
        masks = tf.convert_to_tensor(self._masks.value)
        kept = self._groups.with_one_each(masks >= _THRESHOLD, masks)
        # Many masks may cross the threshold at once: those stay that the target has room for.
        room = self._groups.first_within(masks, kept, self.ratio * self._total)
        return binarised(masks, kept | room)

    def penalty(self, moment: Moment) -> tf.Tensor | None:
        left = self._groups.macs(self._kept()) / self._total
        over = tf.cast(tf.maximum(left - self.ratio, 0.0), tf.float32)
        squares = tf.reduce_sum(tf.square(tf.convert_to_tensor(self._masks.value)))
        found = self._scale * over + self.regularization * squares
        return tf.where(self._active(moment), found, tf.zeros_like(found))

    def _active(self, moment: Moment) -> tf.Tensor:
        return (moment.step >= moment.at(self.begin)) & (moment.step < moment.at(self.freeze))

    def in_training(self, values: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        return self._groups.masked(values, self._kept(), outputs=False)

    def learn(self, moment: Moment, gradients: Sequence[tf.Tensor]) -> None:
        (gradient,) = gradients
        first, last = moment.at(self.begin), moment.at(self.freeze)
        steps = tf.cast(tf.maximum(last - first, 1), tf.float32)
        rate = (1 - _THRESHOLD) / (_PUSH * _FALL * steps) if self.rate is None else self.rate
        left = tf.clip_by_value(tf.cast(last - moment.step, tf.float32) / steps, 0.0, 1.0)
        moved = self._masks.value - rate * left * gradient
        self._masks.assign(tf.where(self._active(moment), moved, self._masks.value))

    def deploy(self, values: Sequence[tf.Tensor], compiled: bool = False) -> list[tf.Tensor]:
        new = self._groups.masked(values, self._kept())
        return placed(self._factors, trained(self._factors, new), values)

    def finalized(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [keras.ops.convert_to_numpy(value) for value in self.deploy(list(values))]

    def violation(self, values: Sequence[np.ndarray]) -> str | None:
        leaking = [
            factor.name
            for factor, value, new in zip(
                self._factors, values, self.finalized(values), strict=True
            )
            if not np.array_equal(value, new)
        ]
        return f"{', '.join(leaking)} have weights of dropped channels" if leaking else None

    def scalars(self) -> dict[str, float]:
        return {"operations": self.operations}

    def remark(self) -> str | None:
        left = self.operations
        if left <= self.ratio + 0.02:
            return None
        return (
            f"{left:.3f} of the operations are left, and the target is {self.ratio}. Train for "
            "more steps before the masks freeze, or give a larger `scale` (now "
            f"{self._scale:g}) or `regularization` (now {self.regularization:g})."
        )
