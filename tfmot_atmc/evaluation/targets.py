# SPDX-License-Identifier: Apache-2.0
"""One face for all that can be evaluated: Keras models, callables and .tflite files."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfmot_atmc.attacks.outputs import is_keras, traced_logits

__all__ = ["Target", "as_target"]


class Target(NamedTuple):
    """A classifier under evaluation.

    Attributes:
        name: Name for reports.
        predict: Callable from a nest of NumPy inputs to float32 outputs `[batch, classes]`.
        model: The callable to take gradients of; None for a file.
        black_box: The callable for attacks that look at outputs only, traceable in a graph.
    """

    name: str
    predict: Callable[[Any], np.ndarray]
    model: Callable[..., Any] | None
    black_box: Callable[..., Any]


def as_target(target: Any) -> Target:
    """Returns the `Target` of a Keras model, a callable or the path of a .tflite file.

    Raises:
        ValueError: a path that does not end in .tflite.
        TypeError: none of these.
    """
    if isinstance(target, (str, os.PathLike)):
        path = os.fspath(target)
        if not path.endswith(".tflite"):
            raise ValueError(
                f"A path must name a .tflite file. Received {path!r}; load any other model first, "
                "for example with `keras.saving.load_model`."
            )
        classifier = _TFLiteClassifier(path)
        return Target(os.path.basename(path), classifier, None, classifier.in_graph)
    if not callable(target):
        raise TypeError(
            "The target must be a Keras model, a callable from inputs to logits or the path of a "
            f".tflite file. Received {type(target)}."
        )
    name = str(getattr(target, "name", "") or getattr(target, "__name__", type(target).__name__))
    if is_keras(target):
        function = traced_logits(target)
        return Target(name, lambda x: function(x).numpy(), target, target)
    return Target(name, lambda x: _as_float32(target(_as_tensors(x))), target, target)


def _as_tensors(x: Any) -> Any:
    return tf.nest.map_structure(tf.convert_to_tensor, x)


def _as_float32(outputs: Any) -> np.ndarray:
    if tf.is_tensor(outputs):
        return tf.cast(outputs, tf.float32).numpy()
    return np.asarray(outputs, dtype=np.float32)


class _TFLiteClassifier:
    """Runs a .tflite file in the stock interpreter, quantising and dequantising at its edges."""

    def __init__(self, path: str) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise ImportError(
                "Evaluating a .tflite file needs the interpreter: pip install ai-edge-litert."
            ) from error
        self._interpreter = Interpreter(model_path=path)
        inputs = self._interpreter.get_input_details()
        if len(inputs) != 1 or len(self._interpreter.get_output_details()) != 1:
            raise ValueError(
                f"{path} must have one input and one output to be evaluated. It has {len(inputs)} "
                f"inputs and {len(self._interpreter.get_output_details())} outputs."
            )
        self._input = inputs[0]
        self._dynamic = self._input["shape_signature"][0] == -1
        self._allocated: tuple[int, ...] | None = None

    def __call__(self, x: Any) -> np.ndarray:
        leaves = tf.nest.flatten(x)
        if len(leaves) != 1:
            raise ValueError(f"A .tflite file takes one input here. Received {len(leaves)}.")
        values = _quantize(np.asarray(leaves[0]), self._input)
        if self._dynamic:
            try:
                return self._run(values)
            except RuntimeError:
                # A converter may leave the batch open yet fix it within, in a reshape.
                self._dynamic = False
        size = 1 if self._input["shape_signature"][0] == -1 else int(self._input["shape"][0])
        outputs = []
        for start in range(0, len(values), size):
            part = values[start : start + size]
            padding = np.repeat(part[-1:], size - len(part), axis=0)
            outputs.append(self._run(np.concatenate([part, padding]))[: len(part)])
        return np.concatenate(outputs)

    def in_graph(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the outputs as an op without gradient."""
        details = self._interpreter.get_output_details()[0]
        outputs = tf.numpy_function(lambda batch: self(batch), [x], tf.float32)
        return tf.ensure_shape(outputs, [None, *details["shape"][1:].tolist()])

    def _run(self, values: np.ndarray) -> np.ndarray:
        if self._allocated != values.shape:
            self._interpreter.resize_tensor_input(self._input["index"], values.shape)
            self._interpreter.allocate_tensors()
            self._allocated = values.shape
        self._interpreter.set_tensor(self._input["index"], values)
        self._interpreter.invoke()
        details = self._interpreter.get_output_details()[0]
        return _dequantize(self._interpreter.get_tensor(details["index"]), details)


def _quantize(values: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    """Returns values as the input tensor wants them: rounded to its grid, saturated."""
    dtype = np.dtype(details["dtype"])
    scale, zero_point = details["quantization"]
    if scale and np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values / scale) + zero_point, limits.min, limits.max)
    return values.astype(dtype)


def _dequantize(values: np.ndarray, details: dict[str, Any]) -> np.ndarray:
    scale, zero_point = details["quantization"]
    values = values.astype(np.float32)
    return (values - zero_point) * np.float32(scale) if scale else values
