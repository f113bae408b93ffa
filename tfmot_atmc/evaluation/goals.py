# SPDX-License-Identifier: Apache-2.0
"""What answers are judged by: one class an example, several labels, or a loss alone."""

from __future__ import annotations

import contextlib
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfmot_atmc import tasks
from tfmot_atmc.attacks import Attack
from tfmot_atmc.attacks.outputs import any_batch, deployed
from tfmot_atmc.evaluation.correctness import judge
from tfmot_atmc.evaluation.data import rows_of
from tfmot_atmc.evaluation.targets import Target, check_probabilities, with_two_classes

__all__ = ["Goal", "Judged", "settled"]

# So many examples show the shapes of outputs and labels.
_FEW = 2
# Losses of rows that are distributions over classes.
_OF_CLASSES = (
    keras.losses.CategoricalFocalCrossentropy,
    keras.losses.CategoricalHinge,
    keras.losses.KLDivergence,
)


class Judged(NamedTuple):
    """What became of some examples.

    Attributes:
        right: which are right, bool `[batch]`; all that are finite, where nothing is right.
        finite: which have finite outputs; others are wrong.
        loss: float64 `[batch]`; None where answers are right or wrong.
        each: which of several labels are right, bool `[batch, labels]`; None for other goals.
    """

    right: np.ndarray
    finite: np.ndarray
    loss: np.ndarray | None = None
    each: np.ndarray | None = None

    def under(self, rows: np.ndarray, attacked: Judged) -> Judged:
        """Returns the worst of this and of what an attack made of some of the examples.

        Args:
            rows: which examples were attacked.
            attacked: what became of them.
        """
        right = self.right.copy()
        right[rows] &= attacked.right
        loss, each = self.loss, self.each
        if loss is not None and attacked.loss is not None:
            loss = loss.copy()
            loss[rows] = np.maximum(loss[rows], attacked.loss)
        if each is not None and attacked.each is not None:
            each = each.copy()
            each[rows] &= attacked.each
        return Judged(right, self.finite, loss, each)


class Goal(NamedTuple):
    """What an evaluation looks at.

    Attributes:
        kind: `"classes"`, one class an example; `"labels"`, several yes-or-no labels, all of which
            must be right; or `"values"`, a loss and no right answer.
        classes: outputs an example; for other goals a number without meaning.
        columns: outputs an example of the target, where it is known.
        task: how labels are read, but for classes.
        loss: the loss of what the target's `predict` returns, but for classes.
        source_loss: the loss of what the model returns that gradients are taken of.
    """

    kind: str = "classes"
    classes: int = 2
    columns: int | None = None
    task: tasks.Task | None = None
    loss: tasks.Rows | None = None
    source_loss: tasks.Rows | None = None

    def labels(self, y: Any) -> np.ndarray:
        """Returns class indices, int64 `[batch]`, or all labels of an example in a row, float32.

        Args:
            y: nest of labels as they are given.
        """
        if self.loss is None:
            return tasks.class_labels(_only(y), self.columns)
        return self.loss.labels(tf.nest.map_structure(tf.convert_to_tensor, y)).numpy()

    def described(self) -> list[Any]:
        """Returns what the goal is, in plain values."""
        if self.task is None:
            return [self.kind]
        parts = [(part.loss.name, part.output, part.label, part.weight) for part in self.task.parts]
        return [self.kind, parts]

    def check(self, *attacks: Attack) -> None:
        """Refuses attacks that cannot raise the loss, or raise another.

        Raises:
            ValueError: an attack looks at classes where there are none, or has a loss of its own.
        """
        if self.task is None:
            return
        for attack in attacks:
            self.task.check_raises(attack)
            if attack.loss is not None:
                raise ValueError(
                    f"{type(attack).__name__} has a loss of its own, which is a function of "
                    "classes. Leave it out: the attack raises the compiled loss, or the `loss=` of "
                    "the evaluation."
                )

    def aimed(self, attack: Attack) -> Attack:
        """Returns the attack, raising the loss that decides what is reported.

        Of several labels that is the largest of theirs, for one that is wrong is enough.
        """
        if self.source_loss is None:
            return attack
        several = self.kind == "labels"
        return attack.with_loss(tasks.LabelLoss(self.source_loss) if several else self.source_loss)

    def one_by_one(self, outputs: np.ndarray, y: np.ndarray, count: int) -> list[np.ndarray]:
        """Returns labels for attacks on one of several labels at a time, the least sure first.

        Args:
            outputs: what the model returns that gradients are taken of.
            y: the labels, `[batch, labels]`.
            count: how many, at most.
        """
        rows: Any = self.source_loss
        margins = rows.margins(tf.constant(y), tf.constant(outputs)).numpy()
        order = np.argsort(margins, axis=1)[:, :count].T
        chosen = [np.eye(y.shape[1], dtype=y.dtype)[labels] for labels in order]
        return [np.concatenate([y, weights], axis=1) for weights in chosen]

    def judged(self, name: str, outputs: np.ndarray, y: np.ndarray) -> Judged:
        """Returns which of the answers are right, and their losses.

        Args:
            name: name of the target, for errors.
            outputs: what its `predict` returned.
            y: what `labels` returned.
        """
        if self.loss is None:
            return Judged(*judge(name, outputs, y))
        found = _judged(self.loss, self.kind, outputs, y)
        return found if self.kind == "values" else found._replace(loss=None)

    def of_source(self, outputs: tf.Tensor, y: np.ndarray) -> Judged:
        """Returns the same for the outputs of the model that gradients are taken of."""
        if self.source_loss is None:
            raise ValueError("Of classes there is no loss but the cross-entropy.")
        return _judged(self.source_loss, self.kind, np.asarray(outputs), y)


def _judged(loss: tasks.Rows, kind: str, outputs: np.ndarray, y: np.ndarray) -> Judged:
    finite = np.isfinite(outputs).all(axis=1)
    rows, labels = tf.constant(outputs), tf.constant(y)
    values = loss(labels, rows).numpy().astype(np.float64)
    values = np.where(np.isnan(values) | ~finite, np.inf, values)
    each = None if kind != "labels" else loss.each_right(labels, rows).numpy() & finite[:, None]
    return Judged(finite & ~loss.wrong(labels, rows).numpy(), finite, values, each)


def settled(
    victim: Target, origin: Target, loss: Any, x: Any, y: Any
) -> tuple[Target, Target, Goal]:
    """Returns the target and its source in the form that the goal asks for, and the goal.

    The one decision of an evaluation on labels and losses. It is that of training, by the compiled
    loss, where labels are not plainly one class an example.

    Args:
        victim: the target.
        origin: what gradients are taken of; the same object, where that is the target.
        loss: as to `compile`; None for the target's compiled loss, or else the source's.
        x: inputs of the first batch.
        y: its labels, as given.

    Raises:
        ValueError: loss, outputs and labels do not match.
    """
    same = victim is origin
    if loss is not None:
        victim = victim._replace(loss=loss, loss_weights=None)
        origin = victim if same else origin._replace(loss=loss, loss_weights=None)
    task = _task(victim, origin, x, y)
    if task is None:
        _only(y)
        victim = with_two_classes(victim, x)
        origin = victim if same else with_two_classes(origin, x)
        outputs = victim.predict(rows_of(x, slice(1)))
        classes = outputs.shape[-1] if outputs.ndim > 1 else 1
        return victim, origin, Goal("classes", classes, victim.columns)
    if task.kind == "labels":
        inputs = tf.nest.map_structure(tf.convert_to_tensor, x)
        outputs = np.asarray(tf.nest.flatten(victim.outputs(inputs))[0])
        check_probabilities(victim.name, task.parts[0].loss, outputs)
    few = rows_of(y, slice(_FEW))
    mine, rows, source_rows = _as_rows(victim, task, few)
    theirs = mine
    if not same:
        theirs, _, source_rows = _as_rows(origin, task, few)
    kind = "labels" if task.kind == "labels" else "values"
    return mine, theirs, Goal(kind, 2, None, task, rows, source_rows)


def _only(y: Any) -> Any:
    """Returns the labels of the only output."""
    leaves = tf.nest.flatten(y)
    if len(leaves) > 1:
        raise ValueError(
            f"There are labels for {len(leaves)} outputs and no loss that says what they are. Pass "
            "`loss=`, as to `compile`, or a function that selects one output."
        )
    return leaves[0]


def _task(victim: Target, origin: Target, x: Any, y: Any) -> tasks.Task | None:
    """Returns what the model is to do, by its loss; None where that is to tell classes."""
    of = victim if victim.loss is not None else origin
    if of.loss is None:
        return None
    part = tf.nest.map_structure(tf.convert_to_tensor, rows_of(x, slice(_FEW)))
    outputs = victim.outputs(part)
    task = tasks.task_of(of.loss, outputs, y, names=of.output_names, weights=of.loss_weights)
    return None if _tells_classes(task, tf.nest.flatten(outputs), tf.nest.flatten(y)) else task


def _tells_classes(task: tasks.Task, outputs: list[Any], y: list[Any]) -> bool:
    if len(outputs) != 1 or len(y) != 1 or task.kind in ("classes", "binary"):
        return task.kind in ("classes", "binary")
    loss, shape, labels = task.parts[0].loss, outputs[0].shape, y[0]
    if len(shape) != 2 or shape[1] == 1:
        return False
    same = labels.shape[1:] == tuple(shape[1:])
    if task.kind == "labels":
        return not same
    if tasks.has_classes(loss, labels, outputs[0]):
        return True
    one_hot = ((labels == 0) | (labels == 1)).all() and (labels.sum(axis=-1) == 1).all()
    return same and (isinstance(loss, _OF_CLASSES) or bool(one_hot))


class _AsRows:
    """A model whose outputs are rows, always as a graph: there a softmax can be looked through."""

    def __init__(self, target: Target, rows: tasks.Rows) -> None:
        self._target, self._rows = target, rows
        self._function = tf.function(rows.outputs, autograph=False)

    @property
    def variables(self) -> list:
        """Those of the model, by which a trace is known to be stale."""
        return list(getattr(self._target.black_box, "variables", ()))

    def deployed(self) -> contextlib.AbstractContextManager[None]:
        """Composes kernels once for all calls in the context, see `attacks.outputs.deployed`."""
        return deployed(self._target.black_box)

    def __call__(self, inputs: Any) -> tf.Tensor:
        if not tf.executing_eagerly():
            return self._rows.outputs(inputs)
        inputs = tf.nest.map_structure(tf.convert_to_tensor, inputs)
        signature = tf.nest.map_structure(any_batch, inputs)
        return self._function.get_concrete_function(signature)(inputs)


def _as_rows(target: Target, task: tasks.Task, y: Any) -> tuple[Target, tasks.Rows, tasks.Rows]:
    """Returns a target that returns rows, what those of `predict` mean, and those of the model."""
    rows = task.rows(target.outputs, y)
    model = _AsRows(target, rows)
    changed = target._replace(model=model, black_box=model, columns=None)
    if target.keras_model is not None:
        return changed._replace(predict=lambda x: model(x).numpy()), rows, rows
    plain = task.rows(target.outputs, y)  # eagerly, where what is behind a softmax is not seen

    def outputs_of(x: Any) -> np.ndarray:
        return plain.outputs(tf.nest.map_structure(tf.convert_to_tensor, x)).numpy()

    changed = changed._replace(predict=outputs_of)
    return changed if target.model else changed._replace(model=None), plain, rows
