# SPDX-License-Identifier: Apache-2.0
"""Inputs in bytes, as cameras give them: a model's first rescaling becomes part of reading them."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np

from tfmot_atmc.utils.keras_internals import calls_of

__all__ = ["ByteInput", "byte_input"]

_MOST = 255.0
# Rescaling by less than this takes numbers up to 255.
_SMALL_SCALE = 1.0 / 64.0


@dataclasses.dataclass(frozen=True)
class ByteInput:
    """How bytes become what a network takes: (byte * unit) * scale + offset, for each channel.

    Attributes:
        unit: what one step of a byte means to the Keras model.
        scale: factors, `[channels]`.
        offset: what is added, `[channels]`.
    """

    unit: float
    scale: np.ndarray
    offset: np.ndarray

    def on_grid(self, inputs: np.ndarray) -> np.ndarray:
        """Returns the nearest inputs that bytes can say."""
        bytes_ = np.clip(np.rint(inputs / np.float32(self.unit)), 0.0, _MOST)
        return (bytes_ * np.float32(self.unit)).astype(inputs.dtype)

    def rescale(self, inputs: np.ndarray) -> np.ndarray:
        """Returns what the layers after the rescaling take."""
        return (inputs * self.scale + self.offset).astype(np.float32)

    def codes(self, scale: float, zero_point: int) -> np.ndarray:
        """Returns the int8 codes `[channels, 256]` of all bytes."""
        bytes_ = np.arange(256, dtype=np.float64)[None, :] * self.unit
        real = bytes_ * self.scale[:, None] + self.offset[:, None]
        rounded = np.floor(np.abs(real / scale) + 0.5) * np.sign(real)
        return np.clip(rounded + zero_point, -128, 127).astype(np.int8)


def byte_input(model: keras.Model, pixel_max: float | None) -> tuple[ByteInput | None, keras.Model]:
    """Finds out whether a model takes bytes, and takes its first rescaling off.

    Args:
        model: a built Keras model of one input.
        pixel_max: what the byte 255 means to the model; None takes 255 where the model begins
            with a rescaling of such numbers, and otherwise no bytes.

    Returns:
        The conversion, or None where the input is no bytes, and the model that follows it.
    """
    layer = _first_rescaling(model)
    channels = int(model.inputs[0].shape[-1]) if getattr(model, "inputs", None) else 1
    scale, offset = np.ones(channels), np.zeros(channels)
    if layer is not None:
        scale = np.broadcast_to(np.asarray(layer.scale, np.float64), (channels,))
        offset = np.broadcast_to(np.asarray(layer.offset, np.float64), (channels,))
    if pixel_max is None:
        if layer is None or np.abs(scale).max() >= _SMALL_SCALE:
            return None, model
        pixel_max = _MOST
    inner = model if layer is None else keras.Model(layer.output, model.outputs, name=model.name)
    return ByteInput(pixel_max / _MOST, scale, offset), inner


def _first_rescaling(model: keras.Model) -> keras.layers.Rescaling | None:
    """The rescaling that alone reads the model's input; None where there is none."""
    inputs = getattr(model, "inputs", None)
    found = None
    if not inputs or len(inputs) != 1:
        return None
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer):
            continue
        nodes = [node for node in calls_of(layer) if inputs[0] in node.input_tensors]
        if nodes and (found is not None or not isinstance(layer, keras.layers.Rescaling)):
            return None
        found = layer if nodes else found
    return found
