# SPDX-License-Identifier: Apache-2.0
"""The constrained maximisation an attack solves: a loss, a starting point, a ball around it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_atmc.attacks import surrogate
from tfmot_atmc.attacks.outputs import hard_labels, is_sparse
from tfmot_atmc.attacks.values import Bounds

__all__ = ["Leaves", "Loss", "Problem", "fold_in"]

Leaves = list[tf.Tensor]
Loss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

# One generator everywhere, and raw integers at that: XLA draws the same integers as the stock
# kernels but other floats, and compiling a train step should not change its noise.
_GENERATOR = "philox"


def fold_in(seed: tf.Tensor, index: int | tf.Tensor) -> tf.Tensor:
    """Returns a fresh `[2]` seed derived from `seed` and `index`."""
    return tf.random.experimental.stateless_fold_in(seed, index, alg=_GENERATOR)


class Problem:
    """Maximise the loss over the floating inputs, inside the ball and inside the bounds.

    The floating tensors of the input nest are the `leaves`; all other inputs stay as they are.
    The intersection of the l-infinity ball with the bounds is a box, computed once, so that a
    projection is a single clip. The l2 norm of an example is taken over all its leaves.

    Args:
        logits_fn: callable from the input nest to float32 logits `[batch, classes]`.
        x: nest of tensors.
        y: labels, see `cross_entropy`; with `targeted` the classes wanted.
        epsilon: float64 array, scalar or `[channels]`, in input units; infinite for no ball.
        bounds: pair of such arrays or None, the least and greatest legal input.
        loss: callable `(y, logits) -> [batch]`; a `wrong(y, logits)` of it, bool `[batch]`, says
            what a success is, and then `y` need not be classes.
        norm: `"linf"` or `"l2"`.
        targeted: minimise the loss, and succeed where the prediction is `y`.

    Attributes:
        x: the floating leaves of the clean input.
        y: the labels as given.
        epsilon, norm: as given.
        lower, upper: the box, leaf by leaf: of bounds and ball, or for l2 of the bounds alone.
        num_classes: columns of the logits; None before the model has been called.
        slope: None, or the slope that gradients take for what is off (`surrogate`).

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
        loss: Loss,
        norm: str = "linf",
        targeted: bool = False,
    ) -> None:
        self._logits_fn = logits_fn
        self._structure = x
        self._inputs = tf.nest.flatten(x)
        self._floating = [tensor.dtype.is_floating for tensor in self._inputs]
        self._loss = loss
        self._targeted = targeted
        self.y = y
        self.epsilon = epsilon
        self.norm = norm
        self.num_classes: int | None = None
        self.slope: float | tf.Tensor | None = None
        self.x: Leaves = [t for t, keep in zip(self._inputs, self._floating, strict=True) if keep]
        if not self.x:
            raise TypeError(
                "An attack perturbs floating inputs only. Received dtypes "
                f"{[tensor.dtype.name for tensor in self._inputs]}; cast images to float32 and "
                "give `epsilon` and `bounds` in the same units."
            )
        reach = np.asarray(np.inf) if norm == "l2" else epsilon
        self.lower = [self._clip(t - self.constant(reach, t), bounds) for t in self.x]
        self.upper = [self._clip(t + self.constant(reach, t), bounds) for t in self.x]

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

    def take(self, rows: tf.Tensor) -> Problem:
        """Returns the same problem for some of the examples.

        Args:
            rows: integer tensor `[m]`, which examples; its length may be known at run time only.
        """
        part = copy.copy(self)
        part._inputs = [_gather(tensor, rows) for tensor in self._inputs]
        part.x, part.lower, part.upper = (
            [_gather(leaf, rows) for leaf in leaves] for leaves in (self.x, self.lower, self.upper)
        )
        part.y = _gather(self.y, rows)
        return part

    def first(self, count: int) -> Problem:
        """Returns the same problem for the first examples, at most `count`."""
        part = copy.copy(self)
        part._inputs = [tensor[:count] for tensor in self._inputs]
        part.x, part.lower, part.upper = (
            [leaf[:count] for leaf in leaves] for leaves in (self.x, self.lower, self.upper)
        )
        part.y = self.y[:count]
        return part

    def with_slope(self, slope: float | tf.Tensor) -> Problem:
        """Returns the same problem; its gradients have a slope where activations are off.

        Args:
            slope: number or scalar tensor; 0 for the plain gradients. See `surrogate`.
        """
        part = copy.copy(self)
        part._logits_fn = surrogate.marking(self._logits_fn)
        part.slope = slope
        return part

    def select(
        self, mask: tf.Tensor, leaves: Sequence[tf.Tensor], others: Sequence[tf.Tensor]
    ) -> Leaves:
        """Returns `leaves` for the examples where `mask`, `[batch]`, is True, else `others`."""
        return [
            tf.ensure_shape(tf.where(self.column(mask, new), new, old), old.shape)
            for new, old in zip(leaves, others, strict=True)
        ]

    def column(self, values: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
        """Returns one value an example, `[batch]`, so that it broadcasts against `like`."""
        return tf.reshape(values, [-1] + [1] * (like.shape.rank - 1))

    def project(self, leaves: Sequence[tf.Tensor]) -> Leaves:
        """Returns a point in the ball and in the bounds: for l-infinity the nearest one.

        For l2 the perturbation is scaled into the ball, then clipped to the bounds; since `x` lies
        within them, clipping only makes it shorter.
        """
        if self.norm == "l2":
            changes = [leaf - x for leaf, x in zip(leaves, self.x, strict=True)]
            length = self.lengths(changes)
            shrink = tf.cast(self.epsilon, tf.float32) / tf.maximum(length, 1e-12)
            shrink = tf.where(length > tf.cast(self.epsilon, tf.float32), shrink, 1.0)
            leaves = [
                x + change * tf.cast(self.column(shrink, change), change.dtype)
                for x, change in zip(self.x, changes, strict=True)
            ]
        return self._inside(leaves)

    def _inside(self, leaves: Sequence[tf.Tensor]) -> Leaves:
        """Returns the nearest point of the box."""
        return [
            tf.maximum(tf.minimum(leaf, high), low)
            for leaf, low, high in zip(leaves, self.lower, self.upper, strict=True)
        ]

    def lengths(self, leaves: Sequence[tf.Tensor], norm: str | None = None) -> tf.Tensor:
        """Returns the norm of each example over all leaves, float32 `[batch]`.

        Args:
            leaves: tensors of the leaves' shapes.
            norm: `"linf"`, `"l2"` or `"l1"`; None is that of the problem.
        """
        rows = [tf.reshape(tf.cast(leaf, tf.float32), (tf.shape(leaf)[0], -1)) for leaf in leaves]
        if (norm or self.norm) == "l2":
            return tf.sqrt(tf.add_n([tf.reduce_sum(tf.square(row), axis=1) for row in rows]))
        if norm == "l1":
            return tf.add_n([tf.reduce_sum(tf.abs(row), axis=1) for row in rows])
        largest = [tf.reduce_max(tf.abs(row), axis=1) for row in rows]
        return tf.reduce_max(tf.stack(largest), axis=0)

    def random_start(self, seed: tf.Tensor) -> Leaves:
        """Returns x plus noise uniform in the ball, projected onto the bounds."""
        if self.norm == "linf":
            noise = [
                self._uniform(leaf, fold_in(seed, index)) * self.constant(self.epsilon, leaf)
                for index, leaf in enumerate(self.x)
            ]
        else:
            entries = tf.add_n([tf.size(leaf) / tf.shape(leaf)[0] for leaf in self.x])
            share = tf.abs(self._uniform(self.x[0], fold_in(seed, -1)))
            share = tf.reshape(tf.cast(share, tf.float64), (tf.shape(share)[0], -1))[:, 0]
            radius = tf.constant(self.epsilon) * tf.pow(share, 1 / entries)
            noise = [
                leaf * tf.cast(self.column(radius, leaf), leaf.dtype)
                for leaf in self.random_direction(seed)
            ]
        return self.project([x + n for x, n in zip(self.x, noise, strict=True)])

    def random_direction(self, seed: tf.Tensor) -> Leaves:
        """Returns noise of norm one: uniform noise for l-infinity, a uniform direction for l2."""
        draw = self._uniform if self.norm == "linf" else self._gaussian
        noise = [draw(leaf, fold_in(seed, index)) for index, leaf in enumerate(self.x)]
        return self.unit(noise)

    def gaussian(self, seed: tf.Tensor) -> Leaves:
        """Returns standard normal noise of the leaves' shapes."""
        return [self._gaussian(leaf, fold_in(seed, index)) for index, leaf in enumerate(self.x)]

    def _uniform(self, leaf: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Returns noise uniform in [-1, 1]."""
        bits = tf.random.stateless_uniform(
            tf.shape(leaf), seed, None, None, tf.int32, alg=_GENERATOR
        )
        noise = tf.ensure_shape(tf.cast(bits, tf.float32) * 2.0**-31, leaf.shape)
        return tf.cast(noise, leaf.dtype)

    def _gaussian(self, leaf: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        like = tf.cast(leaf, tf.float32)
        radius = tf.abs(self._uniform(like, fold_in(seed, 0)))
        angle = np.pi * self._uniform(like, fold_in(seed, 1))
        # Box and Muller's transform.
        noise = tf.sqrt(-2 * tf.math.log(tf.maximum(radius, 2.0**-31))) * tf.cos(angle)
        return tf.cast(noise, leaf.dtype)

    def evaluate(
        self, leaves: Sequence[tf.Tensor], loss: Loss | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `(logits, loss)` at a point, the loss of shape `[batch]`.

        Args:
            leaves: the point.
            loss: another loss to maximise than the attack's, `(y, logits) -> [batch]`.
        """
        logits = self._logits_fn(self.pack(leaves))
        self.num_classes = logits.shape[-1]
        if not self._judges() and self.num_classes not in (None, self._columns()):
            raise ValueError(
                f"The labels have {self.y.shape[-1]} columns but the model has "
                f"{self.num_classes} classes."
            )
        value = (loss or self._loss)(self.y, logits)
        return logits, -value if self._targeted else value

    def gradient(
        self, leaves: Sequence[tf.Tensor], loss: Loss | None = None, finite: bool = True
    ) -> tuple[tf.Tensor, tf.Tensor, Leaves]:
        """Returns `(logits, loss, gradients)`, the gradients of each example's own loss.

        Only the inputs are watched: asking for weight gradients as well would cost a third more.

        Args:
            leaves: the point.
            loss: another loss to maximise than the attack's.
            finite: make zero of NaNs, and the largest number of infinity.
        """
        if self.slope is None:
            leaves = list(leaves)
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(leaves)
                logits, value = self.evaluate(leaves, loss)
            gradients = tape.gradient(value, leaves)
        else:
            leaves = [tf.identity(leaf) for leaf in leaves]  # in this graph, were it a loop's
            logits, value = self.evaluate(leaves, loss)
            gradients = surrogate.gradients(value, leaves, self.slope)
        if all(gradient is None for gradient in gradients):
            raise ValueError(
                "The loss has no gradient with respect to any input. An attack by gradients needs "
                "a differentiable model: no NumPy, no argmax, no integer cast on the way."
            )
        gradients = [
            tf.zeros_like(leaf) if gradient is None else gradient
            for gradient, leaf in zip(gradients, leaves, strict=True)
        ]
        gradients = [_finite(gradient) for gradient in gradients] if finite else gradients
        return logits, value, gradients

    def step(
        self, leaves: Sequence[tf.Tensor], gradients: Sequence[tf.Tensor], step_size: Any
    ) -> Leaves:
        """Returns the projected point after one step of steepest ascent in the norm.

        Args:
            leaves: the point.
            gradients: the gradients there.
            step_size: array, scalar or one value a channel; or a tensor `[batch]`, one value an
                example.
        """
        moved = []
        for leaf, direction in zip(leaves, self.steepest(gradients), strict=True):
            size = (
                tf.cast(self.column(step_size, leaf), leaf.dtype)
                if tf.is_tensor(step_size)
                else self.constant(step_size, leaf)
            )
            moved.append(leaf + size * direction)
        # For l2 what leaves the bounds is cut first, so that it uses up nothing of the radius.
        return self.project(self._inside(moved) if self.norm == "l2" else moved)

    def steepest(self, gradients: Sequence[tf.Tensor]) -> Leaves:
        """Returns the directions of steepest ascent: the sign, or for l2 the unit gradient."""
        if self.norm == "linf":
            return [tf.sign(gradient) for gradient in gradients]
        return self.unit(gradients)

    def unit(self, leaves: Sequence[tf.Tensor], norm: str | None = None) -> Leaves:
        """Returns the directions of length one, however short they are; zero stays zero.

        Args:
            leaves: tensors of the leaves' shapes.
            norm: as in `lengths`.
        """
        # By the largest entry first: the square of a tiny gradient is zero.
        for each in ("linf", norm or self.norm):
            length = self.lengths(leaves, each)
            length = tf.where(length > 0, length, 1.0)
            leaves = [leaf / tf.cast(self.column(length, leaf), leaf.dtype) for leaf in leaves]
        return list(leaves)

    def succeeded(self, logits: tf.Tensor) -> tf.Tensor:
        """Returns a bool tensor `[batch]`: misclassified, or with `targeted` the class wanted."""
        if self._judges():
            wrong = self._loss.wrong(self.y, logits)  # type: ignore[attr-defined]
        else:
            predicted = tf.argmax(logits, axis=-1, output_type=tf.int64)
            wrong = tf.not_equal(predicted, hard_labels(self.y))
        return ~wrong if self._targeted else wrong

    def _judges(self) -> bool:
        return hasattr(self._loss, "wrong")

    def _columns(self) -> int | None:
        return self.num_classes if is_sparse(self.y) else self.y.shape[-1]


def _finite(gradient: tf.Tensor) -> tf.Tensor:
    """Returns a gradient by which one can go: no direction where it is NaN, a long way for inf."""
    largest = gradient.dtype.max
    gradient = tf.where(tf.math.is_nan(gradient), tf.zeros_like(gradient), gradient)
    return tf.clip_by_value(gradient, -largest, largest)


def _gather(tensor: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    return tf.ensure_shape(tf.gather(tensor, rows), [None, *tensor.shape[1:]])
