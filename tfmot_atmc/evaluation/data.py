# SPDX-License-Identifier: Apache-2.0
"""The data of an evaluation, batch by batch, and its progress."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from rich import progress as rich_progress

__all__ = ["batches", "progress", "rows_of"]

# A dataset that does not say its size is read to its end first: so many examples and seconds.
_MOST, _LONGEST = 1_000_000, 30.0


def batches(data: Any, batch_size: int, max_examples: int | None) -> Iterator[tuple[Any, Any]]:
    """Yields batches of NumPy inputs and labels, each an array or a nest of arrays.

    Args:
        data: pair of arrays, or a batched dataset of pairs.
        batch_size: examples of a batch, of arrays.
        max_examples: how many at most; None for all.

    Raises:
        ValueError: the data are no pairs with labels, or have no end, or do not say that they have.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1. Received {batch_size}.")
    if max_examples is not None and max_examples < 0:
        raise ValueError(f"`max_examples` must be None or at least 1. Received {max_examples}.")
    if max_examples is None and isinstance(data, tf.data.Dataset):
        _check_end(data)
    left = float("inf") if max_examples is None else max_examples
    for element in _elements(data, batch_size):
        if not isinstance(element, (tuple, list)) or len(element) < 2:
            raise ValueError(
                f"The data must be pairs (x, y) with labels. Received {type(element)}."
            )
        x, y = tf.nest.map_structure(np.asarray, element[0]), _labels(element[1])
        size = int(min(_examples(y), left))
        if size:
            yield tf.nest.map_structure(lambda leaf, size=size: leaf[:size], (x, y))
        left -= size
        if left <= 0:
            return


def _elements(data: Any, batch_size: int) -> Iterator[Any]:
    if isinstance(data, tf.data.Dataset):
        yield from data
        return
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise ValueError(
            "`data` must be a pair (x, y) or a batched tf.data.Dataset (of a generator: "
            f"`tf.data.Dataset.from_generator`). Received {type(data)}."
        )
    x, y = tf.nest.map_structure(np.asarray, data[0]), _labels(data[1])
    sizes, count = {len(leaf) for leaf in tf.nest.flatten(x)}, _examples(y)
    if sizes != {count}:
        raise ValueError(
            f"Inputs and labels must have equal lengths. Received {sizes} and {count}."
        )
    for start in range(0, count, batch_size):
        part = slice(start, start + batch_size)
        yield tf.nest.map_structure(lambda leaf, part=part: leaf[part], (x, y))


def _check_end(data: tf.data.Dataset) -> None:
    """Refuses a dataset that has no end, or none that can be seen.

    Files and generators do not say how much they hold. Such a dataset is read once without attacks,
    which takes little beside them, until its end or a limit.

    Raises:
        ValueError: it has no end, or the limit was reached.
    """
    said = int(data.cardinality())
    if said >= 0:
        return
    way_out = "pass `max_examples=`"
    if said == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            "The dataset has no end, so an evaluation of all of it would not end either. Leave out "
            f"`repeat()`, or {way_out}."
        )
    examples, start = 0, time.monotonic()
    elements = iter(data)
    while True:
        try:
            element = next(elements)
        except (StopIteration, tf.errors.OpError):
            return  # a fault of the data is met again, after what comes before it
        leaves = tf.nest.flatten(element)
        examples += int(leaves[0].shape[0]) if leaves and leaves[0].shape.rank else 1
        seconds = time.monotonic() - start
        if examples > _MOST or seconds > _LONGEST:
            raise ValueError(
                f"The dataset does not say how many examples it has, and its end was not reached "
                f"after {examples} of them in {seconds:.0f} s: it may have none. To evaluate some, "
                f"{way_out}; to evaluate all, say how many batches there are by "
                "`dataset.apply(tf.data.experimental.assert_cardinality(...))`."
            )


def _labels(y: Any) -> Any:
    """Returns labels as one array, or as a nest of arrays where there are several outputs.

    A list of numbers is one array; one of arrays is several.
    """
    several = isinstance(y, (dict, tuple)) or (
        isinstance(y, list) and all(hasattr(leaf, "shape") and leaf.shape for leaf in y) and y
    )
    if not several:
        return np.asarray(y)
    found = tf.nest.map_structure(np.asarray, y)
    flat = tf.nest.flatten(found)
    if any(leaf.ndim == 0 for leaf in flat):
        return np.asarray(y)
    if len({len(leaf) for leaf in flat}) > 1:
        raise ValueError(
            "Labels of several outputs must have equal lengths. Received "
            f"{[leaf.shape for leaf in flat]}."
        )
    return found


def _examples(y: Any) -> int:
    first = tf.nest.flatten(y)[0]
    if not first.ndim:
        raise ValueError("Labels must come in batches. Received a scalar: batch the dataset.")
    return len(first)


def rows_of(x: Any, rows: Any) -> Any:
    """Returns some of the examples of a nest of arrays."""
    return tf.nest.map_structure(lambda leaf: leaf[rows], x)


@contextlib.contextmanager
def progress(
    verbose: int, data: Any, batch_size: int, max_examples: int | None
) -> Iterator[Callable[[int], None]]:
    """Shows a bar of examples done; gives a function to advance it."""
    if not verbose:
        yield lambda count: None
        return
    total = None
    if isinstance(data, (tuple, list)) and len(data) == 2:
        total = _examples(_labels(data[1]))
        total = total if max_examples is None else min(total, max_examples)
    elif max_examples is not None:
        total = max_examples
    columns = [
        *rich_progress.Progress.get_default_columns(),  # with the time left
        rich_progress.MofNCompleteColumn(),
        _Rate(),
    ]
    with rich_progress.Progress(*columns, transient=True) as bar:
        task = bar.add_task("Attacking", total=total)
        yield lambda count: bar.update(task, advance=count)


class _Rate(rich_progress.ProgressColumn):
    """Examples a second."""

    def render(self, task: rich_progress.Task) -> str:
        return f"{task.speed:.1f}/s" if task.speed else ""
