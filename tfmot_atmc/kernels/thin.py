# SPDX-License-Identifier: Apache-2.0
"""Convolution of single-channel images with a fast gradient on CPUs."""

from __future__ import annotations

import tensorflow as tf


def thin_conv2d(inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Convolves single-channel images; stride 1, `"valid"` padding, channels last.

    Attacks ask for the gradient in the inputs at every step, and for a single input channel the
    usual kernels waste most of their work. Here it is one matrix product and shifted sums.

    Args:
        inputs: tensor of shape `(batch, height, width, 1)`.
        kernel: tensor of shape `(kernel_height, kernel_width, 1, outputs)`, same dtype.

    Returns:
        What `tf.nn.conv2d` returns, of shape `(batch, new_height, new_width, outputs)`.
    """
    rows, columns, _, outputs = kernel.shape

    @tf.custom_gradient
    def convolve(x: tf.Tensor, w: tf.Tensor) -> tuple:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            height, width = upstream.shape[1], upstream.shape[2]
            flat = tf.reshape(upstream, (-1, outputs))
            taps = tf.matmul(flat, tf.reshape(w, (rows * columns, outputs)), transpose_b=True)
            planes = tf.transpose(
                tf.reshape(taps, (-1, height, width, rows * columns)), (3, 0, 1, 2)
            )
            shifted = [
                tf.pad(
                    planes[i * columns + j],
                    [[0, 0], [i, rows - 1 - i], [j, columns - 1 - j]],
                )
                for i in range(rows)
                for j in range(columns)
            ]
            in_kernel = tf.raw_ops.Conv2DBackpropFilter(
                input=x,
                filter_sizes=w.shape.as_list(),
                out_backprop=upstream,
                strides=[1, 1, 1, 1],
                padding="VALID",
            )
            return tf.add_n(shifted)[..., None], in_kernel

        return tf.nn.conv2d(x, w, 1, "VALID"), gradient

    return convolve(inputs, kernel)
