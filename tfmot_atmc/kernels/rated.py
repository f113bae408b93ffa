# SPDX-License-Identifier: Apache-2.0
"""Kernels that learn how many of their weights are used, beside which."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tfmot_atmc.kernels.base import Kernel
from tfmot_atmc.kernels.masked import MaskedKernel, score_mask

__all__ = ["RatedKernel", "kept_of", "rate_of", "raw_of"]

_EDGE = 1e-7  # a sigmoid in float32 is whole beyond it


def rate_of(raw: tf.Tensor, least: float) -> tf.Tensor:
    """Returns the share of weights in [least, 1] that an unbounded number stands for."""
    return least + (1 - least) * tf.sigmoid(raw)


def kept_of(raw: tf.Tensor, least: float, size: int) -> tf.Tensor:
    """Returns how many of `size` weights are used, a scalar int32 tensor, at least 1."""
    count = tf.cast(tf.round(rate_of(raw, least) * size), tf.int32)
    return tf.clip_by_value(count, 1, size)


def raw_of(rate: tf.Tensor, least: float) -> tf.Tensor:
    """Returns the number that stands for a rate; the inverse of `rate_of`, float32."""
    inside = (tf.cast(rate, tf.float32) - least) / (1 - least)
    inside = tf.clip_by_value(inside, _EDGE, 1 - _EDGE)
    return tf.math.log(inside) - tf.math.log1p(-inside)


class RatedKernel(Kernel):
    """Weights `W`, scores `S`, and a number `R` that says how many weights are used.

    Those with the largest scores are used, round(n rate) of n, with rate = least + (1 - least)
    sigmoid(R). Backward the mask counts as the score's magnitude, and the rate as if it were added
    to every entry of the mask. The scores start in proportion to the weights.

    Args:
        least: the smallest rate, in (0, 1).
        start: the rate at the start, in [least, 1).
        trained: `"scores"`, and the weights stay bit for bit; or `"weights"`, and the mask does.
        fan_in: entries that add up to one output; None for those of all channels but the last.

    Raises:
        ValueError: if a value is out of range.

    Source: Zhao and Wressnegger, "Holistic Adversarially Robust Pruning", ICLR 2023, section 3;
    the gradient of the rate is that of their code.

    Example:

    >>> kernel = RatedKernel(least=0.1, start=0.5)
    >>> factors = kernel.initial_values(np.float32([[1.0, -2.0], [0.5, 3.0]]))
    >>> kernel.compose(factors).numpy().tolist()
    [[0.0, -2.0], [0.0, 3.0]]
    """

    main = "W"
    growable = frozenset()

    def __init__(
        self, least: float, start: float, trained: str = "scores", fan_in: int | None = None
    ):
        if not 0 < least <= start < 1:
            raise ValueError(
                "`least` and `start` must lie in (0, 1), and `start` must not be below `least`. "
                f"Received least={least!r}, start={start!r}."
            )
        if trained not in ("scores", "weights"):
            raise ValueError(f"`trained` must be 'scores' or 'weights'. Received {trained!r}.")
        self.least, self.start = float(least), float(start)
        self.trained, self.fan_in = trained, fan_in
        learns = {"W": "fixed", "S": "score", "R": "rate"}
        self.roles = learns if trained == "scores" else {"S": "fixed", "R": "fixed"}

    def initial_values(self, kernel: np.ndarray) -> dict[str, np.ndarray]:
        factors = MaskedKernel(1, "scores", self.fan_in).initial_values(kernel)
        return {**factors, "R": raw_of(tf.constant(self.start), self.least).numpy()}

    def compose(self, factors: Mapping[str, tf.Tensor]) -> tf.Tensor:
        weights, scores, raw = (tf.convert_to_tensor(factors[name]) for name in ("W", "S", "R"))
        raw = tf.cast(raw, tf.float32)
        rate = tf.cast(rate_of(raw, self.least), scores.dtype)
        size = int(np.prod(scores.shape))
        mask = score_mask(scores, kept_of(raw, self.least, size))
        return weights * (mask + (rate - tf.stop_gradient(rate)))

    def counted(self, factors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"W": np.asarray(self.compose(factors))}
