# SPDX-License-Identifier: Apache-2.0
"""Families of networks that differ in their width, and the widest of them that fits."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import keras

__all__ = ["widest"]

# Widths are multiples of the step, at most so many times.
_STEP, _MOST = 1 / 64, 512


def widest(
    builder: Callable[..., keras.Model], fits: Callable[[keras.Model], bool], **arguments: Any
) -> keras.Model:
    """Builds the widest network of a family that fits.

    Widths are multiples of 1/64, up to 8. A network is taken to fit where a wider one does.

    Args:
        builder: a builder that takes `width`, such as `compact_cnn`.
        fits: tells whether a network fits, by its weights or by the bytes of its file.
        **arguments: further arguments of the builder, such as `input_shape` or `seed`.

    Returns:
        The network, not compiled.

    Raises:
        ValueError: if the builder takes no width, or not even the narrowest network fits.

    Example:

    >>> from tfmot_atmc import models
    >>> small = widest(models.compact_cnn, lambda m: models.count_kernel_weights(m) <= 3000)
    >>> models.count_kernel_weights(small)
    2970
    """
    if "width" not in inspect.signature(builder).parameters:
        raise ValueError(
            f"{builder.__name__!r} is one network and no family: its builder takes no `width`. "
            "`compact_cnn` and `mnist_cnn` do."
        )

    def at(multiple: int) -> keras.Model:
        return builder(width=multiple * _STEP, **arguments)

    low, high = 0, _MOST + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(at(middle)) else (low, middle)
    if not low:
        raise ValueError(f"Not even the narrowest network of {builder.__name__!r} fits.")
    return at(low)
