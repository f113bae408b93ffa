# SPDX-License-Identifier: Apache-2.0
"""Accuracy under attack, with the checks that keep the figure honest."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_atmc.attacks import Attack, fold_in
from tfmot_atmc.evaluation import checks as checks_lib
from tfmot_atmc.evaluation.correctness import check_ball, judge
from tfmot_atmc.evaluation.data import batches, progress
from tfmot_atmc.evaluation.named import in_parts, named_attacks
from tfmot_atmc.evaluation.report import (
    NOT_RUN,
    PASSED,
    AttackResult,
    ClassResult,
    RobustnessReport,
    count_classes,
    wilson_interval,
)
from tfmot_atmc.evaluation.sample import Reservoir, look, rows_of, take_sample
from tfmot_atmc.evaluation.second_opinion import second_opinion as ask_again
from tfmot_atmc.evaluation.targets import Target, as_target, with_two_classes
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
    second_opinion: bool = True,
    state: str | os.PathLike[str] | None = None,
    verbose: int = 1,
) -> RobustnessReport:
    """Measures the accuracy of a classifier on clean data and under attacks.

    An example is robust when right on the clean input and under every attack. The result is an
    upper bound of the true robustness: a stronger attack may find more.

    Args:
        target: Keras model, callable from a batch to logits, or path of a .tflite or C file.
        data: pair `(x, y)` of arrays (`x` may be a nest), or a batched `tf.data.Dataset` of such
            pairs. Labels are class indices or rows (one-hot, smoothed, mixed); of a single output
            they are 0 and 1, or probabilities of 1. Several labels an example are refused.
        attacks: `Attack`, name, list of these, or dict from a name of your choice to one. None is
            a 16-step `PGD`. Earlier ones should be cheaper. An ensemble, such as `"autoattack"`,
            is run part by part.
        epsilon: radius in input units for the default attack and for those given by name.
        batch_size: examples attacked at once; a dataset keeps its own batches.
        source: model that stands in for a target without gradients: attacks by gradients are made
            on it and transferred, a weaker attack, and the result says so. Attacks that need no
            gradients, such as Square, always run on the target itself.
        max_examples: use only the first ones.
        drop_broken: give an attack only what is still right, so that the accuracy after it is
            after all so far. False gives each all that is right when clean.
        seed: seed of all attacks, together with each one's own and the batch's number.
        checks: look for signs that the robustness is not real, on examples from everywhere in the
            data; the report names them.
        second_opinion: with the checks, and unless AutoAttack or its like is among the attacks:
            run APGD on two losses and some Square queries on what is left of a sample of 128, and
            warn where they break clearly more.
        state: file to which counts are written after every batch. The same call with the same
            file goes on there, to the same result; the file is removed at the end.
        verbose: 0 for silence, 1 for a progress bar.

    Returns:
        `RobustnessReport`; `print` shows a table, `save` writes JSON.

    Raises:
        ValueError: no data or no end of them, bad labels, inputs outside an attack's bounds, an
            attack towards the true labels, neither `attacks` nor `epsilon`, a target without
            gradients and no `source`, or a `state` of another evaluation.
        RuntimeError: an attack left its ball or bounds.

    Example:
    >>> model = lambda x: tf.stack([x[:, 0], 1.0 - x[:, 0]], axis=-1)
    >>> x = np.array([[0.9], [0.55], [0.1], [0.2]], "float32")
    >>> report = evaluate_robustness(model, (x, [0, 0, 1, 0]), epsilon=0.1, verbose=0)
    >>> report.clean_accuracy, report.robust_accuracy
    (0.75, 0.5)
    """
    named = named_attacks(attacks, epsilon)
    victim = as_target(target)
    origin = victim if source is None else as_target(source)
    if origin.model is None and any(attack.needs_gradients for attack in named.values()):
        raise ValueError(
            f"{origin.name} gives no gradients. Pass `source=` the Keras model it was made from: "
            "adversarial examples are then made on that and transferred. Or give attacks that need "
            "no gradients, such as Square."
        )
    settings = {"batch_size": batch_size, "max_examples": max_examples, "checks": checks}
    settings["second_opinion"] = second_opinion
    run = None
    with progress(verbose, data, batch_size, max_examples) as advance:
        for x, y in batches(data, batch_size, max_examples, victim.columns):
            if run is None:
                targets = _settled(victim, origin, x)
                run = _Evaluation(*targets, named, drop_broken, seed, settings)
                run.keep_in(None if state is None else Path(state))
            run.add(x, y)
            advance(len(y))
    if run is None:
        raise ValueError("There is no data to evaluate on: received no examples.")
    report = run.report()
    if state is not None:
        Path(state).unlink(missing_ok=True)
    return report


def _settled(victim: Target, origin: Target, x: Any) -> tuple[Target, Target, int]:
    """Returns target and source, a single output of theirs as two classes; and how many classes."""
    same = victim is origin
    victim = with_two_classes(victim, x)
    origin = victim if same else with_two_classes(origin, x)
    outputs = victim.predict(rows_of(x, slice(1)))
    return victim, origin, outputs.shape[-1] if outputs.ndim > 1 else 1


class _Evaluation:
    """Runs batch after batch and keeps the counts."""

    def __init__(
        self,
        victim: Target,
        origin: Target,
        classes: int,
        attacks: dict[str, Attack],
        drop_broken: bool,
        seed: int,
        settings: dict[str, Any],
    ) -> None:
        self._victim, self._origin, self._classes = victim, origin, classes
        self._attacks = attacks = in_parts(attacks, classes)
        self._kept = Reservoir(seed)
        self._drop_broken, self._seed, self._settings = drop_broken, seed, settings
        self._batches = self._noted = 0
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
            "left": "",
        }

    def keep_in(self, path: Path | None) -> None:
        """Writes the counts to a file after every batch, and takes up those it holds."""
        self._state = path

    def add(self, x: Any, y: np.ndarray) -> None:
        for attack in self._attacks.values():
            attack.check_inputs(x)
        number, self._batches = self._batches, self._batches + 1
        if number and number < self._counts["batches"]:
            self._note(x, y)
            return  # counted before the interruption
        clean = self._correct(x, y)
        if not number:
            self._begin(x, y)
            if self._counts["batches"]:
                self._note(x, y)
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
        counts["left"] += "".join(str(int(a) + int(b)) for a, b in zip(clean, robust, strict=True))
        self._note(x, y)
        if self._state is not None:
            write_json(self._state, {"digest": self._digest, "counts": counts})

    def _note(self, x: Any, y: np.ndarray) -> None:
        """Offers a batch to the sample of the checks, with what was found of it."""
        found = np.array(list(self._counts["left"][self._noted :][: len(y)]), int)
        self._noted += len(y)
        self._kept.offer(x, y, found > 0, found > 1)

    def _begin(self, x: Any, y: np.ndarray) -> None:
        """Looks at the first batch: takes up counts that belong to it, if there are any."""
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
        if self._settings["checks"] and self._origin.model is not None and self._white():
            look(self._origin.model, self._origin.name, rows_of(x, slice(1)), y[:1])

    def _white(self) -> bool:
        return any(attack.needs_gradients for attack in self._attacks.values())

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
        checks, again = self._checks() if self._settings["checks"] else ({}, {})
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
            warnings=[
                text for text in checks.values() if text != PASSED and not text.startswith(NOT_RUN)
            ],
            checks=checks,
            classes=counts["by_class"],
            second_opinion=again,
        )

    def _label(self, attack: Attack) -> str:
        """Returns what was attacked, where it is not simply the target by its own gradients."""
        if attack.needs_gradients and self._origin is not self._victim:
            return f" (transfer from {self._origin.name})"
        return " (on the file itself)" if self._victim.model is None else ""

    def _checks(self) -> tuple[dict[str, str], dict[str, Any]]:
        """Returns what the checks say, and the figures of the second opinion."""
        counts, victim = self._counts, self._victim
        x, y, right, left = self._kept.examples()
        origin = self._origin if self._white() else self._origin._replace(model=None)
        sample = take_sample(victim, origin, x, y, right, left)
        checks = checks_lib.run_checks(sample, self._attacks)
        again: dict[str, Any] = {}
        if self._settings["second_opinion"]:
            said, again = ask_again(sample, self._origin.model, self._attacks, self._seed)
            checks |= {} if said is None else {"stronger attacks agree": said}
        found = checks_lib.above_chance(victim.name, counts["clean"], counts["n"], self._classes)
        checks["clean accuracy is above chance"] = found or PASSED
        if len(counts["by_class"]) == 1:
            label = next(iter(counts["by_class"]))
            checks["several classes"] = (
                f"All labels are {label}: a constant answer would look robust."
            )
        else:
            found = checks_lib.given_up(victim.name, counts["by_class"])
            checks["no class is given up"] = found or PASSED
            found = checks_lib.one_answer(victim.name, counts["by_class"])
            checks["several classes are answered"] = found or PASSED
        if counts["not_finite"]:
            checks["outputs are finite"] = (
                f"{victim.name} returned NaN or infinity for {counts['not_finite']} inputs, "
                "counted as wrong."
            )
        blind = not all(attack.needs_gradients for attack in self._attacks.values())
        if blind and not self._white():
            checks["gradients beat outputs alone"] = f"{NOT_RUN}no attack goes by gradients"
        elif blind:
            source = None if self._origin is victim else self._origin.name
            beyond = counts["beyond_gradients"]
            found = checks_lib.black_box_stronger(beyond, counts["n"], source)
            checks["gradients beat outputs alone"] = found or PASSED
        return checks, again

    def _correct(self, x: Any, y: np.ndarray) -> np.ndarray:
        """Returns which examples the target gets right; a NaN anywhere in a row is wrong."""
        right, finite = judge(self._victim.name, self._victim.predict(x), y)
        self._counts["not_finite"] += int((~finite).sum())
        return right
