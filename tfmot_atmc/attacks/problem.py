# SPDX-License-Identifier: Apache-2.0
"""The constrained maximisation an attack solves: a loss, a starting point, a box around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_atmc.attacks.outputs import hard_labels, is_sparse
from tfmot_atmc.attacks.values import Bounds

__all__ = ["Leaves", "Problem", "fold_in"]

Leaves = list[tf.Tensor]

# One generator everywhere, and raw integers at that: XLA draws the same integers as the stock
# kernels but other floats, and compiling a train step should not change its noise.
_GENERATOR = "philox"


def fold_in(seed: tf.Tensor, index: int) -> tf.Tensor:
    """Returns a fresh `[2]` seed derived from `seed` and `index`."""
    return tf.random.experimental.stateless_fold_in(seed, index, alg=_GENERATOR)


class Problem:
    """Maximise the loss over the floating inputs, inside the ball and inside the bounds.

    The floating tensors of the input nest are the `leaves`; all other inputs stay as they are.
    The intersection of the l-infinity ball with the bounds is a box, computed once, so that a
    projection is a single clip.

    Args:
        logits_fn: Callable from the input nest to float32 logits `[batch, classes]`.
        x: Nest of tensors.
        y: Labels, see `cross_entropy`.
        epsilon: float64 array, scalar or `[channels]`, in input units.
        bounds: Pair of such arrays or None, the least and greatest legal input.
        loss: Callable `(y, logits) -> [batch]`.

    Attributes:
        x: The floating leaves of the clean input.
        lower, upper: The box, leaf by leaf.
        y: The labels as given.
        num_classes: Columns of the logits; None before the model has been called.

    Raises:
        TypeError: no input is floating.
        ValueError: an input has no batch axis, or a per-channel value does not fit.
    """

    def __init__(
        self,
        logits_fn: Callable[[Any], tf.Tensor],
        x: Any,
        y: tf.Tensor,
        *,
        epsilon: np.ndarray,
        bounds: Bounds,
        loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    ) -> None:
        self._logits_fn = logits_fn
        self._structure = x
        self._inputs = tf.nest.flatten(x)
        self._floating = [tensor.dtype.is_floating for tensor in self._inputs]
        self._loss = loss
        self.y = y
        self.num_classes: int | None = None
        self.x: Leaves = [t for t, keep in zip(self._inputs, self._floating, strict=True) if keep]
        if not self.x:
            raise TypeError(
                "An attack perturbs floating inputs only. Received dtypes "
                f"{[tensor.dtype.name for tensor in self._inputs]}; cast images to float32 and "
                "give `epsilon` and `bounds` in the same units."
            )
        self.lower = [self._clip(t - self.constant(epsilon, t), bounds) for t in self.x]
        self.upper = [self._clip(t + self.constant(epsilon, t), bounds) for t in self.x]

    def constant(self, value: np.ndarray | float, like: tf.Tensor) -> tf.Tensor:
        """Returns a scalar or per-channel `value` as a tensor that broadcasts against `like`."""
        value = np.asarray(value)
        if like.shape.rank == 0:
            raise ValueError("Inputs must have a leading batch axis. Received a scalar.")
        if value.ndim and value.shape[0] not in (1, like.shape[-1]):
            raise ValueError(
                f"A per-channel value has {value.shape[0]} entries but the last axis of the input "
                f"of shape {like.shape} has {like.shape[-1]}. Give one entry a channel or a scalar."
            )
        return tf.constant(value, like.dtype)

    def _clip(self, tensor: tf.Tensor, bounds: Bounds) -> tf.Tensor:
        low, high = bounds
        if high is not None:
            tensor = tf.minimum(tensor, self.constant(high, tensor))
        if low is not None:
            tensor = tf.maximum(tensor, self.constant(low, tensor))
        return tensor

    def pack(self, leaves: Sequence[tf.Tensor]) -> Any:
        """Returns the input nest with its floating tensors replaced by `leaves`."""
        replacements = iter(leaves)
        flat = [
            next(replacements) if keep else tensor
            for tensor, keep in zip(self._inputs, self._floating, strict=True)
        ]
        return tf.nest.pack_sequence_as(self._structure, flat)

    def project(self, leaves: Sequence[tf.Tensor]) -> Leaves:
        """Returns the nearest point of the box."""
        return [
            tf.maximum(tf.minimum(leaf, high), low)
            for leaf, low, high in zip(leaves, self.lower, self.upper, strict=True)
        ]

    def random_start(self, epsilon: np.ndarray, seed: tf.Tensor) -> Leaves:
        """Returns x plus noise uniform in `[-epsilon, epsilon]`, projected."""
        noisy = []
        for index, leaf in enumerate(self.x):
            bits = tf.random.stateless_uniform(
                tf.shape(leaf), fold_in(seed, index), None, None, tf.int32, alg=_GENERATOR
            )
            noise = tf.ensure_shape(tf.cast(bits, tf.float32) * 2.0**-31, leaf.shape)
            noisy.append(leaf + tf.cast(noise, leaf.dtype) * self.constant(epsilon, leaf))
        return self.project(noisy)

    def evaluate(self, leaves: Sequence[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `(logits, loss)` at a point, the loss of shape `[batch]`."""
        logits = self._logits_fn(self.pack(leaves))
        self.num_classes = logits.shape[-1]
        if not is_sparse(self.y) and self.num_classes not in (None, self.y.shape[-1]):
            raise ValueError(
                f"The labels have {self.y.shape[-1]} columns but the model has "
                f"{self.num_classes} classes."
            )
        return logits, self._loss(self.y, logits)

    def gradient(self, leaves: Sequence[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor, Leaves]:
        """Returns `(logits, loss, gradients)`, the gradients of each example's own loss.

        Only the inputs are watched: asking for weight gradients as well would cost a third more.
        """
        leaves = list(leaves)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(leaves)
            logits, loss = self.evaluate(leaves)
        gradients = tape.gradient(loss, leaves)
        if all(gradient is None for gradient in gradients):
            raise ValueError(
                "The loss has no gradient with respect to any input. An attack by gradients needs "
                "a differentiable model: no NumPy, no argmax, no integer cast on the way."
            )
        gradients = [
            tf.zeros_like(leaf) if gradient is None else gradient
            for gradient, leaf in zip(gradients, leaves, strict=True)
        ]
        return logits, loss, gradients

    def signed_step(
        self, leaves: Sequence[tf.Tensor], gradients: Sequence[tf.Tensor], step_size: np.ndarray
    ) -> Leaves:
        """Returns the projected point after one l-infinity steepest-ascent step."""
        return self.project(
            [
                leaf + self.constant(step_size, leaf) * tf.sign(gradient)
                for leaf, gradient in zip(leaves, gradients, strict=True)
            ]
        )

    def misclassified(self, logits: tf.Tensor) -> tf.Tensor:
        """Returns a bool tensor `[batch]`: the arg max differs from the label."""
        return tf.not_equal(tf.argmax(logits, axis=-1, output_type=tf.int64), hard_labels(self.y))
