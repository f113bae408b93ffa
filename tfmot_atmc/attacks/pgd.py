# SPDX-License-Identifier: Apache-2.0
"""Projected gradient descent (ascent on the loss), with a random start and without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfmot_atmc.attacks.base import Attack
from tfmot_atmc.attacks.problem import Leaves, Problem, fold_in
from tfmot_atmc.attacks.values import plain, radius

__all__ = ["BIM", "PGD", "repeat"]

# Up to this many steps a loop saves nothing; beyond the other, a graph grows too long to trace.
_ALWAYS_UNROLLED = 3
_NEVER_UNROLLED = 100


class _Best(NamedTuple):
    """The strongest point of each example so far."""

    leaves: Leaves
    loss: tf.Tensor
    misclassified: tf.Tensor


class PGD(Attack):
    """Projected gradient descent: signed gradient steps, each projected, from a random start.

    Madry et al., "Towards deep learning models resistant to adversarial attacks", 2018. The
    defaults are those of adversarial training in Gui et al., "Model compression with adversarial
    robustness: a unified optimization framework", 2019 (algorithm 2, with the sign).

    Args:
        epsilon: radius in input units, a scalar or one value a channel.
        steps: number of steps, at least 1.
        step_size: step in input units; None leaves it to `rule`.
        rule: `"atmc"` steps by `1.25 * epsilon / steps`. `"kurakin"` steps by
            `min(D + 4, 1.25 * D) / 255 / steps` where `D = 255 * epsilon`; it presumes pixels in
            `[0, 1]`. The two differ for `epsilon > 16/255` only. `"quarter"` steps by
            `epsilon / 4`.
        random_start: start from a uniformly random point of the ball; without, this is the basic
            iterative method.
        restarts: number of random starts. With more than one, each example keeps its
            misclassified result of highest loss, or else its result of highest loss.
        keep_best: keep the iterate of highest loss, from the start to the last, and not the last
            one. Costs one more forward pass.
        unroll: True traces every step; False traces a loop; `"auto"` unrolls short attacks, and
            models with max-pooling on a CPU, whose gradient is much slower within a loop.
        **kwargs: `norm`, `targeted`, `bounds`, `seed` and `loss`, see `Attack`.

    Raises:
        ValueError: `steps` or `restarts` is below 1, `step_size` is negative, `rule` or `unroll`
            is unknown, or `restarts` are asked for without a random start.

    Example:
    >>> model = lambda x: x @ tf.constant([[1.0, -1.0], [0.0, 0.0]])
    >>> attack = PGD(epsilon=0.25, steps=4, random_start=False)
    >>> attack(model, tf.constant([[0.5, 0.5]]), [0]).numpy()
    array([[0.25, 0.5 ]], dtype=float32)
    """

    any_loss = True

    converges = True

    def __init__(
        self,
        *,
        epsilon: Any,
        steps: int = 7,
        step_size: Any = None,
        rule: str = "atmc",
        random_start: bool = True,
        restarts: int = 1,
        keep_best: bool = False,
        unroll: bool | str = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(epsilon=epsilon, **kwargs)
        if steps < 1 or restarts < 1:
            raise ValueError(
                f"`steps` and `restarts` must be at least 1. Received {steps} and {restarts}."
            )
        if rule not in ("atmc", "kurakin", "quarter"):
            raise ValueError(f"`rule` must be 'atmc', 'kurakin' or 'quarter'. Received {rule!r}.")
        if unroll not in (True, False, "auto"):
            raise ValueError(f"`unroll` must be True, False or 'auto'. Received {unroll!r}.")
        if restarts > 1 and not random_start:
            raise ValueError("`restarts` without `random_start` would repeat the same attack.")
        self._step_size = None if step_size is None else radius(step_size, "step_size")
        self.steps = int(steps)
        self.rule = rule
        self.random_start = bool(random_start)
        self.restarts = int(restarts)
        self.keep_best = bool(keep_best)
        self.unroll = unroll

    @property
    def step_size(self) -> np.ndarray:
        """The step in input units, as an array that broadcasts along the channels."""
        if self._step_size is not None:
            return self._step_size
        if self.rule == "kurakin":
            pixels = 255.0 * self.epsilon
            return np.asarray(np.minimum(pixels + 4.0, 1.25 * pixels) / 255.0 / self.steps)
        share = 0.25 if self.rule == "quarter" else 1.25 / self.steps
        return np.asarray(share * self.epsilon)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as plain Python values."""
        return {
            **super().get_config(),
            "steps": self.steps,
            "step_size": plain(self._step_size),
            "rule": self.rule,
            "random_start": self.random_start,
            "restarts": self.restarts,
            "keep_best": self.keep_best,
            "unroll": self.unroll,
        }

    def _perturb(self, problem: Problem, seed: tf.Tensor) -> Leaves:
        if self.restarts == 1 and not self.keep_best:
            return self._ascend(problem, self._start(problem, seed), ())[0]
        best = self._no_best(problem)
        for restart in range(self.restarts):
            start = self._start(problem, fold_in(seed, restart))
            leaves, best = self._ascend(problem, start, best)
            best = self._better(best, leaves, problem, *problem.evaluate(leaves))
        return best.leaves

    def _start(self, problem: Problem, seed: tf.Tensor) -> Leaves:
        return problem.random_start(seed) if self.random_start else problem.x

    def _ascend(self, problem: Problem, leaves: Leaves, best: Any) -> tuple[Leaves, Any]:
        """Takes all steps; returns the last point and the best."""

        def step(leaves: Leaves, best: Any) -> tuple[Leaves, Any]:
            logits, loss, gradients = problem.gradient(leaves)
            if self.keep_best:
                best = self._better(best, leaves, problem, logits, loss)
            return problem.step(leaves, gradients, self.step_size), best

        return repeat(step, (leaves, best), self.steps, self.unroll, self.steps * self.restarts)

    def _no_best(self, problem: Problem) -> _Best:
        batch = tf.shape(problem.x[0])[0]
        return _Best(list(problem.x), tf.fill([batch], -np.inf), tf.fill([batch], False))

    def _better(
        self, best: _Best, leaves: Leaves, problem: Problem, logits: tf.Tensor, loss: tf.Tensor
    ) -> _Best:
        """Returns, example by example, the stronger of the best point so far and `leaves`."""
        loss = tf.cast(loss, tf.float32)
        better = loss > best.loss
        wrong = problem.succeeded(logits)
        if self.restarts > 1:
            better = tf.where(tf.equal(wrong, best.misclassified), better, wrong)
        return _Best(
            problem.select(better, leaves, best.leaves),
            tf.where(better, loss, best.loss),
            tf.where(better, wrong, best.misclassified),
        )


class BIM(PGD):
    """Basic iterative method: PGD that starts at the input itself.

    Kurakin et al., "Adversarial examples in the physical world", 2017.

    Args:
        random_start: start from a uniformly random point of the ball.
        **kwargs: as `PGD`.

    Example:
    >>> BIM(epsilon=0.25, steps=5).random_start
    False
    """

    def __init__(self, *, random_start: bool = False, **kwargs: Any) -> None:
        super().__init__(random_start=random_start, **kwargs)


def repeat(
    step: Callable[..., Any], state: Any, times: int, unroll: bool | str = "auto", total: int = 0
) -> Any:
    """Returns the state after `times` steps, traced one by one or as a loop.

    Args:
        step: callable `(*state) -> state`.
        state: tuple of nests of tensors.
        times: number of steps, at least 1.
        unroll: True traces every step; False traces a loop; `"auto"` looks at the first step's ops
            to choose how to take the others.
        total: number of steps in the whole graph, if more than `times`.
    """
    graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    before = len(graph.get_operations()) if graph is not None else 0
    state = step(*state)
    remaining = times - 1
    if unroll is True or (
        unroll == "auto" and _should_unroll(graph, before, remaining, max(total, times))
    ):
        for _ in range(remaining):
            state = step(*state)
        return state
    return tf.while_loop(
        lambda *_: True, step, state, maximum_iterations=remaining, parallel_iterations=1
    )


def _should_unroll(graph: Any, before: int, remaining: int, total: int) -> bool:
    if graph is None or remaining < _ALWAYS_UNROLLED:
        return True
    if total > _NEVER_UNROLLED or tf.config.list_logical_devices("GPU"):
        return False
    return any(op.type.startswith("MaxPool") for op in graph.get_operations()[before:])
