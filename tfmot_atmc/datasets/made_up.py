# SPDX-License-Identifier: Apache-2.0
"""Made-up data in the shapes of MLPerf Tiny's tasks: for tests and demonstrations only.

They show that a network trains, is compressed and is exported. They are drawn from a few patterns
and noise, so a figure on them says nothing about real words, people, pictures or machines.

Example:

>>> train, test, num_classes = make("made_up_keywords")
>>> train[0].shape, test[0].shape, num_classes
((1200, 49, 10, 1), (300, 49, 10, 1), 12)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["NAMES", "NETWORKS", "make"]

Split = tuple[np.ndarray, np.ndarray]

_SEED = 20_26
_TEST = 300


def make(name: str) -> tuple[Split, Split, int]:
    """Returns a training split, a test split and the number of classes; always the same data.

    Args:
        name: one of `NAMES`: "made_up_keywords" (`[49, 10, 1]`, 12 classes), "made_up_people"
            (`[96, 96, 3]`, 2), "made_up_objects" (`[32, 32, 3]`, 10), each in [0, 1], or
            "made_up_machine" (`[640]`, whose targets are the inputs themselves; 0 classes).

    Returns:
        Inputs and targets of the training split, the same of the test split, and the number of
        classes.

    Raises:
        ValueError: if the name is another.
    """
    if name not in _MAKERS:
        raise ValueError(f"Unknown made-up data {name!r}. Known: {', '.join(NAMES)}.")
    return _MAKERS[name](np.random.default_rng(_SEED))


def _keywords(rng: np.random.Generator) -> tuple[Split, Split, int]:
    """Twelve spectrograms, moved in time by a few frames, with noise."""
    times = np.cumsum(rng.normal(0, 1, (12, 57, 10)), axis=1)
    shapes = times / times.std(axis=(1, 2), keepdims=True)

    def split(count: int) -> Split:
        y = rng.integers(0, 12, count)
        first = rng.integers(0, 8, count)
        frames = first[:, None] + np.arange(49)
        x = shapes[y[:, None], frames] + rng.normal(0, 0.8, (count, 49, 10))
        return _unit(x[..., None], 0.12), y

    return split(1200), split(_TEST), 12


def _people(rng: np.random.Generator) -> tuple[Split, Split, int]:
    """An upright figure of a head and a body before stripes and noise, or only those."""
    rows, columns = np.mgrid[0:96, 0:96].astype("float32")

    def image(person: int) -> np.ndarray:
        angle, wave = rng.uniform(0, np.pi), rng.uniform(0.1, 0.5)
        stripes = np.sin(wave * (np.cos(angle) * rows + np.sin(angle) * columns))
        picture = 0.35 * stripes[..., None] * rng.uniform(0.3, 1.0, 3)
        if person:
            top, middle, size = rng.uniform(10, 40), rng.uniform(25, 70), rng.uniform(6, 10)
            head = (rows - top) ** 2 + (columns - middle) ** 2 < size**2
            below = (rows > top + size) & (rows < top + 5 * size)
            figure = head | (below & (abs(columns - middle) < 0.9 * size))
            picture[figure] = rng.uniform(-1.5, 1.5, 3)
        return picture + rng.normal(0, 0.25, (96, 96, 1))

    def split(count: int) -> Split:
        y = rng.integers(0, 2, count)
        return _unit(np.stack([image(label) for label in y]), 0.25), y

    return split(600), split(_TEST), 2


def _objects(rng: np.random.Generator) -> tuple[Split, Split, int]:
    """Ten coarse colour patterns, moved and faded, with noise."""
    coarse = rng.normal(0, 1, (10, 5, 5, 3))
    patterns = coarse.repeat(8, axis=1).repeat(8, axis=2)

    def split(count: int) -> Split:
        y = rng.integers(0, 10, count)
        top, left = rng.integers(0, 8, (2, count, 1))
        rows, columns = top + np.arange(32), left + np.arange(32)
        x = patterns[y[:, None, None], rows[:, :, None], columns[:, None, :]]
        x = x * rng.uniform(0.4, 1.0, (count, 1, 1, 1)) + rng.normal(0, 0.9, x.shape)
        return _unit(x, 0.15), y

    return split(1200), split(_TEST), 10


def _machine(rng: np.random.Generator) -> tuple[Split, Split, int]:
    """Five neighbouring spectra of 128 bands from six sources, standardised; with noise."""
    sources = rng.normal(0, 1, (6, 640))

    def split(count: int) -> Split:
        x = np.tanh(rng.normal(0, 1, (count, 6)) @ sources / 2)
        x = (3 * x + rng.normal(0, 0.3, x.shape)).astype("float32")
        return x, x

    return split(2400), split(_TEST), 0


def _unit(x: np.ndarray, gain: float) -> np.ndarray:
    return np.clip(0.5 + gain * x, 0.0, 1.0).astype("float32")


_MAKERS: dict[str, Callable[[np.random.Generator], tuple[Split, Split, int]]] = {
    "made_up_keywords": _keywords,
    "made_up_machine": _machine,
    "made_up_objects": _objects,
    "made_up_people": _people,
}
NAMES = tuple(_MAKERS)
NETWORKS = {
    "autoencoder": "made_up_machine",
    "ds_cnn": "made_up_keywords",
    "mobilenet_v1": "made_up_people",
    "resnet8": "made_up_objects",
}
"""Which of them each network of MLPerf Tiny can be shown on."""
