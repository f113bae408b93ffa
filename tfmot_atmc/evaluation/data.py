# SPDX-License-Identifier: Apache-2.0
"""The data of an evaluation, batch by batch, and its progress."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from rich import progress as rich_progress

from tfmot_atmc.tasks import class_labels

__all__ = ["batches", "progress"]


def batches(
    data: Any, batch_size: int, max_examples: int | None, columns: int | None = None
) -> Iterator[tuple[Any, np.ndarray]]:
    """Yields batches of NumPy inputs and int64 class indices.

    Args:
        data: pair of arrays, or a batched dataset of pairs.
        batch_size: examples of a batch, of arrays.
        max_examples: how many at most; None for all.
        columns: outputs of the model an example, see `tasks.class_labels`.

    Raises:
        ValueError: the data are no pairs with one class an example, or have no end.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1. Received {batch_size}.")
    endless = isinstance(data, tf.data.Dataset) and max_examples is None
    if endless and int(data.cardinality()) == tf.data.INFINITE_CARDINALITY:
        raise ValueError(
            "The dataset has no end, so an evaluation of all of it would not end either. Leave out "
            "`repeat()`, or pass `max_examples=`."
        )
    left = float("inf") if max_examples is None else max_examples
    for element in _elements(data, batch_size):
        if not isinstance(element, (tuple, list)) or len(element) < 2:
            raise ValueError(
                f"The data must be pairs (x, y) with labels. Received {type(element)}."
            )
        x = tf.nest.map_structure(np.asarray, element[0])
        y = class_labels(element[1], columns)
        size = int(min(len(y), left))
        if size:
            yield tf.nest.map_structure(lambda leaf, size=size: leaf[:size], x), y[:size]
        left -= size
        if left <= 0:
            return


def _elements(data: Any, batch_size: int) -> Iterator[Any]:
    if isinstance(data, tf.data.Dataset):
        yield from data
        return
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise ValueError(
            f"`data` must be a pair (x, y) or a batched tf.data.Dataset. Received {type(data)}."
        )
    x, y = tf.nest.map_structure(np.asarray, data[0]), np.asarray(data[1])
    sizes = {len(leaf) for leaf in tf.nest.flatten(x)}
    if sizes != {len(y)}:
        raise ValueError(
            f"Inputs and labels must have equal lengths. Received {sizes} and {len(y)}."
        )
    for start in range(0, len(y), batch_size):
        part = slice(start, start + batch_size)
        yield tf.nest.map_structure(lambda leaf, part=part: leaf[part], x), y[part]


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
        total = len(data[1]) if max_examples is None else min(len(data[1]), max_examples)
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
