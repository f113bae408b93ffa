# SPDX-License-Identifier: Apache-2.0
"""How large a file will be, without writing it."""

from __future__ import annotations

import math
from typing import Any

import keras

from tfmot_atmc.export.tflite import cleaning, flatbuffer
from tfmot_atmc.export.tflite.conversion import convert, describe_inputs
from tfmot_atmc.export.tflite.rewrite import (
    DEQUANTIZE_BYTES,
    ROUNDED,
    sparsify_weights,
    stored_bytes,
)
from tfmot_atmc.utils.keras_internals import inner_layers, own_variables

# What `export_tflite` has by default.
_MIN_SPARSITY = 0.5
_NORMALISATIONS = (keras.layers.BatchNormalization,)


def graph_bytes(model: keras.Model, *, batch_size: int | None = 1) -> int:
    """Returns the bytes of a model's file that are not weights: the graph, names and alignment.

    Args:
        model: a built model; it is converted for this.
        batch_size: batch of the file, see `export_tflite`.
    """
    converted = flatbuffer.read_model(convert(model, describe_inputs(model, None, batch_size)))
    cleaning.clean_model(converted)
    data = flatbuffer.pack_model(converted)
    constants = {}
    for subgraph in converted.subgraphs:
        for tensor in subgraph.tensors:
            found = flatbuffer.read_constant(converted, tensor)
            if found is not None and flatbuffer.type_name(tensor) == "float32":
                constants[tensor.buffer] = found.nbytes
    return len(data) - sum(constants.values())


def file_bytes(model: keras.Model, *, values: str = "auto", batch_size: int | None = 1) -> int:
    """Returns the size of a model's file, without names of layers; nothing is written or run.

    Args:
        model: a built model; it is converted for this.
        values: how values are stored, see `export_tflite`.
        batch_size: batch of the file, see `export_tflite`.
    """
    converted = flatbuffer.read_model(convert(model, describe_inputs(model, None, batch_size)))
    sparsify_weights(converted, min_sparsity=_MIN_SPARSITY, values=values)
    cleaning.clean_model(converted)
    return len(flatbuffer.pack_model(converted))


def weight_bytes(model: keras.Model, *, values: str = "auto") -> int:
    """Returns the bytes that a model's weights take in a file, each in its smallest storage.

    Args:
        model: a built plain model. Batch normalisation is taken to be folded into the layer before
            it, whose bias it becomes.
        values: how values are stored, see `export_tflite`.
    """
    return sum(
        _layer_bytes(layer, values)
        for layer in inner_layers(model)
        if layer.weights and not isinstance(layer, keras.Model)
    )


def _layer_bytes(layer: Any, values: str) -> int:
    if isinstance(layer, _NORMALISATIONS):
        return _bias_bytes(layer.moving_mean.shape[0], values)
    own = own_variables(layer)
    total = 0
    for variable in own:
        if len(variable.shape) > 1:
            total += stored_bytes(keras.ops.convert_to_numpy(variable), values=values)
        else:
            total += _bias_bytes(math.prod(variable.shape), values)
    return total


def _bias_bytes(size: int, values: str) -> int:
    plain = 4 * size
    return min(plain, size + DEQUANTIZE_BYTES) if values in ROUNDED else plain
