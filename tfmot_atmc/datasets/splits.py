# SPDX-License-Identifier: Apache-2.0
"""Data split three ways, whatever it was loaded from."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

__all__ = ["Dataset", "Split", "chosen_fraction", "split_off"]

Split = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Inputs and targets of a task, split three ways.

    Attributes:
        x_train: inputs, float32 `[examples, ...]` in `bounds`: images
            `[examples, height, width, channels]`, or features.
        y_train: targets: classes, int64 `[examples]` in `[0, num_classes)`; several answers of yes
            or no, float32 zeros and ones `[examples, num_classes]`; or numbers to predict, float32.
        x_validation: inputs held out of the training split, to select models on.
        y_validation: their targets.
        x_test: inputs of the test split.
        y_test: their targets.
        num_classes: number of classes, or of answers; 0 where numbers are predicted.
        name: name that it was loaded by, or its path.
        class_names: what the classes are called; None for their numbers.
        bounds: lowest and highest value of an input, as an attack's `bounds`.
        feature_names: what the columns of the inputs' last axis are called; None for no names.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_validation: np.ndarray
    y_validation: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    num_classes: int
    name: str
    class_names: tuple[str, ...] | None = None
    bounds: tuple[Any, Any] = (0.0, 1.0)
    feature_names: tuple[str, ...] | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of an input: of an image its height, width and channels."""
        return tuple(self.x_test.shape[1:])

    @property
    def outputs(self) -> int:
        """How many outputs a network for it has: one for each class, answer or number."""
        if self.num_classes:
            return self.num_classes
        return 1 if self.y_train.ndim == 1 else int(self.y_train.shape[-1])

    @property
    def task(self) -> str:
        """`"classes"`, `"answers"` (several of yes or no) or `"numbers"`."""
        if not self.num_classes:
            return "numbers"
        return "classes" if self.y_train.ndim == 1 else "answers"


def chosen_fraction(
    labels: np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns indices of the rest and of a seeded, class-balanced fraction, both ascending.

    Args:
        labels: one for each example.
        fraction: part of the examples, in [0, 1).
        seed: of the draw.
    """
    count = round(len(labels) * fraction)
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    # Evenly spaced in an order sorted by class: each class gives its share, to within one.
    chosen = by_class[((np.arange(count) + 0.5) * len(labels) / max(count, 1)).astype(int)]
    return np.setdiff1d(np.arange(len(labels)), chosen), np.sort(chosen)


def split_off(data: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Returns the rest of the examples and a fraction of them, of each class alike.

    Args:
        data: inputs and targets.
        fraction: part of the examples, in [0, 1).
        seed: of the draw.
    """
    x, y = data
    labels = y if y.ndim == 1 and y.dtype.kind in "iu" else np.zeros(len(y), np.int64)
    rest, chosen = chosen_fraction(labels, fraction, seed)
    return (x[rest], y[rest]), (x[chosen], y[chosen])
