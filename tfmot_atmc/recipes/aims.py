# SPDX-License-Identifier: Apache-2.0
"""What a network is trained for, as its data says: its outputs, its loss, and its measure."""

from __future__ import annotations

import inspect
from typing import Any

import keras
import tensorflow as tf

from tfmot_atmc import models
from tfmot_atmc.datasets.splits import Dataset
from tfmot_atmc.tasks.losses import find_logits

__all__ = ["builder_arguments", "check_outputs", "loss_for", "metrics_for"]

_CLASSES, _ANSWERS, _NUMBERS = "classes", "answers", "numbers"


def builder_arguments(name: str, data: Dataset) -> dict[str, Any]:
    """Returns what a network of `tfmot_atmc.models` is to be built with for some data.

    Args:
        name: the network.
        data: the data.

    Raises:
        ValueError: if the network returns its inputs' shape and the targets have another.
    """
    found: dict[str, Any] = {"input_shape": data.input_shape}
    number = inspect.signature(models.builder(name)).parameters.get("num_classes")
    if number is None or number.default is not None:
        return found | {"num_classes": data.outputs}
    if data.task != _NUMBERS or data.y_train.shape[1:] != data.x_train.shape[1:]:
        raise ValueError(
            f"The network {name!r} restores its inputs, and {data.name!r} holds other targets "
            f"({data.task}). Save the inputs without targets, or give another model."
        )
    return found


def check_outputs(name: str, model: keras.Model, data: Dataset) -> None:
    """Refuses a model whose inputs or outputs are not those that the data asks for.

    Args:
        name: its file, for the message.
        model: a built model.
        data: the data.

    Raises:
        ValueError: if shapes differ.
    """
    inputs, outputs = (keras.tree.flatten(end or []) for end in (model.inputs, model.outputs))
    if len(inputs) != 1 or len(outputs) != 1:
        raise ValueError(
            f"{name} has {len(inputs)} inputs and {len(outputs)} outputs; this command trains "
            "models of one each. Train it in Python: compress(model, ...), compile, fit."
        )
    taken = tuple(inputs[0].shape[1:])
    if len(taken) != len(data.input_shape) or any(
        size not in (None, given) for size, given in zip(taken, data.input_shape, strict=True)
    ):
        raise ValueError(
            f"{name} takes inputs of shape {taken}, but those of {data.name!r} have shape "
            f"{data.input_shape}. Give another model, or bring the inputs to its shape, images of "
            "a folder by `image_size`."
        )
    given = outputs[0].shape[-1]
    wanted = {1, 2} if data.task == _CLASSES and data.num_classes == 2 else {data.outputs}
    fits = given in wanted or (data.task == _CLASSES and (given or 0) > data.outputs)
    if not fits:
        raise ValueError(
            f"{name} has {given} outputs, but {data.name!r} holds {data.outputs} {data.task}. Give "
            "a model with an output for each, or labels for the outputs that it has."
        )


def loss_for(model: keras.Model, data: Dataset) -> keras.losses.Loss:
    """Returns the loss that a model is trained with on some data.

    Cross-entropy for classes, of two classes also by one output; binary cross-entropy for several
    answers of yes or no; the square error for numbers. Whether a model returns logits is seen in
    its graph.

    Args:
        model: a built model with one output.
        data: the data.

    Example:

    >>> from tfmot_atmc import datasets, models
    >>> loss_for(models.small_cnn(), datasets.load("digits", limit=10)).name
    'sparse_categorical_crossentropy'
    """
    if data.task == _NUMBERS:
        return keras.losses.MeanSquaredError()
    logits = not _squashes(model, data)
    if data.task == _ANSWERS or model.output_shape[-1] == 1:
        return keras.losses.BinaryCrossentropy(from_logits=logits)
    return keras.losses.SparseCategoricalCrossentropy(from_logits=logits)


def metrics_for(loss: keras.losses.Loss) -> list[Any]:
    """Returns the metrics to compile with beside a loss: the share of right answers, if any is.

    Args:
        loss: what `loss_for` returned.
    """
    if isinstance(loss, keras.losses.MeanSquaredError):
        return []
    if isinstance(loss, keras.losses.BinaryCrossentropy):
        edge = 0.0 if loss.from_logits else 0.5
        return [keras.metrics.BinaryAccuracy(name="accuracy", threshold=edge)]
    return ["accuracy"]


def _squashes(model: keras.Model, data: Dataset) -> bool:
    """Whether a softmax or sigmoid stands at the end of a model."""
    found: list[bool] = []

    @tf.function(autograph=False)
    def look(x: tf.Tensor) -> tf.Tensor:
        outputs = model(x, training=False)
        found.append(find_logits(outputs) is not None)
        return outputs

    look.get_concrete_function(tf.TensorSpec([None, *data.input_shape], tf.float32))
    return found[-1]
