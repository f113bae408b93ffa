# SPDX-License-Identifier: Apache-2.0
"""Kernels of a few values: whole numbers times one scale, with real weights trained behind them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tfmot_atmc.kernels.base import Kernel

__all__ = ["GridKernel"]

# How far beyond the grid, in scales, weights still learn.
_ROOM = 0.5
# Scales tried at the start, as parts of the one that clips nothing.
_PARTS = np.geomspace(0.05, 1.0, 97)


class GridKernel(Kernel):
    """A kernel whose weights are whole numbers in [-n, n] times one scale, n = 2^(bits - 1) - 1.

    So 2 bits give -1, 0 and 1, and 4 bits -7 to 7. The real weights are the factor `latent`; the
    kernel has them rounded, and passes its gradient on as if it had not, but to those that are more
    than half a scale beyond n. The logarithm of the scale is trained beside them, as a score: it is
    no weight, and no constraint acts on it.

    Args:
        bits: bits a weight, in 2..8.

    Raises:
        ValueError: if `bits` is out of range.

    Source: Esser et al., "Learned step size quantization", ICLR 2020, equations 1 to 3 and section
    2.2; the logarithm and the half scale are ours.

    Example:

    >>> kernel = GridKernel(bits=2)
    >>> factors = {"latent": np.float32([[0.9, -0.1, -2.0]]), "log_scale": np.float32([0.0])}
    >>> kernel.compose(factors).numpy().tolist()
    [[1.0, 0.0, -1.0]]
    """

    main = "latent"
    growable = frozenset()

    def __init__(self, bits: int = 4):
        if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
            raise ValueError(f"`bits` must be a whole number in 2..8. Received {bits!r}.")
        self.bits = bits
        self.largest = 2 ** (bits - 1) - 1
        self.roles = {"log_scale": "score"}

    def initial_values(self, kernel: np.ndarray) -> dict[str, np.ndarray]:
        scale = _nearest_scale(np.asarray(kernel, np.float64), self.largest)
        return {
            self.main: np.asarray(kernel),
            "log_scale": np.array([math.log(scale)], np.float32),
        }

    def compose(self, factors: Mapping[str, tf.Tensor]) -> tf.Tensor:
        latent = tf.convert_to_tensor(factors[self.main])
        scale = tf.exp(tf.cast(tf.convert_to_tensor(factors["log_scale"]), latent.dtype)[0])
        most = tf.cast(self.largest, latent.dtype)
        held = tf.stop_gradient(latent / scale)
        codes = tf.clip_by_value(tf.round(held), -most, most)
        values = tf.stop_gradient(codes * scale)
        # Zeros that carry the gradients, so that the values stay on the grid to the last bit.
        moved = latent - tf.stop_gradient(latent)
        of_weights = tf.where(tf.abs(held) <= most + _ROOM, moved, tf.zeros_like(moved))
        error = tf.where(tf.abs(held) <= most, codes - held, codes)
        damping = math.sqrt(self.largest * math.prod(latent.shape))
        of_scale = error * ((scale - tf.stop_gradient(scale)) / damping)
        return values + of_weights + of_scale


def _nearest_scale(kernel: np.ndarray, largest: int) -> float:
    """The scale whose grid leaves the smallest squared error; 1 for a kernel of zeros."""
    top = float(np.abs(kernel).max(initial=0.0))
    if top == 0.0:
        return 1.0
    scales = top / largest * _PARTS

    def error(scale: float) -> float:
        rounded = np.clip(np.rint(kernel / scale), -largest, largest) * scale
        return float(np.square(rounded - kernel).sum())

    return float(min(scales.tolist(), key=error))
