# SPDX-License-Identifier: Apache-2.0
"""The low-rank kernel of ALR, a product of two factors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tfmot_atmc.kernels.base import Kernel, live_product
from tfmot_atmc.math import is_separable, kernel_matrix, matrix_kernel


class LowRankKernel(Kernel):
    """The kernel W = A B, of full rank until a constraint takes components away.

    A Keras kernel of shape `(..., outputs)` is read as a matrix M, see `kernel_matrix`: of shape
    `(fan_in, outputs)`, or, if `separable` and cheaper so, of shape
    `(height * inputs, width * outputs)`. `A` has the kernel's shape and is read in the same way,
    `B` is square, of the shorter side of M:

    - M is not wider than high:  M = A B, component i is column i of A and row i of B;
    - otherwise:                 M = B A, component i is column i of B and row i of A.

    A component of a separable kernel is a vertical filter followed by a horizontal one.

    The start is the singular value decomposition of M, with the root of a singular value in each
    factor, largest first. A component that is zero in both factors has no gradient in either, and
    stays zero.

    Args:
        separable: read kernels of two-dimensional convolutions as vertical filters times horizontal
            ones, where a component then takes fewer parameters.

    Source: "ALR" in Gui et al., NeurIPS 2019, section 4.1; separable kernels: Tai et al.,
        "Convolutional neural networks with low-rank regularization", 2015, which the former cites
        as its low-rank method.

    Example:

    >>> import numpy as np
    >>> factors = LowRankKernel().initial_values(np.ones((3, 2), np.float32))
    >>> {name: value.shape for name, value in factors.items()}
    {'A': (3, 2), 'B': (2, 2)}
    """

    main = "A"
    growable = frozenset()

    def __init__(self, separable: bool = False):
        self.separable = separable

    def initial_values(self, kernel: np.ndarray) -> dict[str, np.ndarray]:
        kernel = np.asarray(kernel)
        if kernel.ndim < 2:
            raise ValueError(
                "A low-rank kernel needs at least two dimensions, (fan_in, outputs). "
                f"Received shape {kernel.shape}. Use PlainKernel for it."
            )
        matrix = kernel_matrix(kernel, self.separable).astype(np.float64)
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        roots = np.sqrt(values)
        left, right = left * roots, roots[:, None] * right
        big, square = (left, right) if matrix.shape[1] <= matrix.shape[0] else (right, left)
        main = matrix_kernel(big, kernel.shape, self.separable)
        return {"A": main.astype(kernel.dtype), "B": square.astype(kernel.dtype)}

    def compose(self, factors: Mapping[str, tf.Tensor]) -> tf.Tensor:
        a, b = (tf.convert_to_tensor(factors[name]) for name in ("A", "B"))
        matrix = kernel_matrix(a, self.separable)
        wide = matrix.shape[1] > matrix.shape[0]
        product = tf.matmul(b, matrix) if wide else tf.matmul(matrix, b)
        return matrix_kernel(product, a.shape, self.separable)

    def product(self, factors: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the kernel as the product of its two factors, without removed components."""
        a, b = (np.asarray(factors[name]) for name in ("A", "B"))
        matrix = kernel_matrix(a, self.separable)
        first, second = (b, matrix) if matrix.shape[1] > len(matrix) else (matrix, b)
        if self.separable and is_separable(a.shape):
            height, width, inputs, outputs = a.shape
            first = first.reshape(height, 1, inputs, -1)
            second = second.reshape(-1, 1, width, outputs).transpose(1, 2, 0, 3)
        else:
            first = first.reshape(*a.shape[:-1], -1)
        return live_product(first, second)
