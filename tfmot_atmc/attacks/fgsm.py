# SPDX-License-Identifier: Apache-2.0
"""The fast gradient sign method, without and with a random start."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_atmc.attacks.base import Attack
from tfmot_atmc.attacks.problem import Leaves, Problem
from tfmot_atmc.attacks.values import plain, radius

__all__ = ["FGSM", "RFGSM"]


class FGSM(Attack):
    """Fast gradient sign method: one step, `x + step_size * sign(gradient)`, projected.

    With `norm="l2"` the step is along the gradient itself.

    Exactly optimal for a linear model. Goodfellow et al., "Explaining and harnessing adversarial
    examples", 2015; with a random start, Wong et al., "Fast is better than free", 2020.

    Args:
        epsilon: radius in input units, a scalar or one value a channel.
        random_start: start from a uniformly random point of the ball instead of `x`.
        step_size: step in input units; None is `epsilon`, or `1.25 * epsilon` after a random
            start.
        **kwargs: `norm`, `targeted`, `bounds`, `seed` and `loss`, see `Attack`.

    Example:
    >>> model = lambda x: x @ tf.constant([[1.0, -1.0], [0.0, 0.0]])
    >>> FGSM(epsilon=0.25)(model, tf.constant([[0.5, 0.5]]), [0]).numpy()
    array([[0.25, 0.5 ]], dtype=float32)
    """

    any_loss = True

    def __init__(
        self,
        *,
        epsilon: Any,
        random_start: bool = False,
        step_size: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(epsilon=epsilon, **kwargs)
        self.random_start = bool(random_start)
        self._step_size = None if step_size is None else radius(step_size, "step_size")

    @property
    def step_size(self) -> np.ndarray:
        """The step in input units, as an array that broadcasts along the channels."""
        if self._step_size is not None:
            return self._step_size
        return np.asarray(self.epsilon * (1.25 if self.random_start else 1.0))

    def _perturb(self, problem: Problem, seed: tf.Tensor) -> Leaves:
        leaves = problem.random_start(seed) if self.random_start else problem.x
        _, _, gradients = problem.gradient(leaves)
        return problem.step(leaves, gradients, self.step_size)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as plain Python values."""
        return {
            **super().get_config(),
            "random_start": self.random_start,
            "step_size": plain(self._step_size),
        }


class RFGSM(FGSM):
    """FGSM from a random start with a step of `1.25 * epsilon`: the attack of fast training.

    Wong et al., "Fast is better than free: revisiting adversarial training", 2020. A network
    trained with it may overfit to it suddenly; watch it with a PGD of some steps.

    Args:
        random_start: start from a uniformly random point of the ball.
        **kwargs: as `FGSM`.

    Example:
    >>> RFGSM(epsilon=0.25).step_size
    array(0.3125)
    """

    def __init__(self, *, random_start: bool = True, **kwargs: Any) -> None:
        super().__init__(random_start=random_start, **kwargs)
