# SPDX-License-Identifier: Apache-2.0
"""The second half of a train step: from gradients to projected factors, on all replicas alike."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfmot_atmc.attacks import ATTA, surrogate
from tfmot_atmc.compression.wrapping import (
    composed_kernels,
    constrained,
    counted,
    holds_composed,
)
from tfmot_atmc.constraints import Constraint
from tfmot_atmc.utils import distribution

__all__ = [
    "check_distributed",
    "composed_in_training",
    "descend",
    "forward",
    "own_variables",
    "weight_gradients",
]


def check_distributed(optimizer: Any, attack: Any) -> None:
    """Refuses what cannot be trained on several distribution.

    Args:
        optimizer: the compiled optimizer.
        attack: the attack of training, or None.

    Raises:
        ValueError: for ATTA, whose store of perturbations is one, and for what
            `distribution.check_optimizer` refuses.
    """
    distribution.check_optimizer(optimizer)
    if distribution.count() > 1 and isinstance(attack, ATTA):
        raise ValueError(
            "ATTA keeps one store of perturbations and trains on one device only. With several "
            "replicas use PGD or FGSM."
        )


def forward(model: keras.Model) -> Callable[[Any], Any]:
    """Returns the forward pass of a train step, ready for the slope of the objective.

    Args:
        model: the compressed model.
    """
    call = functools.partial(model.model, training=True)
    return call if model.objective.backward_slope is None else surrogate.marking(call)


def own_variables(model: keras.Model) -> list[keras.Variable]:
    """Returns the variables that constraints of a compressed model train themselves."""
    constraints = model.__dict__.get("_constraints", ())  # none while they are made
    return [variable for constraint in constraints for variable in constraint.trained_variables]


def composed_in_training(model: keras.Model) -> contextlib.AbstractContextManager[None]:
    """Composes the kernels as training has them, unless that is done already.

    Args:
        model: the compressed model.
    """
    if holds_composed(model.kernels):
        return contextlib.nullcontext()
    return composed_kernels(model.kernels, _training_values(model))


def _training_values(model: keras.Model) -> list[tf.Tensor] | None:
    """Returns what training composes kernels from, one tensor a factor; None for the factors."""
    changing = [c for c in model.constraints if type(c).in_training is not Constraint.in_training]
    if not changing:
        return None
    values = [factor.read() for kernel in model.kernels for factor in kernel.factors]
    for constraint in changing:
        values = constrained(model.kernels, constraint.in_training, values)
    return values


def weight_gradients(model: keras.Model, tape: tf.GradientTape, loss: tf.Tensor) -> list[Any]:
    """Returns the gradients of a train step, or None, one for every variable that is trained.

    Those that constraints train themselves come last.

    Args:
        model: the compressed model; its objective may have a `backward_slope`.
        tape: what recorded the loss.
        loss: scalar.

    Raises:
        ValueError: for a slope outside a graph, or with several replicas.
    """
    variables = [*model.trainable_variables, *own_variables(model)]
    slope = model.objective.backward_slope
    if slope is None:
        return tape.gradient(loss, variables)
    if tf.executing_eagerly() or distribution.count() > 1:
        raise ValueError(
            "An objective with a `backward_slope` is trained in a graph, on one device. Compile "
            "with `run_eagerly=False`, and without a strategy of several replicas."
        )
    return surrogate.gradients(loss, [variable.value for variable in variables], slope)


def descend(
    model: keras.Model,
    gradients: Sequence[Any],
    loss: tf.Tensor,
    before: Sequence[tuple[keras.Variable, tf.Tensor]],
    share: tf.Tensor | None = None,
) -> tf.Tensor:
    """Takes the optimizer step and projects; leaves a non-finite update out.

    With several replicas the gradients, the loss and the layers' state are averaged first; whether
    the update is sound is decided for all of them, and step and projection are taken once.

    Args:
        model: the compressed model, compiled (a `CompressedModel`).
        gradients: as `weight_gradients` returns them; of the scaled loss.
        loss: scalar, the loss of this replica's examples.
        before: the layers' state before the forward pass.
        share: this replica's share of the examples; None with one replica.

    Returns:
        The loss of all examples.
    """
    optimizer, variables = model.optimizer, model.trainable_variables
    states = distribution.averaged_states(before, share)
    *gradients, loss = distribution.averaged([*gradients, loss], share)
    finite = tf.math.is_finite(tf.linalg.global_norm(gradients))
    # An optimizer that scales the loss leaves overflowing gradients out, and goes on.
    scales = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    good = tf.math.is_finite(loss) if scales else finite & tf.math.is_finite(loss)
    for (variable, value), state in zip(before, states, strict=True):
        variable.assign(tf.where(good, state, value))
    if not optimizer.built:
        with tf.init_scope():
            optimizer.build(variables)

    def update(gradients: Sequence[Any], good: Any, finite: Any) -> None:
        _update(model, gradients, distribution.one(good), distribution.one(finite), scales)

    distribution.together(update, gradients, good, finite)
    return loss


def _update(
    model: keras.Model,
    gradients: Sequence[Any],
    good: tf.Tensor,
    finite: tf.Tensor,
    scales: bool,
) -> None:
    """Moves and projects the variables, once for all replicas of this worker."""
    variables, own = model.trainable_variables, own_variables(model)
    count, scale = len(variables), model.optimizer.scale_loss(tf.constant(1.0))
    model._diverged.assign(model._diverged.value | ~good)

    def apply() -> tf.Tensor:
        distribution.apply_gradients(model.optimizer, gradients[:count], variables)
        return tf.constant(True)

    apply() if scales else tf.cond(good, apply, lambda: tf.constant(False))
    mine = [distribution.one(gradient) for gradient in gradients]
    safe = [None if g is None else tf.where(finite, g, tf.zeros_like(g)) for g in mine]
    own_gradients = [_or_zeros(g, v, good) / scale for g, v in zip(safe[count:], own, strict=True)]
    _learn(model, own_gradients)
    by_id = {id(v): g for v, g in zip(variables, safe[:count], strict=True)}
    wanted = [
        by_id.get(id(f.variable)) if f.trained else tf.zeros_like(f.read())
        for f in counted(model.kernels)
    ]
    with tf.control_dependencies([good]):  # no step is counted where the inputs were refused
        model.apply_constraints(None if any(g is None for g in wanted) else wanted)


def _or_zeros(gradient: Any, variable: keras.Variable, good: tf.Tensor) -> tf.Tensor:
    """Returns a gradient, zero where there is none or the step is left out."""
    nothing = tf.zeros_like(variable.value)
    return nothing if gradient is None else tf.where(good, gradient, nothing)


def _learn(model: keras.Model, gradients: Sequence[tf.Tensor]) -> None:
    """Lets constraints train their own variables."""
    rest = iter(gradients)
    for constraint in model.constraints:
        mine = [next(rest) for _ in constraint.trained_variables]
        if mine:
            constraint.learn(model._moment(), mine)
