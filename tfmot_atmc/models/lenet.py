# SPDX-License-Identifier: Apache-2.0
"""LeNet for MNIST, and a smaller network for 8x8 digits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from tfmot_atmc.models import common

__all__ = ["lenet", "small_cnn"]


def _biased_conv(x: Any, filters: int, size: int, seeds: common.Seeds, **kwargs: Any) -> Any:
    fan_in = size * size * x.shape[-1]
    layer = keras.layers.Conv2D(
        filters,
        size,
        kernel_initializer=common.FanInUniform(seed=seeds()),
        bias_initializer=common.FanInUniform(fan_in=fan_in, seed=seeds()),
        **kwargs,
    )
    return layer(x)


def lenet(
    input_shape: Sequence[int] = (28, 28, 1),
    num_classes: int = 10,
    classifier_activation: Any = None,
    *,
    normalization: common.Normalization | None = None,
    seed: int | None = None,
    name: str = "lenet",
) -> keras.Model:
    """LeNet as ATMC uses it: two convolutions, two dense layers, one ReLU.

    There is no activation after the convolutions. With the default arguments it has 430,500 kernel
    weights and 580 biases.

    Args:
        input_shape: height, width and channels; at least 16 pixels a side.
        num_classes: number of outputs.
        classifier_activation: activation of the outputs; `None` returns logits.
        normalization: mean and standard deviation per channel, put into the model as a layer.
        seed: integer for reproducible weights.
        name: name of the model.

    Returns:
        A functional model from float images `[batch, height, width, channels]` in [0, 1] to
        `[batch, num_classes]`.

    Raises:
        ValueError: if the image is too small or the normalisation does not fit it.

    Example:

    >>> lenet(seed=0).count_params()
    431080
    """
    if min(input_shape[:2]) < 16:
        raise ValueError(
            "LeNet needs images of at least 16x16 pixels; for smaller ones use `small_cnn`. "
            f"Received: input_shape={tuple(input_shape)}"
        )
    seeds = common.Seeds(seed)
    inputs, x = common.start(input_shape, normalization)
    x = _biased_conv(x, 20, 5, seeds, name="conv1")
    x = keras.layers.MaxPooling2D(2, name="pool1")(x)
    x = _biased_conv(x, 50, 5, seeds, name="conv2")
    x = keras.layers.MaxPooling2D(2, name="pool2")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    x = common.dense(x, 500, seeds=seeds, activation="relu", name="dense1")
    x = common.dense(x, num_classes, seeds=seeds, activation=classifier_activation, name="dense2")
    return keras.Model(inputs, x, name=name)


def small_cnn(
    input_shape: Sequence[int] = (8, 8, 1),
    num_classes: int = 10,
    classifier_activation: Any = None,
    *,
    normalization: common.Normalization | None = None,
    seed: int | None = None,
    name: str = "small_cnn",
) -> keras.Model:
    """A small network that trains in seconds, for the embedded 8x8 digits and for demonstrations.

    Two 3x3 convolutions with 16 and 32 filters, a 2x2 maximum, two dense layers; ReLU between them.
    It is ours, not a paper's.

    Args:
        input_shape: height, width and channels; at least 2 pixels a side.
        num_classes: number of outputs.
        classifier_activation: activation of the outputs; `None` returns logits.
        normalization: mean and standard deviation per channel, put into the model as a layer.
        seed: integer for reproducible weights.
        name: name of the model.

    Returns:
        A functional model from float images `[batch, height, width, channels]` in [0, 1] to
        `[batch, num_classes]`.

    Raises:
        ValueError: if the normalisation does not fit the image.
    """
    seeds = common.Seeds(seed)
    inputs, x = common.start(input_shape, normalization)
    x = _biased_conv(x, 16, 3, seeds, padding="same", activation="relu", name="conv1")
    x = _biased_conv(x, 32, 3, seeds, padding="same", activation="relu", name="conv2")
    x = keras.layers.MaxPooling2D(2, name="pool")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    x = common.dense(x, 64, seeds=seeds, activation="relu", name="dense1")
    x = common.dense(x, num_classes, seeds=seeds, activation=classifier_activation, name="dense2")
    return keras.Model(inputs, x, name=name)
