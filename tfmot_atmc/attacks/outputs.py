# SPDX-License-Identifier: Apache-2.0
"""Reading a classifier's outputs and labels: logits, predictions, losses.

Everything here works on plain tensors, so that one attack serves Keras models, tf.Modules and
functions alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

__all__ = [
    "any_batch",
    "check_labels",
    "cross_entropy",
    "deployed",
    "hard_labels",
    "is_keras",
    "is_sparse",
    "logits_function",
    "logits_of",
    "looks_like_probabilities",
    "traced_logits",
]

# Ops that neither mix nor rescale a softmax's output.
_TRANSPARENT_OPS = frozenset({"Cast", "Identity", "Reshape"})


def logits_of(outputs: tf.Tensor) -> tf.Tensor:
    """Returns the logits behind a model's output, looking through a final softmax.

    The gradient of a cross-entropy taken from saturated probabilities vanishes in float32, which
    makes a model look more robust than it is. Keras remembers the logits on the output tensor of
    its softmax; in a graph, the input of a `Softmax` op is also found behind casts, identities
    and reshapes (an output cast to float32 under mixed precision is one).

    Args:
        outputs: tensor `[batch, classes]`, logits or softmax probabilities.

    Returns:
        Tensor of the same shape: the logits where they could be found, else `outputs`.

    Example:
    >>> float(logits_of(tf.constant([[3.0, 1.0]]))[0, 0])
    3.0
    """
    remembered = getattr(outputs, "_keras_logits", None)
    if remembered is not None:
        return remembered
    if isinstance(outputs, tf.__internal__.EagerTensor) or not hasattr(outputs, "op"):
        return outputs
    op, reshaped = outputs.op, False
    while op.type in _TRANSPARENT_OPS:
        reshaped = reshaped or op.type == "Reshape"
        op = op.inputs[0].op
    if op.type != "Softmax":
        return outputs
    logits = op.inputs[0]
    if reshaped:
        shape = tf.shape(outputs)
        logits = tf.ensure_shape(tf.reshape(logits, shape), outputs.shape)
    return logits


def looks_like_probabilities(outputs: Any) -> bool:
    """Tells whether concrete outputs are probabilities: none negative, rows summing to one.

    Args:
        outputs: array or eager tensor `[batch, classes]`.

    Returns:
        True when every entry is at least 0 and every row sums to 1 within 1e-3.

    Example:
    >>> looks_like_probabilities([[0.25, 0.75]]), looks_like_probabilities([[2.0, -1.0]])
    (True, False)
    """
    values = np.asarray(outputs, dtype=np.float64)
    if values.ndim != 2 or values.size == 0:
        return False
    return bool((values >= 0).all() and (np.abs(values.sum(axis=-1) - 1.0) <= 1e-3).all())


def is_sparse(y: tf.Tensor) -> bool:
    """Tells whether labels are class indices (`[batch]`, `[batch, 1]`), not one-hot or soft."""
    if y.shape.rank == 1 or (y.shape.rank == 2 and y.shape[-1] == 1):
        return True
    if y.shape.rank == 2:
        return False
    raise ValueError(
        "Labels must be class indices of shape [batch] or [batch, 1], or one-hot or soft labels "
        f"of shape [batch, classes]. Received shape {y.shape}."
    )


def hard_labels(y: tf.Tensor) -> tf.Tensor:
    """Returns int64 class indices `[batch]` for sparse, one-hot or soft labels."""
    if is_sparse(y):
        return tf.cast(tf.reshape(y, [-1]), tf.int64)
    return tf.argmax(y, axis=-1, output_type=tf.int64)


def check_labels(y: tf.Tensor, num_classes: int | None) -> None:
    """Raises where concrete sparse labels are not class indices of a `num_classes` model.

    Args:
        y: labels, eager.
        num_classes: number of classes; None where it is not known.

    Raises:
        ValueError: a label is out of range.
    """
    labels = np.asarray(y)
    if not labels.size or not is_sparse(y):
        return
    least, greatest = labels.min(), labels.max()
    if not least >= 0 or (num_classes is not None and not greatest < num_classes):
        raise ValueError(
            f"Labels must be class indices in [0, {num_classes or 'classes'}). Received values "
            f"from {least} to {greatest}."
        )


def cross_entropy(y: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Cross-entropy of each example from logits, in float32.

    Args:
        y: class indices of shape `[batch]` or `[batch, 1]` of any dtype, or one-hot or soft
            labels of shape `[batch, classes]`. The rank and the last axis decide.
        logits: tensor `[batch, classes]`.

    Returns:
        float32 tensor `[batch]`.

    Example:
    >>> round(float(cross_entropy(tf.constant([1]), tf.constant([[0.0, 0.0]]))[0]), 4)
    0.6931
    """
    logits = tf.cast(logits, tf.float32)
    if is_sparse(y):
        return tf.nn.sparse_softmax_cross_entropy_with_logits(hard_labels(y), logits)
    return tf.nn.softmax_cross_entropy_with_logits(tf.cast(y, tf.float32), logits)


def is_keras(model: Any) -> bool:
    """Tells whether `model` is a Keras layer or model, of Keras 3 or of tf_keras."""
    roots = {base.__module__.partition(".")[0] for base in type(model).__mro__}
    return bool(roots & {"keras", "tf_keras"})


def deployed(model: Any) -> contextlib.AbstractContextManager[Any]:
    """Returns a context in which many calls of a model do once what each would do alone.

    A model says by a method `deployed()` that it has such a thing: kernels that are composed from
    factors and projected, in inference the same for all calls of an attack.

    Args:
        model: any model; nothing happens for most.
    """
    enter = getattr(model, "deployed", None)
    context = enter() if callable(enter) else None
    if isinstance(context, contextlib.AbstractContextManager):
        return context
    return contextlib.nullcontext()


def logits_function(model: Callable[..., Any]) -> Callable[[Any], tf.Tensor]:
    """Wraps a model so that it is called in inference mode and answers float32 logits.

    Args:
        model: Keras model or layer (called with `training=False`, so that dropout is off and
            batch-normalisation statistics neither follow the batch nor move), or any callable
            from a nest of inputs to a `[batch, classes]` tensor.

    Returns:
        Callable from a nest of inputs to float32 logits of shape `[batch, classes]`.

    Raises:
        TypeError: `model` is not callable, or its output is not one tensor (when called).
        ValueError: the output is not of shape `[batch, classes]`, classes >= 2 (when called).
    """
    if not callable(model):
        raise TypeError(f"`model` must be callable. Received {model!r} of type {type(model)}.")
    keywords = {"training": False} if is_keras(model) else {}

    def logits(inputs: Any) -> tf.Tensor:
        outputs = model(inputs, **keywords)
        if not tf.is_tensor(outputs):
            raise TypeError(
                "The attacked model must return one tensor of shape [batch, classes]. "
                f"Received {type(outputs)}; pass a function that selects one output."
            )
        if outputs.shape.rank != 2 or outputs.shape[-1] == 1:
            raise ValueError(
                "The attacked model must return a tensor of shape [batch, classes] with at least "
                f"two classes. Received shape {outputs.shape}; give a two-class model two logits."
            )
        return tf.cast(logits_of(outputs), tf.float32)

    return logits


def traced_logits(model: Callable[..., Any]) -> Callable[[Any], tf.Tensor]:
    """Wraps a model as `logits_function` does, as a graph that serves any number of examples.

    In a graph a final softmax can be looked through. It is traced once for each kind of input.

    Args:
        model: as for `logits_function`.

    Returns:
        Callable from a nest of tensors or arrays to float32 logits of shape `[batch, classes]`.
    """
    function = tf.function(logits_function(model), autograph=False)

    def logits(inputs: Any) -> tf.Tensor:
        inputs = tf.nest.map_structure(tf.convert_to_tensor, inputs)
        signature = tf.nest.map_structure(any_batch, inputs)
        return function.get_concrete_function(signature)(inputs)

    return logits


def any_batch(tensor: tf.Tensor) -> tf.TensorSpec:
    """Returns the kind of a tensor whose first axis may have any length.

    Raises:
        ValueError: if it has no axis.
    """
    if tensor.shape.rank == 0:
        raise ValueError("Inputs must have a leading batch axis. Received a scalar.")
    return tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype)
