# SPDX-License-Identifier: Apache-2.0
"""A stand-in for AutoAttack that is cheap enough to choose between models and epochs."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfmot_atmc.attacks import surrogate
from tfmot_atmc.attacks.apgd import APGD, APGDT
from tfmot_atmc.attacks.base import Attack
from tfmot_atmc.attacks.problem import Leaves, Problem, fold_in
from tfmot_atmc.attacks.runs import scatter
from tfmot_atmc.attacks.square import Square
from tfmot_atmc.utils.tracing import within_xla

__all__ = ["QuickAutoAttack"]

# The targeted ratio needs the four largest logits.
_ENOUGH_CLASSES = 4


class QuickAutoAttack(Attack):
    """A few steps and queries of what AutoAttack takes many of, each on what is left.

    APGD on the cross-entropy; targeted APGD, with a slope in the backward pass for activations that
    are off; then Square. It costs a small part of AutoAttack, and is there to choose between models
    and epochs (benchmarks/stand_in.py compares the ranks); the accuracy itself is above
    AutoAttack's. `evaluate_robustness` reports its parts one by one. As an attack of validation it
    runs within the graph; examples that break are dropped, but not under XLA.

    Args:
        epsilon: radius in input units, a scalar.
        steps: steps of each run of APGD.
        num_targets: classes that targeted APGD tries, the most likely first.
        queries: queries of Square.
        **kwargs: `norm`, `bounds` and `seed`, see `Attack`.

    Attributes:
        attacks: the parts by name, in the order they run, for four classes or more.

    Raises:
        ValueError: an argument is out of range.

    Source: its parts are those of Croce and Hein, ICML 2020; see `AutoAttack`.

    Example:
    >>> list(QuickAutoAttack(epsilon=8 / 255).attacks)
    ['apgd-ce', 'apgd-t', 'square']
    """

    _without = ("targeted", "loss", "backward_slope")
    _default_slope = None

    def __init__(
        self,
        *,
        epsilon: Any,
        steps: int = 20,
        num_targets: int = 3,
        queries: int = 200,
        **kwargs: Any,
    ) -> None:
        super().__init__(epsilon=epsilon, **kwargs)
        self.steps, self.num_targets, self.queries = int(steps), int(num_targets), int(queries)
        self._parts_by_classes: dict[int, dict[str, Attack]] = {}
        self.attacks: dict[str, Attack] = self.parts_for(_ENOUGH_CLASSES)

    def parts_for(self, classes: int) -> dict[str, Attack]:
        """Returns the parts by name, in the order they run.

        Args:
            classes: number of classes of the model; with three or less the margin takes the place
                of the targeted ratio.
        """
        classes = min(classes, _ENOUGH_CLASSES)
        if classes in self._parts_by_classes:  # an attack traces each model once
            return dict(self._parts_by_classes[classes])
        config = super().get_config()
        common = {name: config[name] for name in ("epsilon", "norm", "bounds", "seed")}
        ratio = "dlr" if classes >= _ENOUGH_CLASSES else "margin"
        parts: dict[str, Attack] = {
            "apgd-ce": APGD(steps=self.steps, backward_slope=None, **common),
            "apgd-t": APGDT(
                num_targets=self.num_targets,
                objective=ratio,
                steps=self.steps,
                backward_slope=surrogate.SLOPE,
                **common,
            ),
            "square": Square(queries=self.queries, **common),
        }
        self._parts_by_classes[classes] = parts
        return dict(parts)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as plain Python values."""
        return {
            **super().get_config(),
            "steps": self.steps,
            "num_targets": self.num_targets,
            "queries": self.queries,
        }

    def _perturb(self, problem: Problem, seed: tf.Tensor) -> Leaves:
        leaves = list(problem.x)
        logits, _ = problem.evaluate(leaves)
        done, static = problem.succeeded(logits), within_xla()
        for number, attack in enumerate(self.parts_for(logits.shape[-1]).values()):
            rows, part = tf.range(tf.shape(done)[0]), problem
            if not static:
                rows = tf.cast(tf.where(~done)[:, 0], tf.int32)
                part = problem.take(rows)
            if attack.backward_slope is not None:
                part = part.with_slope(attack.backward_slope)
            found = attack._perturb(part, fold_in(seed, number))
            broken = part.succeeded(part.evaluate(found)[0])
            if static:
                leaves, done = problem.select(done, leaves, found), done | broken
                continue
            leaves = [scatter(leaf, rows, new) for leaf, new in zip(leaves, found, strict=True)]
            done = scatter(done, rows, broken)
        return leaves
