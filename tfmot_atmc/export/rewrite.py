# SPDX-License-Identifier: Apache-2.0
"""Turns the sparse float weights of a converted model into sparse constants.

Each becomes `sparse constant -> DENSIFY -> operator`, or, where all its values are integers times
one scale, `sparse int8 constant -> DENSIFY -> DEQUANTIZE -> operator`. Both chains are builtin,
are unpacked once when the interpreter loads the file, and restore the float32 weights bit for bit.
A dense layer of many inputs may become a convolution on the way (see `narrowing`).
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfmot_atmc.export import flatbuffer, narrowing, sparse

_BUILTIN = schema.BuiltinOperator
_WEIGHT_INPUT = 1
_WEIGHTED_OPERATORS = (_BUILTIN.CONV_2D, _BUILTIN.FULLY_CONNECTED, _BUILTIN.DEPTHWISE_CONV_2D)
# What DEQUANTIZE needs to read int8.
_DEQUANTIZE_VERSION = 2
# What the operator, its tensor and the tables around them cost in the file (measured, rounded up).
_DENSIFY_BYTES = 160
_DEQUANTIZE_BYTES = 210
_SPLIT_BYTES = 700

_FOLDED_NAME = "arith.constant"
_MAX_CODE = 127
VALUE_MODES = ("auto", "float32")


def exact_int8_grid(array: np.ndarray) -> tuple[np.ndarray, np.float32] | None:
    """Writes float32 values as int8 codes times one scale, if that reproduces every bit.

    Args:
        array: float32 array.

    Returns:
        `(codes, scale)` with `codes` int8 in [-127, 127], of the same shape, zero exactly where
        `array` is zero, and `float32(codes) * scale == array`; None if there is no such scale.

    Example:
        >>> codes, scale = exact_int8_grid(np.array([0.0, 0.5, -0.75], np.float32))
        >>> codes.tolist(), float(scale)
        ([0, 2, -3], 0.25)
    """
    nonzero = array[array != 0]
    # A look at a few values spares sorting millions that are obviously not a small codebook.
    if np.unique(nonzero[:4096]).size > 2 * _MAX_CODE or not np.isfinite(nonzero).all():
        return None
    distinct = np.unique(nonzero)
    if distinct.size == 0 or distinct.size > 2 * _MAX_CODE:
        return None
    largest = np.abs(distinct).max()
    for largest_code in range(1, _MAX_CODE + 1):
        centre = np.float32(largest / np.float32(largest_code))
        # `largest` was rounded, so its scale may be a neighbour of the quotient.
        for scale in (centre, *(np.nextafter(centre, np.float32(end)) for end in (0, np.inf))):
            if scale < np.finfo(np.float32).tiny:
                return None
            codes = np.rint(distinct / scale)
            if np.abs(codes).max() <= _MAX_CODE and np.array_equal(codes * scale, distinct):
                return np.rint(array / scale).astype(np.int8), scale
    return None


def sparsify_weights(model: Any, *, min_sparsity: float, values: str = "auto") -> int:
    """Stores the weights of convolutions and dense layers sparsely, where that is smaller.

    Args:
        model: The `ModelT` of a float model, changed in place. A sparse weight keeps its tensor
            index.
        min_sparsity: Least fraction of zeros of a weight to consider, in [0, 1].
        values: `"auto"` stores int8 codes where they are exact, `"float32"` never does.

    Returns:
        Number of weights that are now sparse.

    Raises:
        ValueError: If `values` is unknown.
    """
    if values not in VALUE_MODES:
        raise ValueError(f"`values` must be one of {VALUE_MODES}, got {values!r}.")
    changed = 0
    for subgraph in model.subgraphs:
        weights = _weight_tensors(model, subgraph)
        readers = Counter(_weight_of(model, operator) for operator in subgraph.operators)
        operators: list[Any] = []
        restored: dict[int, int] = {}
        for operator in subgraph.operators:
            weight = _weight_of(model, operator)
            if weight in weights and weight not in restored:
                # Another reader of the weight might not be able to take the new shape.
                alone = readers[weight] == 1
                split = narrowing.split_shape(model, subgraph, operator) if alone else None
                chain = _sparse_chain(model, subgraph, weight, split, min_sparsity, values)
                restored[weight] = int(chain[-1].outputs[0]) if chain else weight
                operators.extend(chain)
                changed += bool(chain)
            if weight in restored:
                # The parsed vectors are views of read-only bytes.
                operator.inputs = np.array(operator.inputs, np.int32)
                operator.inputs[_WEIGHT_INPUT] = restored[weight]
                if narrowing.is_split(model, subgraph, operator):
                    operators.extend(narrowing.as_convolution(model, subgraph, operator))
                    continue
            operators.append(operator)
        subgraph.operators = operators
    return changed


def weight_names(model: Any) -> dict[tuple[int, int], str]:
    """Names the weights of a model as the converter named them.

    Args:
        model: The `ModelT`, before its names are stripped.

    Returns:
        Name by subgraph and tensor number. A constant that the converter computed itself, by
        folding, is named after the operator that reads it.
    """
    names = {}
    for number, subgraph in enumerate(model.subgraphs):
        for operator in subgraph.operators:
            weight = _weight_of(model, operator)
            if weight is None:
                continue
            name = flatbuffer.tensor_name(subgraph.tensors[weight])
            if name.startswith(_FOLDED_NAME):
                result = flatbuffer.tensor_name(subgraph.tensors[int(operator.outputs[0])])
                # A fused operator joins its parts' names; the weighted one comes last.
                name = result.rpartition(";")[2]
            names[number, weight] = name
    return names


def _weight_of(model: Any, operator: Any) -> int | None:
    if flatbuffer.builtin_code(model, operator) in _WEIGHTED_OPERATORS:
        return int(operator.inputs[_WEIGHT_INPUT])
    return None


def _weight_tensors(model: Any, subgraph: Any) -> set[int]:
    """Tensors used as weights and as nothing else: another reader would find packed bytes."""
    weights: set[int] = set()
    others = {int(index) for index in subgraph.outputs}
    for operator in subgraph.operators:
        weight = _weight_of(model, operator)
        inputs = [] if operator.inputs is None else [int(index) for index in operator.inputs]
        if weight is not None:
            weights.add(weight)
            inputs.remove(weight)
        others.update(inputs)
    return weights - others


class _Choice(NamedTuple):
    nbytes: int
    stored: np.ndarray
    scale: np.float32 | None
    layout: sparse.Layout


def _choose(
    shape: tuple[int, ...],
    array: np.ndarray,
    grid: tuple[np.ndarray, np.float32] | None,
    overhead: int,
) -> _Choice:
    """The smallest storage of an array in a given shape, bytes for operators included."""
    stored = array.reshape(shape)
    layout = sparse.find_layout(stored)
    choice = _Choice(layout.nbytes + overhead + _DENSIFY_BYTES, stored, None, layout)
    if grid is None:
        return choice
    codes, scale = grid
    layout = sparse.find_layout(codes.reshape(shape))
    nbytes = layout.nbytes + overhead + _DENSIFY_BYTES + _DEQUANTIZE_BYTES
    return min(choice, _Choice(nbytes, codes.reshape(shape), scale, layout), key=lambda c: c.nbytes)


def _sparse_chain(
    model: Any,
    subgraph: Any,
    index: int,
    split: tuple[int, ...] | None,
    min_sparsity: float,
    values: str,
) -> list[Any]:
    """Makes a weight sparse and returns the operators that restore it; empty if it stays dense.

    Where the shape `split` is offered and smaller, the weight takes that shape.
    """
    tensor = subgraph.tensors[index]
    constant = flatbuffer.read_constant(model, tensor)
    if constant is None or constant.array is None or constant.array.dtype != np.float32:
        return []
    array = constant.array
    if array.ndim == 0 or np.count_nonzero(array) > (1.0 - min_sparsity) * array.size:
        return []
    grid = exact_int8_grid(array) if values == "auto" else None
    choices = [_choose(array.shape, array, grid, 0)]
    if split is not None:
        choices.append(_choose(split, array, grid, _SPLIT_BYTES))
    nbytes, stored, scale, layout = min(choices, key=lambda choice: choice.nbytes)
    if nbytes >= array.nbytes:
        return []
    encoding = sparse.encode(stored, layout)
    tensor.shape = np.array(stored.shape, np.int32)
    tensor.buffer = flatbuffer.add_buffer(model, encoding.values)
    tensor.sparsity = flatbuffer.write_sparsity(encoding)
    quantization = None
    if scale is not None:
        tensor.type = schema.TensorType.INT8
        tensor.quantization = quantization = _quantization(scale)
    dense = flatbuffer.add_tensor(subgraph, tensor.shape, tensor.type, quantization)
    chain = [flatbuffer.add_operator(model, _BUILTIN.DENSIFY, [index], dense)]
    if scale is not None:
        floats = flatbuffer.add_tensor(subgraph, tensor.shape, schema.TensorType.FLOAT32)
        chain.append(
            flatbuffer.add_operator(
                model, _BUILTIN.DEQUANTIZE, [dense], floats, version=_DEQUANTIZE_VERSION
            )
        )
    return chain


def _quantization(scale: np.float32) -> Any:
    quantization = schema.QuantizationParametersT()
    quantization.scale = np.array([scale], np.float32)
    # DENSIFY fills with 0, so 0 must mean 0.0.
    quantization.zeroPoint = np.array([0], np.int64)
    return quantization
