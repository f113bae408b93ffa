# SPDX-License-Identifier: Apache-2.0
"""The momentum iterative fast gradient sign method."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_atmc.attacks.base import Attack
from tfmot_atmc.attacks.pgd import repeat
from tfmot_atmc.attacks.problem import Leaves, Problem
from tfmot_atmc.attacks.values import plain, radius

__all__ = ["MIFGSM"]


class MIFGSM(Attack):
    """Steps along a running sum of gradients, each scaled to an l1 norm of one.

    Dong et al., "Boosting adversarial attacks with momentum", CVPR 2018, algorithm 1. It transfers
    better to other models than PGD.

    Args:
        epsilon: radius in input units, a scalar or one value a channel.
        steps: number of steps, at least 1.
        step_size: step in input units; None is `epsilon / steps`.
        decay: share of the sum that stays from step to step, at least 0.
        **kwargs: `norm`, `targeted`, `bounds`, `seed` and `loss`, see `Attack`.

    Raises:
        ValueError: `steps` is below 1, or `decay` or `step_size` is negative.

    Example:
    >>> model = lambda x: x @ tf.constant([[1.0, -1.0], [0.0, 0.0]])
    >>> MIFGSM(epsilon=0.25)(model, tf.constant([[0.5, 0.5]]), [0]).numpy().round(4)
    array([[0.25, 0.5 ]], dtype=float32)
    """

    any_loss = True

    converges = True

    def __init__(
        self,
        *,
        epsilon: Any,
        steps: int = 10,
        step_size: Any = None,
        decay: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(epsilon=epsilon, **kwargs)
        if steps < 1 or decay < 0:
            raise ValueError(
                f"`steps` must be at least 1 and `decay` at least 0. Received {steps} and {decay}."
            )
        self._step_size = None if step_size is None else radius(step_size, "step_size")
        self.steps, self.decay = int(steps), float(decay)

    @property
    def step_size(self) -> np.ndarray:
        """The step in input units, as an array that broadcasts along the channels."""
        return np.asarray(self.epsilon / self.steps if self._step_size is None else self._step_size)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as plain Python values."""
        return {
            **super().get_config(),
            "steps": self.steps,
            "step_size": plain(self._step_size),
            "decay": self.decay,
        }

    def _perturb(self, problem: Problem, seed: tf.Tensor) -> Leaves:
        def step(leaves: Leaves, momentum: Leaves) -> tuple[Leaves, Leaves]:
            _, _, gradients = problem.gradient(leaves)
            directions = problem.unit(gradients, "l1")
            momentum = [self.decay * m + g for m, g in zip(momentum, directions, strict=True)]
            return problem.step(leaves, momentum, self.step_size), momentum

        start = (list(problem.x), [tf.zeros_like(leaf) for leaf in problem.x])
        return repeat(step, start, self.steps)[0]
