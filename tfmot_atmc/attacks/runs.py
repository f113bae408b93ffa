# SPDX-License-Identifier: Apache-2.0
"""Several runs of an attack, each on the examples that the runs before it have left."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from tfmot_atmc.attacks.problem import Leaves, Problem
from tfmot_atmc.utils.tracing import within_xla

__all__ = ["run_on_the_rest", "scatter"]

Run = Callable[[Problem, tf.Tensor, tf.Tensor], tuple[Leaves, tf.Tensor]]


def run_on_the_rest(problem: Problem, runs: int, run: Run) -> Leaves:
    """Returns, for each example, the point of the first run that succeeded, or of the last run.

    Several runs drop what is done, but where XLA compiles, which needs static shapes: there each
    run takes all examples.

    Args:
        problem: the whole problem.
        runs: number of runs.
        run: callable `(problem, rows, index) -> (leaves, succeeded)`: the problem of the examples
            `rows` that are left, and the number of the run, a scalar int32 tensor.
    """
    batch = tf.shape(problem.x[0])[0]
    if runs == 1:
        return run(problem, tf.range(batch), tf.constant(0))[0]

    static = within_xla()

    def left(index: tf.Tensor, _: Leaves, done: tf.Tensor) -> tf.Tensor:
        return (index < runs) & tf.reduce_any(~done)

    def once(index: tf.Tensor, leaves: Leaves, done: tf.Tensor) -> tuple:
        if static:
            found, succeeded = run(problem, tf.range(batch), index)
            return index + 1, problem.select(done, leaves, found), done | succeeded
        rows = tf.cast(tf.where(~done)[:, 0], tf.int32)
        found, succeeded = run(problem.take(rows), rows, index)
        leaves = [scatter(leaf, rows, new) for leaf, new in zip(leaves, found, strict=True)]
        return index + 1, leaves, scatter(done, rows, succeeded)

    state = (tf.constant(0), list(problem.x), tf.fill([batch], False))
    return tf.while_loop(left, once, state, parallel_iterations=1)[1]


def scatter(tensor: tf.Tensor, rows: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Returns the tensor with some of its rows replaced."""
    return tf.ensure_shape(tf.tensor_scatter_nd_update(tensor, rows[:, None], values), tensor.shape)
