# SPDX-License-Identifier: Apache-2.0
"""Models as other attack libraries want them: CleverHans, ART and Foolbox.

Each helper returns the library's own kind of model around a Keras model, a compressed model or any
function from a batch to logits. It answers logits, in inference mode, whether or not the model ends
in a softmax. None of the libraries is needed until its helper is called.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfmot_atmc.attacks.outputs import traced_logits

__all__ = ["to_art", "to_cleverhans", "to_foolbox"]


def __dir__() -> list[str]:
    return __all__


def to_cleverhans(model: Callable[..., Any]) -> Callable[[Any], tf.Tensor]:
    """Returns the `model_fn` that CleverHans' attacks for TensorFlow 2 take.

    Args:
        model: Keras model, or any callable from `[batch, ...]` to `[batch, classes]`.

    Returns:
        Callable from inputs to float32 logits.

    Raises:
        ImportError: CleverHans is not installed.
        TypeError: `model` is not callable.
    """
    _library("cleverhans", "cleverhans")
    return traced_logits(model)


def to_art(
    model: Callable[..., Any],
    *,
    bounds: tuple[Any, Any] = (0.0, 1.0),
    input_shape: Sequence[int] | None = None,
    num_classes: int | None = None,
) -> Any:
    """Returns an `art.estimators.classification.TensorFlowV2Classifier`.

    Args:
        model: Keras model, or any callable from `[batch, ...]` to `[batch, classes]`.
        bounds: least and greatest legal input.
        input_shape: shape of one input; None asks the Keras model.
        num_classes: number of classes; None asks the Keras model.

    Returns:
        The classifier, with a cross-entropy on logits; its `predict` answers logits. It is for
        attacks, not for training.

    Raises:
        ImportError: the Adversarial Robustness Toolbox is not installed.
        TypeError: `model` is not callable.
        ValueError: shapes are neither given nor known, or there are several inputs or outputs.
    """
    classification = _library("art.estimators.classification", "adversarial-robustness-toolbox")
    logits = traced_logits(model)
    shapes = [
        tuple(given) if given is not None else _known_shape(model, side)
        for given, side in (
            (input_shape, "input"),
            (None if num_classes is None else (num_classes,), "output"),
        )
    ]

    def answer(inputs: Any, training: bool = False) -> tf.Tensor:
        return logits(inputs)

    return classification.TensorFlowV2Classifier(
        model=answer,
        nb_classes=int(shapes[1][0]),
        input_shape=shapes[0],
        loss_object=keras.losses.CategoricalCrossentropy(from_logits=True),
        clip_values=tuple(bounds),
    )


def to_foolbox(
    model: Callable[..., Any], *, bounds: tuple[float, float] = (0.0, 1.0), **arguments: Any
) -> Any:
    """Returns a `foolbox.TensorFlowModel`.

    Args:
        model: Keras model, or any callable from `[batch, ...]` to `[batch, classes]`.
        bounds: least and greatest legal input.
        **arguments: further arguments of Foolbox's model, such as `device`.

    Returns:
        The model; its labels are integer tensors.

    Raises:
        ImportError: foolbox is not installed.
        TypeError: `model` is not callable.
    """
    foolbox = _library("foolbox", "foolbox")
    return foolbox.TensorFlowModel(traced_logits(model), bounds=tuple(bounds), **arguments)


def _known_shape(model: Any, side: str) -> tuple[int, ...]:
    """Returns the shape of one input or output of a Keras model."""
    inner = getattr(model, "model", model)  # a compressed model wraps another
    shape = getattr(inner, f"{side}_shape", None)
    argument = "input_shape" if side == "input" else "num_classes"
    if not isinstance(shape, tuple) or None in shape[1:] or isinstance(shape[0], (tuple, list)):
        raise ValueError(
            f"The model's {side} shape must be that of one tensor, known but for the batch. "
            f"Received {shape!r}. Pass `{argument}`, or a function with one input and one output."
        )
    return shape[1:]


def _library(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"This needs {package}, which cannot be imported ({error}). Install it with "
            f"`pip install {package}`."
        ) from error
