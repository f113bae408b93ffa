# SPDX-License-Identifier: Apache-2.0
"""Makes a model's graph as small as it can be without changing what it computes."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfmot_atmc.export.tflite import flatbuffer

_RESHAPE = schema.BuiltinOperator.RESHAPE
_DENSE = schema.BuiltinOperator.FULLY_CONNECTED


def clean_model(model: Any) -> dict[tuple[int, int], int]:
    """Removes what a model does not need to run.

    Metadata, names of inner tensors, empty tables and unused tensors go, of two reshapes in a row
    the first, and reshapes that change nothing for what reads them. Signatures and the names of
    inputs and outputs stay.

    Args:
        model: the `ModelT`, changed in place.

    Returns:
        New number of each tensor that stays, by subgraph and old number.
    """
    numbers = {}
    model.metadata = model.metadataBuffer = model.description = None
    for number, subgraph in enumerate(model.subgraphs):
        _merge_reshapes(model, subgraph)
        _drop_idle_reshapes(model, subgraph)
        kept = _drop_unused_tensors(model, number)
        numbers.update({(number, old): new for new, old in enumerate(kept)})
        subgraph.name = None
        for index, tensor in enumerate(subgraph.tensors):
            _strip_tensor(tensor, keep_name=index in _ends(subgraph))
    return numbers


def _ends(subgraph: Any) -> set[int]:
    return {int(index) for index in (*subgraph.inputs, *subgraph.outputs)}


def _strip_tensor(tensor: Any, keep_name: bool) -> None:
    # The flag tells a scalar from a tensor of unknown rank; a shape says it all.
    if tensor.shape is not None and len(tensor.shape):
        tensor.hasRank = False
    if keep_name:
        return
    tensor.name = None
    # Only a -1 says something that the shape does not say.
    if tensor.shapeSignature is not None and np.all(np.asarray(tensor.shapeSignature) >= 0):
        tensor.shapeSignature = None
    quantization = tensor.quantization
    if quantization is not None and quantization.scale is None and quantization.min is None:
        tensor.quantization = None


def _reads(operator: Any) -> list[int]:
    return [] if operator.inputs is None else [int(index) for index in operator.inputs]


def _merge_reshapes(model: Any, subgraph: Any) -> None:
    """Lets a reshape read what the reshape before it read, where nothing else needs that one."""
    reads = Counter(index for operator in subgraph.operators for index in _reads(operator))
    reads.update(int(index) for index in subgraph.outputs)
    reshapes = {
        int(operator.outputs[0]): operator
        for operator in subgraph.operators
        if flatbuffer.builtin_code(model, operator) == _RESHAPE
    }
    dropped = set()
    for operator in reshapes.values():
        source = int(operator.inputs[0])
        if source in reshapes and reads[source] == 1:
            operator.inputs = np.array(operator.inputs, np.int32)
            operator.inputs[0] = int(reshapes[source].inputs[0])
            dropped.add(id(reshapes[source]))
    subgraph.operators = [o for o in subgraph.operators if id(o) not in dropped]


def _drop_idle_reshapes(model: Any, subgraph: Any) -> None:
    """Lets what reads a reshape's result read its source, where the shape makes no difference.

    It makes none where it is the same, and for a dense layer, which takes the last axis of its
    input for the features and all others for the batch.
    """
    ends, read = _ends(subgraph), Counter[int]()
    readers: dict[int, list[tuple[Any, int]]] = defaultdict(list)
    for operator in subgraph.operators:
        for position, index in enumerate(_reads(operator)):
            readers[index].append((operator, position))
    for reshape in [o for o in subgraph.operators if _is(model, o, _RESHAPE)]:
        source, result = int(reshape.inputs[0]), int(reshape.outputs[0])
        same = _shape_of(subgraph, source) == _shape_of(subgraph, result)
        for operator, position in readers[result]:
            if same or (position == 0 and _flattens(model, subgraph, operator, source)):
                operator.inputs = np.array(operator.inputs, np.int32)
                operator.inputs[position] = source
                readers[source].append((operator, position))
            else:
                read[result] += 1
    subgraph.operators = [
        o
        for o in subgraph.operators
        if not _is(model, o, _RESHAPE) or read[int(o.outputs[0])] or int(o.outputs[0]) in ends
    ]


def _is(model: Any, operator: Any, code: int) -> bool:
    return flatbuffer.builtin_code(model, operator) == code


def _shape_of(subgraph: Any, index: int) -> tuple[list[int], list[int] | None]:
    """The shape of a tensor, and which of its axes are open."""
    tensor = subgraph.tensors[index]
    signature = tensor.shapeSignature
    return list(tensor.shape), None if signature is None else list(signature)


def _flattens(model: Any, subgraph: Any, operator: Any, source: int) -> bool:
    """Whether an operator is a dense layer of static shapes that takes a tensor as rows."""
    if not _is(model, operator, _DENSE) or operator.builtinOptions.keepNumDims:
        return False
    weight = subgraph.tensors[int(operator.inputs[1])]
    (shape, signature), result = _shape_of(subgraph, source), int(operator.outputs[0])
    static = all(s is None or min(s, default=0) >= 0 for s in (signature, _open(subgraph, result)))
    return static and len(shape) > 1 and len(weight.shape) == 2 and shape[-1] == weight.shape[1]


def _open(subgraph: Any, index: int) -> list[int] | None:
    return _shape_of(subgraph, index)[1]


def _drop_unused_tensors(model: Any, number: int) -> list[int]:
    """Removes tensors that nothing names; returns the old numbers of the others, in order."""
    subgraph = model.subgraphs[number]
    lists = [subgraph, *subgraph.operators]
    used = {int(i) for owner in lists for i in (*_reads(owner), *owner.outputs) if i >= 0}
    for operator in subgraph.operators:
        used.update(int(i) for i in _inner(operator) if i >= 0)
    signatures = [s for s in model.signatureDefs or [] if s.subgraphIndex == number]
    maps = [entry for s in signatures for entry in (*(s.inputs or []), *(s.outputs or []))]
    used.update(entry.tensorIndex for entry in maps)
    kept = sorted(used)
    renumbered = {old: new for new, old in enumerate(kept)} | {-1: -1}
    subgraph.tensors = [subgraph.tensors[index] for index in kept]
    for owner in lists:
        owner.inputs = np.array([renumbered[i] for i in _reads(owner)], np.int32)
        owner.outputs = np.array([renumbered[int(i)] for i in owner.outputs], np.int32)
    for operator in subgraph.operators:
        if len(_inner(operator)):
            inner = [renumbered[int(i)] for i in _inner(operator)]
            operator.intermediates = np.array(inner, np.int32)
    for entry in maps:
        entry.tensorIndex = renumbered[entry.tensorIndex]
    return kept


def _inner(operator: Any) -> list[int]:
    return [] if operator.intermediates is None else list(operator.intermediates)
