# SPDX-License-Identifier: Apache-2.0
"""How a kernel of several axes is read as a matrix, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import tensorflow as tf

Array = TypeVar("Array", np.ndarray, tf.Tensor)


def kernel_matrix(kernel: Array, separable: bool = False) -> Array:
    """Reads a kernel in Keras layout as a matrix.

    Args:
        kernel: array or tensor of shape `(..., outputs)`, with at least two axes.
        separable: read a kernel of shape `(height, width, inputs, outputs)` as vertical filters
            times horizontal ones, where a component then takes fewer parameters; else, and with
            another number of axes, it makes no difference.

    Returns:
        A matrix of the same kind and dtype and of shape `(fan_in, outputs)`, or
        `(height * inputs, width * outputs)` if separable.

    Source: the separable form is that of Tai et al., "Convolutional neural networks with low-rank
        regularization", 2015.

    Example:

    >>> kernel_matrix(np.zeros((3, 5, 2, 4))).shape
    (30, 4)
    >>> kernel_matrix(np.zeros((3, 5, 2, 4)), separable=True).shape
    (6, 20)
    >>> kernel_matrix(np.zeros((3, 5, 1, 4)), separable=True).shape
    (15, 4)
    """
    rows, columns = matrix_shape(kernel.shape, separable)
    if separable and is_separable(kernel.shape):
        kernel = _swap_inner_axes(kernel)
    return _reshape(kernel, (rows, columns))


def matrix_kernel(matrix: Array, shape: Sequence[int], separable: bool = False) -> Array:
    """Undoes `kernel_matrix`.

    Args:
        matrix: array or tensor of the shape that `kernel_matrix` gives for `shape`.
        shape: the kernel's shape.
        separable: as given to `kernel_matrix`.

    Returns:
        The kernel, of shape `shape`.

    Example:

    >>> kernel = np.arange(24).reshape(2, 3, 2, 2)
    >>> bool((matrix_kernel(kernel_matrix(kernel, True), kernel.shape, True) == kernel).all())
    True
    """
    if not (separable and is_separable(shape)):
        return _reshape(matrix, tuple(shape))
    height, width, inputs, outputs = shape
    return _swap_inner_axes(_reshape(matrix, (height, inputs, width, outputs)))


def matrix_shape(shape: Sequence[int], separable: bool = False) -> tuple[int, int]:
    """Returns the shape of the matrix as which a kernel of a shape is read.

    Args:
        shape: the kernel's shape, `(..., outputs)`.
        separable: as given to `kernel_matrix`.

    Example:

    >>> matrix_shape((5, 5, 20, 50)), matrix_shape((5, 5, 20, 50), separable=True)
    ((500, 50), (100, 250))
    """
    if separable and is_separable(shape):
        height, width, inputs, outputs = shape
        return height * inputs, width * outputs
    return int(np.prod(shape[:-1])), int(shape[-1])


def is_separable(shape: Sequence[int]) -> bool:
    """Tells whether a component of a kernel of a shape takes fewer parameters as two filters.

    Args:
        shape: the kernel's shape, `(..., outputs)`.

    Example:

    >>> is_separable((5, 5, 20, 50)), is_separable((5, 5, 1, 20)), is_separable((800, 500))
    (True, False, False)
    """
    if len(shape) != 4:
        return False
    height, width, inputs, outputs = shape
    return height * inputs + width * outputs < height * width * inputs + outputs


def _reshape(array: Array, shape: tuple[int, ...]) -> Array:
    return array.reshape(shape) if isinstance(array, np.ndarray) else tf.reshape(array, shape)


def _swap_inner_axes(array: Array) -> Array:
    order = (0, 2, 1, 3)
    return array.transpose(order) if isinstance(array, np.ndarray) else tf.transpose(array, order)
