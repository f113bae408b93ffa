# SPDX-License-Identifier: Apache-2.0
"""Kernels of which scores keep some weights: trained ones, or fixed ones that a seed gives."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_atmc.kernels.base import Kernel
from tfmot_atmc.math import l0_masks

__all__ = ["MaskedKernel", "SeededKernel", "score_mask", "signs_from_seed"]

_TINY = float(np.finfo(np.float32).tiny)


def score_mask(scores: tf.Tensor, kept: int | tf.Tensor) -> tf.Tensor:
    """Returns 1 where the scores of largest magnitude are and 0 elsewhere.

    Backward the mask counts as the magnitude, so that the gradient reaches every score but those
    that are exactly 0.

    Args:
        scores: float32 tensor of any shape.
        kept: number of ones, or a scalar int32 tensor. It is exact: among equal scores, and among
            those that vanish, the lower flat index comes first.

    Returns:
        A tensor like `scores`.

    Source: Ramanujan et al., "What's Hidden in a Randomly Weighted Neural Network?", CVPR 2020;
    the magnitude is that of the code of Liu et al., NeurIPS 2022, whose text has the score.

    Example:

    >>> score_mask(tf.constant([0.0, -2.0, 1.0, 0.0]), 3).numpy().tolist()
    [1.0, 1.0, 1.0, 0.0]
    """
    size = tf.abs(scores)
    (mask,) = l0_masks([tf.maximum(size, _TINY)], kept, algorithm="bisection")
    return tf.cast(mask, size.dtype) + (size - tf.stop_gradient(size))  # exactly 0 or 1


def signs_from_seed(size: int, seed: int, index: int = 0) -> np.ndarray:
    """Returns random signs, which are the same everywhere and with every version of NumPy.

    Args:
        size: how many.
        seed: the seed, at least 0.
        index: number of the stream, such as that of a layer.

    Returns:
        An array of +1 and -1, int8, of shape `(size,)`.

    Example:

    >>> bool((signs_from_seed(8, 1) == signs_from_seed(99, 1)[:8]).all())
    True
    """
    raw = np.random.Philox(np.random.SeedSequence([seed, index])).random_raw(-(-size // 64))
    bits = np.unpackbits(raw.astype("<u8").view(np.uint8), bitorder="little")[:size]
    return (2 * bits.astype(np.int8) - 1).astype(np.int8)


class MaskedKernel(Kernel):
    """Weights `W`, of which the `kept` with the largest scores `S` are used.

    The scores start in proportion to the weights, so that the mask starts as magnitude pruning.

    Args:
        kept: number of weights that are used, at least 1; a kernel that has fewer is used whole.
        trained: `"scores"`, and the weights stay bit for bit; or `"weights"`, and the mask does.
        fan_in: entries that add up to one output; None for those of all channels but the last.

    Raises:
        ValueError: if `kept` is below 1 or `trained` is none of the two.

    Source: Sehwag et al., "HYDRA: Pruning Adversarially Robust Neural Networks", NeurIPS 2020,
    section 3; the start of the scores is its equation 4.

    Example:

    >>> kernel = MaskedKernel(1)
    >>> factors = kernel.initial_values(np.float32([[1.0], [-2.0]]))
    >>> kernel.compose(factors).numpy().tolist()
    [[0.0], [-2.0]]
    """

    main = "W"
    growable = frozenset()

    def __init__(self, kept: int, trained: str = "scores", fan_in: int | None = None):
        if trained not in ("scores", "weights"):
            raise ValueError(f"`trained` must be 'scores' or 'weights'. Received {trained!r}.")
        self.kept, self.trained, self.fan_in = _checked(kept), trained, fan_in
        by_scores = {"W": "fixed", "S": "score"}
        self.roles = by_scores if trained == "scores" else {"W": "weight", "S": "fixed"}

    def initial_values(self, kernel: np.ndarray) -> dict[str, np.ndarray]:
        kernel = np.asarray(kernel)
        fan_in = self.fan_in or max(1, kernel.size // kernel.shape[-1])
        largest = max(float(np.abs(kernel).max(initial=0.0)), _TINY)
        scores = np.sqrt(6.0 / fan_in) * (kernel / largest)
        return {"W": kernel, "S": scores.astype(kernel.dtype)}

    def compose(self, factors: Mapping[str, tf.Tensor]) -> tf.Tensor:
        weights, scores = (tf.convert_to_tensor(factors[name]) for name in ("W", "S"))
        return weights * score_mask(scores, self.kept)

    def counted(self, factors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"W": np.asarray(self.compose(factors))}


class SeededKernel(Kernel):
    """Fixed random weights of one magnitude, of which the `kept` with the largest scores are used.

    The weights are made from the seed wherever they are needed. What is kept in variables, and so
    in files, are the scores `S` and a number `F` that tells the weights from those of another seed.

    Args:
        kept: number of weights that are used, at least 1; a kernel that has fewer is used whole.
        scale: magnitude of the weights, above 0; 1 for binary ones.
        width: the scores start uniform in [-width, width], above 0.
        seed: seed of signs and scores, at least 0.
        index: number of the kernel in its model, so that each has weights of its own.

    Raises:
        ValueError: if a value is out of range.

    Source: Liu et al., "Robust Binary Models by Pruning Randomly-initialized Networks", NeurIPS
    2022, section 3.

    Example:

    >>> kernel = SeededKernel(kept=3)
    >>> factors = kernel.initial_values(np.zeros((2, 4), np.float32))
    >>> float(tf.reduce_sum(tf.abs(kernel.compose(factors))))
    3.0
    """

    main = "S"
    roles = {"S": "score", "F": "fixed"}
    growable = frozenset()

    def __init__(
        self, kept: int, scale: float = 1.0, width: float = 0.01, seed: int = 0, index: int = 0
    ):
        if not scale > 0 or not width > 0:
            raise ValueError(
                f"`scale` and `width` must be above 0. Received scale={scale!r}, width={width!r}."
            )
        if seed < 0 or index < 0:
            raise ValueError(
                f"`seed` and `index` must be at least 0. Received seed={seed!r}, index={index!r}."
            )
        self.kept, self.scale, self.width = _checked(kept), float(scale), float(width)
        self.seed, self.index = int(seed), int(index)
        self._made: dict[tuple[int, ...], tf.Tensor] = {}

    def weights(self, shape: tuple[int, ...]) -> np.ndarray:
        """Returns the fixed weights, float32, of a kernel of that shape."""
        signs = signs_from_seed(int(np.prod(shape)), self.seed, self.index)
        return np.float32(self.scale) * signs.reshape(shape).astype(np.float32)

    def fingerprint(self, shape: tuple[int, ...]) -> int:
        """Returns a number below 2^24 that other weights have only by chance."""
        return zlib.crc32(self.weights(shape).astype("<f4").tobytes()) & 0xFFFFFF

    def initial_values(self, kernel: np.ndarray) -> dict[str, np.ndarray]:
        kernel = np.asarray(kernel)
        draws = np.random.default_rng([self.seed, self.index, 1])
        scores = draws.uniform(-self.width, self.width, kernel.shape)
        found = np.asarray(self.fingerprint(kernel.shape), np.float32)
        return {"S": scores.astype(kernel.dtype), "F": found}

    def compose(self, factors: Mapping[str, tf.Tensor]) -> tf.Tensor:
        scores = tf.convert_to_tensor(factors["S"])
        shape = tuple(scores.shape)
        if shape not in self._made:
            with tf.init_scope():  # one tensor beside the graphs, which would copy a constant
                self._made[shape] = tf.constant(self.weights(shape))
        return tf.cast(self._made[shape], scores.dtype) * score_mask(scores, self.kept)

    def check(self, factors: Mapping[str, Any]) -> None:
        """Raises ValueError if scores belong to the weights of another seed."""
        shape = tuple(factors["S"].shape)
        found, own = int(np.asarray(factors["F"])), self.fingerprint(shape)
        if found != own:
            raise ValueError(
                f"These scores were trained for other fixed weights than seed={self.seed}, "
                f"index={self.index} and scale={self.scale:g} give (fingerprint {found}, expected "
                f"{own}). Use the seed and the kind of weights that they were trained with."
            )


def _checked(kept: int) -> int:
    if isinstance(kept, bool) or int(kept) != kept or kept < 1:
        raise ValueError(
            f"`kept` must be a whole number, at least 1: a kernel without weights lets nothing "
            f"through. Received {kept!r}. Raise the budget."
        )
    return int(kept)
