# SPDX-License-Identifier: Apache-2.0
"""Fast adaptive boundary attack: small steps along the nearest (linearised) decision boundary."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_atmc.attacks.base import Attack
from tfmot_atmc.attacks.margins import likely_targets
from tfmot_atmc.attacks.outputs import cross_entropy, hard_labels, logits_function
from tfmot_atmc.attacks.problem import Leaves, Problem, fold_in
from tfmot_atmc.attacks.runs import run_on_the_rest

__all__ = ["FAB", "FABT", "move_to_hyperplane"]

# Room to the bounds where there are none; finite, so that zero times it is zero.
_FAR = 1e10


class FAB(Attack):
    """Looks for the nearest misclassified point, and succeeds where it lies within epsilon.

    Every step moves to the hyperplane that linearises the boundary to the nearest class, within
    the bounds, drawn a little to the clean input; misclassified points are drawn back further. A
    run ends when all examples have a point within epsilon.

    Args:
        epsilon: radius in input units, a scalar or, for l-infinity, one value a channel; distances
            are then measured in these.
        steps: number of steps, at least 1.
        restarts: number of starts, the first at the input itself; each takes only the examples
            that are left.
        alpha_max: largest weight of the move that starts at the clean input, in [0, 1].
        eta: how far beyond the hyperplane to go, at least 1.
        beta: share of the perturbation that a misclassified point keeps, in (0, 1).
        **kwargs: `norm`, `bounds` and `seed`, see `Attack`.

    Raises:
        ValueError: an argument is out of range.

    Returns, called, a misclassified point within epsilon, or else the input itself.

    Source: Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary
        attack", ICML 2020.
    """

    _without = ("targeted",)

    def __init__(
        self,
        *,
        epsilon: Any,
        steps: int = 100,
        restarts: int = 1,
        alpha_max: float = 0.1,
        eta: float = 1.05,
        beta: float = 0.9,
        **kwargs: Any,
    ) -> None:
        super().__init__(epsilon=epsilon, **kwargs)
        if steps < 1 or restarts < 1:
            raise ValueError(
                f"`steps` and `restarts` must be at least 1. Received {steps} and {restarts}."
            )
        if not (0 <= alpha_max <= 1 and eta >= 1 and 0 < beta < 1):
            raise ValueError(
                "Need 0 <= alpha_max <= 1, eta >= 1 and 0 < beta < 1. Received "
                f"{alpha_max!r}, {eta!r} and {beta!r}."
            )
        self.steps, self.restarts = int(steps), int(restarts)
        self.alpha_max, self.eta, self.beta = float(alpha_max), float(eta), float(beta)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as plain Python values."""
        names = ("steps", "restarts", "alpha_max", "eta", "beta")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}

    def _problem(self, model: Any, x: Any, y: tf.Tensor) -> Problem:
        # Points on the way lie in the bounds, but beyond the ball.
        free = np.asarray(np.inf)
        return Problem(
            logits_function(model),
            x,
            y,
            epsilon=free,
            bounds=self.bounds,
            loss=cross_entropy,
            norm=self.norm,
        )

    def _perturb(self, problem: Problem, seed: tf.Tensor) -> Leaves:
        def run(part: Problem, _: tf.Tensor, index: tf.Tensor) -> tuple[Leaves, tf.Tensor]:
            return self._search(part, fold_in(seed, index), index > 0, None)

        return run_on_the_rest(problem, self.restarts, run)

    def _search(
        self, problem: Problem, seed: tf.Tensor, moved: tf.Tensor, targets: tf.Tensor | None
    ) -> tuple[Leaves, tf.Tensor]:
        """Returns the result of one run, and where it succeeded."""
        unit, speed, epsilon = self._units(problem)
        still = speed <= 0
        x = _join(problem.x) / unit
        low = tf.where(still, x, tf.maximum(_join(problem.lower) / unit, -_FAR))
        high = tf.where(still, x, tf.minimum(_join(problem.upper) / unit, _FAR))
        noise = _join(problem.random_direction(seed)) * (0.5 * epsilon)
        start = tf.clip_by_value(x + tf.where(moved, noise, 0.0), low, high)

        def step(index: tf.Tensor, point: tf.Tensor, best: tf.Tensor, nearest: tf.Tensor) -> tuple:
            difference, normal = self._boundary(problem, point, unit, speed, targets)
            offset = tf.reduce_sum(normal * point, axis=1) - difference
            here = move_to_hyperplane(point, normal, offset, low, high, self.norm)
            there = move_to_hyperplane(x, normal, offset, low, high, self.norm)
            a, b = (tf.maximum(_length(move, self.norm), 1e-8) for move in (here, there))
            alpha = tf.minimum(a / (a + b), self.alpha_max)[:, None]
            point = (1 - alpha) * (point + self.eta * here) + alpha * (x + self.eta * there)
            point = tf.clip_by_value(point, low, high)
            logits, _ = problem.evaluate(_split(point * unit, problem.x))
            wrong = problem.succeeded(logits)
            distance = _length(point - x, self.norm)
            closer = wrong & (distance < nearest)
            best = tf.where(closer[:, None], point, best)
            nearest = tf.where(closer, distance, nearest)
            point = tf.where(wrong[:, None], x + self.beta * (point - x), point)
            return index + 1, point, best, nearest

        state = (tf.constant(0), start, x, tf.fill([tf.shape(x)[0]], np.float32(np.inf)))
        _, _, best, nearest = tf.while_loop(
            lambda index, _, __, nearest: (index < self.steps) & tf.reduce_any(nearest > epsilon),
            step,
            state,
            parallel_iterations=1,
        )
        succeeded = nearest <= epsilon
        found = _split(best * unit, problem.x)
        if self.epsilon.ndim:  # what the units cost in the last digit
            reach = [problem.constant(self.epsilon, leaf) for leaf in problem.x]
            found = [
                tf.clip_by_value(new, old - size, old + size)
                for new, old, size in zip(found, problem.x, reach, strict=True)
            ]
        return problem.select(succeeded, found, problem.x), succeeded

    def _units(self, problem: Problem) -> tuple[Any, Any, float]:
        """Returns each entry's unit, what it moves by one (0 where it stays), and the radius."""
        if not self.epsilon.ndim:
            return np.float32(1.0), np.float32(1.0), float(self.epsilon)
        sizes = _join([tf.zeros_like(x) + problem.constant(self.epsilon, x) for x in problem.x])
        return tf.where(sizes > 0, sizes, 1.0), sizes, 1.0

    def _boundary(
        self,
        problem: Problem,
        point: tf.Tensor,
        unit: Any,
        speed: Any,
        targets: tf.Tensor | None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns another class's logit less the label's, and its gradient `[batch, entries]`."""
        leaves = _split(point * unit, problem.x)

        def towards(targets: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            def difference(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
                own = tf.gather(logits, hard_labels(y), batch_dims=1)
                return tf.gather(logits, targets, batch_dims=1) - own

            _, value, gradients = problem.gradient(leaves, difference)
            return value, _join(gradients) * speed

        if targets is not None:
            return towards(targets)
        # The class whose linearised boundary is nearest.
        labels = hard_labels(problem.y)
        logits, _ = problem.evaluate(leaves)
        dual = "l1" if self.norm == "linf" else "l2"

        def compare(index: tf.Tensor, nearest: tf.Tensor, *best: tf.Tensor) -> tuple:
            value, normal = towards(tf.fill(tf.shape(labels), index))
            length = _length(normal, dual)
            distance = tf.abs(value) / tf.where(length > 0, length, 1.0)
            nowhere = (labels == index) | (length <= 0)
            distance = tf.where(nowhere, np.float32(np.inf), distance)
            closer = distance < nearest
            chosen = tf.where(closer, value, best[0]), tf.where(closer[:, None], normal, best[1])
            return index + 1, tf.minimum(distance, nearest), *chosen

        zeros = tf.zeros_like(logits[:, 0])
        start = (tf.constant(0, tf.int64), zeros + np.float32(np.inf), zeros, tf.zeros_like(point))
        found = tf.while_loop(
            lambda index, *_: index < logits.shape[-1], compare, start, parallel_iterations=1
        )
        return found[2], found[3]


class FABT(FAB):
    """FAB towards each of the most likely other classes in turn: one gradient a step.

    Any misclassification within epsilon is a success.

    Args:
        num_targets: how many classes, in the order of the clean input's logits; at most all others.
        **kwargs: as `FAB`.

    Source: as `FAB`; targets as in Croce and Hein's AutoAttack, ICML 2020.
    """

    def __init__(self, *, num_targets: int = 9, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_targets < 1:
            raise ValueError(f"`num_targets` must be at least 1. Received {num_targets}.")
        self.num_targets = int(num_targets)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as plain Python values."""
        return {**super().get_config(), "num_targets": self.num_targets}

    def _perturb(self, problem: Problem, seed: tf.Tensor) -> Leaves:
        logits, _ = problem.evaluate(problem.x)
        targets = likely_targets(hard_labels(problem.y), logits, self.num_targets)
        number = targets.shape[1]

        def run(part: Problem, rows: tf.Tensor, index: tf.Tensor) -> tuple[Leaves, tf.Tensor]:
            target = tf.gather(tf.gather(targets, rows), index % number, axis=1)
            return self._search(part, fold_in(seed, index), index >= number, target)

        return run_on_the_rest(problem, number * self.restarts, run)


def move_to_hyperplane(
    points: tf.Tensor,
    normals: tf.Tensor,
    offsets: tf.Tensor,
    low: tf.Tensor,
    high: tf.Tensor,
    norm: str = "linf",
) -> tf.Tensor:
    """Returns the shortest move from points to hyperplanes, within a box.

    Minimises the norm of d such that `<normal, point + d> = offset` and `low <= point + d <= high`;
    where that cannot be, moves as far towards the hyperplane as the box allows.

    Args:
        points: float32 `[batch, entries]`, within the box.
        normals: the same shape.
        offsets: `[batch]`.
        low: least values, broadcasts against `points`; finite.
        high: greatest values; finite.
        norm: `"linf"` or `"l2"`.

    Returns:
        float32 `[batch, entries]`.

    Source: Croce and Hein, ICML 2020 (FAB), section 3.1; solved by sorting.

    Example:
    >>> t, w = tf.constant([[0.0, 0.0]]), tf.constant([[1.0, 1.0]])
    >>> move_to_hyperplane(t, w, tf.constant([1.0]), tf.zeros([1, 2]), tf.ones([1, 2])).numpy()
    array([[0.5, 0.5]], dtype=float32)
    """
    excess = tf.reduce_sum(normals * points, axis=1) - offsets
    # From here on the points lie above the hyperplane and go down.
    normals = normals * tf.where(excess >= 0, 1.0, -1.0)[:, None]
    excess = tf.abs(excess)
    size = tf.abs(normals)
    room = tf.where(normals > 0, points - low, high - points)
    # Entry i goes down by speed_i * lambda, until its room ends at lambda = limit_i.
    speed = tf.ones_like(size) if norm == "linf" else size
    limit = tf.where(size > 0, room / tf.maximum(speed, 1e-30), 0.0)
    order = tf.argsort(limit, axis=1)
    limits = tf.gather(limit, order, batch_dims=1)
    slopes = tf.gather(size * speed, order, batch_dims=1)
    used = tf.cumsum(slopes * limits, axis=1)
    ahead = tf.cumsum(slopes, axis=1, reverse=True)  # of entry i and those after it
    reached = used + limits * (ahead - slopes)
    before = tf.reduce_sum(tf.cast(reached < excess[:, None], tf.int32), axis=1)
    last = tf.minimum(before, size.shape[1] - 1)
    done = tf.where(before > 0, tf.gather(used, tf.maximum(before - 1, 0), batch_dims=1), 0.0)
    length = (excess - done) / tf.maximum(tf.gather(ahead, last, batch_dims=1), 1e-30)
    length = tf.where(before < size.shape[1], length, _FAR)
    return -tf.sign(normals) * tf.minimum(speed * length[:, None], room)


def _length(rows: tf.Tensor, norm: str) -> tf.Tensor:
    if norm == "l2":
        return tf.sqrt(tf.reduce_sum(tf.square(rows), axis=1))
    reduce = tf.reduce_max if norm == "linf" else tf.reduce_sum
    return reduce(tf.abs(rows), axis=1)


def _join(leaves: Leaves) -> tf.Tensor:
    """Returns all inputs of an example in one row, float32."""
    sizes = [int(np.prod(leaf.shape[1:])) for leaf in leaves]
    rows = [
        tf.reshape(tf.cast(leaf, tf.float32), (-1, size))
        for leaf, size in zip(leaves, sizes, strict=True)
    ]
    return tf.concat(rows, axis=1)


def _split(rows: tf.Tensor, like: Leaves) -> Leaves:
    """Returns the inputs that `_join` joined."""
    sizes = [int(np.prod(leaf.shape[1:])) for leaf in like]
    parts = tf.split(rows, sizes, axis=1)
    return [
        tf.ensure_shape(tf.cast(tf.reshape(part, tf.shape(leaf)), leaf.dtype), leaf.shape)
        for part, leaf in zip(parts, like, strict=True)
    ]
