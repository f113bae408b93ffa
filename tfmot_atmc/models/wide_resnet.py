# SPDX-License-Identifier: Apache-2.0
"""Wide residual networks (Zagoruyko and Komodakis, 2016) for 32x32 images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from tfmot_atmc.models import common

__all__ = ["wide_resnet", "wide_resnet_16_8"]


def _conv(
    x: Any, filters: int, size: int, *, seeds: common.Seeds, name: str, strides: int = 1
) -> Any:
    """Convolution drawn from N(0, 2 / (size^2 filters)), as these networks are."""
    initializer = keras.initializers.VarianceScaling(
        2.0, mode="fan_out", distribution="untruncated_normal", seed=seeds()
    )
    return common.conv(
        x, filters, size, seeds=seeds, name=name, strides=strides, initializer=initializer
    )


def _block(
    x: Any, filters: int, strides: int, *, dropout: float, seeds: common.Seeds, name: str
) -> Any:
    """Pre-activation block; where the channels change, the shortcut leaves after the first ReLU."""
    outputs = keras.layers.ReLU(name=f"{name}_relu1")(common.batch_norm(x, f"{name}_bn1"))
    shortcut = x
    if x.shape[-1] != filters:
        shortcut = _conv(outputs, filters, 1, seeds=seeds, strides=strides, name=f"{name}_shortcut")
    outputs = _conv(outputs, filters, 3, seeds=seeds, strides=strides, name=f"{name}_conv1")
    outputs = keras.layers.ReLU(name=f"{name}_relu2")(common.batch_norm(outputs, f"{name}_bn2"))
    if dropout:
        outputs = keras.layers.Dropout(dropout, seed=seeds(), name=f"{name}_dropout")(outputs)
    outputs = _conv(outputs, filters, 3, seeds=seeds, name=f"{name}_conv2")
    return keras.layers.Add(name=f"{name}_add")([outputs, shortcut])


def wide_resnet(
    depth: int = 16,
    width: int = 8,
    *,
    input_shape: Sequence[int] = (32, 32, 3),
    num_classes: int = 10,
    classifier_activation: Any = None,
    dropout: float = 0.4,
    normalization: common.Normalization | None = None,
    seed: int | None = None,
    name: str | None = None,
) -> keras.Model:
    """Wide residual network for small images.

    Args:
        depth: number of layers, `6 n + 4` for `n` blocks a stage.
        width: factor on the channels 16, 32, 64 of the three stages.
        input_shape: height, width and channels.
        num_classes: number of outputs.
        classifier_activation: activation of the outputs; `None` returns logits.
        dropout: rate between the two convolutions of a block, in [0, 1).
        normalization: mean and standard deviation per channel, put into the model as a layer.
        seed: integer for reproducible weights and dropout.
        name: name of the model.

    Returns:
        A functional model from float images `[batch, height, width, channels]` in [0, 1] to
        `[batch, num_classes]`.

    Raises:
        ValueError: if the depth is not `6 n + 4`, or the normalisation does not fit the image.
    """
    if depth < 10 or depth % 6 != 4:
        raise ValueError(
            f"`depth` must be 6 n + 4 with n >= 1, such as 16 or 28. Received: {depth}"
        )
    seeds = common.Seeds(seed)
    inputs, x = common.start(input_shape, normalization)
    x = _conv(x, 16, 3, seeds=seeds, name="conv1")
    for stage, filters in enumerate((16 * width, 32 * width, 64 * width), start=1):
        for block in range(1, (depth - 4) // 6 + 1):
            strides = 2 if stage > 1 and block == 1 else 1
            x = _block(
                x, filters, strides, dropout=dropout, seeds=seeds, name=f"stage{stage}_block{block}"
            )
    x = keras.layers.ReLU(name="relu")(common.batch_norm(x, "bn"))
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = common.dense(
        x,
        num_classes,
        seeds=seeds,
        activation=classifier_activation,
        bias_initializer="zeros",
        name="classifier",
    )
    return keras.Model(inputs, x, name=name or f"wide_resnet_{depth}_{width}")


def wide_resnet_16_8(**kwargs: Any) -> keras.Model:
    """`wide_resnet(16, 8)`, ATMC's network for SVHN: 10,954,160 kernel weights.

    Args:
        **kwargs: passed to `wide_resnet`.

    Returns:
        The model.
    """
    return wide_resnet(16, 8, **kwargs)
