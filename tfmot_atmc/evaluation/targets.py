# SPDX-License-Identifier: Apache-2.0
"""One face for all that can be evaluated: Keras models, callables, .tflite files and C files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfmot_atmc import tasks
from tfmot_atmc.attacks.outputs import any_batch, deployed, is_keras, logits_of
from tfmot_atmc.export.c.compiled import CModel
from tfmot_atmc.utils.keras_internals import loss_weights

__all__ = ["Target", "as_target", "check_probabilities", "with_two_classes"]


class Target(NamedTuple):
    """A classifier under evaluation.

    What has a single output an example becomes one of two classes by `with_two_classes`.

    Attributes:
        name: name for reports.
        predict: callable from a nest of NumPy inputs to float32 outputs `[batch, classes]`.
        model: the callable to take gradients of; None for a file.
        black_box: the callable for attacks that look at outputs only, traceable in a graph.
        columns: outputs an example; None where they are seen at the first call only.
        loss: the compiled loss; None where there is none.
        outputs: callable from a nest of tensors to the nest of outputs as they are.
        output_names: their names, where they have any.
        loss_weights: those compiled.
        keras_model: the Keras model; None for what is none.
    """

    name: str
    predict: Callable[[Any], np.ndarray]
    model: Callable[..., Any] | None
    black_box: Callable[..., Any]
    columns: int | None = None
    loss: Any = None
    outputs: Callable[[Any], Any] = lambda inputs: inputs
    output_names: tuple[str, ...] = ()
    loss_weights: Any = None
    keras_model: Any = None


def as_target(target: Any) -> Target:
    """Returns the `Target` of a Keras model, a callable or the path of a .tflite or a C file.

    Raises:
        ValueError: a path that does not end in .tflite or .c.
        TypeError: none of these.
    """
    if isinstance(target, (str, os.PathLike)):
        path = os.fspath(target)
        if not path.endswith((".tflite", ".c")):
            raise ValueError(
                f"A path must name a .tflite or a C file. Received {path!r}; load any other model "
                "first, for example with `keras.saving.load_model`."
            )
        classifier = _CClassifier(path) if path.endswith(".c") else _TFLiteClassifier(path)
        file = Target(
            os.path.basename(path), classifier, None, classifier.in_graph, classifier.columns
        )
        return file._replace(outputs=lambda x: tf.constant(classifier(_as_arrays(x))))
    if not callable(target):
        raise TypeError(
            "The target must be a Keras model, a callable from inputs to logits or the path of a "
            f".tflite file. Received {type(target)}."
        )
    name = str(getattr(target, "name", "") or getattr(target, "__name__", type(target).__name__))
    if is_keras(target):
        function = _traced(target)
        shape = getattr(target, "output_shape", None)
        columns = shape[-1] if isinstance(shape, tuple) and shape[1:] else None
        loss = getattr(target, "loss", None)
        model = Target(name, lambda x: function(x).numpy(), target, target, columns, loss)
        return model._replace(
            keras_model=target,
            outputs=lambda x: target(x, training=False),
            output_names=tuple(getattr(target, "output_names", None) or ()),
            loss_weights=None if loss is None else loss_weights(target),
        )
    plain = Target(name, lambda x: _as_float32(target(_as_tensors(x))), target, target)
    return plain._replace(outputs=target)


def with_two_classes(target: Target, x: Any) -> Target:
    """Returns a target whose single output an example is read as the second of two classes.

    The compiled loss says whether it is a logit; without one, a value outside of [0, 1] does.

    Args:
        target: a target.
        x: nest of inputs; the more, the surer what their outputs are.

    Returns:
        The target itself, where it has several outputs.
    """
    outputs = target.predict(x)
    if outputs.ndim > 2 or (outputs.ndim == 2 and outputs.shape[1] != 1) or not outputs.size:
        return target
    loss = target.loss
    if isinstance(loss, keras.losses.BinaryCrossentropy):
        check_probabilities(target.name, loss, outputs)
        from_logits = bool(loss.from_logits)
    else:
        from_logits = bool((outputs < 0).any() or (outputs > 1).any())

    def predict(x: Any) -> np.ndarray:
        return tasks.binary_logits(tf.constant(target.predict(x)), from_logits).numpy()

    model = None if target.model is None else _TwoClasses(target.model, from_logits)
    black_box = _TwoClasses(target.black_box, from_logits) if model is None else model
    return target._replace(predict=predict, model=model, black_box=black_box, columns=1)


def check_probabilities(name: str, loss: Any, outputs: np.ndarray) -> None:
    """Refuses outputs that a binary cross-entropy takes for probabilities and that are none.

    Args:
        name: name of the target.
        loss: the loss.
        outputs: some outputs.

    Raises:
        ValueError: the loss is one of probabilities, and an output is not in [0, 1].
    """
    if loss.from_logits or not ((outputs < -1e-6) | (outputs > 1 + 1e-6)).any():
        return
    raise ValueError(
        f"The loss of {name} is a binary cross-entropy of probabilities, and its outputs span "
        f"[{outputs.min():.3g}, {outputs.max():.3g}]. If they are logits, compile it with "
        "keras.losses.BinaryCrossentropy(from_logits=True), or pass that as `loss=`."
    )


class _TwoClasses:
    """A model of one output as one of two logits."""

    def __init__(self, model: Callable[..., Any], from_logits: bool) -> None:
        self._model, self._from_logits = model, from_logits
        self._keywords = {"training": False} if is_keras(model) else {}

    @property
    def variables(self) -> list:
        """Those of the model, by which a trace is known to be stale."""
        return list(getattr(self._model, "variables", ()))

    def deployed(self) -> contextlib.AbstractContextManager[None]:
        """Composes kernels once for all calls in the context, see `attacks.outputs.deployed`."""
        return deployed(self._model)

    def __call__(self, inputs: Any) -> tf.Tensor:
        return tasks.binary_logits(self._model(inputs, **self._keywords), self._from_logits)


def _traced(model: Any) -> Callable[[Any], tf.Tensor]:
    """Returns a Keras model in inference mode as a graph; a softmax is looked through."""

    def outputs_of(inputs: Any) -> tf.Tensor:
        outputs = model(inputs, training=False)
        if not tf.is_tensor(outputs):
            raise TypeError(
                "The evaluated model must return one tensor of shape [batch, classes]. Received "
                f"{type(outputs)}; pass a function that selects one output."
            )
        if outputs.shape.rank == 2 and outputs.shape[-1] != 1:  # of one, see `with_two_classes`
            outputs = logits_of(outputs)
        return tf.cast(outputs, tf.float32)

    function = tf.function(outputs_of, autograph=False)

    def call(inputs: Any) -> tf.Tensor:
        inputs = _as_tensors(inputs)
        signature = tf.nest.map_structure(any_batch, inputs)
        return function.get_concrete_function(signature)(inputs)

    return call


def _as_tensors(x: Any) -> Any:
    return tf.nest.map_structure(tf.convert_to_tensor, x)


def _as_arrays(x: Any) -> Any:
    return tf.nest.map_structure(np.asarray, x)


def _as_float32(outputs: Any) -> np.ndarray:
    if tf.is_tensor(outputs):
        return tf.cast(outputs, tf.float32).numpy()
    return np.asarray(outputs, dtype=np.float32)


class _CClassifier:
    """Runs a C file of `export_c`, compiled for this machine."""

    def __init__(self, path: str) -> None:
        self._model = CModel(path)
        self.columns = self._model.output_size

    def __call__(self, x: Any) -> np.ndarray:
        leaves = tf.nest.flatten(x)
        if len(leaves) != 1:
            raise ValueError(f"A C file takes one input. Received {len(leaves)}.")
        return self._model(np.asarray(leaves[0]))

    def in_graph(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the outputs as an op without gradient."""
        outputs = tf.numpy_function(lambda batch: self(batch), [x], tf.float32)
        return tf.ensure_shape(outputs, [None, self.columns])


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
        shape = self._interpreter.get_output_details()[0]["shape"]
        self.columns = int(shape[-1]) if len(shape) > 1 else 1
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
