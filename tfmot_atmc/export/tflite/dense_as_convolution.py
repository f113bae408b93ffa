# SPDX-License-Identifier: Apache-2.0
"""Rewrites dense layers as convolutions.

In float models that is done so that indices fit in one byte: the input coordinate of a dense layer
with more than 256 inputs needs two bytes per kept weight. In full-integer models it is done because
XNNPACK takes unpacked int8 weights in convolutions only, not in dense layers. The
same product is a convolution of an image of one row and `k` columns with a kernel of that size:
the inputs `[batch, k * c]` become `[batch, 1, k, c]`, the weights `[units, k * c]` become
`[units, 1, k, c]`, without moving a value, and every index is below 256.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfmot_atmc.export.tflite import flatbuffer

_BUILTIN = schema.BuiltinOperator
_LARGEST_BYTE_SIZE = 256
_MOST_COLUMNS = 64
_NUM_INPUTS = 3
_INT8_CONVOLUTION_VERSION = 3


def split_shape(model: Any, subgraph: Any, operator: Any) -> tuple[int, int, int, int] | None:
    """Returns the shape of the convolution kernel that a dense layer's weight can become.

    Args:
        model: the `ModelT`.
        subgraph: one of its subgraphs.
        operator: an operator of the subgraph.

    Returns:
        `(units, 1, k, c)` with the smallest `k` for which `c` is at most 256; None if the operator
        is not a plain dense layer with a static batch and more than 256 inputs, or if its number of
        inputs has no such divisor.
    """
    sizes = _dense_sizes(model, subgraph, operator)
    return None if sizes is None else split_units(*sizes)


def convolution_shapes(model: Any, subgraph: Any, operator: Any) -> list[tuple[int, int, int, int]]:
    """Returns all shapes of convolution kernels that a dense layer's weight can become.

    Args:
        model: the `ModelT`.
        subgraph: one of its subgraphs.
        operator: an operator of the subgraph.

    Returns:
        `(units, 1, 1, inputs)` and, if there is one, the shape that `split_shape` finds; empty if
        the operator is not a plain dense layer with a static batch.
    """
    sizes = _dense_sizes(model, subgraph, operator)
    return [] if sizes is None else shapes_of_units(*sizes)


def shapes_of_units(units: int, inputs: int) -> list[tuple[int, int, int, int]]:
    """Returns the convolution kernels' shapes for a dense kernel's, as `convolution_shapes`."""
    split = split_units(units, inputs)
    return [(units, 1, 1, inputs), *([] if split is None else [split])]


def _dense_sizes(model: Any, subgraph: Any, operator: Any) -> tuple[int, int] | None:
    """Units and inputs of a plain dense layer with a static batch, None for all else."""
    if flatbuffer.builtin_code(model, operator) != _BUILTIN.FULLY_CONNECTED:
        return None
    if len(operator.inputs) < _NUM_INPUTS - 1 or min(operator.inputs[:2]) < 0:
        return None
    source, weight = (subgraph.tensors[int(index)] for index in operator.inputs[:2])
    result = subgraph.tensors[int(operator.outputs[0])]
    # Nothing says that the batch is static but the absence of a shape signature with -1.
    dynamic = any(
        tensor.shapeSignature is not None and min(tensor.shapeSignature) < 0
        for tensor in (source, result)
    )
    if dynamic or len(source.shape) != 2 or len(result.shape) != 2 or len(weight.shape) != 2:
        return None
    units, inputs = (int(size) for size in weight.shape)
    return (units, inputs) if int(source.shape[1]) == inputs else None


def split_units(units: int, inputs: int) -> tuple[int, int, int, int] | None:
    """Returns the convolution kernel's shape for a dense kernel's, as `split_shape` does."""
    if inputs <= _LARGEST_BYTE_SIZE:
        return None
    for columns in range(2, _MOST_COLUMNS + 1):
        if inputs % columns == 0 and inputs // columns <= _LARGEST_BYTE_SIZE:
            return units, 1, columns, inputs // columns
    return None


def is_split(model: Any, subgraph: Any, operator: Any) -> bool:
    """Tells whether an operator is a dense layer whose weight took a convolution's shape."""
    if flatbuffer.builtin_code(model, operator) != _BUILTIN.FULLY_CONNECTED:
        return False
    # A damaged file may hold such a weight of its own, beside tensors that do not go with it.
    source, weight = (subgraph.tensors[int(index)] for index in operator.inputs[:2])
    result = subgraph.tensors[int(operator.outputs[0])]
    return [len(tensor.shape) for tensor in (source, weight, result)] == [2, 4, 2]


def as_convolution(model: Any, subgraph: Any, operator: Any) -> list[Any]:
    """Returns reshape, convolution and reshape in the place of a dense layer.

    Args:
        model: the `ModelT`; operator codes and buffers are added.
        subgraph: the subgraph; tensors are added.
        operator: the dense layer, for which `is_split` holds.

    Returns:
        The operators in the order in which they run; the last has the dense layer's output. Types
        and quantization of the new tensors are those of the dense layer's input and output.
    """
    source, weight = (int(index) for index in operator.inputs[:2])
    bias = _bias(model, subgraph, operator)
    result = int(operator.outputs[0])
    batch, units = (int(size) for size in subgraph.tensors[result].shape)
    _, _, columns, channels = (int(size) for size in subgraph.tensors[weight].shape)
    image_shape = (batch, 1, columns, channels)
    image = _add_like(subgraph, source, image_shape)
    product = _add_like(subgraph, result, (batch, 1, 1, units))
    integer = subgraph.tensors[weight].type == schema.TensorType.INT8
    convolution = flatbuffer.add_operator(
        model,
        _BUILTIN.CONV_2D,
        [image, weight, bias],
        product,
        version=_INT8_CONVOLUTION_VERSION if integer else 1,
    )
    options = schema.Conv2DOptionsT()
    options.padding = schema.Padding.VALID
    options.strideW = options.strideH = 1
    options.fusedActivationFunction = operator.builtinOptions.fusedActivationFunction
    convolution.builtinOptionsType = schema.BuiltinOptions.Conv2DOptions
    convolution.builtinOptions = options
    return [
        _reshape(model, subgraph, source, image, image_shape),
        convolution,
        _reshape(model, subgraph, product, result, (batch, units)),
    ]


def has_bias(operator: Any) -> bool:
    """Tells whether a dense layer adds a bias."""
    return len(operator.inputs) >= _NUM_INPUTS and int(operator.inputs[2]) >= 0


def _bias(model: Any, subgraph: Any, operator: Any) -> int:
    if has_bias(operator):
        return int(operator.inputs[2])
    # The convolution insists on a bias. Zero is four zero bytes in float32 and in int32.
    source, weight = (subgraph.tensors[int(index)] for index in operator.inputs[:2])
    zeros = np.zeros(int(subgraph.tensors[int(operator.outputs[0])].shape[1]), np.float32)
    buffer = flatbuffer.add_buffer(model, zeros)
    if weight.type != schema.TensorType.INT8:
        kind, quantization = schema.TensorType.FLOAT32, None
    else:
        scale = np.float32(source.quantization.scale[0] * weight.quantization.scale[0])
        kind, quantization = schema.TensorType.INT32, flatbuffer.symmetric_quantization(scale)
    return flatbuffer.add_tensor(subgraph, zeros.shape, kind, quantization, buffer)


def _add_like(subgraph: Any, index: int, shape: tuple[int, ...]) -> int:
    """Adds a computed tensor of the type and quantization of another, in another shape."""
    tensor = subgraph.tensors[index]
    return flatbuffer.add_tensor(subgraph, shape, tensor.type, tensor.quantization)


def _reshape(model: Any, subgraph: Any, source: int, target: int, shape: tuple[int, ...]) -> Any:
    buffer = flatbuffer.add_buffer(model, np.array(shape, np.int32))
    sizes = flatbuffer.add_tensor(subgraph, (len(shape),), schema.TensorType.INT32, buffer=buffer)
    return flatbuffer.add_operator(model, _BUILTIN.RESHAPE, [source, sizes], target)
