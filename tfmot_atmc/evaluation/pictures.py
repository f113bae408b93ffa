# SPDX-License-Identifier: Apache-2.0
"""Adversarial examples to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tfmot_atmc.evaluation.sample import rows_of
from tfmot_atmc.evaluation.sets import AdversarialSet
from tfmot_atmc.evaluation.targets import as_target, with_two_classes

__all__ = ["plot_examples"]

_ROWS = ("clean", "adversarial", "difference")


def plot_examples(
    examples: AdversarialSet,
    target: Any,
    *,
    count: int = 8,
    class_names: Sequence[str] | None = None,
) -> Any:
    """Draws clean images, adversarial images and their difference, with what the target says.

    The first examples that the target gets right when clean are shown, not the most striking ones.
    An answer is red where it is wrong. The difference is scaled so that grey is none and black and
    white are the largest change of the set.

    Args:
        examples: the set to draw from; images `[height, width]`, or with 1 or 3 channels last.
        target: Keras model, callable from a batch to logits, or path of a .tflite or C file.
        count: number of examples at most.
        class_names: names of the classes; their numbers otherwise.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: the inputs are no images, or `count` is below 1.
    """
    from matplotlib.figure import Figure

    clean, adversarial = examples.clean, examples.adversarial
    shape = clean.shape[1:] if isinstance(clean, np.ndarray) else None
    if shape is None or not (len(shape) == 2 or (len(shape) == 3 and shape[-1] in (1, 3))):
        raise ValueError(
            f"Only images, of shape [height, width] with or without 1 or 3 channels, can be drawn. "
            f"Received {shape if shape is not None else type(clean)}."
        )
    if count < 1:
        raise ValueError(f"`count` must be at least 1. Received {count}.")
    predict = with_two_classes(as_target(target), rows_of(clean, slice(250))).predict
    before, after = (predict(images).argmax(axis=-1) for images in (clean, adversarial))
    right = np.flatnonzero(before == examples.y)
    rows = (right if right.size else np.arange(len(examples.y)))[:count]
    change = adversarial.astype(np.float32) - clean
    largest = max(float(np.abs(change).max()), 1e-12)
    low, high = (float(f(adversarial)) for f in (np.min, np.max))
    low, high = min(low, 0.0), max(high, 1.0)
    figure = Figure(figsize=(1.3 * len(rows) + 0.8, 4.6), layout="constrained")
    grid = figure.subplots(3, len(rows), squeeze=False)
    for column, row in enumerate(rows):
        shown = (
            ((clean[row] - low) / (high - low), before[row]),
            ((adversarial[row] - low) / (high - low), after[row]),
            (0.5 + change[row] / (2 * largest), None),
        )
        for axes, (image, answer) in zip(grid[:, column], shown, strict=True):
            _image(axes, image)
            if answer is not None:
                color = "black" if answer == examples.y[row] else "#b5442e"
                axes.set_title(_name(answer, class_names), fontsize=9, color=color)
    for axes, label in zip(grid[:, 0], _ROWS, strict=True):
        axes.set_ylabel(label, fontsize=9)
    figure.suptitle(
        f"{examples.attack['class_name']}, made on {examples.source}; largest change {largest:.3g}",
        fontsize=10,
    )
    return figure


def _image(axes: Any, image: np.ndarray) -> None:
    image = np.clip(image.astype(np.float32), 0.0, 1.0)
    image = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
    axes.imshow(image, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
    axes.set(xticks=[], yticks=[])


def _name(answer: Any, class_names: Sequence[str] | None) -> str:
    number = int(answer)
    return class_names[number] if class_names and number < len(class_names) else str(number)
