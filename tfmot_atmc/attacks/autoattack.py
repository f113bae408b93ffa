# SPDX-License-Identifier: Apache-2.0
"""AutoAttack: an ensemble of attacks without parameters to choose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_atmc.attacks.apgd import APGD, APGDT
from tfmot_atmc.attacks.base import Attack
from tfmot_atmc.attacks.fab import FAB, FABT
from tfmot_atmc.attacks.outputs import hard_labels, traced_logits
from tfmot_atmc.attacks.problem import fold_in
from tfmot_atmc.attacks.square import Square

__all__ = ["AutoAttack"]

VERSIONS = ("standard", "plus", "rand")
# The targeted difference-of-logits ratio looks at four logits.
_ENOUGH_CLASSES = 4


class AutoAttack(Attack):
    """APGD-CE, targeted APGD-DLR, targeted FAB and Square, each on what the ones before have left.

    `evaluate_robustness` runs its parts one by one and reports each; that is how it should be
    used. Called itself it runs eagerly. With two or three classes the difference-of-logits ratios,
    which need more, give way to the difference of logits: `"apgd-t-margin"` in place of `"apgd-t"`.

    Args:
        epsilon: radius in input units, a scalar or, for l-infinity, one value a channel.
        version: `"standard"`; `"plus"`, with restarts and the untargeted attacks as well; or
            `"rand"`, for models that are random: APGD with averaged gradients.
        steps: steps of APGD and FAB.
        queries: queries of Square.
        **kwargs: `norm`, `bounds`, `seed` and `backward_slope`, see `Attack`. Unless it is given,
            the gradients are plain ones, for figures that compare with published ones.

    Attributes:
        attacks: the parts by name, in the order they run, for four classes or more.

    Raises:
        ValueError: `version` is unknown, or an argument is out of range.

    Source: Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of
        diverse parameter-free attacks", ICML 2020.

    Example:
    >>> list(AutoAttack(epsilon=8 / 255).attacks)
    ['apgd-ce', 'apgd-t', 'fab-t', 'square']
    """

    _without = ("targeted", "loss")
    _default_slope = None

    def __init__(
        self,
        *,
        epsilon: Any,
        version: str = "standard",
        steps: int = 100,
        queries: int = 5000,
        **kwargs: Any,
    ) -> None:
        super().__init__(epsilon=epsilon, **kwargs)
        if version not in VERSIONS:
            raise ValueError(f"`version` must be one of {VERSIONS}. Received {version!r}.")
        self.version, self.steps, self.queries = version, int(steps), int(queries)
        self._parts_by_classes: dict[int, dict[str, Attack]] = {}
        self.attacks: dict[str, Attack] = self.parts_for(_ENOUGH_CLASSES)

    def parts_for(self, classes: int) -> dict[str, Attack]:
        """Returns the parts by name, in the order they run.

        Args:
            classes: number of classes of the model.

        Example:
        >>> list(AutoAttack(epsilon=8 / 255).parts_for(2))
        ['apgd-ce', 'apgd-t-margin', 'fab-t', 'square']
        """
        classes = min(classes, _ENOUGH_CLASSES)
        if classes in self._parts_by_classes:  # an attack traces each model once
            return dict(self._parts_by_classes[classes])
        config = super().get_config()
        common = {name: config[name] for name in ("epsilon", "norm", "bounds", "seed")}
        square = Square(queries=self.queries, **common)
        climbing = {"steps": self.steps, "backward_slope": self.backward_slope}
        parts = _parts(self.version, square, common | climbing, classes)
        self._parts_by_classes[classes] = parts
        return dict(parts)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments as plain Python values."""
        return {
            **super().get_config(),
            "version": self.version,
            "steps": self.steps,
            "queries": self.queries,
        }

    def __call__(self, model: Callable[..., Any], x: Any, y: Any, *, seed: Any = None) -> Any:
        """Returns adversarial inputs, see `Attack.__call__`; eager only.

        Raises:
            ValueError: called within a graph.
        """
        if not tf.executing_eagerly():
            raise ValueError(
                "AutoAttack drops examples as they break and runs eagerly only. In a graph, and "
                "for training, use one of its parts, such as APGD."
            )
        y = tf.convert_to_tensor(y)
        found = tf.nest.map_structure(lambda leaf: np.array(leaf), x)
        seed = self._as_seed(seed)
        classify = traced_logits(model)
        left = np.arange(len(y))
        classes = classify(tf.nest.map_structure(lambda leaf: leaf[:1], found)).shape[-1]
        for number, attack in enumerate(self.parts_for(classes).values()):
            if not left.size:
                break
            part = tf.nest.map_structure(lambda leaf, rows=left: leaf[rows], found)
            labels = tf.gather(y, left)
            result = attack(model, part, labels, seed=fold_in(seed, number))
            logits = classify(result)
            wrong = (tf.argmax(logits, axis=1) != hard_labels(labels)).numpy()
            for leaf, new in zip(tf.nest.flatten(found), tf.nest.flatten(result), strict=True):
                leaf[left[wrong]] = np.asarray(new)[wrong]
            left = left[~wrong]
        return tf.nest.map_structure(tf.convert_to_tensor, found)


def _parts(version: str, square: Attack, common: dict[str, Any], classes: int) -> dict[str, Attack]:
    ratio, name = ("dlr", "apgd-dlr") if classes > 2 else ("margin", "apgd-margin")
    if version == "rand":
        return {
            "apgd-ce": APGD(eot=20, **common),
            name: APGD(objective=ratio, eot=20, **common),
        }
    few = classes < _ENOUGH_CLASSES
    targeted: dict[str, Attack] = {
        "apgd-t-margin" if few else "apgd-t": APGDT(objective="margin" if few else "dlr", **common),
        "fab-t": FABT(**common),
    }
    if version == "standard":
        return {"apgd-ce": APGD(**common), **targeted, "square": square}
    return {
        "apgd-ce": APGD(restarts=5, **common),
        name: APGD(objective=ratio, restarts=5, **common),
        "fab": FAB(restarts=5, **common),
        "square": square,
        **targeted,
    }
