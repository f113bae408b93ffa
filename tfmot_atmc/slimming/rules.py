# SPDX-License-Identifier: Apache-2.0
"""What each kind of layer does to channels: which it ties, and which constants pass through.

A rule is a function `(channels, node, signals) -> Signal | None` of a call of a layer. None says
that nothing is known: the layer is then opaque, all channels it reads stay, and so do all that it
returns. A rule holds for exactly the class it is registered for, since a subclass may compute
something else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from tfmot_atmc.slimming.channels import Channels, Signal, Weighted, join

Rule = Callable[[Channels, Any, list[Signal]], Signal | None]

# Activations that treat every value by itself; softmax does not.
_ELEMENTWISE = {
    "celu", "elu", "exponential", "gelu", "hard_sigmoid", "hard_silu", "hard_tanh", "leaky_relu",
    "linear", "log_sigmoid", "mish", "relu", "relu6", "selu", "sigmoid", "silu", "softplus",
    "softsign", "squareplus", "tanh",
}  # fmt: skip


def is_elementwise(activation: Any) -> bool:
    """Tells whether an activation is a Keras function that treats every value by itself."""
    name = getattr(activation, "__name__", "")
    return name in _ELEMENTWISE and getattr(keras.activations, name, None) is activation


def _activate(activation: Any, values: np.ndarray) -> np.ndarray:
    """The activation of constants, in float32 as the model computes it; NaN stays NaN."""
    known = ~np.isnan(values)
    given = np.where(known, values, 0.0).astype(np.float32)
    result = keras.ops.convert_to_numpy(activation(keras.ops.convert_to_tensor(given)))
    return np.where(known, result.astype(np.float64), np.nan)


def _array(variable: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(variable).astype(np.float64)


def _never_pads(layer: Any) -> bool:
    return getattr(layer, "padding", "valid") == "valid" or max(layer.kernel_size) == 1


def _channels_last(layer: Any) -> bool:
    return getattr(layer, "data_format", None) in (None, "channels_last")


def mixes(channels: Channels, node: Any, signals: list[Signal]) -> Signal | None:
    """Dense layers and convolutions: every output channel may read every input channel."""
    layer, (signal,) = node.operation, signals
    kernel = _array(layer.kernel)
    is_dense = isinstance(layer, layers.Dense)
    odd = layer.quantization_mode is not None if is_dense else layer.groups != 1
    if odd or getattr(layer, "lora_enabled", False) or not _channels_last(layer):
        return None
    places = tuple(range(kernel.ndim - 2))
    reach, effect = (kernel != 0).any(axis=places), kernel.sum(axis=places)
    # Beyond the border there are zeros: only a constant zero goes on there.
    exact = signal.known & (is_dense or _never_pads(layer) | (signal.constants == 0))
    constants = np.where(exact, signal.constants, np.nan)
    known = channels.weighted.get(id(layer))
    if known is None:
        result = channels.fresh(kernel.shape[-1]).atoms
        channels.weighted[id(layer)] = Weighted(signal.atoms, result, reach, effect, constants)
    else:
        result = known.result
        channels.tie(known.source, signal.atoms)
        known.agree(constants)
    bias = _array(layer.bias) if layer.use_bias else np.zeros(kernel.shape[-1])
    values = np.nan_to_num(constants) @ effect + bias
    values[reach[~exact].any(axis=0)] = np.nan
    if is_elementwise(layer.activation):
        return Signal(result, _activate(layer.activation, values))
    channels.protected.append(result)
    return Signal(result, np.full(len(result), np.nan))


def filters_each(channels: Channels, node: Any, signals: list[Signal]) -> Signal | None:
    """Depthwise convolutions: every channel by itself, `depth_multiplier` outputs each."""
    layer, (signal,) = node.operation, signals
    if not _channels_last(layer) or not is_elementwise(layer.activation):
        return None
    kernel = _array(layer.kernel)
    multiplier = kernel.shape[-1]
    channels.scale(layer, signal.atoms)
    reach = (kernel != 0).any(axis=(0, 1)).reshape(-1)
    effect = kernel.sum(axis=(0, 1)).reshape(-1)
    source = np.repeat(signal.constants, multiplier)
    exact = ~np.isnan(source) & (_never_pads(layer) | (source == 0))
    bias = _array(layer.bias) if layer.use_bias else 0.0
    values = np.where(exact, np.nan_to_num(source) * effect + bias, np.nan)
    values = np.where(reach, values, bias)
    constants = _activate(layer.activation, values)
    return Signal(np.repeat(signal.atoms, multiplier), constants)


def _evaluate(node: Any, signals: list[Signal]) -> np.ndarray:
    """What an elementwise layer makes of constants; NaN where any of its inputs is unknown."""
    rank = len(node.input_tensors[0].shape)
    known = np.logical_and.reduce([signal.known for signal in signals])
    given = [
        np.where(known, signal.constants, 0.0).astype(np.float32).reshape([1] * (rank - 1) + [-1])
        for signal in signals
    ]
    result = node.operation(given if len(given) > 1 else given[0], training=False)
    values = keras.ops.convert_to_numpy(result).astype(np.float64).reshape(-1)
    return np.where(known, values, np.nan)


def normalises(channels: Channels, node: Any, signals: list[Signal]) -> Signal | None:
    """Batch normalisation over the last axis, with its moving statistics."""
    (signal,) = signals
    layer, rank = node.operation, len(node.input_tensors[0].shape)
    axis = layer.axis[0] if isinstance(layer.axis, (list, tuple)) else layer.axis
    if axis % rank != rank - 1:
        return None
    channels.scale(layer, signal.atoms)
    return Signal(signal.atoms, _evaluate(node, signals))


def activates(channels: Channels, node: Any, signals: list[Signal]) -> Signal | None:
    """Activation layers with a function that treats every value by itself."""
    (signal,) = signals
    activation = node.operation.activation
    if not is_elementwise(activation):
        return None
    return Signal(signal.atoms, _activate(activation, signal.constants))


def maps_values(channels: Channels, node: Any, signals: list[Signal]) -> Signal | None:
    """Weightless layers that treat every value by itself."""
    return Signal(signals[0].atoms, _evaluate(node, signals))


def keeps(channels: Channels, node: Any, signals: list[Signal]) -> Signal | None:
    """Layers that change no constant channel: dropout, and pooling, which ignores its padding."""
    return signals[0] if _channels_last(node.operation) else None


def pads(channels: Channels, node: Any, signals: list[Signal]) -> Signal | None:
    """Padding with zeros: only a constant zero stays constant."""
    (signal,) = signals
    if not _channels_last(node.operation):
        return None
    return Signal(signal.atoms, np.where(signal.constants == 0, 0.0, np.nan))


def flattens(channels: Channels, node: Any, signals: list[Signal]) -> Signal | None:
    """Flattening of images of known size: the channels come once per position."""
    (signal,) = signals
    size = node.outputs[0].shape[-1]
    if not _channels_last(node.operation) or size is None:
        return None
    times = size // len(signal)
    return Signal(np.tile(signal.atoms, times), np.tile(signal.constants, times))


def combines(channels: Channels, node: Any, signals: list[Signal]) -> Signal | None:
    """Sums and their like: channel by channel over inputs of one shape."""
    shapes = {tuple(tensor.shape) for tensor in node.input_tensors}
    if len(shapes) > 1:
        return None
    for signal in signals[1:]:
        channels.tie(signals[0].atoms, signal.atoms)
    return Signal(signals[0].atoms, _evaluate(node, signals))


def concatenates(channels: Channels, node: Any, signals: list[Signal]) -> Signal | None:
    """Concatenation along the channels."""
    rank = len(node.outputs[0].shape)
    return join(signals) if node.operation.axis % rank == rank - 1 else None


def widens(channels: Channels, node: Any, signals: list[Signal]) -> Signal | None:
    """Layers that pass their channels on, with zero channels before and behind them.

    They have the methods `zero_channels` and `with_zero_channels`, see `SubsampleShortcut`.
    """
    (signal,), layer = signals, node.operation
    if id(layer) in channels.widened:  # one place for all its calls
        return None
    before, behind = (
        Signal(channels.fresh(number).atoms, np.zeros(number))
        for number in layer.zero_channels(len(signal))
    )
    channels.widened[id(layer)] = before.atoms, signal.atoms, behind.atoms
    return join([before, signal, behind])


def rule_for(layer: Any) -> Rule | None:
    """Returns the rule of a layer, or None where it is not known."""
    if hasattr(layer, "zero_channels") and hasattr(layer, "with_zero_channels"):
        return widens
    return RULES.get(type(layer))


RULES: dict[type, Rule] = {
    **dict.fromkeys((layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D), mixes),
    layers.DepthwiseConv2D: filters_each,
    layers.BatchNormalization: normalises,
    layers.Activation: activates,
    **dict.fromkeys((layers.ReLU, layers.LeakyReLU, layers.ELU), maps_values),
    **dict.fromkeys(
        (
            layers.Dropout, layers.SpatialDropout2D, layers.GaussianDropout, layers.GaussianNoise,
            layers.Identity, layers.Cropping2D,
            layers.MaxPooling1D, layers.MaxPooling2D, layers.MaxPooling3D,
            layers.AveragePooling1D, layers.AveragePooling2D, layers.AveragePooling3D,
            layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D,
            layers.GlobalMaxPooling1D, layers.GlobalMaxPooling2D, layers.UpSampling2D,
        ),
        keeps,
    ),
    **dict.fromkeys((layers.ZeroPadding1D, layers.ZeroPadding2D), pads),
    layers.Flatten: flattens,
    **dict.fromkeys(
        (
            layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum,
            layers.Minimum,
        ),
        combines,
    ),
    layers.Concatenate: concatenates,
}  # fmt: skip
