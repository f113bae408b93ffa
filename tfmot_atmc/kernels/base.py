# SPDX-License-Identifier: Apache-2.0
"""The kernel interface, and the kernel that is its own only factor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_atmc.utils.configurable import Configurable


class Kernel(Configurable, kind="kernel"):
    """How one layer's kernel is composed from factors.

    A kernel names its factors, says how a trained dense kernel becomes their starting values, and
    composes them back. The factor called `main` has the kernel's own shape and lives in the
    layer's own variable; the others are new variables.

    Subclasses override `initial_values` and `compose`.
    """

    main: str = "W"
    """Name of the factor that lives in the layer's own kernel variable."""

    roles: Mapping[str, str] = {}
    """What each factor is: a trained `"weight"` (that of all not named here); a trained `"score"`,
    which decides about weights; a trained `"rate"`, which says how many are used; or `"fixed"`,
    never trained and kept bit for bit. Only weights are counted."""

    growable: frozenset[str] = frozenset({"W"})
    """Names of the factors in which growth by gradient may open new entries."""

    separable: bool = False
    """Whether kernels are read as vertical filters times horizontal ones, where that is cheaper."""

    def initial_values(self, kernel: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the factors that compose to `kernel`.

        Args:
            kernel: array of any shape, the trained dense kernel in Keras layout (output channels
                last).

        Returns:
            A dict of factor name to array; `self.main` comes first and has `kernel`'s shape.
        """
        raise NotImplementedError

    def compose(self, factors: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Returns the kernel, a tensor of the main factor's shape and dtype."""
        raise NotImplementedError

    def counted(self, factors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns what is counted and stored: the weights, without those that scores leave out.

        Args:
            factors: value of each factor.

        Returns:
            The weights as they are; for a kernel with scores the composed kernel under the name of
            the main factor.
        """
        if "score" in self.roles.values():
            return {self.main: np.asarray(self.compose(factors))}
        return dict(factors)

    def check(self, factors: Mapping[str, Any]) -> None:
        """Raises ValueError if values that were loaded cannot be factors of this kernel.

        Args:
            factors: the variable of each factor, with the values of a file or of another model.
        """

    def product(self, factors: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns the kernel as a product of two, which a device may run one after the other.

        Args:
            factors: value of each factor.

        Returns:
            `(A, B)` of shapes `(..., r)` and `(r, outputs)` with kernel = A B, or of shapes
            `(height, 1, inputs, r)` and `(1, width, r, outputs)` for a vertical filter followed by
            a horizontal one; without inner channels that are zero on either side. None for a kernel
            that is no product.
        """
        return None


def live_product(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Drops the inner channels of a product A B that are zero on either side; keeps at least one.

    Args:
        a: array `(..., r)`.
        b: array `(..., r, outputs)`.

    Returns:
        The two arrays with fewer inner channels, equal in their product.
    """
    live = live_channels(a, b)
    if not live.any():
        live[0] = True
    return a[..., live], b[..., live, :]


def live_channels(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns which inner channels of a product A B are zero on neither side, booleans `(r,)`."""
    first = (a != 0).reshape(-1, a.shape[-1]).any(axis=0)
    second = np.moveaxis(b != 0, -2, 0).reshape(b.shape[-2], -1).any(axis=1)
    return first & second


class PlainKernel(Kernel):
    """A kernel that is its own only factor, `W`.

    Example:

    >>> import numpy as np
    >>> kernel = PlainKernel()
    >>> kernel.initial_values(np.eye(2))["W"].shape
    (2, 2)
    """

    main = "W"
    growable = frozenset({"W"})

    def initial_values(self, kernel: np.ndarray) -> dict[str, np.ndarray]:
        return {"W": np.asarray(kernel)}

    def compose(self, factors: Mapping[str, tf.Tensor]) -> tf.Tensor:
        return tf.convert_to_tensor(factors["W"])
