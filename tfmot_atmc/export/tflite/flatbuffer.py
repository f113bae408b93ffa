# SPDX-License-Identifier: Apache-2.0
"""Reading and writing TFLite flatbuffers: constants, sparsity parameters, aligned packing."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfmot_atmc.export.tflite import integers
from tfmot_atmc.export.tflite.sparse import Level, LevelFormat, SparseEncoding, narrowest_index_type
from tfmot_atmc.export.tflite.validation import validate

FILE_IDENTIFIER = b"TFL3"
_MAX_FILE_BYTES = (1 << 31) - 1
# The schema demands 16 bytes for a buffer's data and 4 for the index vectors of a sparse tensor;
# the generated Python classes know neither.
_BUFFER_ALIGNMENT = 16
_INDEX_ALIGNMENT = 4
_BUILTIN_CODE_LIMIT = 127

_TYPES = schema.TensorType
_DTYPES: dict[int, np.dtype] = {
    _TYPES.FLOAT32: np.dtype(np.float32),
    _TYPES.FLOAT16: np.dtype(np.float16),
    _TYPES.FLOAT64: np.dtype(np.float64),
    _TYPES.INT8: np.dtype(np.int8),
    _TYPES.INT16: np.dtype(np.int16),
    _TYPES.INT32: np.dtype(np.int32),
    _TYPES.INT64: np.dtype(np.int64),
    _TYPES.UINT8: np.dtype(np.uint8),
    _TYPES.UINT16: np.dtype(np.uint16),
    _TYPES.UINT32: np.dtype(np.uint32),
    _TYPES.UINT64: np.dtype(np.uint64),
    _TYPES.BOOL: np.dtype(np.bool_),
}
_TYPE_NAMES = {
    value: name.lower() for name, value in vars(_TYPES).items() if isinstance(value, int)
}


@dataclass(frozen=True)
class Constant:
    """A constant tensor of a model.

    Attributes:
        array: the dense values, those of 2 and 4 bits as int8; None where the type has no NumPy
            counterpart (strings).
        encoding: the sparse storage the values come from; None for a dense tensor.
        nbytes: bytes of the stored values.
    """

    array: np.ndarray | None
    encoding: SparseEncoding | None
    nbytes: int


class _AlignedBuilder(flatbuffers.Builder):
    """A flatbuffer builder that aligns vectors of small integers as the schema demands.

    Equal vectors are written once: shapes and lists of tensors repeat a lot in a small file.
    """

    def __init__(self, size: int):
        super().__init__(size)
        self._written: dict[tuple[str, int, bytes], int] = {}
        self.shared: dict[int, int] = {}

    def CreateNumpyVector(self, x: np.ndarray) -> int:
        return self.create_aligned_vector(x, max(_INDEX_ALIGNMENT, x.itemsize))

    def create_aligned_vector(self, x: np.ndarray, alignment: int) -> int:
        """Writes a 1-D array as a vector whose data starts at a multiple of `alignment`."""
        payload = np.ascontiguousarray(x, x.dtype.newbyteorder("<")).tobytes()
        key = (x.dtype.str, alignment, payload)
        if key not in self._written:
            self.StartVector(x.itemsize, x.size, alignment)
            self.head -= len(payload)
            self.Bytes[self.head : self.head + len(payload)] = payload
            self.vectorNumElems = x.size
            self._written[key] = self.EndVector()
        return self._written[key]


class _AlignedBuffer(schema.BufferT):
    """A constant's bytes, packed at the alignment that the interpreter reads weights with."""

    def Pack(self, builder: _AlignedBuilder) -> int:
        data = None
        if self.data is not None and len(self.data):
            data = builder.create_aligned_vector(self.data, _BUFFER_ALIGNMENT)
        schema.BufferStart(builder)
        if data is not None:
            schema.BufferAddData(builder, data)
        return schema.BufferEnd(builder)


class _SharedQuantization(schema.QuantizationParametersT):
    """Quantization parameters that several tensors have, written once."""

    def Pack(self, builder: _AlignedBuilder) -> int:
        if id(self) not in builder.shared:
            builder.shared[id(self)] = super().Pack(builder)
        return builder.shared[id(self)]


def symmetric_quantization(scale: np.float32) -> Any:
    """Returns parameters of one scale and no offset, for all tensors that mean the same values."""
    quantization = _SharedQuantization()
    quantization.scale = np.array([scale], np.float32)
    # DENSIFY fills with 0, so 0 must mean 0.0.
    quantization.zeroPoint = np.array([0], np.int64)
    return quantization


def is_symmetric_int8(tensor: Any) -> bool:
    """Tells whether a tensor holds int8 codes of one scale, where the code 0 means 0.0."""
    quantization = tensor.quantization
    if tensor.type != schema.TensorType.INT8 or quantization is None:
        return False
    scales, offsets = _read_vector(quantization.scale), _read_vector(quantization.zeroPoint)
    return scales.size == 1 and not offsets.any()


def read_model(data: bytes) -> Any:
    """Parses the bytes of a .tflite file.

    Args:
        data: the content of the file.

    Returns:
        The `ModelT` object tree; buffers stored behind the flatbuffer are brought inside.

    Raises:
        ValueError: if the bytes are not a TFLite model, or are truncated or damaged.
    """
    if len(data) < 8 or data[4:8] != FILE_IDENTIFIER:
        raise ValueError(
            f"Not a .tflite model: expected the identifier {FILE_IDENTIFIER!r} at byte 4. Received "
            f"{bytes(data[4:8])!r} in {len(data)} bytes."
        )
    try:
        model = schema.ModelT.InitFromPackedBuf(bytes(data), 0)
        complete = bool(model.subgraphs and model.buffers)
    except (struct.error, IndexError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise ValueError(f"The .tflite model is truncated or damaged: {error}") from error
    if not complete:
        raise ValueError("The .tflite model is truncated or damaged: it has no subgraph or buffer.")
    for buffer in model.buffers:
        if buffer.offset > 1:
            end = buffer.offset + buffer.size
            if end > len(data):
                raise ValueError("The .tflite model is truncated: a buffer lies behind its end.")
            buffer.data = np.frombuffer(data[buffer.offset : end], np.uint8)
            buffer.offset = buffer.size = 0
    validate(model)
    return model


def pack_model(model: Any) -> bytes:
    """Serialises a `ModelT`, dropping unused buffers and storing equal ones once.

    Args:
        model: the object tree; its buffers are renumbered in place.

    Returns:
        The content of a .tflite file.

    Raises:
        ValueError: if the model is larger than a flatbuffer can be (2 GiB).
    """
    _compact_buffers(model)
    total = sum(0 if buffer.data is None else len(buffer.data) for buffer in model.buffers)
    if total > _MAX_FILE_BYTES - (1 << 20):
        raise ValueError(
            f"The model's constants need {total} bytes, but a .tflite file holds less than 2 GiB."
        )
    builder = _AlignedBuilder(total + (1 << 16))
    builder.Finish(model.Pack(builder), FILE_IDENTIFIER)
    return bytes(builder.Output())


def _compact_buffers(model: Any) -> None:
    # Buffer 0 is empty by convention; everything that is not a constant points there.
    buffers = [_AlignedBuffer()]
    by_content: dict[bytes, int] = {}

    def renumber(index: int) -> int:
        data = model.buffers[index].data
        if data is None or len(data) == 0:
            return 0
        content = np.asarray(data, np.uint8)
        key = content.tobytes()
        if key not in by_content:
            by_content[key] = len(buffers)
            buffers.append(_AlignedBuffer(data=content))
        return by_content[key]

    for subgraph in model.subgraphs:
        for tensor in subgraph.tensors:
            tensor.buffer = renumber(tensor.buffer)
    for metadata in model.metadata or []:
        metadata.buffer = renumber(metadata.buffer)
    model.buffers = buffers


def add_signature(
    model: Any, inputs: Mapping[str, int], outputs: Mapping[str, int], key: str = "serving_default"
) -> None:
    """Names the inputs and outputs of the first subgraph.

    Args:
        model: the `ModelT`, changed in place; existing signatures are replaced.
        inputs: index of the input tensor by name, in the order to write.
        outputs: index of the output tensor by name, in the order to write.
        key: name of the signature.
    """
    signature = schema.SignatureDefT()
    signature.signatureKey = key
    signature.subgraphIndex = 0
    signature.inputs = [_tensor_map(name, index) for name, index in inputs.items()]
    signature.outputs = [_tensor_map(name, index) for name, index in outputs.items()]
    model.signatureDefs = [signature]
    tensors = model.subgraphs[0].tensors
    for name, index in (*inputs.items(), *outputs.items()):
        tensors[index].name = name


def _tensor_map(name: str, index: int) -> Any:
    entry = schema.TensorMapT()
    entry.name = name
    entry.tensorIndex = index
    return entry


def builtin_code(model: Any, operator: Any) -> int:
    """Returns the builtin operator number of an operator."""
    code = model.operatorCodes[operator.opcodeIndex]
    # Files from before the field was widened fill the deprecated one only.
    return max(code.builtinCode, code.deprecatedBuiltinCode)


def operator_code(model: Any, code: int, version: int) -> int:
    """Returns the index of an operator code, which is added where it is missing."""
    for index, known in enumerate(model.operatorCodes):
        same_code = max(known.builtinCode, known.deprecatedBuiltinCode) == code
        if same_code and known.version == version:
            return index
    added = schema.OperatorCodeT()
    added.builtinCode = code
    added.deprecatedBuiltinCode = min(code, _BUILTIN_CODE_LIMIT)
    added.version = version
    model.operatorCodes.append(added)
    return len(model.operatorCodes) - 1


def add_buffer(model: Any, array: np.ndarray) -> int:
    """Appends an array's bytes as a buffer and returns its index."""
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(array.tobytes(), np.uint8)
    model.buffers.append(buffer)
    return len(model.buffers) - 1


def add_tensor(
    subgraph: Any, shape: Any, dtype: int, quantization: Any = None, buffer: int = 0
) -> int:
    """Appends a tensor to a subgraph and returns its index; without a buffer it is computed."""
    tensor = schema.TensorT()
    tensor.shape = np.array(shape, np.int32)
    tensor.type = dtype
    tensor.buffer = buffer
    tensor.hasRank = True
    tensor.quantization = quantization
    subgraph.tensors.append(tensor)
    return len(subgraph.tensors) - 1


def add_operator(model: Any, code: int, inputs: Any, output: int, *, version: int = 1) -> Any:
    """Returns a new operator with one output; the caller places it in a subgraph."""
    operator = schema.OperatorT()
    operator.opcodeIndex = operator_code(model, code, version)
    operator.inputs = np.array(inputs, np.int32)
    operator.outputs = np.array([output], np.int32)
    return operator


def write_sparsity(encoding: SparseEncoding) -> Any:
    """Returns the `SparsityParametersT` that describe an encoding without blocks."""
    parameters = schema.SparsityParametersT()
    parameters.traversalOrder = np.asarray(encoding.order, np.int32)
    parameters.dimMetadata = []
    for level in encoding.levels:
        metadata = schema.DimensionMetadataT()
        metadata.format = int(level.format)
        if level.format == LevelFormat.DENSE:
            metadata.denseSize = level.size
        else:
            metadata.arraySegmentsType, metadata.arraySegments = _index_vector(level.segments)
            metadata.arrayIndicesType, metadata.arrayIndices = _index_vector(level.indices)
        parameters.dimMetadata.append(metadata)
    return parameters


def _index_vector(values: Any) -> tuple[int, Any]:
    dtype = narrowest_index_type(int(values.max()) if values.size else 0)
    union = schema.SparseIndexVector
    kind, vector = {
        np.dtype(np.uint8): (union.Uint8Vector, schema.Uint8VectorT()),
        np.dtype(np.uint16): (union.Uint16Vector, schema.Uint16VectorT()),
        np.dtype(np.int32): (union.Int32Vector, schema.Int32VectorT()),
    }[dtype]
    vector.values = values.astype(dtype)
    return kind, vector


def _read_indices(vector: Any) -> np.ndarray:
    values = None if vector is None else vector.values
    return np.zeros(0, np.int64) if values is None else np.asarray(values, np.int64)


def _read_encoding(tensor: Any, shape: tuple[int, ...], values: np.ndarray) -> SparseEncoding:
    parameters = tensor.sparsity
    order = tuple(int(d) for d in _read_vector(parameters.traversalOrder))
    levels = []
    for dimension, metadata in zip(order, parameters.dimMetadata or [], strict=False):
        if metadata.format == LevelFormat.DENSE:
            levels.append(Level(LevelFormat.DENSE, int(metadata.denseSize)))
            continue
        segments = _read_indices(metadata.arraySegments)
        indices = _read_indices(metadata.arrayIndices)
        size = shape[dimension] if 0 <= dimension < len(shape) else 0
        levels.append(Level(LevelFormat.SPARSE_CSR, size, segments, indices))
    block_map = tuple(int(d) for d in _read_vector(parameters.blockMap))
    return SparseEncoding(shape, order, tuple(levels), values, block_map)


def _read_vector(vector: Any) -> np.ndarray:
    return np.zeros(0, np.int64) if vector is None else np.asarray(vector)


def read_constant(model: Any, tensor: Any) -> Constant | None:
    """Reads a constant tensor, without decoding it where it is sparse.

    Args:
        model: the `ModelT` from `read_model`.
        tensor: one of its tensors.

    Returns:
        The `Constant`; `array` is None where `encoding` is set (use `sparse.decode`) or the type
        is unknown to NumPy. None if the tensor is not a constant.

    Raises:
        ValueError: if the buffer does not fit the tensor's shape and type.
    """
    if not 0 <= tensor.buffer < len(model.buffers):
        raise ValueError(f"A tensor refers to buffer {tensor.buffer} of {len(model.buffers)}.")
    content = _read_vector(model.buffers[tensor.buffer].data).astype(np.uint8, copy=False)
    if content.size == 0 and tensor.sparsity is None:
        return None
    shape = tuple(int(size) for size in _read_vector(tensor.shape))
    if tensor.type in integers.PACKED and tensor.sparsity is None:
        codes = integers.unpacked(content, integers.PACKED[tensor.type], math.prod(shape))
        return Constant(codes.reshape(shape), None, content.size)
    dtype = _DTYPES.get(tensor.type)
    if dtype is None:
        return Constant(None, None, content.size)
    if content.size % dtype.itemsize:
        raise ValueError(f"A buffer of {content.size} bytes does not hold {dtype} values.")
    values = np.frombuffer(content.tobytes(), dtype)
    if tensor.sparsity is not None:
        return Constant(None, _read_encoding(tensor, shape, values), content.size)
    if values.size != int(np.prod(shape, dtype=np.int64)):
        raise ValueError(f"A constant of shape {shape} has {values.size} values.")
    return Constant(values.reshape(shape), None, content.size)


def type_name(tensor: Any) -> str:
    """Returns a tensor's type in words, such as `float32`."""
    return _TYPE_NAMES.get(tensor.type, f"type {tensor.type}")


def tensor_name(tensor: Any) -> str:
    """Returns a tensor's name, empty where it was stripped."""
    name = tensor.name or ""
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
