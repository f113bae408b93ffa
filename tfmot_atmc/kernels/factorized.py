# SPDX-License-Identifier: Apache-2.0
"""The factorised kernel of ATMC, W = (U + I)V + C."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from tfmot_atmc.kernels.base import Kernel, live_product


class FactorizedKernel(Kernel):
    """The kernel W = (U + I)V + C of ATMC, with the square factor on the smaller side.

    A Keras kernel of shape `(..., outputs)` is read as the matrix M of shape `(fan_in, outputs)`.
    `V` and `C` have the kernel's shape; `U` is square, of side `min(fan_in, outputs)`:

    - `outputs < fan_in`:  M = V + V U + C, with U of shape `(outputs, outputs)`;
    - otherwise:           M = V + U V + C, with U of shape `(fan_in, fan_in)`.

    (The first is the transpose of (U + I)V + C for the matrix of shape `(outputs, fan_in)`.) The
    identity is a constant: it is never counted, stored or pruned, so the start U = 0, V = M, C = 0
    reproduces a trained kernel exactly.

    Source: Gui et al., "Model Compression with Adversarial Robustness: A Unified Optimization
    Framework", NeurIPS 2019, section 3.2; the identity and the side of U follow the authors' code.

    Example:

    >>> import numpy as np
    >>> kernel = FactorizedKernel()
    >>> factors = kernel.initial_values(np.ones((3, 3, 2, 4), np.float32))
    >>> {name: value.shape for name, value in factors.items()}
    {'V': (3, 3, 2, 4), 'U': (4, 4), 'C': (3, 3, 2, 4)}
    """

    main = "V"
    # While U = 0 the gradients of C and V are the same, so an entry grown in C only repeats V's.
    growable = frozenset({"V", "U"})

    def initial_values(self, kernel: np.ndarray) -> dict[str, np.ndarray]:
        kernel = np.asarray(kernel)
        if kernel.ndim < 2:
            raise ValueError(
                "A factorised kernel needs at least two dimensions, (fan_in, outputs). "
                f"Received shape {kernel.shape}. Use PlainKernel for it."
            )
        outputs = kernel.shape[-1]
        side = min(kernel.size // max(outputs, 1), outputs)
        return {
            "V": kernel,
            "U": np.zeros((side, side), kernel.dtype),
            "C": np.zeros_like(kernel),
        }

    def compose(self, factors: Mapping[str, tf.Tensor]) -> tf.Tensor:
        v, u, c = (tf.convert_to_tensor(factors[name]) for name in ("V", "U", "C"))
        shape = v.shape
        matrix = tf.reshape(v, (-1, shape[-1]))
        mixed = tf.matmul(matrix, u) if shape[-1] < matrix.shape[0] else tf.matmul(u, matrix)
        return tf.reshape(matrix + mixed, shape) + c

    def product(self, factors: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the kernel as a product: (V, C) times (U + I over I), or the other way round."""
        v, u, c = (np.asarray(factors[name]) for name in ("V", "U", "C"))
        outputs = v.shape[-1]
        matrix, added = v.reshape(-1, outputs), c.reshape(-1, outputs)
        side = len(matrix)
        eye = np.eye(len(u), dtype=v.dtype)
        if outputs < side:
            a, b = np.concatenate([matrix, added], 1), np.concatenate([u + eye, eye])
        else:
            a, b = np.concatenate([u + eye, eye], 1), np.concatenate([matrix, added])
        return live_product(a.reshape(*v.shape[:-1], -1), b)
