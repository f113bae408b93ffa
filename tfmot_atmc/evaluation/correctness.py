# SPDX-License-Identifier: Apache-2.0
"""What counts as right, and what an attack was allowed to do."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_atmc.attacks import Attack

__all__ = ["check_ball", "judge"]


def judge(name: str, outputs: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns which examples are right, and which have finite outputs; others count as wrong.

    Args:
        name: name of the target, for errors.
        outputs: its outputs, `[batch, classes]`.
        y: class indices, `[batch]`.

    Raises:
        ValueError: the outputs have another shape, or a label is out of range.
    """
    if outputs.ndim != 2 or len(outputs) != len(y) or outputs.shape[1] < 2:
        raise ValueError(
            f"{name} must return [batch, classes] with at least two classes. "
            f"Received shape {outputs.shape} for a batch of {len(y)}."
        )
    if y.min() < 0 or y.max() >= outputs.shape[1]:
        raise ValueError(
            f"Labels must be in [0, {outputs.shape[1]}). Received {y.min()} to {y.max()}."
        )
    finite = np.isfinite(outputs).all(axis=-1)
    return finite & (outputs.argmax(axis=-1) == y), finite


def check_ball(name: str, attack: Attack, clean: Any, adversarial: Any) -> None:
    """Raises RuntimeError unless every example is in the ball and in the bounds.

    Args:
        name: name of the attack, for errors.
        attack: the attack, for its norm, epsilon and bounds.
        clean: nest of clean inputs.
        adversarial: nest of what the attack made of them.
    """
    low, high = attack.bounds  # compared as the inputs' dtype holds them
    if attack.norm == "l2":
        _check_length(name, attack, clean, adversarial)
    for old, new in zip(tf.nest.flatten(clean), tf.nest.flatten(adversarial), strict=True):
        if not tf.as_dtype(old.dtype).is_floating or not old.size:
            continue
        unit = 2.0**-7 if old.dtype.itemsize < 4 else 2.0**-23
        slack = 1e-7 + unit * float(np.abs(old.astype(np.float64)).max())
        change = np.abs(new.astype(np.float64) - old)
        outside = (
            not np.isfinite(change).all()
            or (attack.norm == "linf" and (change > attack.epsilon * (1 + 1e-6) + slack).any())
            or (low is not None and (new < np.minimum(low.astype(new.dtype), old)).any())
            or (high is not None and (new > np.maximum(high.astype(new.dtype), old)).any())
        )
        if outside:
            raise RuntimeError(
                f"The attack {name} left its ball or its bounds: it changed an input by up to "
                f"{change.max():g} for epsilon {attack.epsilon.tolist()}, and its results span "
                f"[{new.min():g}, {new.max():g}] for bounds {attack.get_config()['bounds']}."
            )


def _check_length(name: str, attack: Attack, clean: Any, adversarial: Any) -> None:
    squares = 0.0
    for old, new in zip(tf.nest.flatten(clean), tf.nest.flatten(adversarial), strict=True):
        change = new.astype(np.float64) - old
        squares = squares + np.square(change).reshape(len(change), -1).sum(axis=1)
    length = float(np.sqrt(np.max(squares, initial=0.0)))
    if not length <= float(attack.epsilon) * (1 + 1e-4) + 1e-6:
        raise RuntimeError(
            f"The attack {name} left its ball: an example moved by {length:g} in the l2 norm for "
            f"epsilon {float(attack.epsilon):g}."
        )
