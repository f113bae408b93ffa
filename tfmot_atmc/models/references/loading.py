# SPDX-License-Identifier: Apache-2.0
"""Finds, checks and loads the reference models."""

from __future__ import annotations

import difflib
import hashlib
import json
from pathlib import Path
from typing import Any

import keras

__all__ = ["card", "keras_path", "load", "names", "tflite_path"]

_FILES = Path(__file__).parents[1] / "files"


def names() -> list[str]:
    """Returns the names of the reference models, of networks and data first, larger ratios first.

    Example:

    >>> names()[:2]
    ['lenet-mnist-0.05', 'lenet-mnist-0.01']
    """

    def order(name: str) -> tuple[str, float]:
        family, _, ratio = name.rpartition("-")
        return family, -float(ratio)

    return sorted((path.stem for path in _FILES.glob("*.json")), key=order)


def card(name: str) -> dict[str, Any]:
    """Returns a model's card: data, recipe, accuracy, robustness, bytes and limits.

    Args:
        name: one of `names()`.

    Returns:
        Plain Python values; `render_card` makes Markdown of them. Epsilon and steps are in input
        units, accuracies are fractions of `n` test images, intervals are at 95%.

    Raises:
        ValueError: if there is no such model.

    Example:

    >>> round(card("lenet-mnist-0.01")["epsilon"] * 255)
    76
    """
    if name not in names():
        near = difflib.get_close_matches(str(name), names(), n=3, cutoff=0.3) or names()
        raise ValueError(
            f"There is no reference model {name!r}. Did you mean {' or '.join(map(repr, near))}?"
        )
    return json.loads((_FILES / f"{name}.json").read_text())


def load(name: str) -> keras.Model:
    """Loads a reference model, from the package itself.

    Args:
        name: one of `names()`.

    Returns:
        A plain Keras model, not compiled, from images of floats in [0, 1] to logits. It is the
        twin of the `.tflite` file: the same weights, bit for bit.

    Raises:
        ValueError: if there is no such model, or its file is damaged.

    Example:

    >>> import numpy as np
    >>> load("lenet-mnist-0.005")(np.zeros((3, 28, 28, 1), "float32")).shape.as_list()
    [3, 10]
    """
    return keras.saving.load_model(keras_path(name), compile=False)


def keras_path(name: str) -> Path:
    """Returns the path of a model's `.keras` file, which plain Keras loads.

    Args:
        name: one of `names()`.

    Raises:
        ValueError: if there is no such model, or its file is damaged.
    """
    return _checked(name, "keras")


def tflite_path(name: str) -> Path:
    """Returns the path of a model's `.tflite` file, which the stock interpreter runs.

    Args:
        name: one of `names()`.

    Raises:
        ValueError: if there is no such model, or its file is damaged.

    Example:

    >>> tflite_path("lenet-mnist-0.01").stat().st_size < 30_000
    True
    """
    return _checked(name, "tflite")


def _checked(name: str, kind: str) -> Path:
    known = card(name)["files"][kind]
    path = _FILES / known["file"]
    if not path.is_file():
        raise ValueError(f"{path} is missing. Install the package again.")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != known["sha256"]:
        raise ValueError(
            f"{path} is damaged: its SHA-256 is {found}, its card says {known['sha256']}. "
            "Install the package again."
        )
    return path
