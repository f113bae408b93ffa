# SPDX-License-Identifier: Apache-2.0
"""Random squares in images, and what the square attack puts into them."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from tfmot_atmc.attacks.problem import fold_in

__all__ = ["Canvas", "l2_change", "linf_pattern"]

_GENERATOR = "philox"


class Canvas:
    """An input read as images `[batch, height, width, channels]`.

    Args:
        leaf: tensor with a batch axis and static other axes.
    """

    def __init__(self, leaf: tf.Tensor) -> None:
        shape = [int(size) for size in leaf.shape[1:]] or [1]
        if len(shape) == 1:
            shape = [*shape, 1]
        self.channels = shape[-1]
        self.width = shape[-2]
        self.height = int(np.prod(shape[:-2]))

    def image(self, leaf: tf.Tensor) -> tf.Tensor:
        """Returns the input as float32 images."""
        shape = (-1, self.height, self.width, self.channels)
        return tf.reshape(tf.cast(leaf, tf.float32), shape)

    def flat(self, image: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
        """Returns images in the shape and dtype of the input."""
        return tf.cast(tf.reshape(image, tf.shape(like)), like.dtype)

    def signs(self, seed: tf.Tensor, shape: tuple) -> tf.Tensor:
        """Returns random float32 entries of -1 and 1."""
        bits = tf.random.stateless_uniform(shape, seed, None, None, tf.int32, alg=_GENERATOR)
        return tf.where(bits < 0, -1.0, 1.0)

    def sides(self, share: tf.Tensor, odd: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns height and width of a square with this share of the pixels; odd from 3 on."""
        pixels = share * self.height * self.width
        line = min(self.height, self.width) == 1  # a row or a column: an interval
        side = tf.cast(tf.round(pixels if line else tf.sqrt(pixels)), tf.int32)
        side = tf.maximum(side, 3 if odd else 1)
        side = side + (1 - side % 2 if odd else 0)
        if line:
            return tf.minimum(side, self.height), tf.minimum(side, self.width)
        side = tf.minimum(side, min(self.height, self.width))
        return side, side

    def corner(self, sides: tuple[tf.Tensor, tf.Tensor], seed: tf.Tensor) -> tuple:
        """Returns the random upper left corner of a window; the last position is never drawn."""
        draws = tf.random.stateless_uniform([2], seed, dtype=tf.float32, alg=_GENERATOR)
        free = (self.height - sides[0], self.width - sides[1])
        return tuple(
            tf.cast(draws[i] * tf.cast(room, tf.float32), tf.int32) for i, room in enumerate(free)
        )

    def window(self, corner: tuple, sides: tuple) -> tf.Tensor:
        """Returns a bool mask `[height, width, 1]` of a window."""
        rows, columns = tf.range(self.height) - corner[0], tf.range(self.width) - corner[1]
        inside = ((rows >= 0) & (rows < sides[0]))[:, None]
        return (inside & ((columns >= 0) & (columns < sides[1]))[None])[..., None]

    def tiles(self, leaf: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Returns images of five by five bumps of random signs: the start for l2."""
        sides = (max(self.height // 5, 1), max(self.width // 5, 1))
        counts = (min(5, self.height), min(5, self.width))
        rows, columns = tf.range(sides[0])[:, None], tf.range(sides[1])[None]
        height, width = tf.constant(sides[0]), tf.constant(sides[1])
        bump = _bump(rows, columns, height, width, tf.constant(self.height == 1))
        signs = self.signs(seed, (tf.shape(leaf)[0], *counts, self.channels))
        for axis, side in ((1, sides[0]), (2, sides[1])):
            signs = tf.repeat(signs, side, axis=axis)
        images = signs * tf.tile(bump, counts)[None, :, :, None]
        gaps = [
            size - side * n
            for size, side, n in zip((self.height, self.width), sides, counts, strict=True)
        ]
        around = [[gap // 2, gap - gap // 2] for gap in gaps]
        return tf.pad(images, [[0, 0], *around, [0, 0]])


def linf_pattern(canvas: Canvas, share: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Returns -1, 0 or 1 for each pixel: a square, with a sign for each channel.

    Args:
        canvas: the images.
        share: share of the pixels in the square, a scalar.
        seed: `[2]`.

    Returns:
        float32 `[1, height, width, channels]`.
    """
    sides = canvas.sides(share)
    window = canvas.window(canvas.corner(sides, fold_in(seed, 0)), sides)
    signs = canvas.signs(fold_in(seed, 1), (1, 1, canvas.channels))
    return tf.where(window, signs, 0.0)[None]


def l2_change(
    canvas: Canvas,
    change: tf.Tensor,
    share: tf.Tensor,
    epsilon: float,
    length: tf.Tensor,
    seed: tf.Tensor,
) -> tf.Tensor:
    """Returns changes with the mass of one window moved, as a bump, into another.

    Args:
        canvas: the images.
        change: the perturbations so far, float32 `[batch, height, width, channels]`.
        share: share of the pixels in a window, a scalar.
        epsilon: radius of the ball.
        length: their l2 norms, `[batch]`; what is left of the radius goes into the new window.
        seed: `[2]`.

    Source: Andriushchenko et al., ECCV 2020, algorithm 3.
    """
    sides = canvas.sides(share, odd=True)
    corner = canvas.corner(sides, fold_in(seed, 0))
    into = tf.cast(canvas.window(corner, sides), tf.float32)[None]
    out_of = tf.cast(canvas.window(canvas.corner(sides, fold_in(seed, 1)), sides), tf.float32)[None]
    rows = tf.range(canvas.height)[:, None] - corner[0]
    columns = tf.range(canvas.width)[None] - corner[1]
    turned = canvas.signs(fold_in(seed, 2), (1,))[0] > 0
    turned = (turned | (canvas.height == 1)) & (canvas.width > 1)
    bump = _bump(rows, columns, *sides, turned)[None, :, :, None] * into
    bump = bump / tf.maximum(_norms(bump), 1e-12)
    signs = canvas.signs(fold_in(seed, 3), (tf.shape(change)[0], 1, 1, canvas.channels))
    here = change * into
    new = signs * bump + here / tf.maximum(_norms(here), 1e-12)
    unused = tf.maximum(epsilon**2 - tf.square(length), 0.0)[:, None, None, None]
    freed = tf.square(_norms(change * tf.maximum(into, out_of)))
    new = new / tf.maximum(_norms(new), 1e-12) * tf.sqrt(unused / canvas.channels + freed)
    return change * (1 - tf.maximum(into, out_of)) + new * into


def _norms(images: tf.Tensor) -> tf.Tensor:
    """Returns the l2 norm of each channel, `[batch, 1, 1, channels]`."""
    return tf.sqrt(tf.reduce_sum(tf.square(images), axis=(1, 2), keepdims=True))


def _bump(
    rows: tf.Tensor,
    columns: tf.Tensor,
    height: tf.Tensor,
    width: tf.Tensor,
    turned: tf.Tensor,
) -> tf.Tensor:
    """Returns a hill and a valley side by side, for coordinates relative to a window's corner.

    Around each centre, at (Chebyshev) distance d, the value is the sum of 1 / j^2 for j from d + 1
    to the window's reach. `turned` puts them left and right, not above each other.
    """
    along, across = tf.where(turned, columns, rows), tf.where(turned, rows, columns)
    size, other = tf.where(turned, width, height), tf.where(turned, height, width)
    half = size // 2
    second = along >= half
    length = tf.where(second, size - half, half)
    distance = tf.maximum(
        tf.abs(along - tf.where(second, half, 0) - length // 2), tf.abs(across - other // 2)
    )
    reach = tf.maximum(length // 2, other // 2) + 1
    value = _inverse_squares(reach) - _inverse_squares(tf.minimum(distance, reach))
    return tf.where(second, -value, value)


def _inverse_squares(count: tf.Tensor) -> tf.Tensor:
    """Returns the sum of 1 / j^2 for j from 1 to `count`, at most 1,024 terms."""
    table = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, 1025) ** 2)])
    return tf.gather(tf.constant(table, tf.float32), tf.clip_by_value(count, 0, 1024))
