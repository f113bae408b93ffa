# SPDX-License-Identifier: Apache-2.0
"""Compiled losses, example by example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfmot_atmc.attacks import logits_of

__all__ = ["Part", "check_loss", "example_losses", "find_logits", "loss_parts", "with_logits"]

# Losses that can be computed behind a softmax or a sigmoid, by the name of their function.
_FROM_LOGITS: dict[str, type[keras.losses.Loss]] = {
    "sparse_categorical_crossentropy": keras.losses.SparseCategoricalCrossentropy,
    "categorical_crossentropy": keras.losses.CategoricalCrossentropy,
    "binary_crossentropy": keras.losses.BinaryCrossentropy,
    "categorical_focal_crossentropy": keras.losses.CategoricalFocalCrossentropy,
    "binary_focal_crossentropy": keras.losses.BinaryFocalCrossentropy,
}
_SQUASHING = ("Softmax", "Sigmoid")
_TRANSPARENT = ("Cast", "Identity", "Reshape")


class Part(NamedTuple):
    """The loss of one output.

    Attributes:
        output: which of the flat outputs it looks at.
        label: which of the flat labels.
        loss: a `keras.losses.Loss`.
        weight: its weight in the sum.
    """

    output: int
    label: int
    loss: keras.losses.Loss
    weight: float


def _resolved(loss: Any, y: Any = None, outputs: Any = None) -> keras.losses.Loss:
    """Returns a loss object for what may be given to `compile` for one output.

    Args:
        loss: a loss, its name, or a function `(y, outputs)`.
        y: labels and outputs, by whose shapes `"crossentropy"` is told.
        outputs: see `y`.

    Raises:
        ValueError: the name is unknown.
    """
    if loss in ("crossentropy", "ce") and outputs is not None:
        if outputs.shape[-1] == 1:
            loss = "binary_crossentropy"
        else:
            sparse = len(y.shape) < len(outputs.shape) or y.shape[-1] == 1
            loss = f"{'sparse_' if sparse else ''}categorical_crossentropy"
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    name = getattr(loss, "__name__", None)
    if name in _FROM_LOGITS and loss is getattr(keras.losses, name, None):
        return _FROM_LOGITS[name]()
    if isinstance(loss, keras.losses.Loss):
        return loss
    return _Function(loss)


class _Function(keras.losses.Loss):
    """A function as a loss, with labels and outputs of equal rank as in Keras."""

    def __init__(self, function: Any) -> None:
        super().__init__(name=getattr(function, "__name__", "loss"))
        self._function = function

    def call(self, y_true: Any, y_pred: Any) -> Any:
        if y_pred.shape.rank == y_true.shape.rank + 1 and y_pred.shape[-1] == 1:
            y_true = tf.expand_dims(y_true, -1)
        elif y_true.shape.rank == y_pred.shape.rank + 1 and y_true.shape[-1] == 1:
            y_true = tf.squeeze(y_true, -1)
        return self._function(y_true, y_pred)


def loss_parts(
    loss: Any, outputs: Any, y: Any, names: Sequence[str] = (), weights: Any = None
) -> list[Part]:
    """Returns the losses of all outputs, matched as `compile` and `fit` match them.

    Args:
        loss: what was given to `compile`.
        outputs: nest of outputs.
        y: nest of labels.
        names: names of the outputs, in order.
        weights: `loss_weights` of `compile`.

    Raises:
        ValueError: losses, labels and outputs do not match.
    """
    flat, flat_y = tf.nest.flatten(outputs), tf.nest.flatten(y)
    keys = sorted(outputs) if isinstance(outputs, dict) else list(names)
    losses = _by_output(loss, keys, len(flat), "loss")
    scales = _by_output(weights, keys, len(flat), "loss_weights")
    used = [i for i, each in enumerate(losses) if each is not None]
    labels = _label_positions(y, keys, len(flat), used)
    return [
        Part(
            output=i,
            label=labels[i],
            loss=_resolved(losses[i], flat_y[labels[i]], flat[i]),
            weight=1.0 if scales[i] is None else float(scales[i]),
        )
        for i in used
    ]


def _by_output(given: Any, keys: list[str], number: int, what: str) -> list[Any]:
    """Returns one entry for each output; one for all stands for each."""
    if isinstance(given, dict):
        if number == 1 and len(given) == 1:
            return list(given.values())
        if len(keys) != number or not set(given) <= set(keys):
            raise ValueError(
                f"`{what}` names the outputs {sorted(given)}, but the model's are {keys}."
            )
        return [given.get(key) for key in keys]
    if isinstance(given, (list, tuple)):
        if len(given) != number:
            raise ValueError(f"`{what}` has {len(given)} entries for {number} outputs.")
        return list(given)
    return [given] * number


def _label_positions(y: Any, keys: list[str], number: int, used: list[int]) -> dict[int, int]:
    """Returns which of the flat labels belongs to each of the outputs that have a loss."""
    labels = tf.nest.flatten(y)
    if isinstance(y, dict) and len(y) > 1:
        order = sorted(y)  # as tf.nest flattens
        if all(i < len(keys) and keys[i] in y for i in used):
            return {i: order.index(keys[i]) for i in used}
    if len(labels) == number:
        return {i: i for i in used}
    if len(labels) == len(used):
        return dict(zip(used, range(len(used)), strict=True))
    raise ValueError(
        f"Labels and losses do not match: {len(labels)} labels, {len(used)} losses and {number} "
        "outputs. Give one label for each output that has a loss."
    )


def example_losses(loss: keras.losses.Loss, y: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    """Returns the loss of each example, float32 `[batch]`: what Keras averages over the batch.

    Args:
        loss: the loss.
        y: labels, batch first.
        outputs: outputs, batch first.

    Raises:
        ValueError: the loss has no value for each example.

    Example:
    >>> y, outputs = tf.constant([[1.0, 1.0], [0.0, 0.0]]), tf.zeros([2, 2])
    >>> example_losses(keras.losses.MeanSquaredError(), y, outputs).numpy()
    array([1., 0.], dtype=float32)
    """
    if isinstance(loss, keras.losses.Circle):
        raise ValueError(
            "The Circle loss compares the examples of a batch with each other, so none has a loss "
            "of its own that an attack could raise."
        )
    dtype = loss.dtype
    values = tf.convert_to_tensor(loss.call(tf.cast(y, dtype), tf.cast(outputs, dtype)))
    if values.shape.rank == 0:
        raise ValueError(
            f"The loss {loss.name!r} gives one value for the whole batch, so no example can be "
            "attacked by its own loss. Let it return one value an example, shape [batch]: leave "
            "out the mean over the first axis; Keras takes it."
        )
    given, batch = values.shape[0], outputs.shape[0]
    if given is not None and given != batch:
        raise ValueError(
            f"The loss {loss.name!r} must give one value an example. Received shape "
            f"{values.shape} for a batch of {outputs.shape[0]}."
        )
    values = tf.cast(values, tf.float32)
    if values.shape.rank == 1:
        return values
    return tf.reduce_mean(values, axis=list(range(1, values.shape.rank)))


def find_logits(outputs: tf.Tensor) -> tf.Tensor | None:
    """Returns what stands behind a final softmax or sigmoid; None where neither is found.

    Args:
        outputs: outputs of a model, in a graph or straight from Keras.
    """
    found = logits_of(outputs)
    if found is not outputs:
        return found
    if isinstance(outputs, tf.__internal__.EagerTensor) or not hasattr(outputs, "op"):
        return None
    op = outputs.op
    while op.type in _TRANSPARENT:
        op = op.inputs[0].op
    if op.type not in _SQUASHING:
        return None
    return tf.ensure_shape(tf.reshape(op.inputs[0], tf.shape(outputs)), outputs.shape)


def with_logits(loss: keras.losses.Loss) -> keras.losses.Loss | None:
    """Returns the same loss of logits, for a loss of probabilities; None where there is none."""
    if getattr(loss, "from_logits", True) or type(loss) not in _FROM_LOGITS.values():
        return None
    return type(loss).from_config({**loss.get_config(), "from_logits": True})


def check_loss(loss: Any, outputs: Any) -> None:
    """Refuses a cross-entropy that takes the model's logits for probabilities.

    Called while a train or test step is traced, when the graph shows whether a softmax stands at
    the end of the model.

    Args:
        loss: the loss given to `compile`.
        outputs: symbolic outputs of the model.

    Raises:
        ValueError: if the loss expects probabilities and no softmax is found.
    """
    if not tf.is_tensor(outputs) or loss is None:
        return
    if isinstance(loss, (list, tuple, dict)):
        if len(loss) != 1:
            return
        loss = next(iter(loss.values() if isinstance(loss, dict) else loss))
    found = _resolved(loss)
    categorical = (
        keras.losses.SparseCategoricalCrossentropy,
        keras.losses.CategoricalCrossentropy,
    )
    if not isinstance(found, categorical) or getattr(found, "from_logits", False):
        return
    if logits_of(outputs) is outputs:
        raise ValueError(
            f"The loss {loss!r} expects probabilities, but the model does not end in a softmax "
            "that can be found. If the model returns logits, compile it with "
            "keras.losses.SparseCategoricalCrossentropy(from_logits=True) or "
            "keras.losses.CategoricalCrossentropy(from_logits=True); else end it with "
            "keras.layers.Softmax(), so that attacks can look behind it."
        )
