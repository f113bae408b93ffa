# SPDX-License-Identifier: Apache-2.0
"""Labels of an evaluation as class indices."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["class_labels"]


def class_labels(y: Any, columns: int | None = None) -> np.ndarray:
    """Returns class indices, int64 `[batch]`, of the labels of an evaluation.

    Args:
        y: class indices `[batch]` or `[batch, 1]`; or rows `[batch, classes]`, one-hot, smoothed
            or mixed. A single output's labels are from 0 to 1, its classes 0 and 1.
        columns: outputs of the model an example; None if not known.

    Raises:
        ValueError: they are something else, such as several labels an example.

    Example:
    >>> class_labels([[0.1, 0.9], [1.0, 0.0]])
    array([1, 0])
    """
    labels = np.asarray(y)
    if labels.ndim == 2 and labels.shape[1] > 1:
        return _classes_of_rows(labels)
    if labels.ndim not in (1, 2):
        raise ValueError(
            "Accuracy needs one class an example: class indices [batch] or rows [batch, classes], "
            f"in batches. Received labels of shape {labels.shape}. Batch the dataset if it is not. "
            "For images, sequences or numbers as labels there is a loss but no accuracy: pass the "
            "`loss=` that the model was made for to `evaluate_robustness`, or a compiled model."
        )
    whole = labels.reshape(-1)
    if columns == 1 and whole.dtype.kind == "f" and ((whole >= 0) & (whole <= 1)).all():
        return (whole > 0.5).astype(np.int64)
    if whole.dtype.kind == "f" and not (np.isfinite(whole) & (whole == np.rint(whole))).all():
        odd = whole[~(whole == np.rint(whole)) | ~np.isfinite(whole)][0]
        raise ValueError(
            f"Class indices must be whole numbers. Received {labels.dtype} values such as {odd}. "
            "Numbers to be predicted have a loss but no accuracy: pass the `loss=` that the model "
            "was made for to `evaluate_robustness`, or a compiled model."
        )
    return whole.astype(np.int64)


def _classes_of_rows(rows: np.ndarray) -> np.ndarray:
    values = rows.astype(np.float64)
    if not np.isfinite(values).all() or (values < 0).any() or (values > 1 + 1e-3).any():
        raise ValueError(
            f"Label rows must be one-hot or probabilities. Received values from {values.min():g} "
            f"to {values.max():g}. Numbers to be predicted have a loss but no accuracy: pass the "
            "`loss=` that the model was made for to `evaluate_robustness`, or a compiled model."
        )
    several = np.abs(values.sum(axis=1) - 1.0) > 1e-2
    if several.any():
        raise ValueError(
            f"{several.mean():.0%} of the label rows do not sum to one: these are several labels "
            "an example (multi-label), and reading the largest as the class would give a wrong "
            "figure. Pass `loss='binary_crossentropy'` (or the loss of logits) to "
            "`evaluate_robustness`, or a model compiled with it; or one class an example."
        )
    ordered = np.sort(values, axis=1)
    tied = ordered[:, -1] - ordered[:, -2] < 1e-6
    if tied.any():
        raise ValueError(
            f"{tied.mean():.0%} of the label rows have two equal largest entries, so no class. "
            "Evaluate on labels that are not mixed."
        )
    return values.argmax(axis=1).astype(np.int64)
