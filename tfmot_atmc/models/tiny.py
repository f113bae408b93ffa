# SPDX-License-Identifier: Apache-2.0
"""The four networks of MLPerf Tiny: images, spoken words, people in view, sounds of machines.

Shapes and numbers of parameters are those of the benchmark's reference models. Unlike those, they
return logits unless `classifier_activation` says otherwise, and their batch normalisation follows
with momentum 0.9: at Keras' own 0.99 the statistics lag behind a network that is being pruned.

Source: Banbury et al., "MLPerf Tiny Benchmark", NeurIPS 2021 (Datasets and Benchmarks).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from tfmot_atmc.models import common

__all__ = ["autoencoder", "ds_cnn", "mobilenet_v1", "resnet8"]

# Filters and strides of the pointwise convolutions of MobileNetV1, at a width of one.
_MOBILENET = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)),
    *((512, 1),) * 5,
    *((1024, 2), (1024, 1)),
)
_MOBILENET_STEM = 32


class _Layers:
    """Adds layers to a graph: with seeds of their own, names, and the reference's initialisers.

    Args:
        seed: integer for reproducible weights, or None.
        initializer: `"he_normal"` or `"glorot_uniform"`, of the convolutions.
    """

    def __init__(self, seed: int | None, initializer: str = "glorot_uniform"):
        self._seeds = common.Seeds(seed)
        self._initializer = initializer

    def kernel(self, name: str | None = None) -> keras.initializers.Initializer:
        """Returns an initialiser with the next seed."""
        kinds = {
            "he_normal": keras.initializers.HeNormal,
            "glorot_uniform": keras.initializers.GlorotUniform,
        }
        return kinds[name or self._initializer](seed=self._seeds())

    def conv(self, x: Any, filters: int, size: Any, name: str, strides: int = 1) -> Any:
        """Convolution with bias, padded as Keras pads."""
        layer = keras.layers.Conv2D(
            filters,
            size,
            strides=strides,
            padding="same",
            kernel_initializer=self.kernel(),
            name=name,
        )
        return layer(x)

    def depthwise(self, x: Any, name: str, strides: int = 1) -> Any:
        """Depthwise 3x3 convolution with bias."""
        layer = keras.layers.DepthwiseConv2D(
            3, strides=strides, padding="same", depthwise_initializer=self.kernel(), name=name
        )
        return layer(x)

    def dense(self, x: Any, units: int, name: str, activation: Any = None) -> Any:
        """Dense layer with bias."""
        layer = keras.layers.Dense(
            units, activation, kernel_initializer=self.kernel("glorot_uniform"), name=name
        )
        return layer(x)


def _norm(x: Any, name: str, relu: bool = True) -> Any:
    x = keras.layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(x)
    return keras.layers.ReLU(name=f"{name}_relu")(x) if relu else x


def resnet8(
    input_shape: Sequence[int] = (32, 32, 3),
    num_classes: int = 10,
    classifier_activation: Any = None,
    *,
    normalization: common.Normalization | None = None,
    seed: int | None = None,
    name: str = "resnet8",
) -> keras.Model:
    """ResNet-8, MLPerf Tiny's image classifier: 78,666 parameters, 77,360 of them in kernels.

    Three residual blocks of 16, 32 and 64 channels; the shortcuts of the last two are convolutions.

    Args:
        input_shape: height, width and channels.
        num_classes: number of outputs.
        classifier_activation: activation of the outputs; `None` returns logits.
        normalization: mean and standard deviation per channel, put into the model as a layer.
        seed: integer for reproducible weights.
        name: name of the model.

    Returns:
        A functional model from float images to `[batch, num_classes]`.

    Raises:
        ValueError: if the input's shape or the normalisation does not fit.

    Example:

    >>> resnet8(seed=0).count_params()
    78666
    """
    add = _Layers(seed, "he_normal")
    inputs, x = common.start(input_shape, normalization)
    x = _norm(add.conv(x, 16, 3, "stem"), "stem")
    for number, (filters, strides) in enumerate(((16, 1), (32, 2), (64, 2)), 1):
        block = f"block{number}"
        y = _norm(add.conv(x, filters, 3, f"{block}_conv1", strides), f"{block}_conv1")
        y = _norm(add.conv(y, filters, 3, f"{block}_conv2"), f"{block}_conv2", relu=False)
        if strides > 1:
            x = add.conv(x, filters, 1, f"{block}_shortcut", strides)
        x = keras.layers.ReLU(name=f"{block}_relu")(keras.layers.Add(name=f"{block}_add")([x, y]))
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(
        inputs, add.dense(x, num_classes, "scores", classifier_activation), name=name
    )


def ds_cnn(
    input_shape: Sequence[int] = (49, 10, 1),
    num_classes: int = 12,
    classifier_activation: Any = None,
    *,
    dropout: bool = True,
    normalization: common.Normalization | None = None,
    seed: int | None = None,
    name: str = "ds_cnn",
) -> keras.Model:
    """DS-CNN, MLPerf Tiny's keyword spotter: 24,908 parameters, 22,016 of them in kernels.

    A convolution of 10 frames by 4 coefficients, then four depthwise separable convolutions of 64
    channels. It reads 49 frames of 10 cepstral coefficients each.

    Args:
        input_shape: frames, coefficients and channels.
        num_classes: number of outputs.
        classifier_activation: activation of the outputs; `None` returns logits.
        dropout: whether it has the reference's two dropout layers.
        normalization: mean and standard deviation per channel, put into the model as a layer.
        seed: integer for reproducible weights.
        name: name of the model.

    Returns:
        A functional model from float features to `[batch, num_classes]`.

    Raises:
        ValueError: if the input's shape or the normalisation does not fit.

    Example:

    >>> ds_cnn(seed=0).count_params()
    24908
    """
    add, seeds = _Layers(seed), common.Seeds(seed)
    inputs, x = common.start(input_shape, normalization)
    x = _norm(add.conv(x, 64, (10, 4), "stem", strides=2), "stem")
    if dropout:
        x = keras.layers.Dropout(0.2, seed=seeds(), name="stem_dropout")(x)
    for number in range(1, 5):
        x = _norm(add.depthwise(x, f"depthwise{number}"), f"depthwise{number}")
        x = _norm(add.conv(x, 64, 1, f"pointwise{number}"), f"pointwise{number}")
    if dropout:
        x = keras.layers.Dropout(0.4, seed=seeds(), name="dropout")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(
        inputs, add.dense(x, num_classes, "scores", classifier_activation), name=name
    )


def mobilenet_v1(
    input_shape: Sequence[int] = (96, 96, 3),
    num_classes: int = 2,
    classifier_activation: Any = None,
    *,
    width: float = 0.25,
    normalization: common.Normalization | None = None,
    seed: int | None = None,
    name: str = "mobilenet_v1",
) -> keras.Model:
    """MobileNetV1 at a quarter of its width, MLPerf Tiny's person detector: 221,794 parameters.

    Args:
        input_shape: height, width and channels.
        num_classes: number of outputs.
        classifier_activation: activation of the outputs; `None` returns logits.
        width: factor on the number of channels.
        normalization: mean and standard deviation per channel, put into the model as a layer.
        seed: integer for reproducible weights.
        name: name of the model.

    Returns:
        A functional model from float images to `[batch, num_classes]`.

    Raises:
        ValueError: if the input's shape or the normalisation does not fit, or a layer would have
            no channel.

    Example:

    >>> mobilenet_v1(seed=0).count_params()
    221794
    """
    if width * _MOBILENET_STEM < 1:
        raise ValueError(f"`width` must leave a channel in every layer. Received: {width}")
    add = _Layers(seed)
    inputs, x = common.start(input_shape, normalization)
    x = _norm(add.conv(x, int(width * _MOBILENET_STEM), 3, "stem", strides=2), "stem")
    for number, (filters, strides) in enumerate(_MOBILENET, 1):
        x = _norm(add.depthwise(x, f"depthwise{number}", strides), f"depthwise{number}")
        x = _norm(add.conv(x, int(width * filters), 1, f"pointwise{number}"), f"pointwise{number}")
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(
        inputs, add.dense(x, num_classes, "scores", classifier_activation), name=name
    )


def autoencoder(
    input_shape: Sequence[int] = (640,),
    num_classes: int | None = None,
    *,
    width: int = 128,
    code: int = 8,
    seed: int | None = None,
    name: str = "autoencoder",
) -> keras.Model:
    """The autoencoder of MLPerf Tiny's anomaly detector: 269,992 parameters, 264,192 in kernels.

    It restores its input (five spectra of 128 bands of a machine's sound); how badly it does is the
    measure of an anomaly. Train it with the inputs as targets and `"mse"`.

    Args:
        input_shape: number of features, as a shape of one dimension.
        num_classes: None: it has as many outputs as inputs.
        width: units of the other hidden layers.
        code: units of the narrowest layer.
        seed: integer for reproducible weights.
        name: name of the model.

    Returns:
        A functional model from features `[batch, features]` to features of the same shape.

    Raises:
        ValueError: if the input has another rank, or a number of classes is given.

    Example:

    >>> autoencoder(seed=0).count_params()
    269992
    """
    if len(tuple(input_shape)) != 1 or num_classes is not None:
        raise ValueError(
            "The autoencoder takes vectors and returns as many numbers as it takes: `input_shape` "
            "must be (features,) and `num_classes` None. "
            f"Received: {tuple(input_shape)} and {num_classes}"
        )
    add = _Layers(seed)
    inputs = x = keras.Input(tuple(input_shape), name="features")
    for number, units in enumerate([width] * 4 + [code] + [width] * 4, 1):
        x = _norm(add.dense(x, units, f"dense{number}"), f"dense{number}")
    return keras.Model(inputs, add.dense(x, input_shape[0], "restored"), name=name)
