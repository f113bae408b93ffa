# SPDX-License-Identifier: Apache-2.0
"""What labels and outputs mean, and so what an attack raises and when an answer is right."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfmot_atmc.attacks import Attack
from tfmot_atmc.tasks.losses import (
    Part,
    find_logits,
    loss_parts,
)
from tfmot_atmc.tasks.rows import EDGE, Rows, class_of, has_classes
from tfmot_atmc.utils.keras_internals import loss_axis

__all__ = ["Task", "binary_logits", "check_attack", "task_of"]

_CATEGORICAL = (
    keras.losses.SparseCategoricalCrossentropy,
    keras.losses.CategoricalCrossentropy,
)


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
        self.check_raises(attack)
        rows = self.rows(predict, y)
        return attack.with_loss(rows), rows.outputs, rows.labels(y)

    def rows(self, predict: Callable[[Any], Any], y: Any) -> Rows:
        """Returns outputs and labels as rows, and the loss of them that an attack raises.

        Args:
            predict: the model in inference mode.
            y: nest of labels, or of what has their shapes.
        """
        return Rows(self.kind, self.parts, predict, y)

    def check_raises(self, attack: Attack) -> None:
        """Refuses an attack that cannot raise a loss without classes.

        Raises:
            ValueError: the attack looks at classes.
        """
        if attack.any_loss:
            return
        raise ValueError(
            f"{type(attack).__name__} looks at classes, and this model has none to look at: "
            f"its loss is {', '.join(part.loss.name for part in self.parts)}. Use PGD, FGSM or "
            "APGD, which raise any loss."
        )

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
        if self.kind == "values" and not has_classes(self.parts[0].loss, y, outputs):
            return None
        predicted = tf.argmax(outputs, axis=-1, output_type=tf.int64)
        return tf.cast(predicted == class_of(y), tf.float32)


def binary_logits(outputs: tf.Tensor, from_logits: bool) -> tf.Tensor:
    """Returns the logits of two classes, float32 `[batch, 2]`, of one output an example.

    Args:
        outputs: `[batch]` or `[batch, 1]`, logits or probabilities of the second class.
        from_logits: they are logits.
    """
    logits = outputs if from_logits else find_logits(outputs)
    if logits is None:
        p = tf.clip_by_value(tf.cast(outputs, tf.float32), EDGE, 1.0 - EDGE)
        logits = tf.math.log(p) - tf.math.log1p(-p)
    logits = tf.reshape(tf.cast(logits, tf.float32), [-1, 1])
    return tf.concat([tf.zeros_like(logits), logits], axis=1)


def _two_columns(y: tf.Tensor, smoothing: float) -> tf.Tensor:
    """Returns labels from 0 to 1 as rows of two probabilities."""
    y = tf.reshape(tf.cast(y, tf.float32), [-1, 1])
    y = y * (1.0 - smoothing) + 0.5 * smoothing
    return tf.concat([1.0 - y, y], axis=1)
