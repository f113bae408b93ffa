# SPDX-License-Identifier: Apache-2.0
"""Losses on differences of logits, which no scaling of the logits can mask."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

__all__ = ["dlr", "likely_targets", "margin", "targeted_dlr"]

_TINY = 1e-12


def margin(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Logit of the label less the largest other one; at most 0 where misclassified (or tied).

    Args:
        labels: int64 class indices `[batch]`.
        logits: float32 `[batch, classes]`.

    Returns:
        float32 `[batch]`.

    Example:
    >>> margin(tf.constant([0, 1], tf.int64), tf.constant([[3.0, 1.0], [2.0, 0.5]])).numpy()
    array([ 2. , -1.5], dtype=float32)
    """
    own, others = _split(labels, logits)
    return own - tf.reduce_max(others, axis=1)


def dlr(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Difference-of-logits ratio, to be maximised; it has no scale.

    `-(z_y - max_{i != y} z_i) / (z_(1) - z_(3))`, with z_(j) the j-th largest logit.

    Args:
        labels: int64 class indices `[batch]`.
        logits: float32 `[batch, classes]`, at least three classes.

    Raises:
        ValueError: fewer than three classes.

    Source: Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of
        diverse parameter-free attacks", ICML 2020.
    """
    _need(logits, 3, "The DLR loss")
    largest = tf.math.top_k(logits, 3).values
    return -margin(labels, logits) / (largest[:, 0] - largest[:, 2] + _TINY)


def targeted_dlr(labels: tf.Tensor, targets: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Difference-of-logits ratio towards a class, to be maximised.

    `-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2)`, with z_(j) the j-th largest logit.

    Args:
        labels: int64 class indices `[batch]`.
        targets: int64 class indices `[batch]`.
        logits: float32 `[batch, classes]`, at least four classes.

    Raises:
        ValueError: fewer than four classes.

    Source: as `dlr`.
    """
    _need(logits, 4, "The targeted DLR loss")
    largest = tf.math.top_k(logits, 4).values
    own = tf.gather(logits, labels, batch_dims=1)
    other = tf.gather(logits, targets, batch_dims=1)
    scale = largest[:, 0] - 0.5 * (largest[:, 2] + largest[:, 3])
    return -(own - other) / (scale + _TINY)


def likely_targets(labels: tf.Tensor, logits: tf.Tensor, number: int) -> tf.Tensor:
    """Returns the most likely classes other than the label, int64 `[batch, targets]`.

    Args:
        labels: int64 class indices `[batch]`.
        logits: float32 `[batch, classes]`.
        number: how many; fewer where the model has no more classes.
    """
    _, others = _split(labels, logits)
    return tf.cast(tf.math.top_k(others, min(number, logits.shape[-1] - 1)).indices, tf.int64)


def _split(labels: tf.Tensor, logits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the label's logit, and the logits with that one at minus infinity."""
    own = tf.gather(logits, labels, batch_dims=1)
    hit = tf.one_hot(labels, logits.shape[-1], on_value=True, off_value=False, dtype=tf.bool)
    return own, tf.where(hit, -np.inf, logits)


def _need(logits: tf.Tensor, number: int, what: str) -> None:
    if logits.shape[-1] is not None and logits.shape[-1] < number:
        raise ValueError(
            f"{what} needs at least {number} classes. The model has {logits.shape[-1]}; use "
            "objective='margin'."
        )
