# SPDX-License-Identifier: Apache-2.0
"""Residual networks (He et al., 2016): the CIFAR family, and the ImageNet family at 32x32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from tfmot_atmc.models import common

__all__ = [
    "cifar_resnet",
    "resnet",
    "resnet101",
    "resnet18",
    "resnet20",
    "resnet34",
    "resnet50",
    "resnet56",
]

_EXPANSION = 4


def _conv_bn(
    x: Any,
    filters: int,
    size: int,
    *,
    seeds: common.Seeds,
    name: str,
    strides: int = 1,
    relu: bool = True,
) -> Any:
    x = common.conv(x, filters, size, seeds=seeds, strides=strides, name=f"{name}_conv")
    x = common.batch_norm(x, f"{name}_bn")
    return keras.layers.ReLU(name=f"{name}_relu")(x) if relu else x


def _block(
    x: Any,
    width: int,
    strides: int,
    *,
    bottleneck: bool,
    option_a: bool,
    seeds: common.Seeds,
    name: str,
) -> Any:
    """Two 3x3 convolutions, or 1x1, 3x3 (strided) and 1x1 with four times the width."""
    filters = width * _EXPANSION if bottleneck else width
    if bottleneck:
        outputs = _conv_bn(x, width, 1, seeds=seeds, name=f"{name}_1")
        outputs = _conv_bn(outputs, width, 3, seeds=seeds, strides=strides, name=f"{name}_2")
        outputs = _conv_bn(outputs, filters, 1, seeds=seeds, relu=False, name=f"{name}_3")
    else:
        outputs = _conv_bn(x, width, 3, seeds=seeds, strides=strides, name=f"{name}_1")
        outputs = _conv_bn(outputs, width, 3, seeds=seeds, relu=False, name=f"{name}_2")
    shortcut = x
    if strides != 1 or x.shape[-1] != filters:
        label = f"{name}_shortcut"
        if option_a:
            shortcut = common.SubsampleShortcut(filters, strides, name=label)(x)
        else:
            shortcut = _conv_bn(x, filters, 1, seeds=seeds, strides=strides, relu=False, name=label)
    outputs = keras.layers.Add(name=f"{name}_add")([outputs, shortcut])
    return keras.layers.ReLU(name=f"{name}_relu")(outputs)


def _stem(x: Any, stem: str, filters: int, seeds: common.Seeds) -> Any:
    if stem == "cifar":
        return _conv_bn(x, filters, 3, seeds=seeds, name="stem")
    if stem == "imagenet":
        x = _conv_bn(x, filters, 7, seeds=seeds, strides=2, name="stem")
        # After a ReLU zero padding cannot win a maximum, so it equals the reference's padding.
        x = keras.layers.ZeroPadding2D(1, name="stem_pool_pad")(x)
        return keras.layers.MaxPooling2D(3, strides=2, name="stem_pool")(x)
    raise ValueError(f'`stem` must be "cifar" or "imagenet". Received: {stem!r}')


def resnet(
    blocks: Sequence[int],
    *,
    widths: Sequence[int] = (64, 128, 256, 512),
    bottleneck: bool = False,
    option_a: bool = False,
    stem: str = "cifar",
    input_shape: Sequence[int] = (32, 32, 3),
    num_classes: int = 10,
    classifier_activation: Any = None,
    classifier_bias: bool = True,
    normalization: common.Normalization | None = None,
    seed: int | None = None,
    name: str = "resnet",
) -> keras.Model:
    """Residual network of any depth and width.

    Args:
        blocks: number of blocks of each stage; every stage but the first halves the image.
        widths: channels of each stage, four times that with `bottleneck`.
        bottleneck: whether blocks are 1x1, 3x3, 1x1 instead of two 3x3 convolutions.
        option_a: whether shortcuts are parameter-free (subsampled, zero channels added) instead of
            1x1 convolutions.
        stem: "cifar", a 3x3 convolution, or "imagenet", a strided 7x7 convolution and a maximum.
        input_shape: height, width and channels.
        num_classes: number of outputs.
        classifier_activation: activation of the outputs; `None` returns logits.
        classifier_bias: whether the classifier has a bias.
        normalization: mean and standard deviation per channel, put into the model as a layer.
        seed: integer for reproducible weights.
        name: name of the model.

    Returns:
        A functional model from float images `[batch, height, width, channels]` in [0, 1] to
        `[batch, num_classes]`.

    Raises:
        ValueError: if `blocks` and `widths` differ in length, the stem is unknown, or the
            normalisation does not fit the image.

    Example:

    >>> resnet([1, 1], widths=(4, 8), seed=0).output_shape
    (None, 10)
    """
    if len(blocks) != len(widths):
        raise ValueError(
            "`blocks` and `widths` must have one number per stage each. "
            f"Received: blocks={list(blocks)}, widths={list(widths)}"
        )
    seeds = common.Seeds(seed)
    inputs, x = common.start(input_shape, normalization)
    x = _stem(x, stem, widths[0], seeds)
    for stage, (count, width) in enumerate(zip(blocks, widths, strict=True), start=1):
        for block in range(1, count + 1):
            x = _block(
                x,
                width,
                strides=2 if stage > 1 and block == 1 else 1,
                bottleneck=bottleneck,
                option_a=option_a,
                seeds=seeds,
                name=f"stage{stage}_block{block}",
            )
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    x = common.dense(
        x,
        num_classes,
        seeds=seeds,
        use_bias=classifier_bias,
        activation=classifier_activation,
        name="classifier",
    )
    return keras.Model(inputs, x, name=name)


def resnet18(**kwargs: Any) -> keras.Model:
    """ResNet-18 for 32x32 images: 11,164,352 kernel weights. Arguments as those of `resnet`."""
    return resnet([2, 2, 2, 2], **{"name": "resnet18", **kwargs})


def resnet34(**kwargs: Any) -> keras.Model:
    """ResNet-34 for 32x32 images: 21,265,088 kernel weights. Arguments as those of `resnet`."""
    return resnet([3, 4, 6, 3], **{"name": "resnet34", **kwargs})


def resnet50(**kwargs: Any) -> keras.Model:
    """ResNet-50 for 32x32 images: 23,467,712 kernel weights. Arguments as those of `resnet`."""
    return resnet([3, 4, 6, 3], **{"bottleneck": True, "name": "resnet50", **kwargs})


def resnet101(**kwargs: Any) -> keras.Model:
    """ResNet-101 for 32x32 images: 42,407,616 kernel weights. Arguments as those of `resnet`."""
    return resnet([3, 4, 23, 3], **{"bottleneck": True, "name": "resnet101", **kwargs})


def cifar_resnet(depth: int, **kwargs: Any) -> keras.Model:
    """The slim residual networks of 16, 32 and 64 channels with parameter-free shortcuts.

    Args:
        depth: number of layers, `6 n + 2` for `n` blocks a stage.
        **kwargs: passed to `resnet`.

    Returns:
        The model.

    Raises:
        ValueError: if the depth is not `6 n + 2`.
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(
            f"`depth` must be 6 n + 2 with n >= 1, such as 20 or 56. Received: {depth}"
        )
    defaults = {"widths": (16, 32, 64), "option_a": True, "name": f"resnet{depth}"}
    return resnet([(depth - 2) // 6] * 3, **{**defaults, **kwargs})


def resnet20(**kwargs: Any) -> keras.Model:
    """ResNet-20 for CIFAR: 268,336 kernel weights. Arguments as those of `cifar_resnet`."""
    return cifar_resnet(20, **kwargs)


def resnet56(**kwargs: Any) -> keras.Model:
    """ResNet-56 for CIFAR: 848,944 kernel weights. Arguments as those of `cifar_resnet`."""
    return cifar_resnet(56, **kwargs)
