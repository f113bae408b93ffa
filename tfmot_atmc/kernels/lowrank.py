# SPDX-License-Identifier: Apache-2.0
"""The low-rank kernel of ALR, a product of two factors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tfmot_atmc.kernels.base import Kernel, live_product


class LowRankKernel(Kernel):
    """The kernel W = A B, of full rank until a constraint takes components away.

    A Keras kernel of shape `(..., outputs)` is read as the matrix M of shape `(fan_in, outputs)`.
    `A` has the kernel's shape, `B` is square, of side `min(fan_in, outputs)`:

    - `outputs <= fan_in`:  M = A B, component i is column i of A and row i of B;
    - otherwise:            M = B A, component i is column i of B and row i of A.

    The start is the singular value decomposition of M, with the root of a singular value in each
    factor, largest first. A component that is zero in both factors has no gradient in either, and
    stays zero.

    Source: "ALR" in Gui et al., NeurIPS 2019, section 4.1.

    Example:

    >>> import numpy as np
    >>> factors = LowRankKernel().initial_values(np.ones((3, 2), np.float32))
    >>> {name: value.shape for name, value in factors.items()}
    {'A': (3, 2), 'B': (2, 2)}
    """

    main = "A"
    growable = frozenset()

    def initial_values(self, kernel: np.ndarray) -> dict[str, np.ndarray]:
        kernel = np.asarray(kernel)
        if kernel.ndim < 2:
            raise ValueError(
                "A low-rank kernel needs at least two dimensions, (fan_in, outputs). "
                f"Received shape {kernel.shape}. Use PlainKernel for it."
            )
        matrix = kernel.reshape(-1, kernel.shape[-1]).astype(np.float64)
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        roots = np.sqrt(values)
        left, right = left * roots, roots[:, None] * right
        big, square = (left, right) if kernel.shape[-1] <= matrix.shape[0] else (right, left)
        dtype = kernel.dtype
        return {"A": big.reshape(kernel.shape).astype(dtype), "B": square.astype(dtype)}

    def compose(self, factors: Mapping[str, tf.Tensor]) -> tf.Tensor:
        a, b = (tf.convert_to_tensor(factors[name]) for name in ("A", "B"))
        shape = a.shape
        matrix = tf.reshape(a, (-1, shape[-1]))
        wide = shape[-1] > matrix.shape[0]
        return tf.reshape(tf.matmul(b, matrix) if wide else tf.matmul(matrix, b), shape)

    def product(self, factors: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the kernel as the product of its two factors, without removed components."""
        a, b = (np.asarray(factors[name]) for name in ("A", "B"))
        matrix = a.reshape(-1, a.shape[-1])
        first, second = (b, matrix) if a.shape[-1] > len(matrix) else (matrix, b)
        return live_product(first.reshape(*a.shape[:-1], -1), second)
