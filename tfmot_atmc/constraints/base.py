# SPDX-License-Identifier: Apache-2.0
"""The constraint interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmot_atmc.kernels import Site
from tfmot_atmc.utils.configurable import Configurable

AddWeight = Callable[..., keras.Variable]


@dataclass(frozen=True, eq=False)
class Factor:
    """One of the tensors that a kernel is made from.

    Constraints are given those of their role, as a rule those that count.

    Attributes:
        name: unique name, such as `"dense/kernel:V"`.
        part: name of the factor in its kernel, such as `"V"`.
        variable: its variable, float32.
        growable: whether growth by gradient may open new entries here.
        separable: whether it is of a kernel that is read as vertical and horizontal filters.
        site: where its kernel sits; None for a variable on its own.
        role: `"weight"`, `"score"` (trained, decides about weights), `"rate"` (trained, how many
            weights are used) or `"fixed"` (never trained).
        cost: what one entry takes of a budget.
    """

    name: str
    part: str
    variable: keras.Variable
    growable: bool = True
    separable: bool = False
    site: Site | None = None
    role: str = "weight"
    cost: float = 1.0

    @property
    def counts(self) -> bool:
        """Whether budgets count it."""
        return self.role == "weight"

    @property
    def trained(self) -> bool:
        """Whether training moves it: it is not fixed, and its layer is not frozen."""
        return self.role != "fixed" and bool(self.variable.trainable)

    @property
    def size(self) -> int:
        """Number of entries."""
        return int(np.prod(self.variable.shape))

    def read(self) -> tf.Tensor:
        """Returns the value in the variable's own dtype, whatever autocasting is on."""
        return tf.convert_to_tensor(self.variable.value)


def trained(factors: Sequence[Factor], items: Sequence[Any]) -> list[Any]:
    """Returns of one item a factor those of the factors that are trained now."""
    return [item for factor, item in zip(factors, items, strict=True) if factor.trained]


def placed(factors: Sequence[Factor], new: Sequence[Any], items: Sequence[Any]) -> list[Any]:
    """Returns `items` with `new` ones in the places of the factors that are trained now."""
    rest = iter(new)
    return [
        next(rest) if factor.trained else item for factor, item in zip(factors, items, strict=True)
    ]


def dense_cost(factors: Sequence[Factor], dense_size: int) -> int:
    """Returns what the dense kernels behind factors that are trained now take of a budget.

    Args:
        factors: of each kernel the main one first.
        dense_size: the answer where factors do not know their sites, and entries cost one.
    """
    mains: dict[str, tuple[int, float]] = {}
    acting = set()
    for factor in factors:
        if factor.site is None:
            return dense_size
        mains.setdefault(factor.site.name, (factor.site.size, factor.cost))
        if factor.trained:
            acting.add(factor.site.name)
    return int(sum(size * cost for name, (size, cost) in mains.items() if name in acting))


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


class Constraint(Configurable, kind="constraint"):
    """A set that the factors of a model must lie in, and how training gets there.

    Within one train step the order is: kernels are composed from what `in_training` makes of the
    factors, `penalty` of every constraint is added to the loss, the optimizer moves the factors and
    `learn` the constraint's own variables, `project` of every constraint runs, then
    `after_projection`.
    `deploy` gives a feasible version of the values at any moment, in the graph and cheaply;
    `finalized` gives the best feasible version, outside the graph.
    """

    needs_horizon: bool = False
    """Whether the planned number of steps must be known before training."""

    holds_from_the_start: bool = False
    """Whether `build` makes it hold and training keeps it, so that nothing projects later."""

    role: str = "weight"
    """The role of the factors that it is given: `"weight"`, or `"rate"` (`Kernel.roles`)."""

    def build(self, factors: Sequence[Factor], dense_size: int, add_weight: AddWeight) -> None:
        """Creates the constraint's own state.

        Args:
            factors: all factors of the model of its role, in a fixed order. Those that are not
                `trained`, because their layer has been frozen, are left as they are from then on.
            dense_size: number of parameters of the dense kernels that the factors stand for.
            add_weight: creates a saved variable, which the optimizer does not move; takes `name`,
                `shape`, `dtype` and `initializer` like `keras.layers.Layer.add_weight`, and
                `trainable` for those that `learn` moves.
        """
        raise NotImplementedError

    @property
    def trained_variables(self) -> list[keras.Variable]:
        """Variables of the constraint's own, made with `trainable=True`, that `learn` moves."""
        return []

    def in_training(self, values: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Returns what training computes with in place of the factors, differentiable.

        Args:
            values: one tensor a factor.
        """
        return list(values)

    def learn(self, moment: Moment, gradients: Sequence[tf.Tensor]) -> None:
        """Moves `trained_variables`, given the gradient of the whole loss for each of them."""

    def penalty(self, moment: Moment) -> tf.Tensor | None:
        """Returns a scalar to add to the loss, or None."""
        return None

    def project(self, moment: Moment, gradients: Sequence[tf.Tensor] | None) -> None:
        """Moves the factors onto the set after an optimizer update."""

    def after_projection(self, moment: Moment) -> None:
        """Updates the constraint's own state, seeing the projected factors."""

    def cleared(self) -> list[tuple[keras.Variable, tf.Tensor]]:
        """Returns factors with masks outside of which the optimizer's memory is set to zero.

        The optimizer is the compiled one; its memory are its variables of the factor's shape, such
        as momentum.
        """
        return []

    def epoch_ended(self, logs: Mapping[str, float]) -> None:
        """Takes note of an epoch of `fit` that has ended, before the next one begins.

        Args:
            logs: what Keras reports of it, validation included.
        """

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

    def remark(self) -> str | None:
        """Returns what a user should be told at the end of training; None for nothing."""
        return None

    def scalars(self) -> dict[str, float]:
        """Returns figures worth logging, such as residuals."""
        return {}
