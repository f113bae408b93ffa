# SPDX-License-Identifier: Apache-2.0
"""One step on several devices or machines: what `tf.distribute` leaves to the model.

Every function here is a no-op where no strategy is at work, so that one train step serves one
device and many. A *replica* is one copy of the model on one device; a *worker* is one process with
one replica or more. Code that `strategy.run` calls is in the *replica context*, once a replica;
what must happen once for all of them goes through `together`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmot_atmc.utils.keras_internals import already_averaged

__all__ = [
    "already_averaged",
    "apply_gradients",
    "averaged",
    "averaged_states",
    "check_optimizer",
    "count",
    "differing",
    "examples",
    "first",
    "has_other_workers",
    "is_chief",
    "one",
    "own_batch",
    "own_path",
    "own_step",
    "reported",
    "share_of_batch",
    "together",
    "undivided",
]


def __dir__() -> list[str]:
    return __all__


def count() -> int:
    """Returns the number of replicas that train together; 1 without a strategy.

    Example:

    >>> count()
    1
    """
    return int(tf.distribute.get_strategy().num_replicas_in_sync)


def _inside() -> Any:
    """Returns the replica context of a strategy; None without one, or outside `strategy.run`."""
    return tf.distribute.get_replica_context() if tf.distribute.has_strategy() else None


def has_other_workers(strategy: Any = None) -> bool:
    """Returns whether there are replicas in other processes than this one.

    Args:
        strategy: a `tf.distribute.Strategy`; None for the one at work.
    """
    strategy = strategy or tf.distribute.get_strategy()
    total = int(strategy.num_replicas_in_sync)
    return total > 1 and total > len(strategy.extended.worker_devices)


# --- what each replica does for itself ------------------------------------------------------------


def own_step(step: tf.Tensor) -> tf.Tensor:
    """Returns a number of this step and this replica alone, from which randomness is drawn.

    Args:
        step: scalar integer tensor, optimizer steps taken so far; with one replica it is returned
            as it is.
    """
    context = _inside()
    if context is None or count() == 1:
        return step
    replica = tf.cast(context.replica_id_in_sync_group, step.dtype)
    return step * tf.cast(count(), step.dtype) + replica


def examples(x: Any) -> tf.Tensor:
    """Returns the number of this replica's examples, a float32 scalar.

    Args:
        x: nest of this replica's inputs, batch first.
    """
    return tf.cast(tf.shape(tf.nest.flatten(x)[0])[0], tf.float32)


def share_of_batch(x: Any) -> tf.Tensor | None:
    """Returns this replica's share of the examples of the step, a float32 scalar.

    The last batch of an epoch may not divide evenly, and a replica may have no example at all.

    Args:
        x: nest of this replica's inputs, batch first.

    Returns:
        A share in [0, 1], or None where there is one replica only.
    """
    context = _inside()
    if context is None or count() == 1:
        return None
    mine = examples(x)
    return tf.math.divide_no_nan(mine, context.all_reduce(tf.distribute.ReduceOp.SUM, mine))


def undivided(loss: tf.Tensor) -> tf.Tensor:
    """Returns a loss of `compute_loss` without Keras's division by the number of replicas."""
    return loss if _inside() is None or count() == 1 else loss * tf.cast(count(), loss.dtype)


# --- what the replicas agree on -------------------------------------------------------------------


def averaged(tensors: Sequence[Any], share: tf.Tensor | None) -> list[Any]:
    """Returns the means over all replicas, each weighed by its share of the examples.

    Args:
        tensors: floating tensors, or None, which stays None.
        share: as `share_of_batch` returns it; with None the tensors are returned as they are.
    """
    context = _inside()
    if share is None or context is None:
        return list(tensors)
    # A mean over no examples is not a number, and must count for nothing.
    weighed = [
        tf.math.multiply_no_nan(tf.convert_to_tensor(t), tf.cast(share, t.dtype))
        for t in tensors
        if t is not None
    ]
    summed = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, weighed) if weighed else [])
    return [None if t is None else next(summed) for t in tensors]


def averaged_states(
    before: Sequence[tuple[keras.Variable, tf.Tensor]], share: tf.Tensor | None
) -> list[tf.Tensor]:
    """Returns what the layers' own state, such as moving averages, is to be after a forward pass.

    Every replica moves its copy by its own part of the batch; the copies then agree on the mean of
    the movements, so that what did not move stays bit for bit.

    Args:
        before: variables and their values before the pass, the same on every replica.
        share: as `share_of_batch` returns it.
    """
    after = [tf.convert_to_tensor(variable.value) for variable, _ in before]
    if share is None:
        return after
    moves = [
        new - old if new.dtype.is_floating else None
        for new, (_, old) in zip(after, before, strict=True)
    ]
    return [
        new if move is None else old + move
        for new, move, (_, old) in zip(after, averaged(moves, share), before, strict=True)
    ]


def together(function: Callable[..., Any], *arguments: Any) -> None:
    """Calls a function once for all replicas of this worker.

    What it assigns to a variable reaches every replica's copy: they cannot come apart, whatever
    the order in which a device adds numbers up.

    Args:
        function: called with the arguments; without a strategy, or outside `strategy.run`, at once.
            Tensors arrive as one value a replica, which `one` takes apart.
        *arguments: tensors, None, or nests of them.
    """
    context = _inside()
    if context is None:
        function(*arguments)
        return

    def merged(_: Any, *values: Any) -> None:
        function(*values)

    context.merge_call(merged, args=arguments)


def one(value: Any) -> Any:
    """Returns the value of this worker's first replica; a plain tensor as it is."""
    return tf.distribute.get_strategy().experimental_local_results(value)[0]


def first(tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Returns the first worker's values, on every worker.

    For results that might differ in the last bit from one machine to the next. Called where
    `together` calls; with one worker the tensors are returned as they are.

    Args:
        tensors: numeric tensors, each of one shape on all workers.
    """
    if not tf.distribute.has_strategy() or not has_other_workers():
        return list(tensors)
    strategy = tf.distribute.get_strategy()

    def shared(*values: tf.Tensor) -> list[tf.Tensor]:
        context = tf.distribute.get_replica_context()
        giving = tf.equal(context.replica_id_in_sync_group, 0)
        given = [tf.where(giving, value, tf.zeros_like(value)) for value in values]
        return context.all_reduce(tf.distribute.ReduceOp.SUM, given)

    if _inside() is not None:
        return list(shared(*tensors))
    everywhere = strategy.extended.call_for_each_replica(shared, args=tuple(tensors))
    return [one(value) for value in everywhere]


# --- optimizers -----------------------------------------------------------------------------------


def check_optimizer(optimizer: Any) -> None:
    """Refuses what Keras's optimizers cannot do under a strategy.

    Raises:
        ValueError: for gradient accumulation, or averages that overwrite the weights now and then.
    """
    if not tf.distribute.has_strategy():
        return
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    for name in ("gradient_accumulation_steps", "ema_overwrite_frequency"):
        if getattr(inner, name, None):
            raise ValueError(
                f"Keras's optimizers do not support `{name}` under a tf.distribute strategy. "
                f"Received {name}={getattr(inner, name)}. Leave it out; for larger batches raise "
                "`batch_size`, which the replicas share."
            )


def apply_gradients(optimizer: Any, gradients: Sequence[Any], variables: Sequence[Any]) -> None:
    """Takes an optimizer step; to be called through `together`.

    Args:
        optimizer: a built Keras optimizer.
        gradients: as `together` hands them on, the same on every replica.
        variables: the variables that belong to them.
    """
    if not tf.distribute.has_strategy():
        optimizer.apply(gradients, variables)
        return

    def apply(given: Sequence[Any]) -> None:
        optimizer.apply(list(given), list(variables))

    with already_averaged(optimizer):
        tf.distribute.get_strategy().extended.call_for_each_replica(apply, args=(list(gradients),))


# --- data, reports and files ------------------------------------------------------------------


def own_batch(strategy: Any, iterator: Any) -> Any:
    """Returns the first batch of this worker's first replica.

    Args:
        strategy: a `tf.distribute.Strategy`.
        iterator: Keras's iterator over the epochs' distributed batches.
    """
    for *_, batches in iterator:  # Keras gives one number or two beside them
        batch = next(batches)
        return tf.nest.map_structure(
            lambda value: strategy.experimental_local_results(value)[0], batch
        )
    raise ValueError("The data have no batch.")


def reported(logs: dict[str, Any]) -> dict[str, Any]:
    """Returns a step's metrics in the form that Keras's trainer can average over workers.

    It averages along the first axis, which scalars do not have.
    """
    if _inside() is None or not has_other_workers():
        return logs
    return {name: tf.reshape(value, [1]) for name, value in logs.items()}


def is_chief(strategy: Any = None) -> bool:
    """Returns whether this worker is the one that writes files for all.

    Args:
        strategy: a `tf.distribute.Strategy`; None for the one at work.
    """
    resolver = getattr(strategy or tf.distribute.get_strategy(), "cluster_resolver", None)
    if resolver is None or not resolver.task_type:
        return True
    workers = resolver.cluster_spec().as_dict()
    chief = "chief" if "chief" in workers else "worker"
    return resolver.task_type == chief and resolver.task_id in (None, 0)


def own_path(path: str | os.PathLike[str], strategy: Any = None) -> str:
    """Returns a path that no other worker writes to: the chief's is the one given.

    Backups and checkpoints are written by every worker; each needs a place of its own.

    Args:
        path: a folder, or a file of which the suffix is kept.
        strategy: a `tf.distribute.Strategy`; None for the one at work.

    Example:

    >>> own_path("runs/backup")
    'runs/backup'
    """
    strategy = strategy or tf.distribute.get_strategy()
    if is_chief(strategy):
        return os.fspath(path)
    resolver = strategy.cluster_resolver
    stem, suffix = os.path.splitext(os.fspath(path))
    return f"{stem}-{resolver.task_type}-{resolver.task_id}{suffix}"


def differing(variables: Sequence[keras.Variable]) -> list[str]:
    """Returns the paths of variables whose copies on this worker's replicas are not the same.

    Args:
        variables: variables of a model, such as `model.weights`.

    Example:

    >>> differing([keras.Variable([1.0, 2.0])])
    []
    """
    found = []
    for variable in variables:
        copies = getattr(variable.value, "values", (variable.value,))
        bits = [np.asarray(copy.numpy()).tobytes() for copy in copies]
        if any(other != bits[0] for other in bits):
            found.append(variable.path)
    return found
