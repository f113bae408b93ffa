# SPDX-License-Identifier: Apache-2.0
"""Binary kernels: the signs of real weights that are trained behind them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tfmot_atmc.kernels.base import Kernel, PlainKernel
from tfmot_atmc.kernels.masked import MaskedKernel

__all__ = ["BinaryKernel", "binary_signs"]


def binary_signs(weights: tf.Tensor, zeros: bool = False) -> tf.Tensor:
    """Returns the signs of weights, with the identity as their gradient.

    Args:
        weights: float32 tensor of any shape.
        zeros: whether a weight of exactly 0 gives 0; else it gives +1.

    Example:

    >>> binary_signs(tf.constant([-0.3, 0.0, 2.0])).numpy().tolist()
    [-1.0, 1.0, 1.0]
    """
    one = tf.ones_like(weights)
    signs = tf.where(weights < 0, -one, one)
    if zeros:
        signs = tf.where(weights == 0, tf.zeros_like(one), signs)
    held = tf.stop_gradient(weights)
    return tf.stop_gradient(signs) + (weights - held)


class BinaryKernel(Kernel):
    """A kernel whose weights are used by their signs alone.

    The real weights are the factor `latent`, so that no other kernel takes them for its own.

    Args:
        kernel: the kernel whose factor `W` becomes binary, `PlainKernel` or `MaskedKernel`; None
            for the first.
        zeros: whether weights that are exactly 0 stay 0, as under a budget of nonzeros.

    Raises:
        ValueError: for a kernel of another kind, such as a product, which has no signs of its own.

    Source: Courbariaux et al., "BinaryConnect: Training Deep Neural Networks with binary weights
    during propagations", NeurIPS 2015, algorithm 1.

    Example:

    >>> kernel = BinaryKernel()
    >>> kernel.compose({"latent": np.float32([[0.5, -0.1]])}).numpy().tolist()
    [[1.0, -1.0]]
    """

    main = "latent"
    growable = frozenset()

    def __init__(self, kernel: Kernel | None = None, zeros: bool = False):
        self.kernel, self.zeros = kernel or PlainKernel(), bool(zeros)
        if not isinstance(self.kernel, (PlainKernel, MaskedKernel)):
            raise ValueError(
                "Binary are the weights of a PlainKernel or a MaskedKernel; the signs of the "
                f"factors of another are not those of the kernel. Received {self.kernel!r}."
            )
        self.roles = {self._renamed(part): role for part, role in self.kernel.roles.items()}
        self.growable = frozenset(self._renamed(part) for part in self.kernel.growable)

    def _renamed(self, part: str) -> str:
        return self.main if part == self.kernel.main else part

    def initial_values(self, kernel: np.ndarray) -> dict[str, np.ndarray]:
        return {self._renamed(p): v for p, v in self.kernel.initial_values(kernel).items()}

    def compose(self, factors: Mapping[str, tf.Tensor]) -> tf.Tensor:
        signs = binary_signs(tf.convert_to_tensor(factors[self.main]), self.zeros)
        return self.kernel.compose({**factors, self.kernel.main: signs})

    def counted(self, factors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {self.main: np.asarray(self.compose(factors))}
