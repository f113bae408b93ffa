# SPDX-License-Identifier: Apache-2.0
"""Two convolutional networks for small images, each a family of widths: strided, and pooled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from tfmot_atmc.models import common

__all__ = ["compact_cnn", "mnist_cnn"]


def mnist_cnn(
    input_shape: Sequence[int] = (28, 28, 1),
    num_classes: int = 10,
    classifier_activation: Any = None,
    *,
    width: float = 1.0,
    normalization: common.Normalization | None = None,
    seed: int | None = None,
    name: str = "mnist_cnn",
) -> keras.Model:
    """The network to start from on MNIST: two strided convolutions, two dense layers, all ReLU.

    4x4 convolutions with 16 and 32 filters, both of stride 2, a dense layer of 100 units and one of
    classes. With the default arguments it has 166,248 kernel weights. It is the small robust
    network of Wong et al., "Fast is better than free: revisiting adversarial training", 2020.

    Args:
        input_shape: height, width and channels; at least 4 pixels a side.
        num_classes: number of outputs.
        classifier_activation: activation of the outputs; `None` returns logits.
        width: factor on the filters and units; they are rounded, and at least 1.
        normalization: mean and standard deviation per channel, put into the model as a layer.
        seed: integer for reproducible weights.
        name: name of the model.

    Returns:
        A functional model from float images `[batch, height, width, channels]` in [0, 1] to
        `[batch, num_classes]`.

    Raises:
        ValueError: if `width` is not positive, or the normalisation does not fit the image.

    Example:

    >>> from tfmot_atmc import models
    >>> models.count_kernel_weights(mnist_cnn(seed=0))
    166248
    """
    seeds = common.Seeds(seed)
    inputs, x = common.start(input_shape, normalization)
    for number, filters in enumerate(_scaled((16, 32), width), start=1):
        x = _conv(x, filters, 4, seeds, strides=2, padding="same", name=f"conv{number}")
    x = keras.layers.Flatten(name="flatten")(x)
    x = common.dense(x, *_scaled((100,), width), seeds=seeds, activation="relu", name="dense1")
    x = common.dense(x, num_classes, seeds=seeds, activation=classifier_activation, name="dense2")
    return keras.Model(inputs, x, name=name)


def compact_cnn(
    input_shape: Sequence[int] = (28, 28, 1),
    num_classes: int = 10,
    classifier_activation: Any = None,
    *,
    width: float = 1.0,
    filters: Sequence[int] = (8, 16),
    units: int = 32,
    normalization: common.Normalization | None = None,
    seed: int | None = None,
    name: str = "compact_cnn",
) -> keras.Model:
    """A network that is small as it is: two 5x5 convolutions with pooling, one dense layer, ReLU.

    Dense networks of this family are what a compressed one has to beat at the same size. With the
    default arguments it has 11,912 kernel weights; `filters=(6, 10), units=16` gives 4,370, and
    `filters=(4, 8), units=0` gives 2,180.

    Args:
        input_shape: height, width and channels; at least 16 pixels a side.
        num_classes: number of outputs.
        classifier_activation: activation of the outputs; `None` returns logits.
        width: factor on the filters and units; they are rounded, and at least 1.
        filters: filters of the two convolutions.
        units: units of the dense layer between; 0 for none.
        normalization: mean and standard deviation per channel, put into the model as a layer.
        seed: integer for reproducible weights.
        name: name of the model.

    Returns:
        A functional model from float images `[batch, height, width, channels]` in [0, 1] to
        `[batch, num_classes]`.

    Raises:
        ValueError: if the image is too small, `width` is not positive, or the normalisation does
            not fit the image.

    Example:

    >>> from tfmot_atmc import models
    >>> models.count_kernel_weights(compact_cnn(seed=0))
    11912
    """
    if min(input_shape[:2]) < 16:
        raise ValueError(
            "`compact_cnn` needs images of at least 16x16 pixels; for smaller ones use "
            f"`small_cnn`. Received: input_shape={tuple(input_shape)}"
        )
    seeds = common.Seeds(seed)
    inputs, x = common.start(input_shape, normalization)
    for number, count in enumerate(_scaled(filters, width), start=1):
        x = _conv(x, count, 5, seeds, name=f"conv{number}")
        x = keras.layers.MaxPooling2D(2, name=f"pool{number}")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    if units:
        x = common.dense(x, *_scaled((units,), width), seeds=seeds, activation="relu", name="dense")
    x = common.dense(x, num_classes, seeds=seeds, activation=classifier_activation, name="logits")
    return keras.Model(inputs, x, name=name)


def _scaled(counts: Sequence[int], width: float) -> list[int]:
    if not width > 0:
        raise ValueError(f"`width` must be above 0. Received: {width}")
    return [max(1, round(width * count)) for count in counts]


def _conv(x: Any, filters: int, size: int, seeds: common.Seeds, **kwargs: Any) -> Any:
    return keras.layers.Conv2D(
        filters,
        size,
        activation="relu",
        kernel_initializer=common.FanInUniform(seed=seeds()),
        bias_initializer=common.FanInUniform(fan_in=size * size * x.shape[-1], seed=seeds()),
        **kwargs,
    )(x)
