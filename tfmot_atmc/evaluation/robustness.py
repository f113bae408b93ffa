# SPDX-License-Identifier: Apache-2.0
"""Accuracy under attack, with the checks that keep the figure honest."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_atmc import attacks as attacks_lib
from tfmot_atmc.attacks import Attack, fold_in
from tfmot_atmc.evaluation import checks as checks_lib
from tfmot_atmc.evaluation.correctness import check_ball, judge
from tfmot_atmc.evaluation.data import batches, progress
from tfmot_atmc.evaluation.report import (
    AttackResult,
    ClassResult,
    RobustnessReport,
    count_classes,
    wilson_interval,
)
from tfmot_atmc.evaluation.targets import Target, as_target
from tfmot_atmc.utils.files import write_json

__all__ = ["evaluate_robustness"]


def evaluate_robustness(
    target: Any,
    data: Any,
    *,
    attacks: Any = None,
    epsilon: Any = None,
    batch_size: int = 250,
    source: Any = None,
    max_examples: int | None = None,
    drop_broken: bool = True,
    seed: int = 0,
    checks: bool = True,
    state: str | os.PathLike[str] | None = None,
    verbose: int = 1,
) -> RobustnessReport:
    """Measures the accuracy of a classifier on clean data and under attacks.

    An example is robust when right on the clean input and under every attack. The result is an
    upper bound of the true robustness: a stronger attack may find more.

    Args:
        target: Keras model, callable from a batch to logits, or path of a .tflite file.
        data: Pair `(x, y)` of arrays (`x` may be a nest), or a batched `tf.data.Dataset` of such
            pairs. Labels are class indices or one-hot.
        attacks: `Attack`, name, list of these, or dict from a name of your choice to one. None is
            a 16-step `PGD`. Earlier ones should be cheaper. An ensemble, such as `"autoattack"`,
            is run part by part.
        epsilon: Radius in input units for the default attack and for those given by name.
        batch_size: Examples attacked at once; a dataset keeps its own batches.
        source: Model that stands in for a target without gradients: attacks by gradients are made
            on it and transferred, a weaker attack, and the result says so. Attacks that need no
            gradients, such as Square, always run on the target itself.
        max_examples: Use only the first ones.
        drop_broken: Give an attack only what is still right, so that the accuracy after it is
            after all so far. False gives each all that is right when clean.
        seed: Seed of all attacks, together with each one's own and the batch's number.
        checks: Look for signs that the robustness is not real; the report names them.
        state: File to which counts are written after every batch. The same call with the same
            file goes on there, to the same result; the file is removed at the end.
        verbose: 0 for silence, 1 for a progress bar.

    Returns:
        `RobustnessReport`; `print` shows a table, `save` writes JSON.

    Raises:
        ValueError: no data, bad labels, inputs outside an attack's bounds, neither `attacks` nor
            `epsilon`, a target without gradients and no `source`, or a `state` of another
            evaluation.
        RuntimeError: an attack left its ball or bounds.

    Example:
    >>> model = lambda x: tf.stack([x[:, 0], 1.0 - x[:, 0]], axis=-1)
    >>> x = np.array([[0.9], [0.55], [0.1], [0.2]], "float32")
    >>> report = evaluate_robustness(model, (x, [0, 0, 1, 0]), epsilon=0.1, verbose=0)
    >>> report.clean_accuracy, report.robust_accuracy
    (0.75, 0.5)
    """
    named = _named_attacks(attacks, epsilon)
    victim = as_target(target)
    origin = victim if source is None else as_target(source)
    if origin.model is None and any(attack.needs_gradients for attack in named.values()):
        raise ValueError(
            f"{origin.name} gives no gradients. Pass `source=` the Keras model it was made from: "
            "adversarial examples are then made on that and transferred. Or give attacks that need "
            "no gradients, such as Square."
        )
    settings = {"batch_size": batch_size, "max_examples": max_examples, "checks": checks}
    run = _Evaluation(victim, origin, named, drop_broken, seed, settings)
    if state is not None:
        run.keep_in(Path(state))
    with progress(verbose, data, batch_size, max_examples) as advance:
        for x, y in batches(data, batch_size, max_examples):
            run.add(x, y)
            advance(len(y))
    report = run.report()
    if state is not None:
        Path(state).unlink(missing_ok=True)
    return report


class _Evaluation:
    """Runs batch after batch and keeps the counts."""

    def __init__(
        self,
        victim: Target,
        origin: Target,
        attacks: dict[str, Attack],
        drop_broken: bool,
        seed: int,
        settings: dict[str, Any],
    ) -> None:
        self._victim, self._origin, self._attacks = victim, origin, attacks
        self._drop_broken, self._seed, self._settings = drop_broken, seed, settings
        self._batches = 0
        self._state: Path | None = None
        self._counts: dict[str, Any] = {
            "batches": 0,
            "n": 0,
            "clean": 0,
            "robust": 0,
            "not_finite": 0,
            "by_class": {},
            "attacked": dict.fromkeys(attacks, 0),
            "broken": dict.fromkeys(attacks, 0),
            "beyond_gradients": {},
            "checks": {},
        }

    def keep_in(self, path: Path) -> None:
        """Writes the counts to a file after every batch, and takes up those it holds."""
        self._state = path

    def add(self, x: Any, y: np.ndarray) -> None:
        for attack in self._attacks.values():
            attack.check_inputs(x)
        number, self._batches = self._batches, self._batches + 1
        if number and number < self._counts["batches"]:
            return  # counted before the interruption
        clean = self._correct(x, y)
        if not number:
            self._begin(x, y, clean)
            if self._counts["batches"]:
                return
        robust, broken, counts = clean.copy(), {}, self._counts
        for position, name in enumerate(self._attacks):
            broken[name] = np.zeros_like(clean)
            rows = np.flatnonzero(robust if self._drop_broken else clean)
            if rows.size:
                broken[name][rows] = self._run(name, position, number, x, y, rows)
            robust &= ~broken[name]
        beyond = checks_lib.beyond_gradients(broken, self._attacks, self._drop_broken)
        for name, mask in beyond.items():
            earlier = counts["beyond_gradients"].get(name, 0)
            counts["beyond_gradients"][name] = earlier + int(mask.sum())
        counts["batches"] += 1
        counts["n"] += len(y)
        counts["clean"] += int(clean.sum())
        counts["robust"] += int(robust.sum())
        counts["by_class"] = count_classes(y, clean, robust, counts["by_class"])
        if self._state is not None:
            write_json(self._state, {"digest": self._digest, "counts": counts})

    def _begin(self, x: Any, y: np.ndarray, clean: np.ndarray) -> None:
        """Looks at the first batch: takes up counts that belong to it, or runs the checks."""
        if self._state is not None:
            self._digest = self._fingerprint(x, y)
            if self._state.exists():
                kept = json.loads(self._state.read_text())
                if kept.get("digest") != self._digest:
                    raise ValueError(
                        f"{self._state} is the state of another evaluation: attacks, data, seed, "
                        "batch size or target differ. Give another file, or remove this one."
                    )
                self._counts = kept["counts"]
                self._counts["by_class"] = {
                    int(label): ClassResult(*found)
                    for label, found in self._counts["by_class"].items()
                }
                return
        if self._settings["checks"]:
            white = any(attack.needs_gradients for attack in self._attacks.values())
            origin = self._origin if white else self._origin._replace(model=None)
            sample = checks_lib.take_sample(self._victim, origin, x, y, clean)
            self._counts["checks"] = checks_lib.run_checks(sample, self._attacks)

    def _fingerprint(self, x: Any, y: np.ndarray) -> str:
        """Returns a digest of all that the result depends on, the first batch for the data."""
        configs = {
            name: [type(attack).__name__, attack.get_config()]
            for name, attack in self._attacks.items()
        }
        described = [configs, self._drop_broken, self._seed, self._settings, self._origin.name]
        described.append(sorted(self._counts))  # what is counted may differ between versions
        digest = hashlib.sha256(json.dumps(described, default=repr).encode())
        for array in (*tf.nest.flatten(x), y, np.round(self._victim.predict(x), 3)):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def _run(
        self,
        name: str,
        position: int,
        number: int,
        x: Any,
        y: np.ndarray,
        rows: np.ndarray,
    ) -> np.ndarray:
        """Attacks some rows of a batch; returns which of them break."""
        attack = self._attacks[name]
        part = tf.nest.map_structure(lambda leaf: leaf[rows], x)
        start = tf.constant([self._seed, attack.seed], tf.int64)
        model: Any = self._origin.model if attack.needs_gradients else self._victim.black_box
        adversarial = attack(model, part, y[rows], seed=fold_in(fold_in(start, position), number))
        adversarial = tf.nest.map_structure(np.asarray, adversarial)
        check_ball(name, attack, part, adversarial)
        broken = ~self._correct(adversarial, y[rows])
        self._counts["attacked"][name] += int(rows.size)
        self._counts["broken"][name] += int(broken.sum())
        return broken

    def report(self) -> RobustnessReport:
        counts = self._counts
        n, clean = counts["n"], counts["clean"]
        if not n:
            raise ValueError("There is no data to evaluate on: received no examples.")
        results, left = [], clean
        for name, attack in self._attacks.items():
            right = (left if self._drop_broken else clean) - counts["broken"][name]
            left = right
            results.append(
                AttackResult(
                    name=name + self._label(attack),
                    accuracy=right / n,
                    interval=wilson_interval(right, n),
                    attacked=counts["attacked"][name],
                    broken=counts["broken"][name],
                    attack={"class_name": type(attack).__name__, "config": attack.get_config()},
                )
            )
        transferred = self._origin is not self._victim
        checks = self._checks()
        return RobustnessReport(
            target=self._victim.name,
            source=self._origin.name if transferred else None,
            n=n,
            clean_accuracy=clean / n,
            clean_interval=wilson_interval(clean, n),
            robust_accuracy=counts["robust"] / n,
            robust_interval=wilson_interval(counts["robust"], n),
            attacks=results,
            drop_broken=self._drop_broken,
            seed=self._seed,
            batch_size=self._settings["batch_size"],
            warnings=[text for text in checks.values() if text != "passed"],
            checks=checks,
            classes=counts["by_class"],
        )

    def _label(self, attack: Attack) -> str:
        """Returns what was attacked, where it is not simply the target by its own gradients."""
        if attack.needs_gradients and self._origin is not self._victim:
            return f" (transfer from {self._origin.name})"
        return " (on the file itself)" if self._victim.model is None else ""

    def _checks(self) -> dict[str, str]:
        counts = self._counts
        checks = dict(counts["checks"])
        if not self._settings["checks"]:
            return checks
        if len(counts["by_class"]) == 1:
            label = next(iter(counts["by_class"]))
            checks["several classes"] = (
                f"All labels are {label}: a constant answer would look robust."
            )
        else:
            found = checks_lib.given_up(self._victim.name, counts["by_class"])
            checks["no class is given up"] = found or "passed"
            found = checks_lib.one_answer(self._victim.name, counts["by_class"])
            checks["several classes are answered"] = found or "passed"
        if counts["not_finite"]:
            checks["outputs are finite"] = (
                f"{self._victim.name} returned NaN or infinity for {counts['not_finite']} inputs, "
                "counted as wrong."
            )
        if any(not attack.needs_gradients for attack in self._attacks.values()):
            source = None if self._origin is self._victim else self._origin.name
            beyond = counts["beyond_gradients"]
            found = checks_lib.black_box_stronger(beyond, counts["n"], source)
            checks["gradients beat outputs alone"] = found or "passed"
        return checks

    def _correct(self, x: Any, y: np.ndarray) -> np.ndarray:
        """Returns which examples the target gets right; a NaN anywhere in a row is wrong."""
        right, finite = judge(self._victim.name, self._victim.predict(x), y)
        self._counts["not_finite"] += int((~finite).sum())
        return right


def _named_attacks(attacks: Any, epsilon: Any) -> dict[str, Attack]:
    """Returns attacks under unique names, in order."""
    if attacks is None:
        if epsilon is None:
            raise ValueError("Pass `attacks=` or, for the default attack, `epsilon=`.")
        attacks = attacks_lib.PGD(epsilon=epsilon, steps=16)
    if isinstance(attacks, Mapping) and "class_name" not in attacks:
        return _expanded({str(name): _attack(entry, epsilon) for name, entry in attacks.items()})
    entries = attacks if isinstance(attacks, (list, tuple)) else [attacks]
    named: dict[str, Attack] = {}
    for entry in entries:
        attack = _attack(entry, epsilon)
        steps = getattr(attack, "steps", None)
        base = type(attack).__name__ + (f"-{steps}" if steps else "")
        name, count = base, 1
        while name in named:
            count += 1
            name = f"{base} #{count}"
        named[name] = attack
    return _expanded(named)


def _expanded(named: dict[str, Attack]) -> dict[str, Attack]:
    """Returns the attacks with the parts of an ensemble in its place."""
    found: dict[str, Attack] = {}
    for name, attack in named.items():
        parts = getattr(attack, "attacks", None)
        if not parts:
            found[name] = attack
            continue
        prefix = f"{name}: " if len(named) > 1 else ""
        found |= {f"{prefix}{part}": member for part, member in parts.items()}
    if not found:
        raise ValueError("`attacks` is empty. Pass at least one attack.")
    return found


def _attack(entry: Any, epsilon: Any) -> Attack:
    if isinstance(entry, str):
        if not attacks_lib.class_of(entry).takes("epsilon"):
            return attacks_lib.get(entry)
        if epsilon is None:
            raise ValueError(f"The attack {entry!r} given by name needs `epsilon=`.")
        return attacks_lib.get(entry, epsilon=epsilon)
    return attacks_lib.get(entry)
