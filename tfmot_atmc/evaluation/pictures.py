# SPDX-License-Identifier: Apache-2.0
"""Adversarial examples to look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfmot_atmc.evaluation.data import rows_of
from tfmot_atmc.evaluation.sets import AdversarialSet
from tfmot_atmc.evaluation.targets import as_target, with_two_classes

__all__ = ["plot_examples"]

_MOST_LINES = 12
_LONG = 4  # so many points for each channel make a curve of what could be an image
_ROWS = ("clean", "adversarial", "difference")


def plot_examples(
    examples: AdversarialSet,
    target: Any,
    *,
    count: int = 8,
    class_names: Sequence[str] | None = None,
) -> Any:
    """Draws clean inputs, adversarial ones and their difference, with what the target says.

    The first examples that the target gets right when clean are shown, not the most striking ones.
    An answer is red where it is wrong. Of images the difference is scaled so that grey is none and
    black and white are the largest change of the set; vectors and signals are drawn as curves.

    Args:
        examples: the set to draw from; images `[height, width]`, or with 1 or 3 channels last; or
            curves `[points]`, or of few channels `[points, channels]`.
        target: Keras model, callable from a batch to logits, or path of a .tflite or C file.
        count: number of examples at most.
        class_names: names of the classes; their numbers otherwise.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ValueError: the inputs are neither images nor curves, or `count` is below 1.
    """
    from matplotlib.figure import Figure

    clean, adversarial = examples.clean, examples.adversarial
    shape = clean.shape[1:] if isinstance(clean, np.ndarray) else None
    if shape is None or not (_are_curves(shape) or _are_images(shape)):
        raise ValueError(
            "Only images, of shape [height, width] with or without 1 or 3 channels, and curves, of "
            f"shape [points] or [points, few channels], can be drawn. Received "
            f"{shape if shape is not None else type(clean)}."
        )
    if count < 1:
        raise ValueError(f"`count` must be at least 1. Received {count}.")
    predict = with_two_classes(as_target(target), rows_of(clean, slice(250))).predict
    before, after = (predict(images).argmax(axis=-1) for images in (clean, adversarial))
    right = np.flatnonzero(before == examples.y)
    rows = (right if right.size else np.arange(len(examples.y)))[:count]
    change = adversarial.astype(np.float32) - clean
    largest = max(float(np.abs(change).max()), 1e-12)
    draw = _curve_of(clean, adversarial) if _are_curves(shape) else _image_of(adversarial)
    width = 2.2 if _are_curves(shape) else 1.3
    figure = Figure(figsize=(width * len(rows) + 0.8, 4.6), layout="constrained")
    grid = figure.subplots(3, len(rows), squeeze=False)
    for column, row in enumerate(rows):
        shown = (
            (clean[row], None, before[row]),
            (adversarial[row], None, after[row]),
            (change[row], largest, None),
        )
        for axes, (values, reach, answer) in zip(grid[:, column], shown, strict=True):
            draw(axes, values, reach)
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


def _are_images(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 or (len(shape) == 3 and shape[-1] in (1, 3))


def _are_curves(shape: tuple[int, ...]) -> bool:
    """Whether inputs are points in a row, of one channel or of few beside their number."""
    if len(shape) == 1:
        return True
    return len(shape) == 2 and shape[1] <= _MOST_LINES and shape[0] >= _LONG * shape[1]


def _image_of(adversarial: np.ndarray) -> Callable[..., None]:
    """Returns what draws an image; a difference, which has a reach, with grey for none."""
    low, high = min(float(np.min(adversarial)), 0.0), max(float(np.max(adversarial)), 1.0)

    def draw(axes: Any, image: np.ndarray, reach: float | None) -> None:
        scaled = (image - low) / (high - low) if reach is None else 0.5 + image / (2 * reach)
        scaled = np.clip(scaled.astype(np.float32), 0.0, 1.0)
        scaled = scaled[..., 0] if scaled.ndim == 3 and scaled.shape[-1] == 1 else scaled
        axes.imshow(scaled, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
        axes.set(xticks=[], yticks=[])

    return draw


def _curve_of(clean: np.ndarray, adversarial: np.ndarray) -> Callable[..., None]:
    """Returns what draws curves, one line a channel, all on one scale."""
    ends = [float(f([f(clean), f(adversarial)])) for f in (np.min, np.max)]
    room = 0.05 * max(ends[1] - ends[0], 1e-12)

    def draw(axes: Any, curve: np.ndarray, reach: float | None) -> None:
        lines = curve.reshape(len(curve), -1)
        for number, line in enumerate(lines.T):
            color = "#5b7f95" if lines.shape[1] == 1 else f"C{number}"
            axes.plot(line, color=color, linewidth=0.8)
        limits = (ends[0] - room, ends[1] + room) if reach is None else (-1.1 * reach, 1.1 * reach)
        axes.set(ylim=limits, xlim=(0, max(len(lines) - 1, 1)), xticks=[])
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)

    return draw


def _name(answer: Any, class_names: Sequence[str] | None) -> str:
    number = int(answer)
    return class_names[number] if class_names and number < len(class_names) else str(number)
