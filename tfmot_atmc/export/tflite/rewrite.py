# SPDX-License-Identifier: Apache-2.0
"""Turns the sparse weights of a converted model into sparse constants.

Each becomes `sparse constant -> DENSIFY -> operator`, or, where all its values are integers times
one scale, `sparse int8 constant -> DENSIFY -> DEQUANTIZE -> operator`. Both chains are builtin,
are unpacked once when the interpreter loads the file, and restore the float32 weights bit for bit.
On request, other values are rounded to such integers. A constant that is not sparse enough may
still be stored as int8, without DENSIFY, and on request with 4 or 2 bits a value, where that is
exact.
A dense layer of many inputs may become a convolution on the way (see `narrowing`).

The weights of a full-integer model are int8 already: `sparse int8 constant -> DENSIFY -> operator`.
XNNPACK rejects that in a dense layer, which therefore becomes a convolution, or stays dense.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfmot_atmc.export.tflite import dense_as_convolution as narrowing
from tfmot_atmc.export.tflite import flatbuffer, integers, sparse
from tfmot_atmc.export.tflite.grids import exact_int8_grid, nearest_int8_grid

_BUILTIN = schema.BuiltinOperator
_WEIGHT_INPUT, _BIAS_INPUT, _ELSEWHERE = 1, 2, -1
_WEIGHTED_OPERATORS = (_BUILTIN.CONV_2D, _BUILTIN.FULLY_CONNECTED, _BUILTIN.DEPTHWISE_CONV_2D)
# What DEQUANTIZE needs to read values of so many bits.
_DEQUANTIZE_VERSIONS = {8: 2, 4: 6, 2: 6}
# What the operator, its tensor and the tables around them cost in the file (measured, rounded up).
_DENSIFY_BYTES = 64
DEQUANTIZE_BYTES = 80
_SPLIT_BYTES = 100

_BIAS_ITEM = 4

_FOLDED_NAME = "arith.constant"
_NEVER_SPARSE = 2.0
FULL_INT8 = "full_int8"
VALUE_MODES = ("auto", "float32", "int8", "int4", "int2", FULL_INT8)
# Modes that round to 8 bits, with the fewest bits that they store.
ROUNDED = {"int8": 8, "int4": 4, "int2": 2}


def sparsify_weights(model: Any, *, min_sparsity: float, values: str = "auto") -> int:
    """Stores the weights of convolutions and dense layers sparsely, where that is smaller.

    Args:
        model: the `ModelT` of a float model, or of a full-integer one for `"full_int8"`, changed
            in place. A sparse weight keeps its tensor index.
        min_sparsity: least fraction of zeros of a weight to consider, in [0, 1].
        values: `"auto"` stores int8 codes where they are exact, `"float32"` never does, `"int8"`
            also where weights and biases must be rounded, `"int4"` and `"int2"` do so but store
            weights that have few values in 4 or 2 bits, `"full_int8"` keeps the int8 weights of a
            full-integer model.

    Returns:
        Number of weights that are now sparse.

    Raises:
        ValueError: if `values` is unknown.
    """
    if values not in VALUE_MODES:
        raise ValueError(f"`values` must be one of {VALUE_MODES}. Received {values!r}.")
    return sum(
        _Rewriter(model, subgraph, min_sparsity, values).run() for subgraph in model.subgraphs
    )


class _Rewriter:
    """Rewrites one subgraph; constants that several operators read are stored once."""

    def __init__(self, model: Any, subgraph: Any, min_sparsity: float, values: str):
        self.model, self.subgraph = model, subgraph
        self.min_sparsity, self.values = min_sparsity, values
        self.readers = _readers(model, subgraph)
        self.restored: dict[int, int] = {}
        self.operators: list[Any] = []
        self.changed = 0

    def run(self) -> int:
        for operator in self.subgraph.operators:
            if _weight_of(self.model, operator) is not None:
                # The parsed vectors are views of read-only bytes.
                operator.inputs = np.array(operator.inputs, np.int32)
                self._store(operator, _WEIGHT_INPUT)
                self._store(operator, _BIAS_INPUT)
            if narrowing.is_split(self.model, self.subgraph, operator):
                self.operators += narrowing.as_convolution(self.model, self.subgraph, operator)
            else:
                self.operators.append(operator)
        self.subgraph.operators = self.operators
        return self.changed

    def _store(self, operator: Any, position: int) -> None:
        """Stores the constant that an operator reads at a position, and reads it from there."""
        if position >= len(operator.inputs):
            return
        index = int(operator.inputs[position])
        if index not in self.restored:
            chain = self._chain(operator, index, position)
            self.restored[index] = int(chain[-1].outputs[0]) if chain else index
            self.operators += chain
        operator.inputs[position] = self.restored[index]

    def _chain(self, operator: Any, index: int, position: int) -> list[Any]:
        # Another kind of reader would find packed bytes.
        if index < 0 or set(self.readers[index]) != {position}:
            return []
        constant = flatbuffer.read_constant(self.model, self.subgraph.tensors[index])
        if constant is None or constant.array is None:
            return []
        if self.values == FULL_INT8:
            found = self._integer_storages(operator, index, position, constant.array)
        else:
            found = self._float_storages(operator, index, position, constant.array)
        if not found:
            return []
        storage = min(found, key=lambda choice: choice.nbytes)
        self.changed += storage.layout is not None
        return _restoring_chain(self.model, self.subgraph, index, storage)

    def _float_storages(
        self, operator: Any, index: int, position: int, array: np.ndarray
    ) -> list[_Storage]:
        if array.dtype != np.float32:
            return []
        split, least = None, self.min_sparsity
        if position == _BIAS_INPUT:
            if self.values not in ROUNDED:
                return []
            least = _NEVER_SPARSE
        elif self.readers[index].total() == 1:
            # Another reader of the weight might not be able to take the new shape.
            split = narrowing.split_shape(self.model, self.subgraph, operator)
        extra = _SPLIT_BYTES
        if split is not None and not narrowing.has_bias(operator):
            extra += split[0] * array.itemsize
        return storages(array, split, least, self.values, extra)

    def _integer_storages(
        self, operator: Any, index: int, position: int, codes: np.ndarray
    ) -> list[_Storage]:
        tensor = self.subgraph.tensors[index]
        # DENSIFY fills with the code 0. Biases are int32, few and not sparse.
        if position == _BIAS_INPUT or not flatbuffer.is_symmetric_int8(tensor):
            return []
        # An operator that computes in float32 from int8 weights cannot read unpacked ones.
        if self.subgraph.tensors[int(operator.inputs[0])].type != schema.TensorType.INT8:
            return []
        if flatbuffer.builtin_code(self.model, operator) != _BUILTIN.FULLY_CONNECTED:
            return code_storages(codes, [codes.shape], self.min_sparsity)
        if self.readers[index].total() > 1:
            return []
        shapes = narrowing.convolution_shapes(self.model, self.subgraph, operator)
        extra = _SPLIT_BYTES + (0 if narrowing.has_bias(operator) else _BIAS_ITEM * len(codes))
        return code_storages(codes, shapes, self.min_sparsity, extra)


def weight_names(model: Any) -> dict[tuple[int, int], str]:
    """Names the weights of a model as the converter named them.

    Args:
        model: the `ModelT`, before its names are stripped.

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
    if flatbuffer.builtin_code(model, operator) not in _WEIGHTED_OPERATORS:
        return None
    if len(operator.inputs) <= _WEIGHT_INPUT or len(operator.outputs) != 1:
        raise ValueError(
            f"The .tflite model is damaged: a weighted operator has {len(operator.inputs)} inputs "
            f"and {len(operator.outputs)} outputs."
        )
    return int(operator.inputs[_WEIGHT_INPUT])


def _readers(model: Any, subgraph: Any) -> dict[int, Counter[int]]:
    """How often each tensor is read in which input of a weighted operator; -1 for all else."""
    readers: dict[int, Counter[int]] = defaultdict(Counter)
    for index in subgraph.outputs:
        readers[int(index)][_ELSEWHERE] += 1
    for operator in subgraph.operators:
        weighted = _weight_of(model, operator) is not None
        for position, index in enumerate([] if operator.inputs is None else operator.inputs):
            readers[int(index)][position if weighted and position else _ELSEWHERE] += 1
    return readers


def stored_bytes(kernel: np.ndarray, *, values: str = "auto", min_sparsity: float = 0.5) -> int:
    """Returns what a Keras kernel takes in a file, in the smallest storage that export would find.

    Args:
        kernel: float32 kernel of a dense layer `(inputs, units)` or of a convolution
            `(..., inputs, filters)`.
        values: one of `VALUE_MODES`.
        min_sparsity: least fraction of zeros to store it sparsely.

    Returns:
        Bytes of values, indices and segments, and of the operators that unpack them.

    Example:
        >>> stored_bytes(np.ones((3, 3, 4, 8), np.float32))  # in 8 bits, which is exact here
        368
    """
    array = np.moveaxis(np.asarray(kernel, np.float32), -1, 0)
    if values == FULL_INT8:
        codes, _ = nearest_int8_grid(array)
        if array.ndim != 2:
            return min(s.nbytes for s in code_storages(codes, [codes.shape], min_sparsity))
        shapes = narrowing.shapes_of_units(*codes.shape)
        return min(s.nbytes for s in code_storages(codes, shapes, min_sparsity, _SPLIT_BYTES))
    split, extra = None, 0
    if array.ndim == 2:
        split = narrowing.split_units(*array.shape)
        extra = _SPLIT_BYTES
    return min(s.nbytes for s in storages(array, split, min_sparsity, values, extra))


class _Storage(NamedTuple):
    """One way to store a weight, with the bytes that it costs, operators included."""

    nbytes: int
    stored: np.ndarray
    scale: np.float32 | None = None
    layout: sparse.Layout | None = None
    bits: int = 8


def storages(
    array: np.ndarray,
    split: tuple[int, ...] | None,
    min_sparsity: float,
    values: str,
    split_bytes: int = _SPLIT_BYTES,
) -> list[_Storage]:
    """Returns all ways to store a weight, the plain one first.

    Args:
        array: the weight, in the layout of the file format.
        split: a second shape that it may take, or None.
        min_sparsity: least fraction of zeros to store it sparsely.
        values: one of `VALUE_MODES`.
        split_bytes: what the second shape costs beside the weight.
    """
    found = [_Storage(array.nbytes, array)]
    coded = None
    if values in ROUNDED:
        coded = nearest_int8_grid(array)
    elif values == "auto":
        coded = exact_int8_grid(array)
    if coded is not None:
        found.append(_Storage(array.size + DEQUANTIZE_BYTES, *coded))
        bits = integers.fewest_bits(coded[0], ROUNDED.get(values, 8))
        if bits < 8:
            nbytes = -(-array.size * bits // 8) + DEQUANTIZE_BYTES
            found.append(_Storage(nbytes, *coded, bits=bits))
    if array.ndim == 0 or np.count_nonzero(array) > (1.0 - min_sparsity) * array.size:
        return found
    for shape, overhead in ((array.shape, 0), (split, split_bytes)):
        if shape is None:
            continue
        for stored, scale in ((array, None), *([coded] if coded is not None else [])):
            stored = stored.reshape(shape)
            layout = sparse.find_layout(stored)
            extra = overhead + _DENSIFY_BYTES + (0 if scale is None else DEQUANTIZE_BYTES)
            found.append(_Storage(layout.nbytes + extra, stored, scale, layout))
    return found


def code_storages(
    codes: np.ndarray,
    shapes: Sequence[tuple[int, ...]],
    min_sparsity: float,
    extra_bytes: int = 0,
) -> list[_Storage]:
    """Returns all ways to store the int8 weight of an integer operator, the plain one first.

    Args:
        codes: the weight, int8, in the layout of the file format.
        shapes: shapes in which it may be stored sparsely.
        min_sparsity: least fraction of zeros to store it sparsely.
        extra_bytes: what such a shape costs beside the weight.
    """
    found = [_Storage(codes.nbytes, codes)]
    if np.count_nonzero(codes) > (1.0 - min_sparsity) * codes.size:
        return found
    for shape in shapes:
        layout = sparse.find_layout(codes.reshape(shape))
        nbytes = layout.nbytes + _DENSIFY_BYTES + extra_bytes
        found.append(_Storage(nbytes, codes.reshape(shape), None, layout))
    return found


def _restoring_chain(model: Any, subgraph: Any, index: int, storage: _Storage) -> list[Any]:
    """Stores a constant as chosen; returns the operators that restore it, none if it is plain."""
    if storage.scale is None and storage.layout is None:
        return []
    tensor = subgraph.tensors[index]
    tensor.shape = np.array(storage.stored.shape, np.int32)
    quantization = None
    if flatbuffer.is_symmetric_int8(tensor):  # codes already: both tensors mean the same values
        scale = np.float32(tensor.quantization.scale[0])
        tensor.quantization = quantization = flatbuffer.symmetric_quantization(scale)
    if storage.scale is not None:
        tensor.type = integers.INTEGERS[storage.bits]
        tensor.quantization = quantization = flatbuffer.symmetric_quantization(storage.scale)
    chain = []
    if storage.layout is None:
        stored = integers.packed(storage.stored, storage.bits)
        tensor.buffer = flatbuffer.add_buffer(model, stored)
    else:
        encoding = sparse.encode(storage.stored, storage.layout)
        tensor.buffer = flatbuffer.add_buffer(model, encoding.values)
        tensor.sparsity = flatbuffer.write_sparsity(encoding)
        dense = flatbuffer.add_tensor(subgraph, tensor.shape, tensor.type, quantization)
        chain.append(flatbuffer.add_operator(model, _BUILTIN.DENSIFY, [index], dense))
        index = dense
    if storage.scale is not None:
        floats = flatbuffer.add_tensor(subgraph, tensor.shape, schema.TensorType.FLOAT32)
        version = _DEQUANTIZE_VERSIONS[storage.bits]
        chain.append(
            flatbuffer.add_operator(model, _BUILTIN.DEQUANTIZE, [index], floats, version=version)
        )
    return chain
