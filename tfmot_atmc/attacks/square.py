# SPDX-License-Identifier: Apache-2.0
"""Square attack: random search with squares, by the outputs alone."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfmot_atmc.attacks.base import Attack
from tfmot_atmc.attacks.margins import margin
from tfmot_atmc.attacks.outputs import hard_labels
from tfmot_atmc.attacks.problem import Leaves, Problem, fold_in
from tfmot_atmc.attacks.runs import run_on_the_rest, scatter
from tfmot_atmc.attacks.squares import Canvas, l2_change, linf_pattern
from tfmot_atmc.utils.tracing import within_xla

__all__ = ["Square"]

# The share of pixels in a square halves after these queries (of 10,000).
_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
# So many queries at a time; in between, examples that are done are dropped, but not within XLA.
_SEGMENT = 250


class Square(Attack):
    """Changes a random square of the image at a time, and keeps what lowers the margin.

    Needs no gradients: it works on a file, on a service, and where gradients are masked. Images
    are `[height, width, channels]`; other inputs are read as one row of their last two axes.

    Args:
        epsilon: radius in input units, a scalar or, for l-infinity, one value a channel.
        queries: number of proposals for each example, at least 1.
        restarts: number of random starts; each takes only the examples that are left.
        p_init: share of the pixels in the first squares, in (0, 1].
        **kwargs: `norm`, `bounds` and `seed`, see `Attack`.

    Raises:
        ValueError: an argument is out of range.

    Source: Andriushchenko et al., "Square attack: a query-efficient black-box adversarial attack
        via random search", ECCV 2020, algorithms 1 to 3; the schedule of squares does not stretch
        with `queries`, as in AutoAttack.

    Example:
    >>> model = lambda x: tf.stack([x[:, 0, 0, 0], 1 - x[:, 0, 0, 0]], axis=1)
    >>> x = tf.fill([1, 2, 2, 1], 0.6)
    >>> bool(Square(epsilon=0.2, queries=5)(model, x, [0])[0, 0, 0, 0] < 0.5)
    True
    """

    needs_gradients = False
    _without = ("targeted", "backward_slope")
    _default_slope = None

    def __init__(
        self,
        *,
        epsilon: Any,
        queries: int = 5000,
        restarts: int = 1,
        p_init: float = 0.8,
        **kwargs: Any,
    ) -> None:
        super().__init__(epsilon=epsilon, **kwargs)
        if queries < 1 or restarts < 1:
            raise ValueError(
                f"`queries` and `restarts` must be at least 1. Received {queries} and {restarts}."
            )
        if not 0 < p_init <= 1:
            raise ValueError(f"`p_init` must lie in (0, 1]. Received {p_init!r}.")
        self.queries, self.restarts, self.p_init = int(queries), int(restarts), float(p_init)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as plain Python values."""
        return {
            **super().get_config(),
            "queries": self.queries,
            "restarts": self.restarts,
            "p_init": self.p_init,
        }

    def share(self, query: tf.Tensor) -> tf.Tensor:
        """Returns the share of the pixels in a square, for the number of a query from 0."""
        halvings = tf.reduce_sum(tf.cast(query > tf.constant(_HALVINGS), tf.float32))
        return self.p_init * tf.pow(2.0, -halvings)

    def _perturb(self, problem: Problem, seed: tf.Tensor) -> Leaves:
        def run(part: Problem, _: tf.Tensor, index: tf.Tensor) -> tuple[Leaves, tf.Tensor]:
            return self._search(part, fold_in(seed, index))

        return run_on_the_rest(problem, self.restarts, run)

    def _search(self, problem: Problem, seed: tf.Tensor) -> tuple[Leaves, tf.Tensor]:
        """Returns the result of one run, and where it succeeded."""
        canvases = [Canvas(leaf) for leaf in problem.x]
        start = self._stripes(problem, canvases, fold_in(seed, 0))
        static = within_xla()

        def segment(first: tf.Tensor, leaves: Leaves, margins: tf.Tensor) -> tuple:
            rows = tf.range(tf.shape(margins)[0])
            if not static:
                rows = tf.cast(tf.where(margins > 0)[:, 0], tf.int32)
            part = problem.take(rows)
            mine = [tf.gather(leaf, rows) for leaf in leaves]
            last = tf.minimum(first + _SEGMENT, self.queries)

            def propose(query: tf.Tensor, mine: Leaves, margins: tf.Tensor) -> tuple:
                changed = self._proposal(part, canvases, mine, query, fold_in(seed, query + 1))
                value = _margin(part, changed)
                better = (value < margins) | (value <= 0)
                kept = part.select(better, changed, mine)
                return query + 1, kept, tf.where(better, value, margins)

            _, mine, found = tf.while_loop(
                lambda query, _, margins: (query < last) & tf.reduce_any(margins > 0),
                propose,
                (
                    first,
                    [_like(m, x) for m, x in zip(mine, part.x, strict=True)],
                    tf.gather(margins, rows),
                ),
                parallel_iterations=1,
            )
            leaves = [scatter(leaf, rows, new) for leaf, new in zip(leaves, mine, strict=True)]
            return last, leaves, scatter(margins, rows, found)

        _, leaves, margins = tf.while_loop(
            lambda query, _, margins: (query < self.queries) & tf.reduce_any(margins > 0),
            segment,
            (tf.constant(0), start, _margin(problem, start)),
            parallel_iterations=1,
        )
        return leaves, margins <= 0

    def _stripes(self, problem: Problem, canvases: list[Canvas], seed: tf.Tensor) -> Leaves:
        """Returns the start: vertical stripes for l-infinity, a grid of squares for l2."""
        changes = []
        for i, canvas in enumerate(canvases):
            x, key = problem.x[i], fold_in(seed, i)
            if self.norm == "linf":
                signs = canvas.signs(key, (tf.shape(x)[0], 1, canvas.width, canvas.channels))
                pattern = tf.broadcast_to(signs, tf.shape(canvas.image(x)))
                changes.append(canvas.flat(pattern, x) * problem.constant(self.epsilon, x))
            else:
                changes.append(canvas.flat(canvas.tiles(x, key), x))
        if self.norm == "l2":
            changes = _of_length(problem, changes, float(self.epsilon))
        return problem.project([x + c for x, c in zip(problem.x, changes, strict=True)])

    def _proposal(
        self,
        problem: Problem,
        canvases: list[Canvas],
        leaves: Leaves,
        query: tf.Tensor,
        seed: tf.Tensor,
    ) -> Leaves:
        """Returns the current points with one square of each input changed."""
        changes = [leaf - x for leaf, x in zip(leaves, problem.x, strict=True)]
        share = self.share(query)
        changed = []
        for i, canvas in enumerate(canvases):
            x, key = problem.x[i], fold_in(seed, i)
            image = canvas.image(changes[i])
            if self.norm == "linf":
                shape = tf.shape(image)
                pattern = tf.broadcast_to(linf_pattern(canvas, share, key), shape)
                step = 2 * problem.constant(self.epsilon, x)
                changed.append(changes[i] + canvas.flat(pattern, x) * step)
            else:
                length = problem.lengths(changes)
                moved = l2_change(canvas, image, share, float(self.epsilon), length, key)
                changed.append(canvas.flat(moved, x))
        if self.norm == "l2":
            changed = _of_length(problem, changed, float(self.epsilon))
        return problem.project([x + c for x, c in zip(problem.x, changed, strict=True)])


def _margin(problem: Problem, leaves: Leaves) -> tf.Tensor:
    logits, _ = problem.evaluate(leaves, lambda y, logits: margin(hard_labels(y), logits))
    return margin(hard_labels(problem.y), logits)


def _like(tensor: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
    return tf.ensure_shape(tensor, other.shape)


def _of_length(problem: Problem, changes: Leaves, length: float) -> Leaves:
    """Returns the changes scaled to a length; l2 perturbations use all of their ball."""
    scale = length / tf.maximum(problem.lengths(changes), 1e-12)
    return [c * tf.cast(problem.column(scale, c), c.dtype) for c in changes]
