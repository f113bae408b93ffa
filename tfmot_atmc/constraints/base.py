# SPDX-License-Identifier: Apache-2.0
"""The constraint interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from tfmot_atmc.utils.configurable import Configurable

AddWeight = Callable[..., keras.Variable]


@dataclass(frozen=True)
class Factor:
    """One trainable tensor that constraints act on.

    Attributes:
        name: unique name, such as `"dense/kernel:V"`.
        part: name of the factor in its kernel, such as `"V"`.
        variable: the trainable variable, float32.
        growable: whether growth by gradient may open new entries here.
        separable: whether it is of a kernel that is read as vertical and horizontal filters.
    """

    name: str
    part: str
    variable: keras.Variable
    growable: bool = True
    separable: bool = False

    def read(self) -> tf.Tensor:
        """Returns the value in the variable's own dtype, whatever autocasting is on."""
        return tf.convert_to_tensor(self.variable.value)


@dataclass(frozen=True)
class Moment:
    """When a constraint acts.

    Attributes:
        step: scalar int32 tensor, optimizer steps taken so far.
        horizon: scalar int32 tensor, planned number of steps; 0 when unknown.
        compiled: whether the step is compiled with XLA, so that only XLA-clean paths may be used.
    """

    step: tf.Tensor
    horizon: tf.Tensor
    compiled: bool = False

    def at(self, point: int | float) -> tf.Tensor:
        """Returns the step of `point`: an int is a step, a float a fraction of the horizon."""
        if isinstance(point, int):
            return tf.constant(point, tf.int32)
        return tf.cast(tf.round(point * tf.cast(self.horizon, tf.float32)), tf.int32)


class Constraint(Configurable):
    """A set that the factors of a model must lie in, and how training gets there.

    Within one train step the order is: `penalty` of every constraint is added to the loss, the
    optimizer moves the factors, `project` of every constraint runs, then `after_projection`.
    `deploy` gives a feasible version of the values at any moment, in the graph and cheaply;
    `finalized` gives the best feasible version, outside the graph.
    """

    needs_horizon: bool = False
    """Whether the planned number of steps must be known before training."""

    holds_from_the_start: bool = False
    """Whether `build` makes it hold and training keeps it, so that nothing projects later."""

    def build(self, factors: Sequence[Factor], dense_size: int, add_weight: AddWeight) -> None:
        """Creates the constraint's own state.

        Args:
            factors: all factors of the model, in a fixed order.
            dense_size: number of parameters of the dense kernels that the factors stand for.
            add_weight: creates a non-trainable, saved variable; takes `name`, `shape`, `dtype` and
                `initializer` like `keras.layers.Layer.add_weight`.
        """
        raise NotImplementedError

    def penalty(self, moment: Moment) -> tf.Tensor | None:
        """Returns a scalar to add to the loss, or None."""
        return None

    def project(self, moment: Moment, gradients: Sequence[tf.Tensor] | None) -> None:
        """Moves the factors onto the set after an optimizer update."""

    def after_projection(self, moment: Moment) -> None:
        """Updates the constraint's own state, seeing the projected factors."""

    def deploy(self, values: Sequence[tf.Tensor], compiled: bool = False) -> list[tf.Tensor]:
        """Returns feasible values near `values`, one tensor a factor.

        Args:
            values: one tensor a factor.
            compiled: whether XLA compiles the step.
        """
        return list(values)

    def finalized(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns the best feasible values near `values`, one array a factor."""
        return list(values)

    def violation(self, values: Sequence[np.ndarray]) -> str | None:
        """Returns what is violated, in words, or None when `values` are feasible."""
        return None

    def adopt(self, values: Sequence[np.ndarray]) -> None:
        """Takes note that the factors have been set to these feasible values."""

    def scalars(self) -> dict[str, float]:
        """Returns figures worth logging, such as residuals."""
        return {}
