# SPDX-License-Identifier: Apache-2.0
"""A few examples from everywhere in the data, for the checks to look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfmot_atmc.attacks import Problem, cross_entropy
from tfmot_atmc.attacks.outputs import any_batch, logits_function
from tfmot_atmc.evaluation.data import rows_of
from tfmot_atmc.evaluation.goals import Goal
from tfmot_atmc.evaluation.targets import Target

__all__ = ["SIZE", "Reservoir", "Sample", "look", "take_sample"]

SIZE = 128
"""Examples that are kept of all that pass by."""


class Sample(NamedTuple):
    """What the checks look at.

    Attributes:
        victim: the target.
        source: the model that gradients are taken of; None if there is none.
        source_name: its name.
        x: nest of a few clean inputs.
        y: their class indices, `[batch]`, or whatever labels the goal has, in rows.
        right: which of them the target gets right, bool `[batch]`.
        logits: outputs of the source, `[batch, classes]`; None without a source.
        gradients: input gradients of its loss, `[batch, entries]`; None without a source.
        left: which of them are right under every attack as well, bool `[batch]`.
        rival: the source where it is another than the target, else None.
        goal: what answers are judged by.
        worst: the largest loss that was found of each, `[batch]`; None for classes.
    """

    victim: Target
    source: Callable[..., Any] | None
    source_name: str
    x: Any
    y: np.ndarray
    right: np.ndarray
    logits: np.ndarray | None
    gradients: np.ndarray | None
    left: np.ndarray
    rival: Target | None = None
    goal: Goal = Goal()
    worst: np.ndarray | None = None

    def rows(self, rows: np.ndarray) -> tuple[Any, np.ndarray]:
        """Returns the inputs and labels of some of the examples."""
        return rows_of(self.x, rows), self.y[rows]


def take_sample(
    victim: Target,
    source: Target,
    x: Any,
    y: np.ndarray,
    right: np.ndarray,
    left: np.ndarray | None = None,
    worst: np.ndarray | None = None,
    goal: Goal | None = None,
) -> Sample:
    """Returns the examples with what the source makes of them.

    Args:
        victim: the target.
        source: the model of the gradients, often the target; its `model` is None for no gradients.
        x: nest of inputs.
        y: class indices, `[batch]`.
        right: which of them the target gets right, bool `[batch]`.
        left: which of them are right under every attack; None for all that are right.
        worst: the largest loss that was found of each, `[batch]`; None for classes.
        goal: what answers are judged by; None for classes.

    Raises:
        ValueError: no gradient can be taken through the source.
    """
    logits = gradients = None
    goal = Goal() if goal is None else goal
    if source.model is not None:
        logits, gradients = look(source.model, source.name, x, y, goal.source_loss)
    rival = None if source.name == victim.name and source.predict is victim.predict else source
    left = right if left is None else left
    found = Sample(victim, source.model, source.name, x, y, right, logits, gradients, left, rival)
    return found._replace(goal=goal, worst=worst)


class Reservoir:
    """Keeps examples of all that are offered, each with the same chance, whatever the order.

    Args:
        seed: seed of the choice; the same examples in the same order give the same ones.
    """

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng([seed, 0])
        self._kept: list[tuple[Any, ...]] = []
        self._seen = 0

    def offer(
        self,
        x: Any,
        y: np.ndarray,
        right: np.ndarray,
        left: np.ndarray,
        worst: np.ndarray | None = None,
    ) -> None:
        """Takes note of a batch.

        Args:
            x: nest of inputs.
            y: class indices.
            right: which are right as given.
            left: which are right under every attack.
            worst: the largest loss that was found of each; None for classes.
        """
        worst = np.full(len(y), np.nan) if worst is None else worst
        for row in range(len(y)):
            self._seen += 1
            slot = len(self._kept)
            if slot == SIZE:
                slot = int(self._random.integers(self._seen))
                if slot >= SIZE:
                    continue
            else:
                self._kept.append(())
            example = tf.nest.map_structure(lambda leaf, row=row: leaf[row].copy(), x)
            self._kept[slot] = (example, y[row], right[row], left[row], worst[row])

    def examples(self) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        """Returns inputs, labels and what was noted, in random order."""
        order = self._random.permutation(len(self._kept))
        x, y, right, left, worst = zip(*[self._kept[row] for row in order], strict=True)
        stacked = tf.nest.map_structure(lambda *leaves: np.stack(leaves), *x)
        losses = None if np.isnan(worst).any() else np.array(worst)
        return stacked, np.array(y), np.array(right, bool), np.array(left, bool), losses


def look(
    model: Callable[..., Any], name: str, x: Any, y: np.ndarray, loss: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns outputs and input gradients as they are, NaNs among them.

    Args:
        model: what to look at.
        name: its name.
        x: nest of inputs.
        y: labels.
        loss: what gradients are taken of; None for the cross-entropy.

    Raises:
        ValueError: no gradient can be taken through the model.
    """

    def probe(inputs: Any, labels: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        problem = Problem(
            logits_function(model),
            inputs,
            labels,
            epsilon=np.array(0.0),
            bounds=(None, None),
            loss=loss or cross_entropy,
        )
        logits, _, gradients = problem.gradient(problem.x, finite=False)
        return logits, gradients

    inputs = tf.nest.map_structure(tf.convert_to_tensor, x), tf.convert_to_tensor(y)
    signature = tf.nest.map_structure(any_batch, inputs)
    try:
        function = tf.function(probe, autograph=False).get_concrete_function(*signature)
        logits, gradients = function(*inputs)
    except Exception as error:
        raise ValueError(
            f"No input gradient could be taken through {name}: {error}\n"
            "Pass `source=` a differentiable model (a Keras model or a TensorFlow function "
            "returning logits) to make the adversarial examples on, or give attacks that need no "
            "gradients, such as Square."
        ) from error
    flat = [np.asarray(gradient).reshape(len(y), -1) for gradient in gradients]
    return np.asarray(logits), np.concatenate(flat, axis=1)
