# SPDX-License-Identifier: Apache-2.0
"""Networks of one int8 operator with any scales, for comparisons with TensorFlow Lite Micro."""

import dataclasses

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from tfmot_atmc.export.tflite import flatbuffer


@dataclasses.dataclass
class Int8:
    """A quantised tensor; a constant where there are values, int32 ones for biases."""

    shape: tuple
    scale: float | np.ndarray = 1.0
    zero_point: int = 0
    values: np.ndarray | None = None
    axis: int = 0


def one_operator(name, options, inputs, output):
    """The bytes of a .tflite file whose first input is the network's; options by field."""
    model = schema.ModelT()
    model.version = 3
    model.buffers = [schema.BufferT()]
    model.operatorCodes, model.metadata, model.signatureDefs = [], [], []
    graph = schema.SubGraphT()
    graph.tensors, graph.operators = [], []
    model.subgraphs = [graph]
    indices = [_add(model, graph, t) for t in (*inputs, output)]
    operator = schema.OperatorT()
    code = getattr(schema.BuiltinOperator, name)
    operator.opcodeIndex = flatbuffer.operator_code(model, code, 1)
    operator.inputs = np.array(indices[:-1], np.int32)
    operator.outputs = np.array(indices[-1:], np.int32)
    kind, fields = options or (None, {})
    if kind is not None:
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
        operator.builtinOptions = getattr(schema, f"{kind}T")()
        for field, value in fields.items():
            setattr(operator.builtinOptions, field, value)
    graph.operators.append(operator)
    computed = [i for i, t in zip(indices, (*inputs, output), strict=True) if t.values is None]
    graph.inputs = np.array(computed[:-1][:1], np.int32)
    graph.outputs = np.array(computed[-1:], np.int32)
    return flatbuffer.pack_model(model)


def _add(model, graph, wanted):
    tensor = schema.TensorT()
    tensor.name = f"t{len(graph.tensors)}".encode()
    tensor.shape = np.array(wanted.shape, np.int32)
    values = wanted.values
    dtype = np.dtype(np.int8) if values is None else values.dtype
    tensor.type = {"int8": schema.TensorType.INT8, "int32": schema.TensorType.INT32}[dtype.name]
    tensor.buffer = 0 if values is None else flatbuffer.add_buffer(model, values)
    scales = np.atleast_1d(np.asarray(wanted.scale, np.float32))
    quantization = schema.QuantizationParametersT()
    quantization.scale = scales
    quantization.zeroPoint = np.full(scales.size, wanted.zero_point, np.int64)
    quantization.quantizedDimension = wanted.axis
    tensor.quantization = quantization
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def micro(data, codes):
    """What TensorFlow Lite Micro returns for int8 codes `[batch, ...]`."""
    runtime = pytest.importorskip(
        "tflite_micro.python.tflite_micro.runtime", reason="tflite-micro is not installed"
    )
    interpreter = runtime.Interpreter.from_bytes(data, arena_size=1 << 20)
    outputs = []
    for code in codes:
        interpreter.set_input(code[None], 0)
        interpreter.invoke()
        outputs.append(interpreter.get_output(0).reshape(-1))
    return np.array(outputs)
