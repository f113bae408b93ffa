# SPDX-License-Identifier: Apache-2.0
"""Converts a built Keras model to a dense .tflite model with one named signature."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmot_atmc.export.tflite import flatbuffer
from tfmot_atmc.export.tflite.tracing import (
    ExportError,
    computing_in_float32,
    frozen_graph,
    last_lines,
)
from tfmot_atmc.utils.keras_internals import flat_layers

_REFERENCE_BATCH = 64
_NOT_EXPORTED = ("string", "complex64", "complex128")
_LOOPS = ("While", "StatelessWhile")
# Keras numbers unnamed inputs by process, which would make files differ between runs.
_AUTOMATIC_NAME = re.compile(r"(keras_tensor|input_layer|input)(_\d+)?")


@dataclass(frozen=True)
class InputSpec:
    """The inputs of a model.

    Attributes:
        structure: the nest in which the model takes them.
        names: one name per input, in the order of the flattened nest.
        shapes: their shapes, the batch first, None where it is dynamic.
        dtypes: their dtypes; floating ones are float32.
        fixed_batch: the batch size the model was built for, or None.
    """

    structure: Any
    names: tuple[str, ...]
    shapes: tuple[tuple[int | None, ...], ...]
    dtypes: tuple[str, ...]
    fixed_batch: int | None

    def pack(self, flat: Sequence[Any]) -> Any:
        """Returns the inputs in the nest that the model takes."""
        return keras.tree.pack_sequence_as(self.structure, list(flat))

    def flatten(self, inputs: Any, what: str = "inputs") -> list[np.ndarray]:
        """Returns inputs as arrays in the order of `names`.

        Args:
            inputs: a nest like `structure`, or a dictionary by name.
            what: the argument that holds them, for messages.

        Raises:
            ValueError: if the inputs do not fit the model.
        """
        if isinstance(inputs, dict) and set(self.names) <= set(inputs):
            values = [inputs[name] for name in self.names]
        else:
            values = _flatten_arrays(inputs)
        if len(values) != len(self.names):
            raise ValueError(
                f"The model has the inputs {self.names}. Received {len(values)} arrays."
            )
        arrays = [np.asarray(v, d) for v, d in zip(values, self.dtypes, strict=True)]
        for name, shape, array in zip(self.names, self.shapes, arrays, strict=True):
            if not _fits(array, shape) or len(array) == 0 or len(array) != len(arrays[0]):
                raise ValueError(
                    f"`{what}` for {name!r} must have shape [examples, ...] like {shape}, with as "
                    f"many examples as the other inputs and at least one. Received {array.shape}."
                )
        return arrays


def _fits(array: np.ndarray, shape: tuple[int | None, ...]) -> bool:
    """Tells whether examples have the shape of an input, but for their number."""
    sizes = zip(shape[1:], array.shape[1:], strict=False)
    return array.ndim == len(shape) and all(wanted in (None, size) for wanted, size in sizes)


def _flatten_arrays(inputs: Any) -> list[Any]:
    arrays = [np.asarray(value) for value in keras.tree.flatten(inputs)]
    if any(array.dtype == object for array in arrays):
        raise TypeError(
            "Examples must be arrays [examples, ...], one for each input of the model. Received "
            f"{type(inputs).__name__}; take some hundred examples out of a dataset first, such as "
            "np.stack(list(dataset.take(300).as_numpy_iterator()))."
        )
    return arrays


def _is_shape(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(s is None or isinstance(s, int) for s in value)


def _subclass_inputs(model: keras.Model) -> Any:
    """Nest of `KerasTensor`s for a subclassed model, from the shapes it was built with."""

    def specify(shape: Any) -> Any:
        if _is_shape(shape):
            return keras.KerasTensor((None, *shape[1:]), dtype=keras.config.floatx())
        if isinstance(shape, dict):
            return {key: specify(value) for key, value in shape.items()}
        return [specify(value) for value in shape]

    shape = (model.get_build_config() or {}).get("input_shape")
    if shape is None:
        raise ValueError(
            f"The inputs of the subclassed model {model.name!r} are not known; pass `inputs`, a "
            "batch of examples."
        )
    return specify(shape)


def describe_inputs(model: keras.Model, inputs: Any, batch_size: int | None) -> InputSpec:
    """Finds out what a model takes.

    Args:
        model: a built Keras model.
        inputs: examples, which settle what the model leaves open, or None.
        batch_size: the batch to convert for, or None for a dynamic one.

    Returns:
        The `InputSpec`.

    Raises:
        ValueError: if a shape stays open, or the model was built for another batch size.
    """
    if isinstance(model, keras.Sequential):
        structure = model.inputs[0]
    elif getattr(model, "inputs", None):
        structure = model.input
    elif inputs is not None:
        structure = keras.tree.map_structure(
            lambda x: keras.KerasTensor((None, *np.shape(x)[1:]), dtype=np.asarray(x).dtype.name),
            inputs,
        )
    else:
        structure = _subclass_inputs(model)
    tensors = keras.tree.flatten(structure)
    examples = [None] * len(tensors) if inputs is None else _flatten_arrays(inputs)
    if len(examples) != len(tensors):
        raise ValueError(
            f"The model has {len(tensors)} inputs. Received {len(examples)} arrays; pass one array "
            "[examples, ...] for each input, such as np.stack(examples)."
        )
    keys = sorted(structure) if isinstance(structure, dict) else [t.name for t in tensors]
    names = tuple(
        f"input_{i}" if _AUTOMATIC_NAME.fullmatch(key) else key for i, key in enumerate(keys)
    )
    fixed = next((t.shape[0] for t in tensors if t.shape[0] is not None), None)
    if fixed is not None and fixed != batch_size:
        raise ValueError(
            f"The model was built for batches of {fixed}. Received batch_size={batch_size}; pass "
            f"batch_size={fixed}."
        )
    shapes = []
    for name, tensor, example in zip(names, tensors, examples, strict=True):
        inner = tuple(tensor.shape[1:])
        if example is not None and example.ndim == len(inner) + 1:
            inner = tuple(
                e if s is None else s for s, e in zip(inner, example.shape[1:], strict=True)
            )
        if None in inner:
            raise ValueError(
                f"Input {name!r} has the open shape {tensor.shape}; pass `inputs`, a batch of "
                "examples of the shape to export."
            )
        shapes.append((batch_size, *inner))
    dtypes = tuple(_exported_dtype(tensor.dtype) for tensor in tensors)
    odd = {name: d for name, d in zip(names, dtypes, strict=True) if d in _NOT_EXPORTED}
    if odd:
        raise ExportError(
            f"Inputs of these types cannot be exported: {odd}. Put the layers that read them, such "
            "as TextVectorization, in front of the model, and export the model behind them."
        )
    return InputSpec(structure, names, tuple(shapes), dtypes, fixed)


def _exported_dtype(dtype: str) -> str:
    return "float32" if "float" in dtype else dtype


@contextlib.contextmanager
def float32_computation(model: keras.Model) -> Iterator[None]:
    """Lets all layers of a model compute in float32 for the time of the context.

    Mixed precision is for training; its casts would only cost operations in the file.

    Args:
        model: the model; its dtype policies are restored at the end.
    """
    layers = [layer for layer in flat_layers(model) if _is_narrow(layer)]
    policies = [layer.dtype_policy for layer in layers]
    try:
        for layer in layers:
            layer.dtype_policy = "float32"
        yield
    finally:
        for layer, policy in zip(layers, policies, strict=True):
            layer.dtype_policy = policy


def _is_narrow(layer: keras.Layer) -> bool:
    compute = layer.compute_dtype
    quantized = layer.dtype_policy.quantization_mode is not None
    return not quantized and compute is not None and "float" in compute and compute != "float32"


def predict(model: keras.Model, spec: InputSpec, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Runs the Keras model in inference mode and float32, batch by batch.

    Args:
        model: the model.
        spec: its inputs.
        arrays: one array `[examples, ...]` per input.

    Returns:
        One array `[examples, ...]` per flattened output.
    """
    model = computing_in_float32(model)
    total = len(arrays[0])
    size = spec.fixed_batch or _REFERENCE_BATCH
    slices = []
    with float32_computation(model):
        for start in range(0, total, size):
            stop = start + size if spec.fixed_batch else min(start + size, total)
            rows = np.minimum(np.arange(start, stop), total - 1)
            batch = spec.pack([keras.ops.convert_to_tensor(array[rows]) for array in arrays])
            try:
                outputs = keras.tree.flatten(model(batch, training=False))
            except Exception as error:
                raise ExportError(
                    f"The model {model.name!r} does not run on the examples: {last_lines(error)}"
                ) from error
            slices.append([keras.ops.convert_to_numpy(output) for output in outputs])
            if any(part.ndim == 0 or len(part) != stop - start for part in slices[-1]):
                raise ExportError(
                    f"The outputs of the model {model.name!r} must have the batch as their first "
                    f"axis. Received shapes {[part.shape for part in slices[-1]]} for a batch of "
                    f"{stop - start}."
                )
    return [np.concatenate(parts)[:total] for parts in zip(*slices, strict=True)]


def convert(
    model: keras.Model,
    spec: InputSpec,
    samples: Sequence[np.ndarray] | None = None,
    types: tuple[str, str] = ("float32", "float32"),
    per_channel: bool = False,
) -> bytes:
    """Converts a model with the stock converter, without optimizations.

    Args:
        model: the model.
        spec: its inputs.
        samples: examples, one array per input, to convert to a full-integer model with one scale
            per weight; None for a float32 model.
        types: types of the inputs and of the outputs of a full-integer model.
        per_channel: whether each output channel of a weight has its own scale in such a model.

    Returns:
        Content of a dense .tflite file with the signature
        `"serving_default"`. Its outputs are named by the keys of the model's output dictionary, or
        `output_0`, `output_1`, ...

    Raises:
        ExportError: if the converter rejects the model, or a full-integer one would have loops.
    """
    output_names: list[str] = []

    def forward(*flat: tf.Tensor) -> list[tf.Tensor]:
        outputs = model(spec.pack(flat), training=False)
        tensors = keras.tree.flatten(outputs)
        keys = sorted(outputs) if isinstance(outputs, dict) else []
        output_names[:] = keys or [f"output_{i}" for i in range(len(tensors))]
        # An input that is an output too, or the same output twice, would be one tensor.
        return [tf.identity(tensor) for tensor in tensors]

    signature = [
        tf.TensorSpec(shape, dtype, name=f"input_{i}")
        for i, (shape, dtype) in enumerate(zip(spec.shapes, spec.dtypes, strict=True))
    ]
    model = computing_in_float32(model)
    with float32_computation(model), _quiet():
        # Unfrozen variables would become empty resource handles, and the file would return NaN.
        frozen = frozen_graph(model.name, forward, signature)
        converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen])
        if samples is not None:
            _refuse_loops(model.name, frozen)
            _quantize_all(converter, spec, samples)
            # A scale for each filter may cost more than a sparse filter has.
            converter._experimental_disable_per_channel = not per_channel
            converter.inference_input_type = tf.dtypes.as_dtype(types[0])
            converter.inference_output_type = tf.dtypes.as_dtype(types[1])
        try:
            data = converter.convert()
        except Exception as error:  # the converter raises plain exceptions of many kinds
            raise ExportError(
                f"The TFLite converter rejects the model {model.name!r} (only builtin operators "
                f"are exported):\n{last_lines(error)}"
            ) from error
    converted = flatbuffer.read_model(data)
    _name_signature(converted, frozen, spec.names, output_names)
    return flatbuffer.pack_model(converted)


def _refuse_loops(name: str, frozen: Any) -> None:
    # The converter does not raise on them but ends the process.
    if any(operation.type in _LOOPS for operation in frozen.graph.get_operations()):
        raise ExportError(
            f"The model {name!r} has a loop, as recurrent layers have; the TFLite converter makes "
            'no full-integer model of it. Pass values="int8".'
        )


def _quantize_all(
    converter: tf.lite.TFLiteConverter, spec: InputSpec, samples: Sequence[np.ndarray]
) -> None:
    """Asks a converter for int8 weights, activations and operators."""
    size, total = spec.shapes[0][0] or 1, len(samples[0])

    def batches() -> Iterator[list[np.ndarray]]:
        for start in range(0, total, size):
            rows = np.arange(start, start + size) % total
            yield [array[rows] for array in samples]

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = batches
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]


def _name_signature(
    converted: Any, frozen: Any, input_names: Sequence[str], output_names: Sequence[str]
) -> None:
    subgraph = converted.subgraphs[0]
    by_name = {flatbuffer.tensor_name(subgraph.tensors[i]): int(i) for i in subgraph.inputs}
    placeholders = [tensor.name.partition(":")[0] for tensor in frozen.inputs]
    if set(placeholders) != set(by_name) or len(subgraph.outputs) != len(output_names):
        raise ExportError(
            f"The converter kept the inputs {sorted(by_name)} and {len(subgraph.outputs)} outputs, "
            f"expected {sorted(placeholders)} and {len(output_names)}. Leave out inputs that no "
            "output depends on, and outputs that depend on no input."
        )
    inputs = {name: by_name[p] for name, p in zip(input_names, placeholders, strict=True)}
    outputs = {n: int(i) for n, i in zip(output_names, subgraph.outputs, strict=True)}
    subgraph.inputs = np.array(list(inputs.values()), np.int32)
    flatbuffer.add_signature(converted, inputs, outputs)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drops what the converter prints and logs from Python; its errors are raised anyway."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            # The converter says so of every model whose inputs stay float32.
            warnings.filterwarnings("ignore", "Statistics for quantized inputs were expected")
            yield
    finally:
        logger.setLevel(level)
