# SPDX-License-Identifier: Apache-2.0
"""The inner maximisation of TRADES: away from the clean prediction, whatever the label."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_atmc.attacks.base import Attack
from tfmot_atmc.attacks.pgd import repeat
from tfmot_atmc.attacks.problem import Leaves, Problem
from tfmot_atmc.attacks.values import plain, radius

__all__ = ["TRADES", "kl_divergence"]


class TRADES(Attack):
    """Maximises the divergence of the prediction from that on the clean input; labels are not used.

    Give it to `compress` together with `objective="trades"`.

    Args:
        epsilon: radius in input units, a scalar or one value a channel.
        steps: number of steps, at least 1.
        step_size: step in input units; None is `2.25 * epsilon / steps`, near the source's 0.007
            for an epsilon of 0.031 and ten steps.
        noise: standard deviation of the noise at the start, where the divergence has no gradient.
        **kwargs: `norm`, `bounds` and `seed`, see `Attack`.

    Raises:
        ValueError: `steps` is below 1, or `noise` or `step_size` is negative.

    Source: Zhang et al., "Theoretically principled trade-off between robustness and accuracy",
        ICML 2019, algorithm 1.
    """

    converges = True
    _without = ("targeted", "loss")

    def __init__(
        self,
        *,
        epsilon: Any,
        steps: int = 10,
        step_size: Any = None,
        noise: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        super().__init__(epsilon=epsilon, **kwargs)
        if steps < 1 or noise < 0:
            raise ValueError(
                f"`steps` must be at least 1 and `noise` at least 0. Received {steps} and {noise}."
            )
        self._step_size = None if step_size is None else radius(step_size, "step_size")
        self.steps, self.noise = int(steps), float(noise)

    @property
    def step_size(self) -> np.ndarray:
        """The step in input units, as an array that broadcasts along the channels."""
        given = self._step_size
        return np.asarray(2.25 * self.epsilon / self.steps if given is None else given)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as plain Python values."""
        return {
            **super().get_config(),
            "steps": self.steps,
            "step_size": plain(self._step_size),
            "noise": self.noise,
        }

    def _perturb(self, problem: Problem, seed: tf.Tensor) -> Leaves:
        clean = tf.stop_gradient(problem.evaluate(problem.x)[0])

        def divergence(_: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
            return kl_divergence(clean, logits)

        def step(leaves: Leaves) -> tuple[Leaves]:
            _, _, gradients = problem.gradient(leaves, divergence)
            return (problem.step(leaves, gradients, self.step_size),)

        noise = problem.gaussian(seed)
        start = problem.project([x + self.noise * n for x, n in zip(problem.x, noise, strict=True)])
        return repeat(step, (start,), self.steps)[0]


def kl_divergence(clean: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Returns KL(softmax(clean) || softmax(logits)) of each example, `[batch]`, from logits.

    Args:
        clean: logits of the first distribution, `[batch, classes]`.
        logits: logits of the second.

    Example:
    >>> float(kl_divergence(tf.zeros((1, 2)), tf.zeros((1, 2)))[0])
    0.0
    """
    log_clean, log_other = tf.nn.log_softmax(clean), tf.nn.log_softmax(logits)
    return tf.reduce_sum(tf.exp(log_clean) * (log_clean - log_other), axis=-1)
