# SPDX-License-Identifier: Apache-2.0
"""One evaluation: batch after batch, counts that can be kept, and the report at the end."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tfmot_atmc.attacks import Attack, fold_in
from tfmot_atmc.evaluation import checks as checks_lib
from tfmot_atmc.evaluation.correctness import check_ball
from tfmot_atmc.evaluation.data import rows_of
from tfmot_atmc.evaluation.goals import Goal, Judged
from tfmot_atmc.evaluation.named import in_parts
from tfmot_atmc.evaluation.report import (
    NOT_RUN,
    PASSED,
    AttackResult,
    ClassResult,
    RobustnessReport,
    count_classes,
    count_labels,
    share,
)
from tfmot_atmc.evaluation.sample import Reservoir, look, take_sample
from tfmot_atmc.evaluation.second_opinion import second_opinion as ask_again
from tfmot_atmc.evaluation.targets import Target
from tfmot_atmc.utils.files import write_json

__all__ = ["Evaluation"]


class Evaluation:
    """Runs batch after batch and keeps the counts.

    Args:
        victim: the target, as its goal asks for it.
        origin: what gradients are taken of, likewise; the same object where that is the target.
        goal: what answers are judged by.
        attacks: by name, in order.
        drop_broken, seed: as to `evaluate_robustness`.
        settings: other arguments of it, on which the result depends.
    """

    def __init__(
        self,
        victim: Target,
        origin: Target,
        goal: Goal,
        attacks: dict[str, Attack],
        drop_broken: bool,
        seed: int,
        settings: dict[str, Any],
    ) -> None:
        goal.check(*attacks.values())
        self._victim, self._origin, self._goal = victim, origin, goal
        self._attacks = attacks = in_parts(attacks, goal.classes)
        self._aimed = {name: goal.aimed(attack) for name, attack in attacks.items()}
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
            # Of what has a loss of its own: sums over examples, and the worst of each.
            "clean_loss": 0.0,
            "losses": dict.fromkeys(attacks, 0.0),
            "worst": [],
            "by_label": {},
        }

    def keep_in(self, path: Path | None) -> None:
        """Writes the counts to a file after every batch, and takes up those it holds."""
        self._state = path

    def add(self, x: Any, given: Any) -> int:
        """Evaluates a batch.

        Args:
            x: nest of inputs.
            given: its labels, as given.

        Returns:
            How many examples it has.
        """
        for attack in self._attacks.values():
            attack.check_inputs(x)
        y, counts = self._goal.labels(given), self._counts
        number, self._batches = self._batches, self._batches + 1
        before = bool(number) and number < counts["batches"]
        clean = None if before else self._judged(x, y)
        if clean is not None and not number:
            self._begin(x, y)
            counts = self._counts
            before = bool(counts["batches"])
        if clean is None or before:  # counted before the interruption
            self._note(x, y)
            return len(y)
        worst, broken = self._attack(x, y, clean, number)
        beyond = checks_lib.beyond_gradients(broken, self._attacks, self._drop_broken)
        for name, mask in beyond.items():
            earlier = counts["beyond_gradients"].get(name, 0)
            counts["beyond_gradients"][name] = earlier + int(mask.sum())
        counts["batches"] += 1
        counts["n"] += len(y)
        counts["clean"] += int(clean.right.sum())
        counts["robust"] += int(worst.right.sum())
        if clean.loss is not None and worst.loss is not None:
            counts["clean_loss"] += float(clean.loss.sum())
            counts["worst"] += worst.loss.tolist()
        elif clean.each is not None and worst.each is not None:
            counts["by_label"] = count_labels(clean.each, worst.each, counts["by_label"])
        else:
            counts["by_class"] = count_classes(y, clean.right, worst.right, counts["by_class"])
        both = zip(clean.right, worst.right, strict=True)
        counts["left"] += "".join(str(int(a) + int(b)) for a, b in both)
        self._note(x, y)
        if self._state is not None:
            write_json(self._state, {"digest": self._digest, "counts": counts})
        return len(y)

    def _attack(
        self, x: Any, y: np.ndarray, clean: Judged, number: int
    ) -> tuple[Judged, dict[str, np.ndarray]]:
        """Returns what is left under all attacks, and what each of them broke."""
        worst, broken = clean, {}
        for position, name in enumerate(self._attacks):
            start = worst if self._drop_broken else clean
            rows = np.flatnonzero(start.right)
            broken[name] = np.zeros_like(clean.right)
            alone = start
            if rows.size:
                found = self._run(name, position, number, x, y, rows)
                broken[name][rows] = ~found.right
                alone, worst = start.under(rows, found), worst.under(rows, found)
            if alone.loss is not None:
                self._counts["losses"][name] += float(alone.loss.sum())
        return worst, broken

    def _note(self, x: Any, y: np.ndarray) -> None:
        """Offers a batch to the sample of the checks, with what was found of it."""
        part = slice(self._noted, self._noted + len(y))
        found = np.array(list(self._counts["left"][part]), int)
        worst = np.array(self._counts["worst"][part]) if self._counts["worst"] else None
        self._noted += len(y)
        self._kept.offer(x, y, found > 0, found > 1, worst)

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
                for field in ("by_class", "by_label"):
                    self._counts[field] = {
                        int(label): ClassResult(*found)
                        for label, found in self._counts[field].items()
                    }
                return
        if self._settings["checks"] and self._origin.model is not None and self._white():
            first = rows_of(x, slice(1)), y[:1]
            look(self._origin.model, self._origin.name, *first, self._goal.source_loss)

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
        described.append(self._goal.described())
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
    ) -> Judged:
        """Attacks some rows of a batch; returns what became of them."""
        attack = self._aimed[name]
        part = rows_of(x, rows)
        start = tf.constant([self._seed, attack.seed], tf.int64)
        model: Any = self._origin.model if attack.needs_gradients else self._victim.black_box
        adversarial = attack(model, part, y[rows], seed=fold_in(fold_in(start, position), number))
        adversarial = tf.nest.map_structure(np.asarray, adversarial)
        check_ball(name, attack, part, adversarial)
        found = self._judged(adversarial, y[rows])
        self._counts["attacked"][name] += int(rows.size)
        self._counts["broken"][name] += int((~found.right).sum())
        return found

    def report(self) -> RobustnessReport:
        """Returns what was found so far."""
        counts, goal = self._counts, self._goal
        n, clean, valued = counts["n"], counts["clean"], goal.kind == "values"
        results, left = [], clean
        for name, attack in self._attacks.items():
            right = (left if self._drop_broken else clean) - counts["broken"][name]
            left = right
            accuracy, interval = share(None if valued else right, n)
            results.append(
                AttackResult(
                    name=name + self._label(attack),
                    accuracy=accuracy,
                    interval=interval,
                    attacked=counts["attacked"][name],
                    broken=counts["broken"][name],
                    attack={"class_name": type(attack).__name__, "config": attack.get_config()},
                    loss=counts["losses"][name] / n if valued else None,
                )
            )
        transferred = self._origin is not self._victim
        checks, again = self._checks() if self._settings["checks"] else ({}, {})
        clean_accuracy, clean_interval = share(None if valued else clean, n)
        robust_accuracy, robust_interval = share(None if valued else counts["robust"], n)
        return RobustnessReport(
            target=self._victim.name,
            source=self._origin.name if transferred else None,
            n=n,
            clean_accuracy=clean_accuracy,
            clean_interval=clean_interval,
            robust_accuracy=robust_accuracy,
            robust_interval=robust_interval,
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
            goal=goal.kind,
            clean_loss=counts["clean_loss"] / n if valued else None,
            robust_loss=float(np.mean(counts["worst"])) if valued else None,
            labels=counts["by_label"],
        )

    def _label(self, attack: Attack) -> str:
        """Returns what was attacked, where it is not simply the target by its own gradients."""
        if attack.needs_gradients and self._origin is not self._victim:
            return f" (transfer from {self._origin.name})"
        return " (on the file itself)" if self._victim.model is None else ""

    def _checks(self) -> tuple[dict[str, str], dict[str, Any]]:
        """Returns what the checks say, and the figures of the second opinion."""
        victim, goal = self._victim, self._goal
        origin = self._origin if self._white() else self._origin._replace(model=None)
        sample = take_sample(victim, origin, *self._kept.examples(), goal=goal)
        checks = checks_lib.run_checks(sample, self._aimed)
        again: dict[str, Any] = {}
        if self._settings["second_opinion"]:
            said, again = ask_again(sample, self._origin.model, self._aimed, self._seed)
            checks |= {} if said is None else {"stronger attacks agree": said}
        if goal.kind == "classes":
            checks |= self._checks_of_classes()
        elif goal.kind == "labels":
            right = [found.clean / found.n for found in self._counts["by_label"].values()]
            checks["one class an example"] = (
                f"Each example has {len(right)} labels: an accuracy here is the share of examples "
                f"with all of them right. Each by itself, {np.mean(right):.1%} are on clean inputs."
            )
        if self._counts["not_finite"]:
            checks["outputs are finite"] = (
                f"{victim.name} returned NaN or infinity for {self._counts['not_finite']} inputs, "
                f"{'an infinite loss' if goal.kind == 'values' else 'counted as wrong'}."
            )
        return checks, again

    def _checks_of_classes(self) -> dict[str, str]:
        """Returns what the checks say that look at counts of classes."""
        counts, name, checks = self._counts, self._victim.name, {}
        found = checks_lib.above_chance(name, counts["clean"], counts["n"], self._goal.classes)
        checks["clean accuracy is above chance"] = found or PASSED
        if len(counts["by_class"]) == 1:
            label = next(iter(counts["by_class"]))
            checks["several classes"] = (
                f"All labels are {label}: a constant answer would look robust."
            )
        else:
            found = checks_lib.given_up(name, counts["by_class"])
            checks["no class is given up"] = found or PASSED
            found = checks_lib.one_answer(name, counts["by_class"])
            checks["several classes are answered"] = found or PASSED
        blind = not all(attack.needs_gradients for attack in self._attacks.values())
        if blind and not self._white():
            checks["gradients beat outputs alone"] = f"{NOT_RUN}no attack goes by gradients"
        elif blind:
            source = None if self._origin is self._victim else self._origin.name
            beyond = counts["beyond_gradients"]
            found = checks_lib.black_box_stronger(beyond, counts["n"], source)
            checks["gradients beat outputs alone"] = found or PASSED
        return checks

    def _judged(self, x: Any, y: np.ndarray) -> Judged:
        """Returns which examples the target gets right; a NaN anywhere in a row is wrong."""
        found = self._goal.judged(self._victim.name, self._victim.predict(x), y)
        self._counts["not_finite"] += int((~found.finite).sum())
        return found
