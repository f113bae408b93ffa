# SPDX-License-Identifier: Apache-2.0
"""WRM: perturbations held back by a penalty on their length, not by a ball."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfmot_atmc.attacks.base import Attack
from tfmot_atmc.attacks.problem import Leaves, Problem

__all__ = ["WRM"]


class WRM(Attack):
    """Maximises `gamma * loss(x') - ||x' - x||^2 / 2` by gradient ascent with steps `1 / sqrt(t)`.

    The inner problem of distributionally robust training. There is no epsilon: how far an example
    moves follows from its loss.

    Args:
        gamma: weight of the loss against the squared l2 length, at least 0.
        steps: number of steps, at least 1.
        **kwargs: `bounds` and `loss`, see `Attack`.

    Raises:
        ValueError: `gamma` is negative, or `steps` below 1.

    Source: Sinha et al., "Certifying some distributional robustness with principled adversarial
        training", ICLR 2018, algorithm 1; the steps, the clipping after each of them, and the
        defaults are those of Gui et al., NeurIPS 2019, figure 2d.

    Example:
    >>> model = lambda x: x @ tf.constant([[1.0, -1.0], [0.0, 0.0]])
    >>> WRM(gamma=0.1, steps=3)(model, tf.constant([[0.5, 0.5]]), [0]).numpy().round(3)
    array([[0.442, 0.5  ]], dtype=float32)
    """

    any_loss = True

    converges = True
    _without = ("epsilon", "norm", "targeted")

    def __init__(self, *, gamma: float = 1.3, steps: int = 7, **kwargs: Any) -> None:
        super().__init__(epsilon=None, **kwargs)
        if gamma < 0 or steps < 1:
            raise ValueError(
                f"`gamma` must be at least 0 and `steps` at least 1. Received {gamma} and {steps}."
            )
        self.gamma, self.steps = float(gamma), int(steps)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as plain Python values."""
        return {**super().get_config(), "gamma": self.gamma, "steps": self.steps}

    def _perturb(self, problem: Problem, seed: tf.Tensor) -> Leaves:
        def step(number: tf.Tensor, leaves: Leaves) -> tuple[tf.Tensor, Leaves]:
            _, _, gradients = problem.gradient(leaves)
            size = tf.math.rsqrt(tf.cast(number, tf.float32))
            moved = [
                leaf + tf.cast(size, leaf.dtype) * (self.gamma * g - (leaf - x))
                for leaf, g, x in zip(leaves, gradients, problem.x, strict=True)
            ]
            return number + 1, problem.project(moved)

        _, leaves = tf.while_loop(
            lambda number, _: number <= self.steps,
            step,
            (tf.constant(1), list(problem.x)),
            maximum_iterations=self.steps,
            parallel_iterations=1,
        )
        return leaves
