# SPDX-License-Identifier: Apache-2.0
"""What labels and outputs mean, and so what an attack raises and when an answer is right."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmot_atmc.attacks import Attack
from tfmot_atmc.tasks.losses import (
    Part,
    example_losses,
    find_logits,
    loss_parts,
    with_logits,
)
from tfmot_atmc.utils.keras_internals import loss_axis

__all__ = ["Task", "binary_logits", "check_attack", "class_labels", "task_of"]

_CATEGORICAL = (
    keras.losses.SparseCategoricalCrossentropy,
    keras.losses.CategoricalCrossentropy,
)
# Probabilities are kept this far from 0 and 1 where the logits behind them are not found.
_EDGE = 1e-7


def check_attack(*attacks: Attack | None) -> None:
    """Refuses attacks that would help the model: one towards the classes it is given.

    Labels of training and evaluation are the right answers; a targeted attack takes its labels for
    the classes wanted.

    Raises:
        ValueError: the attack is targeted.
    """
    for attack in attacks:
        if attack is None or not attack.targeted:
            continue
        raise ValueError(
            f"{type(attack).__name__}(targeted=True) takes its labels for the classes wanted. Here "
            "they are the right answers, so that it would make the model right, not wrong. Use "
            "targeted=False; APGDT and FABT aim at every other class by themselves."
        )


def task_of(
    loss: Any, outputs: Any, y: Any, *, names: Sequence[str] = (), weights: Any = None
) -> Task:
    """Returns what a model is to do: the one decision on labels and losses.

    - `"classes"`: a cross-entropy of one row of logits an example; labels are class indices, or
      rows: one-hot, smoothed or mixed.
    - `"binary"`: one output an example with binary cross-entropy; labels from 0 to 1.
    - `"labels"`: several outputs an example with binary cross-entropy: each is a yes or no of its
      own (multi-label). Rows are not read as classes.
    - `"values"`: anything else with a loss for each example: regression, images, sequences of
      labels, own losses, several outputs.

    Args:
        loss: what was given to `compile`.
        outputs: nest of the model's outputs (or of what has their shape and dtype).
        y: nest of labels, likewise.
        names: names of the outputs, where losses or labels are given by name.
        weights: `loss_weights` of `compile`.

    Raises:
        ValueError: there is no loss or no label, or they do not match the outputs.
    """
    if loss is None or y is None:
        raise ValueError(
            "An attack raises the compiled loss of the labels, and there is no "
            f"{'loss' if loss is None else 'label'} here. Compile the model with `loss=` and give "
            "`fit` and `evaluate` pairs (x, y); a loss that a layer adds cannot be attacked."
        )
    parts = loss_parts(loss, outputs, y, names, weights)
    if len(parts) == 1 and len(tf.nest.flatten(outputs)) == 1:
        shape, labels = tf.nest.flatten(outputs)[0].shape, tf.nest.flatten(y)[0]
        return Task(_kind(parts[0].loss, shape, labels.shape), tuple(parts))
    return Task("values", tuple(parts))


def _kind(loss: keras.losses.Loss, shape: Any, labels: Any) -> str:
    rank, columns = len(shape), shape[-1] if len(shape) > 1 else 1
    if isinstance(loss, keras.losses.BinaryCrossentropy):
        if rank <= 2 and columns == 1:
            return "binary"
        return "labels" if rank == 2 and loss_axis(loss) in (-1, 1) else "values"
    if isinstance(loss, _CATEGORICAL) and rank == 2 and columns != 1:
        plain = getattr(loss, "ignore_class", None) is None and loss_axis(loss) in (-1, 1)
        return "classes" if plain else "values"
    return "values"


@dataclasses.dataclass(frozen=True)
class Task:
    """How the outputs of a model are judged, see `task_of`.

    Attributes:
        kind: `"classes"`, `"binary"`, `"labels"` or `"values"`.
        parts: the loss of each output.
    """

    kind: str
    parts: tuple[Part, ...]

    def under(
        self, attack: Attack, predict: Callable[[Any], Any], y: Any
    ) -> tuple[Attack, Callable[[Any], tf.Tensor], tf.Tensor]:
        """Returns the attack, the function it attacks, and its labels.

        The attack raises the compiled loss, example by example. One with a loss of its own keeps
        that, on the model's outputs and labels as they are.

        Args:
            attack: what was asked for.
            predict: the model in inference mode.
            y: nest of labels.

        Raises:
            ValueError: the attack is targeted, or looks at classes where there are none.
        """
        check_attack(attack)
        if attack.loss is not None:
            return attack, predict, y
        smoothing = float(getattr(self.parts[0].loss, "label_smoothing", 0.0))
        if self.kind == "classes":
            return attack, predict, self._class_rows(predict, y, smoothing)
        if self.kind == "binary":
            from_logits = bool(self.parts[0].loss.from_logits)

            def two_classes(inputs: Any) -> tf.Tensor:
                return binary_logits(predict(inputs), from_logits)

            return attack, two_classes, _two_columns(tf.nest.flatten(y)[0], smoothing)
        if not attack.any_loss:
            raise ValueError(
                f"{type(attack).__name__} looks at classes, and this model has none to look at: "
                f"its loss is {', '.join(part.loss.name for part in self.parts)}. Use PGD, FGSM or "
                "APGD, which raise any loss."
            )
        rows = _Rows(self, predict, y)
        return attack.with_loss(rows), rows.outputs, rows.labels(y)

    def _class_rows(self, predict: Any, y: Any, smoothing: float) -> tf.Tensor:
        y = tf.nest.flatten(y)[0]
        if not smoothing or len(y.shape) != 2:
            return y
        y = tf.cast(y, tf.float32)
        return y * (1.0 - smoothing) + smoothing / y.shape[-1]

    def correct(self, y: Any, outputs: Any) -> tf.Tensor | None:
        """Returns 1.0 where an answer is right, float32 `[batch]`; None where none is.

        Of several yes-or-no labels all must be right.

        Args:
            y: nest of labels.
            outputs: nest of outputs.
        """
        if len(self.parts) != 1 or len(tf.nest.flatten(outputs)) != 1:
            return None
        y, outputs = tf.nest.flatten(y)[0], tf.nest.flatten(outputs)[0]
        if self.kind in ("binary", "labels"):
            loss: Any = self.parts[0].loss
            answer = outputs > (0.0 if loss.from_logits else 0.5)
            same = tf.reshape(answer, [tf.shape(outputs)[0], -1]) == (
                tf.reshape(tf.cast(y, tf.float32), [tf.shape(outputs)[0], -1]) > 0.5
            )
            return tf.cast(tf.reduce_all(same, axis=1), tf.float32)
        if self.kind == "values" and not self._has_classes(y, outputs):
            return None
        predicted = tf.argmax(outputs, axis=-1, output_type=tf.int64)
        return tf.cast(predicted == _hard(y), tf.float32)

    def _has_classes(self, y: Any, outputs: Any) -> bool:
        """Tells whether a loss that is not a plain cross-entropy still asks for a class."""
        if len(outputs.shape) != 2 or outputs.shape[-1] in (None, 1):
            return False
        if isinstance(self.parts[0].loss, keras.losses.CategoricalFocalCrossentropy):
            return len(y.shape) == 2
        sparse = len(y.shape) == 1 or (len(y.shape) == 2 and y.shape[-1] == 1)
        ignoring = getattr(self.parts[0].loss, "ignore_class", None) is not None
        return sparse and not ignoring and tf.as_dtype(y.dtype).is_integer


class _Rows:
    """All outputs of an example in one row, all its labels in another, and their loss."""

    def __init__(self, task: Task, predict: Callable[[Any], Any], y: Any) -> None:
        self._task, self._predict = task, predict
        self._labels = [tuple(leaf.shape[1:]) for leaf in tf.nest.flatten(y)]
        self._shapes: list[tuple] = []
        self._losses: list[keras.losses.Loss] = []
        self._classes = False
        self._y = tf.nest.flatten(y)[0]

    def outputs(self, inputs: Any) -> tf.Tensor:
        """Returns the outputs that have a loss, `[batch, entries + 1]`, the last column zero."""
        found = tf.nest.flatten(self._predict(inputs))
        self._classes = len(self._task.parts) == 1 and self._task._has_classes(self._y, found[0])
        self._shapes, self._losses, rows = [], [], []
        for part in self._task.parts:
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
                for part, loss, mine in zip(self._task.parts, self._losses, outputs, strict=True)
            ]
        )

    def wrong(self, y: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        """Returns where an answer is wrong; nowhere, where there is no right one."""
        outputs = rows[:, :-1]
        if self._task.kind == "labels":
            edge = 0.0 if getattr(self._losses[0], "from_logits", False) else 0.5
            return tf.reduce_any((outputs > edge) != (y > 0.5), axis=1)
        if self._classes:
            return tf.argmax(outputs, axis=1, output_type=tf.int64) != _hard(y)
        return tf.zeros_like(y[:, 0], tf.bool)


def binary_logits(outputs: tf.Tensor, from_logits: bool) -> tf.Tensor:
    """Returns the logits of two classes, float32 `[batch, 2]`, of one output an example.

    Args:
        outputs: `[batch]` or `[batch, 1]`, logits or probabilities of the second class.
        from_logits: they are logits.
    """
    logits = outputs if from_logits else find_logits(outputs)
    if logits is None:
        p = tf.clip_by_value(tf.cast(outputs, tf.float32), _EDGE, 1.0 - _EDGE)
        logits = tf.math.log(p) - tf.math.log1p(-p)
    logits = tf.reshape(tf.cast(logits, tf.float32), [-1, 1])
    return tf.concat([tf.zeros_like(logits), logits], axis=1)


def class_labels(y: Any, columns: int | None = None) -> np.ndarray:
    """Returns class indices, int64 `[batch]`, of the labels of an evaluation.

    Args:
        y: class indices `[batch]` or `[batch, 1]`; or rows `[batch, classes]`, one-hot, smoothed
            or mixed. A single output's labels are from 0 to 1, its classes 0 and 1.
        columns: outputs of the model an example; None if not known.

    Raises:
        ValueError: they are something else, such as several labels an example.

    Example:
    >>> class_labels([[0.1, 0.9], [1.0, 0.0]])
    array([1, 0])
    """
    labels = np.asarray(y)
    if labels.ndim == 2 and labels.shape[1] > 1:
        return _classes_of_rows(labels)
    if labels.ndim not in (1, 2):
        raise ValueError(
            "Accuracy needs one class an example: class indices [batch] or rows [batch, classes], "
            f"in batches. Received labels of shape {labels.shape}. Batch the dataset if it is not. "
            "For images, sequences or numbers as labels there is a loss but no accuracy: compile "
            "the compressed model and read `robust_loss` of its `evaluate`."
        )
    whole = labels.reshape(-1)
    if columns == 1 and whole.dtype.kind == "f" and ((whole >= 0) & (whole <= 1)).all():
        return (whole > 0.5).astype(np.int64)
    if whole.dtype.kind == "f" and not (np.isfinite(whole) & (whole == np.rint(whole))).all():
        odd = whole[~(whole == np.rint(whole)) | ~np.isfinite(whole)][0]
        raise ValueError(
            f"Class indices must be whole numbers. Received {labels.dtype} values such as {odd}. "
            "Numbers to be predicted have a loss but no accuracy: compile the compressed model "
            "and read `robust_loss` of its `evaluate`."
        )
    return whole.astype(np.int64)


def _classes_of_rows(rows: np.ndarray) -> np.ndarray:
    values = rows.astype(np.float64)
    if not np.isfinite(values).all() or (values < 0).any() or (values > 1 + 1e-3).any():
        raise ValueError(
            f"Label rows must be one-hot or probabilities. Received values from {values.min():g} "
            f"to {values.max():g}. Numbers to be predicted have a loss but no accuracy: compile "
            "the compressed model and read `robust_loss` of its `evaluate`."
        )
    several = np.abs(values.sum(axis=1) - 1.0) > 1e-2
    if several.any():
        raise ValueError(
            f"{several.mean():.0%} of the label rows do not sum to one: these are several labels "
            "an example (multi-label), and reading the largest as the class would give a wrong "
            "figure. Compile the compressed model with binary cross-entropy and read "
            "`robust_loss` and `robust_accuracy` (all labels right) of its `evaluate`; or pass "
            "one class an example."
        )
    ordered = np.sort(values, axis=1)
    tied = ordered[:, -1] - ordered[:, -2] < 1e-6
    if tied.any():
        raise ValueError(
            f"{tied.mean():.0%} of the label rows have two equal largest entries, so no class. "
            "Evaluate on labels that are not mixed."
        )
    return values.argmax(axis=1).astype(np.int64)


def _hard(y: tf.Tensor) -> tf.Tensor:
    if len(y.shape) == 1 or y.shape[-1] == 1:
        return tf.cast(tf.reshape(y, [-1]), tf.int64)
    return tf.argmax(y, axis=-1, output_type=tf.int64)


def _two_columns(y: tf.Tensor, smoothing: float) -> tf.Tensor:
    """Returns labels from 0 to 1 as rows of two probabilities."""
    y = tf.reshape(tf.cast(y, tf.float32), [-1, 1])
    y = y * (1.0 - smoothing) + 0.5 * smoothing
    return tf.concat([1.0 - y, y], axis=1)


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
