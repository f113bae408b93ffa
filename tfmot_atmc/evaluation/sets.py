# SPDX-License-Identifier: Apache-2.0
"""Adversarial examples that are kept, to be replayed against other models."""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_atmc import attacks as attacks_lib
from tfmot_atmc.attacks import fold_in
from tfmot_atmc.evaluation.correctness import check_ball, judge
from tfmot_atmc.evaluation.data import batches, rows_of
from tfmot_atmc.evaluation.report import (
    AttackResult,
    RobustnessReport,
    count_classes,
    wilson_interval,
)
from tfmot_atmc.evaluation.targets import Target, as_target, with_two_classes
from tfmot_atmc.tasks import check_attack, class_labels
from tfmot_atmc.utils.files import written_whole

__all__ = ["AdversarialSet"]

_FORMAT = "adversarial set 1"


@dataclasses.dataclass(frozen=True, eq=False)
class AdversarialSet:
    """Clean and adversarial inputs, their labels, and how they were made.

    Attributes:
        clean: array `[n, ...]`, or dict from input names to such arrays.
        adversarial: the same, attacked.
        y: int64 class indices, `[n]`.
        attack: `{"class_name", "config"}` of the attack.
        source: name of the model they were made on.
        seed: seed they were made with.

    Example:
    >>> model = lambda x: tf.concat([0.5 - x, x - 0.5], axis=-1)
    >>> data = np.array([[0.9], [0.55], [0.3]], "float32"), [1, 1, 0]
    >>> examples = AdversarialSet.make(model, data, attack=attacks_lib.FGSM(epsilon=0.1))
    >>> examples.adversarial.ravel().round(2)
    array([0.8 , 0.45, 0.4 ], dtype=float32)
    """

    clean: Any
    adversarial: Any
    y: np.ndarray
    attack: dict[str, Any]
    source: str
    seed: int = 0

    def __post_init__(self) -> None:
        old, new = tf.nest.flatten(self.clean), tf.nest.flatten(self.adversarial)
        shapes = [(leaf.shape, leaf.dtype) for leaf in old]
        if shapes != [(leaf.shape, leaf.dtype) for leaf in new]:
            raise ValueError("Clean and adversarial inputs must have the same shapes and dtypes.")
        if self.y.ndim != 1 or not self.y.size or {len(leaf) for leaf in old} != {len(self.y)}:
            raise ValueError(
                f"There must be one label for each input, at least one. Received inputs of shapes "
                f"{[shape for shape, _ in shapes]} and labels of shape {self.y.shape}."
            )

    @classmethod
    def make(
        cls,
        model: Any,
        data: Any,
        *,
        attack: Any,
        epsilon: Any = None,
        batch_size: int = 250,
        max_examples: int | None = None,
        seed: int = 0,
    ) -> AdversarialSet:
        """Attacks a model on all examples, those it gets wrong when clean included.

        Args:
            model: Keras model or callable from a batch to logits; for an attack that needs no
                gradients also the path of a .tflite or C file.
            data: as in `evaluate_robustness`; inputs are one array or a dict of arrays.
            attack: an `Attack`, its serialised form, or its name together with `epsilon`.
            epsilon: radius in input units, with a name only.
            batch_size: examples attacked at once.
            max_examples: use only the first ones.
            seed: seed, together with the attack's own.

        Raises:
            ValueError: no data, inputs out of bounds, an attack towards the true labels, or
                gradients wanted of a file.
            RuntimeError: the attack left its ball or bounds.
        """
        made_on = as_target(model)
        attack = attacks_lib.get(attack, **({} if epsilon is None else {"epsilon": epsilon}))
        check_attack(attack)
        if attack.needs_gradients and made_on.model is None:
            raise ValueError(
                f"{made_on.name} gives no gradients. Make the set on its Keras twin, or with an "
                "attack that needs none, such as Square."
            )
        name = type(attack).__name__
        start = tf.constant([seed, attack.seed], tf.int64)
        parts = []
        for number, (x, given) in enumerate(batches(data, batch_size, max_examples)):
            y = class_labels(given, made_on.columns)
            made_on = made_on if number else with_two_classes(made_on, x)
            function: Any = made_on.model if attack.needs_gradients else made_on.black_box
            adversarial = attack(function, x, y, seed=fold_in(start, number))
            adversarial = tf.nest.map_structure(np.asarray, adversarial)
            check_ball(name, attack, x, adversarial)
            parts.append((x, adversarial, y))
        if not parts:
            raise ValueError("There is no data to attack: received no examples.")
        clean, attacked, labels = tf.nest.map_structure(lambda *one: np.concatenate(one), *parts)
        description = {"class_name": name, "config": attack.get_config()}
        plain = json.loads(json.dumps(description, default=repr))
        return cls(clean, attacked, labels, plain, made_on.name, seed)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the set as a compressed .npz file, whole or not at all.

        Args:
            path: file to write or replace, with the ending .npz; its folder must exist.

        Raises:
            ValueError: another ending, or inputs in a nest that is no dict.
        """
        if not os.fspath(path).endswith(".npz"):
            raise ValueError(f"The file's name must end in .npz. Received {os.fspath(path)!r}.")
        about = {
            "format": _FORMAT,
            "attack": self.attack,
            "source": self.source,
            "seed": self.seed,
        }
        arrays: dict[str, Any] = {
            "about": np.array(json.dumps(about)),
            "y": self.y,
            **_named("clean", self.clean),
            **_named("adversarial", self.adversarial),
        }
        with written_whole(path) as partial:
            np.savez_compressed(partial, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> AdversarialSet:
        """Reads what `save` wrote.

        Args:
            path: the .npz file.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: it is no adversarial set, or damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            about = json.loads(str(arrays["about"]))
            if about["format"] != _FORMAT:
                raise ValueError(f"its format is {about['format']!r}, not {_FORMAT!r}")
            clean, adversarial = _nest("clean", arrays), _nest("adversarial", arrays)
            return cls(
                clean, adversarial, arrays["y"], about["attack"], about["source"], about["seed"]
            )
        except FileNotFoundError:
            raise
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{os.fspath(path)} is no adversarial set: {error}") from error

    def evaluate(self, target: Any, *, batch_size: int = 250) -> RobustnessReport:
        """Replays the set against a model.

        For any but the model it was made on this is a transfer attack, which is weak: the accuracy
        is far above what an attack on the model itself leaves, and the report says so.

        Args:
            target: Keras model, callable from a batch to logits, or path of a .tflite or C file.
            batch_size: examples at once.

        Raises:
            ValueError: the target does not take such inputs, or has too few classes.
        """
        first = rows_of(self.clean, slice(batch_size))
        victim = with_two_classes(_with_reasons(as_target(target)), first)
        clean, finite = self._judged(victim, self.clean, batch_size)
        attacked, still_finite = self._judged(victim, self.adversarial, batch_size)
        n, robust = len(self.y), clean & attacked
        odd = int((~finite).sum() + (~still_finite).sum())
        warnings = [
            f"Replayed examples, made on {self.source}: an attack on {victim.name} itself is "
            "stronger."
        ]
        if odd:
            warnings.append(f"{victim.name} returned NaN or infinity for {odd} inputs.")
        accuracy, interval = int(robust.sum()) / n, wilson_interval(int(robust.sum()), n)
        result = AttackResult(
            name=f"{self.attack['class_name']} (replayed from {self.source})",
            accuracy=accuracy,
            interval=interval,
            attacked=int(clean.sum()),
            broken=int((clean & ~attacked).sum()),
            attack=self.attack,
        )
        return RobustnessReport(
            target=victim.name,
            source=self.source,
            n=n,
            clean_accuracy=int(clean.sum()) / n,
            clean_interval=wilson_interval(int(clean.sum()), n),
            robust_accuracy=accuracy,
            robust_interval=interval,
            attacks=[result],
            drop_broken=False,
            seed=self.seed,
            batch_size=batch_size,
            warnings=warnings,
            classes=count_classes(self.y, clean, robust, {}),
        )

    def _judged(self, victim: Any, x: Any, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        found = []
        for part, y in batches((x, self.y), batch_size, None):
            found.append(judge(victim.name, victim.predict(part), y))
        right, finite = zip(*found, strict=True)
        return np.concatenate(right), np.concatenate(finite)


def _with_reasons(target: Target) -> Target:
    """Returns a target that says which inputs it was given where it does not take them."""

    def predict(x: Any) -> np.ndarray:
        try:
            return target.predict(x)
        except Exception as error:
            shapes = [f"{a.dtype} {a.shape[1:]}" for a in tf.nest.flatten(x)]
            raise ValueError(
                f"{target.name} does not take these inputs, {', '.join(shapes)} each: {error}"
            ) from error

    return target._replace(predict=predict)


def _named(prefix: str, x: Any) -> dict[str, np.ndarray]:
    """Returns the arrays of an input nest under names for a file."""
    if isinstance(x, np.ndarray):
        return {prefix: x}
    if isinstance(x, Mapping) and all(isinstance(leaf, np.ndarray) for leaf in x.values()):
        return {f"{prefix}/{name}": leaf for name, leaf in x.items()}
    raise ValueError(f"Only one array or a dict of arrays can be saved. Received {type(x)}.")


def _nest(prefix: str, arrays: dict[str, np.ndarray]) -> Any:
    if prefix in arrays:
        return arrays[prefix]
    start = f"{prefix}/"
    found = {name[len(start) :]: a for name, a in arrays.items() if name.startswith(start)}
    if not found:
        raise ValueError(f"it has no {prefix} inputs")
    return found
