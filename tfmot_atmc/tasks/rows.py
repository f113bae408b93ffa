# SPDX-License-Identifier: Apache-2.0
"""All outputs of an example as one row, so that an attack on classes can raise any loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmot_atmc.tasks.losses import Part, example_losses, find_logits, with_logits

__all__ = ["EDGE", "LabelLoss", "Rows", "class_of", "has_classes"]

EDGE = 1e-7
"""Probabilities are kept this far from 0 and 1 where the logits behind them are not found."""


class Rows:
    """All outputs of an example in one row, all its labels in another, and their loss.

    As a loss of attacks it gives one value an example, and says by `wrong` what a success is.

    Args:
        kind: the `Task`'s.
        parts: the loss of each output.
        predict: the model in inference mode, from inputs to a nest of outputs.
        y: nest of labels, or of what has their shapes.
    """

    def __init__(
        self, kind: str, parts: Sequence[Part], predict: Callable[[Any], Any], y: Any
    ) -> None:
        self._kind, self._parts, self._predict = kind, tuple(parts), predict
        self._labels = [tuple(leaf.shape[1:]) for leaf in tf.nest.flatten(y)]
        self._shapes: list[tuple] = []
        self._losses: list[keras.losses.Loss] = []
        self._classes = False
        self._y = tf.nest.flatten(y)[0]

    def outputs(self, inputs: Any) -> tf.Tensor:
        """Returns the outputs that have a loss, `[batch, entries + 1]`, the last column zero."""
        found = tf.nest.flatten(self._predict(inputs))
        first = self._parts[0].loss
        self._classes = len(self._parts) == 1 and has_classes(first, self._y, found[0])
        self._shapes, self._losses, rows = [], [], []
        for part in self._parts:
            outputs, loss = found[part.output], part.loss
            logits, behind = with_logits(loss), find_logits(outputs)
            if logits is not None and behind is not None:  # where gradients do not saturate
                outputs, loss = behind, logits
            self._shapes.append(tuple(outputs.shape[1:]))
            self._losses.append(loss)
            rows.append(_flat(tf.cast(outputs, tf.float32)))
        # Two columns at least, as of any classifier.
        return tf.concat([*rows, tf.zeros_like(rows[0][:, :1])], axis=1)

    def labels(self, y: Any) -> tf.Tensor:
        """Returns all labels, float32 `[batch, entries]`."""
        return tf.concat([_flat(tf.cast(leaf, tf.float32)) for leaf in tf.nest.flatten(y)], axis=1)

    def __call__(self, y: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        """Returns the sum of the weighted losses of each example, `[batch]`."""
        labels = _parted(y, self._labels)
        outputs = _parted(rows[:, :-1], self._shapes)
        return tf.add_n(
            [
                part.weight * example_losses(loss, labels[part.label], mine)
                for part, loss, mine in zip(self._parts, self._losses, outputs, strict=True)
            ]
        )

    def each_right(self, y: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        """Returns which of several yes-or-no labels are right, bool `[batch, labels]`."""
        edge = 0.0 if getattr(self._losses[0], "from_logits", False) else 0.5
        return (rows[:, :-1] > edge) == (y > 0.5)

    def margins(self, y: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        """Returns how far each yes-or-no label is right, in logits, float32 `[batch, labels]`."""
        outputs = rows[:, :-1]
        if not getattr(self._losses[0], "from_logits", False):
            p = tf.clip_by_value(outputs, EDGE, 1.0 - EDGE)
            outputs = tf.math.log(p) - tf.math.log1p(-p)
        return tf.where(y > 0.5, outputs, -outputs)

    def wrong(self, y: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        """Returns where an answer is wrong; nowhere, where there is no right one."""
        if self._kind == "labels":
            return ~tf.reduce_all(self.each_right(y, rows), axis=1)
        if self._classes:
            return tf.argmax(rows[:, :-1], axis=1, output_type=tf.int64) != class_of(y)
        return tf.zeros_like(y[:, 0], tf.bool)


class LabelLoss:
    """The largest loss of an example's yes-or-no labels, or that of one of them.

    One wrong label makes an answer wrong. The mean over the labels, which training raises, spends
    the ball on all of them.

    Args:
        rows: outputs and labels in rows.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __call__(self, y: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        """Returns one value an example.

        Args:
            y: labels `[batch, labels]`; or `[batch, 2 * labels]`, with the weight of each behind.
            rows: outputs in rows.
        """
        labels = rows.shape[-1] - 1
        losses = tf.nn.softplus(-self._rows.margins(y[:, :labels], rows))
        if y.shape[-1] == labels:
            return tf.reduce_max(losses, axis=1)
        return tf.reduce_sum(losses * y[:, labels:], axis=1)

    def wrong(self, y: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        """Returns where any of the labels is wrong, bool `[batch]`."""
        return self._rows.wrong(y[:, : rows.shape[-1] - 1], rows)


def has_classes(loss: keras.losses.Loss, y: Any, outputs: Any) -> bool:
    """Tells whether a loss that is not a plain cross-entropy still asks for a class.

    Args:
        loss: the loss of the only output.
        y: labels.
        outputs: outputs.
    """
    if len(outputs.shape) != 2 or outputs.shape[-1] in (None, 1):
        return False
    if isinstance(loss, keras.losses.CategoricalFocalCrossentropy):
        return len(y.shape) == 2
    sparse = len(y.shape) == 1 or (len(y.shape) == 2 and y.shape[-1] == 1)
    ignoring = getattr(loss, "ignore_class", None) is not None
    return sparse and not ignoring and tf.as_dtype(y.dtype).is_integer


def class_of(y: tf.Tensor) -> tf.Tensor:
    """Returns class indices, int64 `[batch]`, of indices or rows."""
    if len(y.shape) == 1 or y.shape[-1] == 1:
        return tf.cast(tf.reshape(y, [-1]), tf.int64)
    return tf.argmax(y, axis=-1, output_type=tf.int64)


def _flat(tensor: tf.Tensor) -> tf.Tensor:
    size = 1
    for side in tensor.shape[1:]:
        size = -1 if side is None or size == -1 else size * int(side)
    if size == -1:
        return tf.reshape(tensor, [tf.shape(tensor)[0], -1])
    return tf.reshape(tensor, [-1, size])


def _parted(rows: tf.Tensor, shapes: list[tuple]) -> list[tf.Tensor]:
    """Returns the tensors that `_flat` and a concatenation put into rows."""
    if len(shapes) == 1:
        shape = [-1 if side is None else int(side) for side in shapes[0]]
        if shape.count(-1) > 1:
            raise ValueError(
                f"Outputs or labels of shape {shapes[0]} leave more than one side open, so that "
                "an attack cannot take them apart. Fix all sides but one."
            )
        return [tf.reshape(rows, [tf.shape(rows)[0], *shape])]
    if any(side is None for shape in shapes for side in shape):
        raise ValueError(
            f"Several outputs or labels under attack must have fixed shapes. Received {shapes}."
        )
    sizes = [int(np.prod(shape)) for shape in shapes]
    parts = tf.split(rows, sizes, axis=1)
    return [tf.reshape(part, [-1, *shape]) for part, shape in zip(parts, shapes, strict=True)]
