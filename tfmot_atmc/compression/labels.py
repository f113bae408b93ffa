# SPDX-License-Identifier: Apache-2.0
"""How attacks meet a compiled Keras loss: logits, labels and bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfmot_atmc.attacks import Attack, logits_of

_CATEGORICAL = ("sparse_categorical_crossentropy", "categorical_crossentropy")
_BINARY = ("binary_crossentropy",)
_MARKER = "[tfmot_atmc bounds]"


def loss_kind(loss: Any) -> str:
    """Returns `"categorical"`, `"binary"` or `"other"` for a compiled loss."""
    loss = single_loss(loss)
    name = _loss_name(loss)
    if loss is None or name in _CATEGORICAL:
        return "categorical"
    return "binary" if name in _BINARY else "other"


def single_loss(loss: Any) -> Any:
    """Returns the loss in a list or dictionary of one; anything else as it is."""
    if isinstance(loss, (list, tuple, dict)) and len(loss) == 1:
        return next(iter(loss.values() if isinstance(loss, dict) else loss))
    return loss


def _loss_name(loss: Any) -> str:
    if isinstance(loss, str):
        found = keras.losses.get(loss)
        return _loss_name(found)
    if isinstance(loss, keras.losses.SparseCategoricalCrossentropy):
        return _CATEGORICAL[0]
    if isinstance(loss, keras.losses.CategoricalCrossentropy):
        return _CATEGORICAL[1]
    if isinstance(loss, keras.losses.BinaryCrossentropy):
        return _BINARY[0]
    return getattr(loss, "__name__", "")


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
    loss = single_loss(loss)
    if not tf.is_tensor(outputs) or loss_kind(loss) != "categorical" or loss is None:
        return
    expects_logits = getattr(loss, "from_logits", False)
    if not expects_logits and logits_of(outputs) is outputs:
        raise ValueError(
            f"The loss {loss!r} expects probabilities, but the model does not end in a softmax "
            "that can be found. If the model returns logits, compile it with "
            "keras.losses.SparseCategoricalCrossentropy(from_logits=True) or "
            "keras.losses.CategoricalCrossentropy(from_logits=True); else end it with "
            "keras.layers.Softmax(), so that attacks can look behind it."
        )


def attack_target(
    attack: Attack, predict: Callable[[Any], Any], loss: Any
) -> tuple[Attack, Callable[[Any], tf.Tensor]]:
    """Returns an attack and a function to `[batch, classes]` that fit the compiled loss.

    A categorical loss needs nothing. A binary one, with a single output, becomes a two-class
    problem. For any other loss the attack maximises that loss.

    Args:
        attack: the attack asked for.
        predict: the model in inference mode.
        loss: the loss given to `compile`.
    """
    loss = single_loss(loss)
    kind = loss_kind(loss)
    if attack.loss is not None or kind == "categorical":
        return attack, predict
    if kind == "binary":

        def two_classes(inputs: Any) -> tf.Tensor:
            logits = tf.reshape(logits_of(predict(inputs)), (-1, 1))
            return tf.concat([tf.zeros_like(logits), logits], axis=1)

        return attack, two_classes
    per_example = keras.losses.get(loss)

    def flat(inputs: Any) -> tf.Tensor:
        outputs = tf.cast(predict(inputs), tf.float32)
        rows = tf.reshape(outputs, (tf.shape(outputs)[0], -1))
        return tf.concat([rows, tf.zeros_like(rows[:, :1])], axis=1)  # two columns at least

    def compiled_loss(y: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        outputs = rows[:, :-1]
        target = tf.reshape(tf.cast(y, outputs.dtype), tf.shape(outputs))
        call = per_example.call if isinstance(per_example, keras.losses.Loss) else per_example
        return tf.reshape(call(target, outputs), (-1,))

    return attack.with_loss(compiled_loss), flat


def correct_predictions(loss: Any, y: Any, outputs: Any) -> tf.Tensor | None:
    """Returns 1.0 where the prediction is right, shape [batch]; None if not a classifier."""
    loss = single_loss(loss)
    kind = loss_kind(loss)
    if kind == "other" or not tf.is_tensor(outputs) or not tf.is_tensor(y):
        return None
    if kind == "binary":
        if getattr(loss, "from_logits", False):
            outputs = tf.sigmoid(outputs)
        wanted = tf.reshape(tf.cast(y, tf.float32), (-1,)) > 0.5
        return tf.cast((tf.reshape(outputs, (-1,)) > 0.5) == wanted, tf.float32)
    predicted = tf.argmax(outputs, axis=-1, output_type=tf.int64)
    sparse = y.shape.rank == 1 or y.shape[-1] == 1
    labels = tf.reshape(tf.cast(y, tf.int64), (-1,)) if sparse else tf.argmax(y, axis=-1)
    return tf.cast(predicted == labels, tf.float32)


def reported_metrics(results: dict[str, Any], robust: set[str]) -> dict[str, Any]:
    """Returns the results without the robust metrics in which nothing has been counted.

    Args:
        results: metrics by name.
        robust: names of the robust metrics that were updated.
    """
    unused = {"robust_loss", "robust_accuracy"} - robust
    return {name: value for name, value in results.items() if name not in unused}


def choose_monitor_modes(callbacks: Sequence[Any]) -> None:
    """Tells callbacks that monitor a robust metric which way is better, where they leave it open.

    Keras finds that out by itself for compiled metrics only.
    """
    better = {"robust_accuracy": "max", "robust_loss": "min"}
    for callback in callbacks:
        name = str(getattr(callback, "monitor", "")).removeprefix("val_")
        if name in better and getattr(callback, "mode", None) == "auto":
            callback.mode = better[name]


def part_of_the_way(x: Any, x_adversarial: Any, share: tf.Tensor) -> Any:
    """Returns the inputs with a share, in [0, 1], of their perturbations."""

    def mix(clean: tf.Tensor, attacked: tf.Tensor) -> tf.Tensor:
        if not attacked.dtype.is_floating:
            return attacked
        return clean + tf.cast(share, attacked.dtype) * (attacked - clean)

    return tf.nest.map_structure(mix, x, x_adversarial)


def within_bounds(attack: Attack, x: Any) -> Any:
    """Returns the inputs, which a graph reads only after it has checked them.

    Floating inputs must lie within the attack's bounds. An assertion runs beside the other ops of
    a graph; what must not get ahead of it has to depend on the inputs returned. XLA leaves checks
    out; there this does nothing.
    """
    low, high = attack.bounds

    def checked(leaf: tf.Tensor) -> tf.Tensor:
        if not leaf.dtype.is_floating:
            return leaf
        value = tf.cast(leaf, tf.float32)
        slack = 1e-5
        inside = tf.reduce_all(tf.math.is_finite(value))
        if low is not None:
            inside &= tf.reduce_all(value >= tf.cast(low, tf.float32) - slack)
        if high is not None:
            inside &= tf.reduce_all(value <= tf.cast(high, tf.float32) + slack)
        message = (
            f"{_MARKER} Inputs must be finite and within the bounds of the attack, "
            f"{attack.get_config()['bounds']}. "
            "Scale the inputs, or give the attack the bounds and epsilon of your input units."
        )
        found = [message, "Range found:", tf.reduce_min(value), tf.reduce_max(value)]
        check = tf.debugging.Assert(inside, found)
        with tf.control_dependencies([] if check is None else [check]):
            return tf.identity(leaf)

    return tf.nest.map_structure(checked, x)


def bounds_message(error: Exception) -> str | None:
    """Returns the message of a failed bounds check, or None for any other error."""
    text = str(error)
    if _MARKER not in text:
        return None
    line = text[text.index(_MARKER) + len(_MARKER) :].splitlines()[0]
    return " ".join(line.replace("'", "").replace("]", " ").split())
