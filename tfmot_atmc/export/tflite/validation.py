# SPDX-License-Identifier: Apache-2.0
"""Refuses parsed .tflite models whose parts point where nothing is."""

from __future__ import annotations

from typing import Any

import numpy as np


def validate(model: Any) -> None:
    """Checks every index of a model, and gives missing lists their empty form.

    Args:
        model: the `ModelT`, changed in place: lists that a file may leave out are empty afterwards,
            the shape of a scalar too.

    Raises:
        ValueError: if an index is out of range or a needed part is missing.
    """
    model.operatorCodes = model.operatorCodes or []
    for number, subgraph in enumerate(model.subgraphs):
        where = f"subgraph {number}"
        subgraph.tensors = subgraph.tensors or []
        subgraph.operators = subgraph.operators or []
        count = len(subgraph.tensors)
        for tensor in subgraph.tensors:
            _in_range([tensor.buffer], len(model.buffers), f"a tensor of {where}", "buffer")
            tensor.shape = _vector(tensor.shape)
            if tensor.shape.size and tensor.shape.min() < 0:
                raise ValueError(f"A tensor of {where} has the shape {tensor.shape.tolist()}.")
        subgraph.inputs = _vector(subgraph.inputs)
        subgraph.outputs = _vector(subgraph.outputs)
        _in_range([*subgraph.inputs, *subgraph.outputs], count, where, "tensor")
        for operator in subgraph.operators:
            _validate_operator(operator, count, len(model.operatorCodes), where)
    for signature in model.signatureDefs or []:
        _in_range([signature.subgraphIndex], len(model.subgraphs), "a signature", "subgraph")
        tensors = model.subgraphs[signature.subgraphIndex].tensors
        signature.inputs, signature.outputs = signature.inputs or [], signature.outputs or []
        indices = [entry.tensorIndex for entry in (*signature.inputs, *signature.outputs)]
        _in_range(indices, len(tensors), "a signature", "tensor")
    for metadata in model.metadata or []:
        _in_range([metadata.buffer], len(model.buffers), "metadata", "buffer")


def _validate_operator(operator: Any, tensors: int, codes: int, where: str) -> None:
    who = f"an operator of {where}"
    _in_range([operator.opcodeIndex], codes, who, "operator code")
    operator.inputs, operator.outputs = _vector(operator.inputs), _vector(operator.outputs)
    # An optional input that is left out is -1.
    _in_range([index for index in operator.inputs if index != -1], tensors, who, "tensor")
    _in_range(operator.outputs, tensors, who, "tensor")
    _in_range(_vector(operator.intermediates), tensors, who, "tensor")


def _vector(vector: Any) -> np.ndarray:
    return np.zeros(0, np.int32) if vector is None else np.array(vector, np.int32)


def _in_range(indices: Any, count: int, who: str, what: str) -> None:
    wrong = [int(index) for index in indices if not 0 <= index < count]
    if wrong:
        raise ValueError(
            f"The .tflite model is damaged: {who} refers to {what} {wrong[0]} of {count}."
        )
