# SPDX-License-Identifier: Apache-2.0
"""What the networks share: initialisation, normalisation, convolutions, option-A shortcuts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

__all__ = [
    "FanInUniform",
    "Normalization",
    "Seeds",
    "Shape",
    "SubsampleShortcut",
    "batch_norm",
    "conv",
    "dense",
    "start",
]

Shape = tuple[int, ...]
Normalization = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation, one number per channel, in input units."""


@keras.saving.register_keras_serializable(package="tfmot_atmc")
class FanInUniform(keras.initializers.Initializer):
    """Uniform initialiser on [-1/sqrt(fan_in), 1/sqrt(fan_in)].

    This is what the reference implementations of the papers start their convolutions and dense
    layers from, kernels and biases alike.

    Args:
        fan_in: inputs that one output sums over. `None` reads it off the shape, as the product of
            all dimensions but the last; a bias, whose shape does not tell, needs it given.
        seed: integer for reproducible values, or `None`.

    Example:

    >>> values = FanInUniform(seed=1)((25, 4))
    >>> bool(abs(values.numpy()).max() <= 0.2)
    True
    """

    def __init__(self, fan_in: int | None = None, seed: int | None = None):
        if fan_in is not None and fan_in < 1:
            raise ValueError(f"`fan_in` must be a positive integer or None. Received: {fan_in}")
        self.fan_in = fan_in
        self.seed = seed

    def __call__(self, shape: Sequence[int], dtype: Any = None) -> Any:
        """Returns a tensor of the given shape and dtype."""
        if self.fan_in is None and len(shape) < 2:
            raise ValueError(
                f"`fan_in` cannot be read off the shape {tuple(shape)}: give it to `FanInUniform`."
            )
        bound = 1.0 / math.sqrt(self.fan_in or math.prod(shape[:-1]))
        return keras.random.uniform(
            shape, minval=-bound, maxval=bound, dtype=dtype or keras.config.floatx(), seed=self.seed
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {"fan_in": self.fan_in, "seed": self.seed}


@keras.saving.register_keras_serializable(package="tfmot_atmc")
class SubsampleShortcut(keras.layers.Layer):
    """Parameter-free shortcut: every `strides`-th pixel, with zero channels added on both sides.

    It is "option A" of the CIFAR residual networks (He et al., 2016).

    Args:
        filters: channels of the output; at least those of the input.
        strides: step between the pixels that are kept.
        before: zero channels in front of those of the input; None for half of all that are added.
        **kwargs: passed to `keras.layers.Layer`.

    Example:

    >>> SubsampleShortcut(8, strides=2)(np.ones((1, 4, 4, 4))).shape
    TensorShape([1, 2, 2, 8])
    """

    def __init__(self, filters: int, strides: int = 2, before: int | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.filters = filters
        self.strides = strides
        self.before = before

    def build(self, input_shape: Shape) -> None:
        """Checks that the shortcut widens."""
        if input_shape[-1] > self.filters:
            raise ValueError(
                "`filters` must be at least the number of input channels. "
                f"Received: filters={self.filters}, input_shape={tuple(input_shape)}"
            )
        if self.before is not None and not 0 <= self.before <= self.filters - input_shape[-1]:
            raise ValueError(
                "`before` must lie between 0 and the number of channels that are added, "
                f"{self.filters - input_shape[-1]}. Received: {self.before}"
            )
        super().build(input_shape)

    def zero_channels(self, inputs: int) -> tuple[int, int]:
        """Returns how many zero channels stand before and behind those of the input.

        By this method and `with_zero_channels` slimming knows the layer as one that passes its
        channels on; a layer of your own may have both.

        Args:
            inputs: channels of the input.
        """
        extra = self.filters - inputs
        before = extra // 2 if self.before is None else self.before
        return before, extra - before

    def with_zero_channels(self, inputs: int, before: int, behind: int) -> dict[str, Any]:
        """Returns the configuration of the same layer for other numbers of channels.

        Args:
            inputs: channels of the input.
            before: zero channels in front of them.
            behind: zero channels behind them.
        """
        return {**self.get_config(), "filters": before + inputs + behind, "before": before}

    def call(self, inputs: Any) -> Any:
        """Returns the shortcut of a batch `[batch, height, width, channels]`."""
        added = self.zero_channels(inputs.shape[-1])
        outputs = inputs[:, :: self.strides, :: self.strides, :]
        return keras.ops.pad(outputs, [[0, 0], [0, 0], [0, 0], added])

    def compute_output_shape(self, input_shape: Shape) -> tuple[int | None, ...]:
        """Returns the shape of the output for a shape of the input."""
        batch, *sides, _ = input_shape
        return (batch, *(side and -(-side // self.strides) for side in sides), self.filters)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        own = {"filters": self.filters, "strides": self.strides}
        placed = {} if self.before is None else {"before": self.before}
        return {**super().get_config(), **own, **placed}


class Seeds:
    """Gives each variable of a model a seed of its own, all drawn from one.

    Args:
        seed: integer, or `None` for seeds from Keras's global generator.
    """

    def __init__(self, seed: int | None):
        self._source = None if seed is None else np.random.default_rng(seed)

    def __call__(self) -> int | None:
        """Returns the next seed."""
        return None if self._source is None else int(self._source.integers(2**31))


def start(input_shape: Sequence[int], normalization: Normalization | None) -> tuple[Any, Any]:
    """Returns the input tensor, and the tensor after the normalisation if there is one."""
    shape = tuple(input_shape)
    if len(shape) != 3:
        raise ValueError(
            f"`input_shape` must be (height, width, channels). Received: {input_shape}"
        )
    inputs = keras.Input(shape, name="image")
    if normalization is None:
        return inputs, inputs
    mean, deviation = (np.asarray(part, dtype="float64") for part in normalization)
    if (
        mean.shape != deviation.shape
        or mean.shape not in [(), (1,), shape[-1:]]
        or (deviation <= 0).any()
    ):
        raise ValueError(
            "`normalization` must be (mean, standard deviation), positive deviations, "
            f"one number per channel ({shape[-1]}). Received: {normalization}"
        )
    scale = np.broadcast_to(1.0 / deviation, shape[-1:])
    offset = np.broadcast_to(-mean / deviation, shape[-1:])
    layer = keras.layers.Rescaling(scale.tolist(), offset.tolist(), name="normalization")
    return inputs, layer(inputs)


def batch_norm(x: Any, name: str) -> Any:
    """Batch normalisation with the reference implementations' epsilon and momentum."""
    return keras.layers.BatchNormalization(epsilon=1e-5, momentum=0.9, name=name)(x)


def conv(
    x: Any,
    filters: int,
    size: int,
    *,
    seeds: Seeds,
    name: str,
    strides: int = 1,
    initializer: keras.initializers.Initializer | None = None,
) -> Any:
    """Convolution without bias, padded by `size // 2` on each side whatever the stride.

    Keras's "same" pads a strided convolution more on the right than on the left, which shifts the
    image by half a pixel against the reference, hence the explicit padding.
    """
    padding = "same"
    if strides > 1:
        padding = "valid"
        if size > 1:
            x = keras.layers.ZeroPadding2D(size // 2, name=f"{name}_pad")(x)
    return keras.layers.Conv2D(
        filters,
        size,
        strides=strides,
        padding=padding,
        use_bias=False,
        kernel_initializer=initializer or FanInUniform(seed=seeds()),
        name=name,
    )(x)


def dense(
    x: Any,
    units: int,
    *,
    seeds: Seeds,
    name: str,
    use_bias: bool = True,
    activation: Any = None,
    bias_initializer: Any = None,
) -> Any:
    """Dense layer with fan-in uniform kernel and, unless given otherwise, bias."""
    kernel = FanInUniform(seed=seeds())
    bias = bias_initializer or FanInUniform(fan_in=x.shape[-1], seed=seeds())
    return keras.layers.Dense(
        units,
        activation=activation,
        use_bias=use_bias,
        kernel_initializer=kernel,
        bias_initializer=bias,
        name=name,
    )(x)
