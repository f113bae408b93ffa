# SPDX-License-Identifier: Apache-2.0
"""Counts by which the papers measure a network: kernel weights and multiply-accumulates."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import keras

from tfmot_atmc.utils.keras_internals import inner_layers

__all__ = ["count_kernel_weights", "count_macs"]

_COUNTED = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense)
_KERNELS = ("kernel", "depthwise_kernel", "pointwise_kernel")


def _kernels(model: keras.Model) -> Iterator[tuple[keras.layers.Layer, Any]]:
    """Yields each layer that has a kernel once, with that kernel, also from nested models."""
    if not model.built:
        raise ValueError(
            f"The model {model.name!r} has no weights yet: call it on data or `build` it first."
        )
    for layer in inner_layers(model):
        for attribute in _KERNELS:
            kernel = getattr(layer, attribute, None)
            if kernel is not None:
                yield layer, kernel


def count_kernel_weights(model: keras.Model) -> int:
    """Counts the entries of all convolution and dense kernels, without biases and normalisation.

    It is the `N_W` by which ATMC turns a pruning ratio into a number of nonzeros, and 32 times it
    is the papers' uncompressed size in bits. A shared layer counts once.

    Args:
        model: a built Keras model.

    Returns:
        The number of entries.

    Raises:
        ValueError: if the model is not built.
    """
    return sum(math.prod(kernel.shape) for _, kernel in _kernels(model))


def count_macs(model: keras.Model) -> int:
    """Counts the multiply-accumulates of convolutions and dense layers for one image.

    Args:
        model: a built functional model, each of whose layers is called once, on shapes known but
            for the batch.

    Returns:
        The number of multiply-accumulates, those on padding included.

    Raises:
        ValueError: if the model is not built, or an output shape is not known.
    """
    total = 0
    for layer, kernel in _kernels(model):
        if not isinstance(layer, _COUNTED):
            raise ValueError(
                "Only Conv2D, DepthwiseConv2D and Dense layers can be counted. "
                f"Received: {layer.name!r} of type {type(layer).__name__}"
            )
        positions = layer.output.shape[1:-1]
        if None in positions:
            raise ValueError(
                f"The output shape {layer.output.shape} of layer {layer.name!r} is not fixed: "
                "build the model for a fixed image size."
            )
        total += math.prod(kernel.shape) * math.prod(positions)
    return total
