# SPDX-License-Identifier: Apache-2.0
"""Finds the bytes of a .tflite file that positions and values alone can restore."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfmot_atmc.export.archive.unpacking import Level

_TYPES = schema.TensorType
_VALUE_TYPES: dict[int, type] = {
    _TYPES.FLOAT16: np.float16,
    _TYPES.FLOAT32: np.float32,
    _TYPES.FLOAT64: np.float64,
    _TYPES.INT16: np.int16,
    _TYPES.INT32: np.int32,
    _TYPES.INT64: np.int64,
    _TYPES.UINT16: np.uint16,
    _TYPES.UINT32: np.uint32,
    _TYPES.UINT64: np.uint64,
    _TYPES.INT8: np.int8,
}
_INDEX_VECTORS = {1: schema.Int32Vector, 2: schema.Uint16Vector, 3: schema.Uint8Vector}
# Constants below this many bytes are not worth a description of their own.
_LEAST_BYTES = 64
# What the accessors of a damaged flatbuffer raise.
DAMAGES = (struct.error, LookupError, TypeError, ValueError, ArithmeticError, AttributeError)


class Constant(NamedTuple):
    """A constant's place in the file.

    `holes` are the places of values, then of segments and indices of each CSR level.
    """

    dtype: np.dtype
    levels: list[Level]
    holes: list[np.ndarray]


def offset_of(base: np.ndarray, view: np.ndarray) -> int:
    """Returns where in the file, `base`, a view of some of its bytes starts."""
    return int(view.__array_interface__["data"][0] - base.__array_interface__["data"][0])


def _buffer_view(model: Any, base: np.ndarray, index: int) -> np.ndarray | None:
    buffer = model.Buffers(index)
    if buffer.Offset() > 1:
        return base[buffer.Offset() : buffer.Offset() + buffer.Size()]
    return None if buffer.DataIsNone() else buffer.DataAsNumpy()


def _vector_view(table: Any, kind: int) -> np.ndarray:
    vector = _INDEX_VECTORS[kind]()
    vector.Init(table.Bytes, table.Pos)
    return vector.ValuesAsNumpy()


def _levels(tensor: Any, sparsity: Any) -> tuple[list[Level], list[np.ndarray]]:
    """The levels of a sparse tensor and the segments and indices in the file."""
    shape = tensor.ShapeAsNumpy().tolist()
    order = sparsity.TraversalOrderAsNumpy().tolist()
    blocks = [] if sparsity.BlockMapIsNone() else sparsity.BlockMapAsNumpy().tolist()
    tables = [sparsity.DimMetadata(n) for n in range(sparsity.DimMetadataLength())]
    if len(tables) != len(order) or sorted(order) != [*range(len(shape) + len(blocks))]:
        raise ValueError("The traversal order does not fit the shape.")
    if min(shape) < 1:
        raise ValueError("A dimension is empty.")
    for number, dimension in enumerate(blocks):
        width = tables[order.index(len(shape) + number)].DenseSize()
        shape[dimension] //= width
        shape.append(width)
    levels, vectors = [], []
    for dimension, table in zip(order, tables, strict=True):
        if table.Format() == schema.DimensionType.DENSE:
            if table.DenseSize() != shape[dimension]:
                raise ValueError("A dense level does not have the size of its dimension.")
            levels.append((shape[dimension], 0, 0))
            continue
        pair = [
            _vector_view(table.ArraySegments(), table.ArraySegmentsType()),
            _vector_view(table.ArrayIndices(), table.ArrayIndicesType()),
        ]
        levels.append((shape[dimension], pair[0].itemsize, pair[1].itemsize))
        vectors += pair
    return levels, vectors


def constants(data: bytes) -> Iterator[Constant]:
    """The constants of a file that can be restored from positions and values, or from values."""
    base = np.frombuffer(data, np.uint8)
    taken = np.zeros(base.size, bool)
    model = schema.Model.GetRootAs(data, 0)
    for tensor in _tensors(model, len(data) // 4):
        with contextlib.suppress(*DAMAGES):
            view = _buffer_view(model, base, tensor.Buffer())
            if view is None or view.size < _LEAST_BYTES:
                continue
            sparsity = tensor.Sparsity()
            levels, vectors = ([], []) if sparsity is None else _levels(tensor, sparsity)
            dtype = np.dtype(_VALUE_TYPES.get(tensor.Type(), np.uint8))
            holes = [view, *vectors]
            fits = view.size % dtype.itemsize == 0 and all(hole.size for hole in holes)
            if fits and _claim(taken, base, holes):
                yield Constant(dtype, levels, holes)


def _tensors(model: Any, most: int) -> Iterator[Any]:
    """All tensors; a damaged file may claim billions, of which it holds `most` at most."""
    for number in range(min(model.SubgraphsLength(), most)):
        subgraph = model.Subgraphs(number)
        count = min(subgraph.TensorsLength(), most)
        most -= count
        for index in range(count):
            yield subgraph.Tensors(index)


def _claim(taken: np.ndarray, base: np.ndarray, holes: list[np.ndarray]) -> bool:
    """Marks the bytes of the holes as taken, if all are free and none overlaps another."""
    marks = []
    for hole in holes:
        start = offset_of(base, hole)
        mark = slice(start, start + hole.nbytes)
        if start < 0 or mark.stop > taken.size or taken[mark].any():
            break
        taken[mark] = True
        marks.append(mark)
    if len(marks) == len(holes):
        return True
    for mark in marks:
        taken[mark] = False
    return False


def stored_cells(levels: list[Level], vectors: list[np.ndarray], limit: int) -> np.ndarray:
    """Flat positions that the levels, of which the last is CSR, describe."""
    flat = np.zeros(1, np.int64)
    remaining = iter(vectors)
    for size, _, width in levels:
        if not width:
            if flat.size * size > limit:
                raise ValueError("The levels describe more positions than there are vectors for.")
            flat = (flat[:, np.newaxis] * size + np.arange(size)).ravel()
            continue
        segments, indices = next(remaining).astype(np.int64), next(remaining).astype(np.int64)
        lengths = np.diff(segments)
        if lengths.size != flat.size or lengths.min() < 0 or lengths.sum() != indices.size:
            raise ValueError("The segments of a level do not fit its indices.")
        if indices.min() < 0 or indices.max() >= size:
            raise ValueError("An index is out of bounds.")
        flat = np.repeat(flat, lengths) * size + indices
    return flat
