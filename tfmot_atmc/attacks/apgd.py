# SPDX-License-Identifier: Apache-2.0
"""Auto-PGD: gradient steps with momentum and a step size that halves where progress stops."""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from tfmot_atmc.attacks.base import Attack
from tfmot_atmc.attacks.margins import dlr, likely_targets, margin, targeted_dlr
from tfmot_atmc.attacks.outputs import hard_labels
from tfmot_atmc.attacks.problem import Leaves, Loss, Problem, fold_in
from tfmot_atmc.attacks.runs import run_on_the_rest

__all__ = ["APGD", "APGDT"]

_MOMENTUM = 0.75


class _State(NamedTuple):
    """One run, all arrays with an entry an example."""

    iteration: tf.Tensor
    since_check: tf.Tensor
    window: tf.Tensor
    leaves: Leaves
    previous: Leaves
    gradients: Leaves
    best: Leaves
    best_gradients: Leaves
    best_loss: tf.Tensor
    checked_loss: tf.Tensor
    last_loss: tf.Tensor
    increases: tf.Tensor
    scale: tf.Tensor
    reduced: tf.Tensor
    found: Leaves
    succeeded: tf.Tensor


class APGD(Attack):
    """Auto-PGD, an attack without a step size to choose.

    Steps start at `2 * epsilon`. At checkpoints, which come closer and closer, an example whose
    loss rose in too few of the steps, or whose best loss stands still, goes back to its best point
    with half the step.

    Args:
        epsilon: radius in input units, a scalar or, for l-infinity, one value a channel.
        steps: number of steps, at least 1.
        restarts: number of random starts; each takes only the examples that are left.
        objective: `"ce"`, the cross-entropy (or the attack's own `loss`); `"dlr"`, the
            difference-of-logits ratio, from three classes on; or `"margin"`, the difference of
            logits itself.
        rho: share of a window's steps in which the loss must rise, in (0, 1).
        eot: gradients averaged in every step, for models that are random.
        **kwargs: `norm`, `bounds`, `seed` and `loss`, see `Attack`.

    Raises:
        ValueError: an argument is out of range.

    Returns, called, a misclassified point where one was met, else the point of highest loss.

    Source: Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of
        diverse parameter-free attacks", ICML 2020, section 3 and algorithm 1.

    Example:
    >>> model = lambda x: x @ tf.constant([[1.0, -1.0], [0.0, 0.0]])
    >>> APGD(epsilon=0.25, steps=5)(model, tf.constant([[0.5, 0.5]]), [0]).numpy()[0, 0]
    np.float32(0.25)
    """

    _without = ("targeted",)

    def __init__(
        self,
        *,
        epsilon: Any,
        steps: int = 100,
        restarts: int = 1,
        objective: str = "ce",
        rho: float = 0.75,
        eot: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(epsilon=epsilon, **kwargs)
        if min(steps, restarts, eot) < 1:
            raise ValueError(
                "`steps`, `restarts` and `eot` must be at least 1. Received "
                f"{steps}, {restarts} and {eot}."
            )
        if objective not in self._objectives():
            raise ValueError(
                f"`objective` must be one of {self._objectives()}. Received {objective!r}."
            )
        if not 0 < rho < 1:
            raise ValueError(f"`rho` must lie in (0, 1). Received {rho!r}.")
        self.steps, self.restarts, self.eot = int(steps), int(restarts), int(eot)
        self.objective, self.rho = objective, float(rho)
        self.any_loss = objective == "ce"
        # Of a model that is random, two runs differ by more than their steps.
        self.converges = self.eot == 1

    @classmethod
    def _objectives(cls) -> tuple[str, ...]:
        return ("ce", "dlr", "margin")

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as plain Python values."""
        return {
            **super().get_config(),
            "steps": self.steps,
            "restarts": self.restarts,
            "objective": self.objective,
            "rho": self.rho,
            "eot": self.eot,
        }

    def _perturb(self, problem: Problem, seed: tf.Tensor) -> Leaves:
        loss = {"dlr": _dlr, "margin": _margin}.get(self.objective)

        def run(part: Problem, _: tf.Tensor, index: tf.Tensor) -> tuple[Leaves, tf.Tensor]:
            return self._ascend(part, fold_in(seed, index), loss)

        return run_on_the_rest(problem, self.restarts, run)

    def _ascend(
        self, problem: Problem, seed: tf.Tensor, loss: Loss | None
    ) -> tuple[Leaves, tf.Tensor]:
        """Returns the result of one run, and where it succeeded."""
        noise = problem.random_direction(seed)
        start = problem.project(
            [
                x + problem.constant(self.epsilon, n) * n
                for x, n in zip(problem.x, noise, strict=True)
            ]
        )
        state = self._first(problem, start, loss)
        state = tf.while_loop(
            lambda *state: (state[0] < self.steps) & tf.reduce_any(~state[-1]),
            lambda *state: self._step(problem, _State(*state), loss),
            state,
            parallel_iterations=1,
        )
        state = _State(*state)
        return problem.select(state.succeeded, state.found, state.best), state.succeeded

    def _first(self, problem: Problem, start: Leaves, loss: Loss | None) -> _State:
        logits, value, gradients = self._gradient(problem, start, loss)
        zeros = tf.zeros_like(value)
        return _State(
            iteration=tf.constant(0),
            since_check=tf.constant(0),
            window=tf.constant(max(int(0.22 * self.steps), 1)),
            leaves=start,
            previous=start,
            gradients=gradients,
            best=start,
            best_gradients=gradients,
            best_loss=value,
            checked_loss=value,
            # The reference compares the first loss with a history of zeros.
            last_loss=zeros,
            increases=tf.cast(zeros, tf.int32),
            scale=zeros + 2.0,
            reduced=tf.ones_like(zeros, tf.bool),
            found=start,
            succeeded=problem.succeeded(logits),
        )

    def _step(self, problem: Problem, state: _State, loss: Loss | None) -> _State:
        leaves = self._move(problem, state)
        logits, value, gradients = self._gradient(problem, leaves, loss)
        hit = problem.succeeded(logits)
        better = value > state.best_loss
        best = problem.select(better, leaves, state.best)
        best_gradients = problem.select(better, gradients, state.best_gradients)
        best_loss = tf.where(better, value, state.best_loss)
        increases = state.increases + tf.cast(value > state.last_loss, tf.int32)
        # The checkpoint; a scalar condition, and per example what follows from it.
        check = state.since_check + 1 >= state.window
        share = self.rho * tf.cast(state.window, tf.float32)
        stuck = tf.cast(increases, tf.float32) <= share
        still = ~state.reduced & (state.checked_loss >= best_loss)
        cut = check & (stuck | still)
        shrink, least = max(int(0.03 * self.steps), 1), max(int(0.06 * self.steps), 1)
        return _State(
            iteration=state.iteration + 1,
            since_check=tf.where(check, 0, state.since_check + 1),
            window=tf.where(check, tf.maximum(state.window - shrink, least), state.window),
            leaves=problem.select(cut, best, leaves),
            previous=state.leaves,
            gradients=problem.select(cut, best_gradients, gradients),
            best=best,
            best_gradients=best_gradients,
            best_loss=best_loss,
            checked_loss=tf.where(check, best_loss, state.checked_loss),
            last_loss=value,
            increases=tf.where(check, 0, increases),
            scale=tf.where(cut, state.scale / 2, state.scale),
            reduced=tf.where(check, stuck | still, state.reduced),
            found=problem.select(hit, leaves, state.found),
            succeeded=state.succeeded | hit,
        )

    def _move(self, problem: Problem, state: _State) -> Leaves:
        """Returns the next point: a step, mixed with the change of the step before."""
        keep = tf.where(state.iteration > 0, _MOMENTUM, 1.0)
        stepped = problem.project(
            [
                leaf
                + problem.column(tf.cast(state.scale, leaf.dtype), leaf)
                * problem.constant(self.epsilon, leaf)
                * direction
                for leaf, direction in zip(
                    state.leaves, problem.steepest(state.gradients), strict=True
                )
            ]
        )
        mixed = []
        for leaf, new, old in zip(state.leaves, stepped, state.previous, strict=True):
            share = tf.cast(keep, leaf.dtype)
            mixed.append(leaf + share * (new - leaf) + (1 - share) * (leaf - old))
        return problem.project(mixed)

    def _gradient(
        self, problem: Problem, leaves: Leaves, loss: Loss | None
    ) -> tuple[tf.Tensor, tf.Tensor, Leaves]:
        """Returns logits, loss and gradients, averaged over `eot` passes."""
        logits, value, gradients = problem.gradient(leaves, loss)
        value = tf.cast(value, tf.float32)
        if self.eot == 1:
            return logits, value, gradients

        def add(logits: tf.Tensor, value: tf.Tensor, gradients: Leaves) -> tuple:
            more_logits, more_value, more = problem.gradient(leaves, loss)
            total = [a + b for a, b in zip(gradients, more, strict=True)]
            return logits + more_logits, value + tf.cast(more_value, tf.float32), total

        logits, value, gradients = tf.while_loop(
            lambda *_: True,
            add,
            (logits, value, gradients),
            maximum_iterations=self.eot - 1,
            parallel_iterations=1,
        )
        return logits / self.eot, value / self.eot, [g / self.eot for g in gradients]


class APGDT(APGD):
    """Auto-PGD towards each of the most likely other classes in turn, by the targeted DLR loss.

    Any misclassification is a success. A run takes only the examples that are left.

    Args:
        num_targets: how many classes, in the order of the clean input's logits; at most all others.
        objective: `"dlr"`, the targeted difference-of-logits ratio, from four classes on; or
            `"margin"`, the difference of the two logits itself.
        **kwargs: as `APGD`.

    Source: as `APGD`.
    """

    def __init__(self, *, num_targets: int = 9, objective: str = "dlr", **kwargs: Any) -> None:
        super().__init__(objective=objective, **kwargs)
        if num_targets < 1:
            raise ValueError(f"`num_targets` must be at least 1. Received {num_targets}.")
        self.num_targets = int(num_targets)

    @classmethod
    def _objectives(cls) -> tuple[str, ...]:
        return ("dlr", "margin")

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as plain Python values."""
        return {**super().get_config(), "num_targets": self.num_targets}

    def _perturb(self, problem: Problem, seed: tf.Tensor) -> Leaves:
        logits, _ = problem.evaluate(problem.x)
        targets = likely_targets(hard_labels(problem.y), logits, self.num_targets)
        number = targets.shape[1]

        def run(part: Problem, rows: tf.Tensor, index: tf.Tensor) -> tuple[Leaves, tf.Tensor]:
            target = tf.gather(tf.gather(targets, rows), index % number, axis=1)

            def loss(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
                if self.objective == "margin":
                    own = tf.gather(logits, hard_labels(y), batch_dims=1)
                    return tf.gather(logits, target, batch_dims=1) - own
                return targeted_dlr(hard_labels(y), target, logits)

            return self._ascend(part, fold_in(seed, index), loss)

        return run_on_the_rest(problem, number * self.restarts, run)


def _margin(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    return -margin(hard_labels(y), logits)


def _dlr(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    return dlr(hard_labels(y), logits)
