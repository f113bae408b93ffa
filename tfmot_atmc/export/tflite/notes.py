# SPDX-License-Identifier: Apache-2.0
"""What a .tflite file says of itself: short names of tensors, classes, how inputs are quantised."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfmot_atmc.export.tflite import flatbuffer

__all__ = ["add_notes", "layer_names", "list_operators", "read_notes", "short_names", "write_names"]

_NUMBER = re.compile(r"_\d+$")
_METADATA = "tfmot_atmc"
_OPERATORS = {
    code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")
}


def layer_names(layers: Iterable[Any]) -> dict[str, str]:
    """Returns what each layer is called in a file, by its name.

    Keras numbers layers without a name by process; here they are numbered by model, so that equal
    models give equal files.

    Args:
        layers: the layers of a model, in order.
    """
    found: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for layer in layers:
        name, kind = layer.name, _NUMBER.sub("", layer.name)
        if kind.replace("_", "") == type(layer).__name__.lower() and name not in found:
            found[name] = f"{kind}_{counts[kind]}" if counts[kind] else kind
            counts[kind] += 1
        found.setdefault(name, name)
    return found


def short_names(
    names: Mapping[tuple[int, int], str], layers: Mapping[str, str]
) -> dict[tuple[int, int], str]:
    """Returns the layer's name for each weight; weights of unknown layers are left out.

    Args:
        names: names as the converter makes them, such as `"net/conv1/convolution;net/bn/add"`.
        layers: what each layer is called, by the name of the layer.

    Example:

    >>> short_names({(0, 3): "net/conv1/convolution"}, {"conv1": "conv1", "net": "net"})
    {(0, 3): 'conv1'}
    """
    known = set(layers)
    split = {key: name.replace(";", "/").split("/") for key, name in names.items()}
    # A model that was called before has a number behind all of its names.
    bare = {key: [_NUMBER.sub("", part) for part in parts] for key, parts in split.items()}
    found = [
        {
            key: layers[hits[-1]]
            for key, parts in way.items()
            if (hits := [p for p in parts if p in known])
        }
        for way in (split, bare)
    ]
    return max(found, key=len)


def write_names(model: Any, names: Mapping[tuple[int, int], str]) -> None:
    """Names the tensors of a model, in place.

    Args:
        model: the `ModelT`.
        names: name by subgraph and tensor number.
    """
    for (subgraph, index), name in names.items():
        tensor = model.subgraphs[subgraph].tensors[index]
        if not flatbuffer.tensor_name(tensor):
            tensor.name = name.encode()


def add_notes(model: Any, class_names: Sequence[str] | None) -> None:
    """Writes class names, and how inputs and outputs are quantised, into a model's metadata.

    Nothing is written where there is nothing to say: no class names, floats at both ends.

    Args:
        model: the `ModelT`, changed in place.
        class_names: names of the outputs, or None.
    """
    graph = model.subgraphs[0]
    ends = {
        "inputs": [_quantization(graph.tensors[int(i)]) for i in graph.inputs],
        "outputs": [_quantization(graph.tensors[int(i)]) for i in graph.outputs],
    }
    notes: dict[str, Any] = {}
    if class_names is not None:
        notes["class_names"] = [str(name) for name in class_names]
    if any(end for found in ends.values() for end in found):
        notes |= ends
        notes["quantization"] = "real value = scale * (stored value - zero_point)"
    if not notes:
        return
    entry = schema.MetadataT()
    entry.name = _METADATA.encode()
    text = json.dumps(notes, separators=(",", ":")).encode()
    entry.buffer = flatbuffer.add_buffer(model, np.frombuffer(text, np.uint8))
    model.metadata = [entry]


def _quantization(tensor: Any) -> dict[str, Any] | None:
    found = tensor.quantization
    if found is None or found.scale is None or len(found.scale) != 1:
        return None
    return {
        "type": flatbuffer.type_name(tensor),
        "scale": float(found.scale[0]),
        "zero_point": int(found.zeroPoint[0]),
    }


def read_notes(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns what `export_tflite` wrote into a file's metadata; empty where it wrote nothing.

    Args:
        path: a .tflite file.

    Returns:
        `"class_names"`, and `"inputs"` and `"outputs"` with type, scale and zero point of each.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a .tflite file, or its note is damaged.
    """
    model = flatbuffer.read_model(Path(path).read_bytes())
    for entry in model.metadata or []:
        if (entry.name or b"").decode(errors="replace") != _METADATA:
            continue
        try:
            return json.loads(bytes(bytearray(model.buffers[entry.buffer].data)))
        except (ValueError, IndexError, TypeError) as error:
            raise ValueError(f"{os.fspath(path)}: the note in it cannot be read.") from error
    return {}


def list_operators(path: str | os.PathLike[str]) -> dict[str, int]:
    """Returns how often a file uses each operator, the most used first.

    Args:
        path: a .tflite file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a .tflite file.
    """
    model = flatbuffer.read_model(Path(path).read_bytes())
    counts = Counter(
        _OPERATORS.get(flatbuffer.builtin_code(model, operator), "CUSTOM")
        for subgraph in model.subgraphs
        for operator in subgraph.operators or []
    )
    return dict(counts.most_common())
