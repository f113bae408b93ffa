# SPDX-License-Identifier: Apache-2.0
"""Reads the network of the C exporter from a converter's .tflite file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfmot_atmc.export.c.network import Network, Operation, Tensor, UnsupportedError
from tfmot_atmc.export.tflite import flatbuffer

__all__ = ["operator_name", "read_network"]

_CODES = schema.BuiltinOperator
_ACTIVATIONS = {0: "none", 1: "relu", 2: "relu_n1_to_1", 3: "relu6"}
_NAMES = {value: name for name, value in vars(_CODES).items() if isinstance(value, int)}
_TYPES: dict[int, np.dtype[Any]] = {
    schema.TensorType.FLOAT32: np.dtype(np.float32),
    schema.TensorType.INT8: np.dtype(np.int8),
    schema.TensorType.INT32: np.dtype(np.int32),
}


def operator_name(code: int) -> str:
    """Returns the name of a builtin operator of a .tflite file."""
    return _NAMES.get(code, f"operator {code}")


def read_network(data: bytes) -> Network:
    """Reads a .tflite file of one static example.

    A QUANTIZE at the input and a DEQUANTIZE at the output are left out, so that a full-integer
    network takes and returns int8.

    Args:
        data: content of the file.

    Returns:
        The `Network`.

    Raises:
        UnsupportedError: if it has several inputs or outputs, another batch than one, or operators
            that are not there; all of them are named.
    """
    model = flatbuffer.read_model(data)
    if len(model.subgraphs) != 1:
        raise UnsupportedError(
            f"The model has {len(model.subgraphs)} graphs, one inside the other: recurrent layers, "
            "loops and branches have no kernel. Leave them out of the exported model."
        )
    graph = model.subgraphs[0]
    for what, ends in (("input", graph.inputs), ("output", graph.outputs)):
        if len(ends) != 1:
            raise UnsupportedError(
                f"The C exporter writes networks of one {what}. Received a model of {len(ends)} "
                f'{what}s; split it, or write a .tflite file with values="full_int8".'
            )
    reader = _Reader(model, graph)
    missing = reader.missing()
    if missing:
        raise UnsupportedError(
            "The C exporter has no kernel for " + ", ".join(missing) + ". Leave it out of the "
            "exported model, or write a dense file for TensorFlow Lite Micro with "
            'export_tflite(model, path, values="full_int8", sparse=False, representative=...).'
        )
    return reader.network()


class _Reader:
    def __init__(self, model: Any, graph: Any) -> None:
        self._model, self._graph = model, graph
        self._tensors: dict[int, Tensor] = {}

    def missing(self) -> list[str]:
        names = {self._code(o): None for o in self._graph.operators if self._code(o) not in _READ}
        return [operator_name(code) for code in names]

    def _code(self, operator: Any) -> int:
        return flatbuffer.builtin_code(self._model, operator)

    def tensor(self, index: int) -> Tensor:
        if index not in self._tensors:
            self._tensors[index] = self._read_tensor(self._graph.tensors[index])
        return self._tensors[index]

    def _read_tensor(self, tensor: Any) -> Tensor:
        name = flatbuffer.tensor_name(tensor)
        shape = tuple(int(size) for size in tensor.shape)
        signature = tensor.shapeSignature
        if tensor.type not in _TYPES:
            raise UnsupportedError(
                f"The tensor {name!r} is of type {flatbuffer.type_name(tensor)}; the C exporter "
                "knows float32 and int8."
            )
        if signature is not None and np.any(np.asarray(signature) < 0):
            raise UnsupportedError(f"The tensor {name!r} has an open shape; export a static one.")
        constant = flatbuffer.read_constant(self._model, tensor)
        data = None if constant is None else constant.array
        if data is None and (len(shape) > 4 or (len(shape) > 1 and shape[0] != 1)):
            raise UnsupportedError(
                f"The tensor {name!r} has shape {shape}; the C exporter takes one example of at "
                "most three dimensions: [1, height, width, channels]."
            )
        quantization = tensor.quantization
        scale, zero = np.zeros(0, np.float32), 0
        if quantization is not None and quantization.scale is not None:
            scale = np.asarray(quantization.scale, np.float32)
            points = quantization.zeroPoint
            zero = 0 if points is None or not len(points) else int(points[0])
        return Tensor(shape, _TYPES[tensor.type], scale, zero, data)

    def network(self) -> Network:
        source = self.tensor(int(self._graph.inputs[0]))
        result = self.tensor(int(self._graph.outputs[0]))
        operations = []
        for operator in self._graph.operators:
            operations.append(_READ[self._code(operator)](self, operator))
        if operations and operations[0].kind == "quantize" and source.dtype != np.int8:
            source = operations.pop(0).output
        if operations and operations[-1].kind == "dequantize":
            result = operations.pop().inputs[0]
        for operation in operations:
            self._check(operation)
        if source.dtype != result.dtype or source.dtype not in (np.int8, np.float32):
            raise UnsupportedError(
                f"The network goes from {source.dtype} to {result.dtype}; expected one type."
            )
        return Network(operations, source, result)

    def _check(self, operation: Operation) -> None:
        computed = [t for t in operation.inputs if t.data is None]
        types = {t.dtype.name for t in (*computed, operation.output)}
        if len(types) != 1 or operation.kind == "dequantize":
            raise UnsupportedError(
                f"The operation {operation.kind!r} mixes {' and '.join(sorted(types))}: a part of "
                "the network has no int8 version. Export with values='float32', or leave it out."
            )
        constants = [t for t in operation.inputs if t.data is not None]
        if operation.kind not in _TAKE_CONSTANTS and constants:
            raise UnsupportedError(f"The operation {operation.kind!r} of a constant has no kernel.")


def _simple(kind: str) -> Callable[[_Reader, Any], Operation]:
    def read(reader: _Reader, operator: Any) -> Operation:
        source = reader.tensor(int(operator.inputs[0]))
        return Operation(kind, [source], reader.tensor(int(operator.outputs[0])))

    return read


def _activation(options: Any) -> str:
    number = int(getattr(options, "fusedActivationFunction", 0))
    if number not in _ACTIVATIONS:
        raise UnsupportedError(f"The fused activation number {number} has no kernel.")
    return _ACTIVATIONS[number]


def _all_inputs(reader: _Reader, operator: Any) -> list[Tensor]:
    return [reader.tensor(int(index)) for index in operator.inputs if index >= 0]


def _padding(
    source: Tensor, output: Tensor, window: tuple[int, int], stride: tuple[int, int], valid: bool
) -> tuple[int, int, int, int]:
    sides = []
    for axis in (0, 1):
        missing = (output.extents[axis] - 1) * stride[axis] + window[axis] - source.extents[axis]
        total = 0 if valid else max(missing, 0)
        sides += [total // 2, total - total // 2]
    return sides[0], sides[1], sides[2], sides[3]


def _convolution(reader: _Reader, operator: Any) -> Operation:
    options, inputs = operator.builtinOptions, _all_inputs(reader, operator)
    depthwise = reader._code(operator) == _CODES.DEPTHWISE_CONV_2D
    weights, output = inputs[1], reader.tensor(int(operator.outputs[0]))
    if weights.data is None:
        raise UnsupportedError("A convolution with computed weights has no kernel.")
    if not depthwise and weights.shape[3] != inputs[0].extents[2]:
        raise UnsupportedError("Grouped convolutions have no kernel; use DepthwiseConv2D.")
    dilation = (int(options.dilationHFactor), int(options.dilationWFactor))
    inputs[1] = weights = _dilated(weights, dilation)
    window = (weights.shape[1], weights.shape[2])
    stride = (int(options.strideH), int(options.strideW))
    padding = _padding(inputs[0], output, window, stride, options.padding == 1)
    kind = "depthwise" if depthwise else "conv"
    return Operation(
        kind, inputs, output, _activation(options), window, stride, padding, dilation=dilation
    )


def _dilated(weights: Tensor, dilation: tuple[int, int]) -> Tensor:
    """A kernel with the zeros of its dilation, which cost little where zeros are skipped."""
    if dilation == (1, 1) or weights.data is None:
        return weights
    rows, columns = dilation
    count, height, width, channels = weights.shape
    shape = (count, (height - 1) * rows + 1, (width - 1) * columns + 1, channels)
    data = np.zeros(shape, weights.data.dtype)
    data[:, ::rows, ::columns] = weights.data
    return dataclasses.replace(weights, shape=shape, data=data)


def _dense(reader: _Reader, operator: Any) -> Operation:
    inputs = _all_inputs(reader, operator)
    if inputs[1].data is None:
        raise UnsupportedError("A dense layer with computed weights has no kernel.")
    output = reader.tensor(int(operator.outputs[0]))
    return Operation("dense", inputs, output, _activation(operator.builtinOptions))


def _pool(kind: str) -> Callable[[_Reader, Any], Operation]:
    def read(reader: _Reader, operator: Any) -> Operation:
        options = operator.builtinOptions
        source = reader.tensor(int(operator.inputs[0]))
        output = reader.tensor(int(operator.outputs[0]))
        window = (int(options.filterHeight), int(options.filterWidth))
        stride = (int(options.strideH), int(options.strideW))
        padding = _padding(source, output, window, stride, options.padding == 1)
        return Operation(kind, [source], output, _activation(options), window, stride, padding)

    return read


def _reduction(kind: str) -> Callable[[_Reader, Any], Operation]:
    def read(reader: _Reader, operator: Any) -> Operation:
        source = reader.tensor(int(operator.inputs[0]))
        axes = reader.tensor(int(operator.inputs[1])).data
        rank = len(source.shape)
        wanted = set(range(1, rank - 1))
        found = set() if axes is None else {int(axis) % rank for axis in np.ravel(axes)}
        if found != wanted or not wanted:
            raise UnsupportedError(
                f"A reduction over the axes {sorted(found)} of shape {source.shape} has no kernel; "
                "global pooling, which reduces all axes between batch and channels, has."
            )
        height, width, _ = source.extents
        output = reader.tensor(int(operator.outputs[0]))
        return Operation(kind, [source], output, window=(height, width), stride=(height, width))

    return read


def _with_constant(kind: str, inputs: list[Tensor], output: Tensor, options: Any) -> Operation:
    """A sum or a product with one constant, or one for each channel."""
    constants = [t for t in inputs if t.data is not None]
    others = [t for t in inputs if t.data is None]
    channels = output.extents[2]
    if (
        len(constants) != 1
        or constants[0].size not in (1, channels)
        or constants[0].extents[2] != constants[0].size
        or others[0].extents != output.extents
    ):
        raise UnsupportedError("A sum or product with this constant has no kernel.")
    return Operation(kind, [*others, *constants], output, _activation(options))


def _multiplication(reader: _Reader, operator: Any) -> Operation:
    inputs, output = _all_inputs(reader, operator), reader.tensor(int(operator.outputs[0]))
    if all(t.data is None for t in inputs):
        raise UnsupportedError("A product of two computed tensors has no kernel.")
    return _with_constant("multiply_constant", inputs, output, operator.builtinOptions)


def _add(reader: _Reader, operator: Any) -> Operation:
    inputs, output = _all_inputs(reader, operator), reader.tensor(int(operator.outputs[0]))
    if any(t.data is not None for t in inputs):
        return _with_constant("add_constant", inputs, output, operator.builtinOptions)
    if any(t.data is None and t.extents != output.extents for t in inputs):
        raise UnsupportedError("A sum of tensors of different shapes has no kernel.")
    return Operation("add", inputs, output, _activation(operator.builtinOptions))


def _concatenation(reader: _Reader, operator: Any) -> Operation:
    inputs, output = _all_inputs(reader, operator), reader.tensor(int(operator.outputs[0]))
    if any(
        not np.array_equal(t.scale, output.scale) or t.zero_point != output.zero_point
        for t in inputs
    ):
        raise UnsupportedError("A concatenation of tensors of different scales has no kernel.")
    rank = len(output.shape)
    axis = int(operator.builtinOptions.axis) % rank - (rank - 3)
    if axis < 0 or (rank == 3 and axis == 0) or _activation(operator.builtinOptions) != "none":
        raise UnsupportedError("A concatenation along the batch, or with an activation, has none.")
    return Operation("concat", inputs, output, axis=axis)


def _pad(reader: _Reader, operator: Any) -> Operation:
    source = reader.tensor(int(operator.inputs[0]))
    output = reader.tensor(int(operator.outputs[0]))
    amounts = reader.tensor(int(operator.inputs[1])).data
    rank = len(source.shape)
    rows = np.zeros((4, 2), np.int64)
    if amounts is not None and rank in (3, 4):
        rows[[0, *range(5 - rank, 4)]] = np.reshape(amounts, (rank, 2))
    fill = reader.tensor(int(operator.inputs[2])) if len(operator.inputs) > 2 else None
    # The border is the code of 0.0 here; another constant would need a border of its own.
    zero = source.zero_point if fill is None or fill.data is None else float(np.ravel(fill.data)[0])
    if amounts is None or rank not in (3, 4) or rows[[0, 3]].any() or zero != source.zero_point:
        raise UnsupportedError("Only padding with zeros along height and width has a kernel.")
    padding = (int(rows[1, 0]), int(rows[1, 1]), int(rows[2, 0]), int(rows[2, 1]))
    return Operation("pad", [source], output, padding=padding)


def _softmax(reader: _Reader, operator: Any) -> Operation:
    source = reader.tensor(int(operator.inputs[0]))
    output = reader.tensor(int(operator.outputs[0]))
    return Operation("softmax", [source], output, beta=float(operator.builtinOptions.beta))


_TAKE_CONSTANTS = ("conv", "depthwise", "dense", "add_constant", "multiply_constant")

_READ: dict[int, Callable[[_Reader, Any], Operation]] = {
    _CODES.CONV_2D: _convolution,
    _CODES.DEPTHWISE_CONV_2D: _convolution,
    _CODES.FULLY_CONNECTED: _dense,
    _CODES.MAX_POOL_2D: _pool("max_pool"),
    _CODES.AVERAGE_POOL_2D: _pool("average_pool"),
    _CODES.MEAN: _reduction("mean"),
    _CODES.REDUCE_MAX: _reduction("max_pool"),
    _CODES.ADD: _add,
    _CODES.MUL: _multiplication,
    _CODES.CONCATENATION: _concatenation,
    _CODES.RESHAPE: _simple("reshape"),
    _CODES.EXPAND_DIMS: _simple("reshape"),
    _CODES.SQUEEZE: _simple("reshape"),
    _CODES.PAD: _pad,
    _CODES.PADV2: _pad,
    _CODES.RELU: _simple("relu"),
    _CODES.RELU6: _simple("relu6"),
    _CODES.LOGISTIC: _simple("sigmoid"),
    _CODES.SOFTMAX: _softmax,
    _CODES.QUANTIZE: _simple("quantize"),
    _CODES.DEQUANTIZE: _simple("dequantize"),
}
