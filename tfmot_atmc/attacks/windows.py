# SPDX-License-Identifier: Apache-2.0
"""Windows of padded images, read and written, and their storage as averages of blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

__all__ = ["Canvas"]

_BYTES_A_CELL = 2  # float16
_BYTES_AN_EXAMPLE = 4  # the count of its visits


class Canvas:
    """The padded images on which perturbations live.

    Args:
        image_shape: shape of a window, `(height, width, channels)`; any other rank is for data
            without padding, mirroring or downsampling.
        padding: pixels by which the canvas is larger on each side.
        factor: side of the blocks that are stored as one cell.

    Attributes:
        cells: shape of what is stored of one canvas.

    Example:
    >>> canvas = Canvas((3, 3, 1), padding=1, factor=2)
    >>> canvas.shape, canvas.cells
    ((5, 5, 1), (3, 3, 1))
    """

    def __init__(self, image_shape: Sequence[int], padding: int, factor: int) -> None:
        self.image_shape = tuple(int(side) for side in image_shape)
        self.padding, self.factor = int(padding), int(factor)
        if padding < 0 or factor < 1 or min(self.image_shape, default=0) < 1:
            raise ValueError(
                "`image_shape` must be positive, `padding` at least 0 and `downsample` at least 1. "
                f"Received {self.image_shape}, {padding!r} and {factor!r}."
            )
        self.is_image = len(self.image_shape) == 3
        if not self.is_image and (padding or factor > 1):
            raise ValueError(
                "Padding and downsampling need an `image_shape` of (height, width, channels). "
                f"Received {self.image_shape}."
            )
        self.shape = self._padded()
        self.cells = self._cells(self.factor)

    def _padded(self) -> tuple[int, ...]:
        if not self.is_image:
            return self.image_shape
        height, width, channels = self.image_shape
        return height + 2 * self.padding, width + 2 * self.padding, channels

    def _cells(self, factor: int) -> tuple[int, ...]:
        if not self.is_image:
            return self.image_shape
        height, width, channels = self.shape
        return math.ceil(height / factor), math.ceil(width / factor), channels

    def check_size(self, examples: int, max_bytes: int) -> None:
        """Refuses a store that is too large.

        Raises:
            ValueError: it names the bytes that are needed and the factor that would fit.
        """

        def needed(factor: int) -> int:
            return examples * (_BYTES_A_CELL * math.prod(self._cells(factor)) + _BYTES_AN_EXAMPLE)

        if needed(self.factor) <= max_bytes:
            return
        advice = "No downsampling makes it fit."
        if self.is_image:
            for factor in range(self.factor + 1, max(self.shape[:2]) + 1):
                if needed(factor) <= max_bytes:
                    advice = f"`downsample={factor}` fits, with {needed(factor):,} bytes."
                    break
        raise ValueError(
            f"Perturbations of {examples:,} examples on a canvas of {self.shape} take "
            f"{needed(self.factor):,} bytes with `downsample={self.factor}`, more than "
            f"`max_bytes` ({max_bytes:,}). {advice}"
        )

    def read(self, canvas: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
        """Returns the windows, `[batch, *image_shape]`.

        Args:
            canvas: `[batch, *shape]`.
            window: integers `[batch, 3]`: top, left, mirrored.
        """
        if not self.is_image:
            return canvas
        height, width, channels = self.image_shape
        if self.padding:
            rows = window[:, :1] + tf.range(height, dtype=window.dtype)
            columns = window[:, 1:2] + tf.range(width, dtype=window.dtype)
            canvas = tf.gather(canvas, rows, axis=1, batch_dims=1)
            canvas = tf.gather(canvas, columns, axis=2, batch_dims=1)
        return tf.ensure_shape(_mirrored(canvas, window), [None, height, width, channels])

    def write(self, canvas: tf.Tensor, image: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
        """Returns the canvases with windows replaced; outside of them they stay as they are.

        Args:
            canvas: `[batch, *shape]`.
            image: `[batch, *image_shape]`, the new content of the windows.
            window: integers `[batch, 3]`: top, left, mirrored.
        """
        if not self.is_image:
            return image
        image = _mirrored(image, window)
        if not self.padding:
            return image
        inside = None
        for axis in (1, 2):
            size, length = self.shape[axis - 1], self.image_shape[axis - 1]
            source = tf.range(size, dtype=window.dtype) - window[:, axis - 1 : axis]
            covered = (source >= 0) & (source < length)
            image = tf.gather(
                image, tf.clip_by_value(source, 0, length - 1), axis=axis, batch_dims=1
            )
            covered = covered[:, :, None, None] if axis == 1 else covered[:, None, :, None]
            inside = covered if inside is None else inside & covered
        return tf.where(inside, image, canvas)

    def pool(self, canvas: tf.Tensor) -> tf.Tensor:
        """Returns averages of blocks, `[batch, *cells]`; of a block cut off, that of what is there.

        Args:
            canvas: `[batch, *shape]`.
        """
        if self.factor == 1:
            return canvas
        (height, width, channels), (rows, columns, _) = self.shape, self.cells
        side = self.factor
        beyond = [[0, 0], [0, rows * side - height], [0, columns * side - width], [0, 0]]
        blocks = tf.reshape(tf.pad(canvas, beyond), [-1, rows, side, columns, side, channels])
        covered = np.outer(_covered(height, rows, side), _covered(width, columns, side))
        return tf.reduce_sum(blocks, axis=[2, 4]) / tf.constant(covered[..., None], canvas.dtype)

    def upsample(self, cells: tf.Tensor) -> tf.Tensor:
        """Returns canvases `[batch, *shape]` of constant blocks; `pool` is its inverse.

        Args:
            cells: `[batch, *cells]`.
        """
        if self.factor == 1:
            return cells
        height, width, _ = self.shape
        blocks = tf.repeat(tf.repeat(cells, self.factor, axis=1), self.factor, axis=2)
        return blocks[:, :height, :width]


def _covered(length: int, cells: int, side: int) -> np.ndarray:
    """Returns how many of `length` pixels each cell of `side` pixels covers."""
    return np.minimum(side, length - side * np.arange(cells))


def _mirrored(image: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
    mirrored = tf.reshape(window[:, 2] != 0, [-1, 1, 1, 1])
    return tf.where(mirrored, tf.reverse(image, axis=[2]), image)
