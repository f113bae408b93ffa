# SPDX-License-Identifier: Apache-2.0
"""What a robustness evaluation found, as data, JSON and a table."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tfmot_atmc.utils.files import write_json
from tfmot_atmc.utils.shown import Shown, TablePart

__all__ = [
    "NOT_RUN",
    "PASSED",
    "AttackResult",
    "ClassResult",
    "RobustnessReport",
    "count_classes",
    "count_labels",
    "share",
    "wilson_interval",
]

PASSED = "passed"
"""What a check says that looked and found nothing."""

NOT_RUN = "not run: "
"""How a check begins that could not look; the reason follows."""

# The 97.5% quantile of the normal distribution: two-sided 95%.
_Z95 = 1.959963984540054


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Returns the Wilson score interval of a proportion, at 95%.

    Unlike the normal approximation it stays within [0, 1] and is honest at 0 and 1. It accounts
    for the sampling of the data only. Wilson, JASA 22, 1927.

    Args:
        successes: number of successes, from 0 to `n`.
        n: number of trials, at least 1.

    Example:
    >>> [round(end, 4) for end in wilson_interval(8, 10)]
    [0.4902, 0.9433]
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"Need 0 <= successes <= n and n >= 1. Received {successes} of {n}.")
    p, z2 = successes / n, _Z95**2
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    low = 0.0 if successes == 0 else max(0.0, middle - half)
    high = 1.0 if successes == n else min(1.0, middle + half)
    return low, high


@dataclasses.dataclass(frozen=True)
class AttackResult:
    """The outcome of one attack.

    Attributes:
        name: name in the report, with "transfer from ..." where made on another model.
        accuracy: fraction of all examples still right. Under `drop_broken`, right after this
            attack and all before it; otherwise after this attack alone.
        interval: 95% Wilson interval of `accuracy`.
        attacked: examples the attack was run on.
        broken: those it made the target get wrong.
        attack: `{"class_name", "config"}`.
        loss: mean loss of all examples, each the worst so far; None where answers are right or
            wrong.
    """

    name: str
    accuracy: float
    interval: tuple[float, float]
    attacked: int
    broken: int
    attack: dict[str, Any]
    loss: float | None = None


class ClassResult(NamedTuple):
    """The examples of one class.

    Attributes:
        n: how many there are.
        clean: how many of them are right as given.
        robust: how many are right as given and under every attack.
    """

    n: int
    clean: int
    robust: int


def count_classes(
    y: np.ndarray, clean: np.ndarray, robust: np.ndarray, before: dict[int, ClassResult]
) -> dict[int, ClassResult]:
    """Returns the results of every class, with those of earlier examples.

    Args:
        y: class indices, `[batch]`.
        clean: which examples are right as given, bool `[batch]`.
        robust: which are right under every attack as well, bool `[batch]`.
        before: the results of earlier examples.

    Example:
    >>> y, right = np.array([3, 3, 0]), np.array([True, False, True])
    >>> count_classes(y, right, right, {3: ClassResult(10, 4, 2)})[3]
    ClassResult(n=12, clean=5, robust=3)
    """
    found = dict(before)
    for label in np.unique(y).tolist():
        rows = y == label
        n, right, left = found.get(label, (0, 0, 0))
        found[label] = ClassResult(
            n + int(rows.sum()), right + int(clean[rows].sum()), left + int(robust[rows].sum())
        )
    return dict(sorted(found.items()))


def count_labels(
    clean: np.ndarray, robust: np.ndarray, before: dict[int, ClassResult]
) -> dict[int, ClassResult]:
    """Returns the results of each of several labels, with those of earlier examples.

    Args:
        clean: which labels are right as given, bool `[batch, labels]`.
        robust: which are right under every attack as well.
        before: the results of earlier examples.
    """
    found = {}
    for label in range(clean.shape[1]):
        n, right, left = before.get(label, (0, 0, 0))
        mine, still = clean[:, label], robust[:, label]
        found[label] = ClassResult(n + len(mine), right + int(mine.sum()), left + int(still.sum()))
    return found


def share(count: int | None, n: int) -> tuple[float, tuple[float, float]]:
    """Returns a proportion with its 95% interval; NaN where nothing is counted.

    Args:
        count: how many, or None.
        n: of how many.
    """
    if count is None:
        return math.nan, (math.nan, math.nan)
    return count / n, wilson_interval(count, n)


@dataclasses.dataclass(frozen=True)
class RobustnessReport(Shown):
    """Clean and adversarial accuracy of one target, or its loss where nothing is right or wrong.

    Attributes:
        target: name of the evaluated model or file.
        source: name of the model the examples were made on; None if the target itself.
        n: number of examples.
        clean_accuracy, clean_interval: accuracy on the data as given, and its 95% interval.
        robust_accuracy, robust_interval: fraction right on the data and under every attack.
        attacks: one `AttackResult` each, in the order run.
        drop_broken: whether an attack saw only what the attacks before it had left.
        seed, batch_size: together with the attacks, they fix the result.
        warnings: reasons to trust the figures less.
        checks: by name, what a check for fake robustness says: `"passed"`, `"not run: "` and why,
            or what it found.
        classes: by class index, the `ClassResult` of its examples: an average hides a class that is
            given up.
        second_opinion: what stronger attacks leave of a sample of the data: `accuracy` beside
            `reported` on the same `n` examples, `attacked` and `broken`, and the `attacks` by name.
            Empty where none was asked for. Of a goal without accuracy `loss` and `reported_loss`.
        goal: `"classes"`: one class an example. `"labels"`: several yes-or-no labels; an example is
            right when all are. `"values"`: a loss only; every accuracy is NaN.
        clean_loss, robust_loss: mean loss of the examples as given, and of the worst that was found
            of each under all attacks; None where answers are right or wrong.
        labels: by number of a label, its `ClassResult` over all examples. An attack ends where one
            label is wrong, so that of the others more could fall.
    """

    target: str
    source: str | None
    n: int
    clean_accuracy: float
    clean_interval: tuple[float, float]
    robust_accuracy: float
    robust_interval: tuple[float, float]
    attacks: list[AttackResult]
    drop_broken: bool
    seed: int
    batch_size: int
    warnings: list[str]
    checks: dict[str, str] = dataclasses.field(default_factory=dict)
    classes: dict[int, ClassResult] = dataclasses.field(default_factory=dict)
    second_opinion: dict[str, Any] = dataclasses.field(default_factory=dict)
    goal: str = "classes"
    clean_loss: float | None = None
    robust_loss: float | None = None
    labels: dict[int, ClassResult] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as plain Python values; custom losses become their `repr`.

        What is not finite, such as an accuracy that there is not, becomes None.
        """
        text = json.dumps(dataclasses.asdict(self), default=repr)
        return json.loads(text, parse_constant=lambda _: None)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the report as JSON, whole or not at all.

        Args:
            path: file to write or replace; its folder must exist.
        """
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> RobustnessReport:
        """Returns the report that `save` wrote.

        Raises:
            ValueError: the file holds something else.
        """
        try:
            fields = json.loads(Path(path).read_text())
            results = [AttackResult(**_figures(result)) for result in fields.pop("attacks")]
            for name in ("classes", "labels"):
                fields[name] = {
                    int(label): ClassResult(*counts)
                    for label, counts in fields.get(name, {}).items()
                }
            return cls(**_figures(fields), attacks=results)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{os.fspath(path)} is not a robustness report: {error}") from error

    def _parts(self) -> list[str | TablePart]:
        title = f"Robustness of {self.target} on {self.n} examples"
        title += f", examples made on {self.source}" if self.source else ""
        parts: list[str | TablePart] = [
            title,
            self._losses() if self.goal == "values" else self._accuracies(),
            *self._weakest(),
            *self._second(),
            *(f"Warning: {warning}" for warning in self.warnings),
        ]
        passed = [name for name, found in self.checks.items() if found == PASSED]
        if passed:
            parts.append(f"Checks passed: {', '.join(passed)}.")
        missing = [
            f"{name} ({found.removeprefix(NOT_RUN)})"
            for name, found in self.checks.items()
            if found.startswith(NOT_RUN)
        ]
        if missing:
            parts.append(f"Checks not run: {', '.join(missing)}.")
        return parts

    def _accuracies(self) -> TablePart:
        found = [("clean", self.clean_accuracy, self.clean_interval, "", "")]
        for result in self.attacks:
            counts = (str(result.attacked), str(result.broken))
            found.append((result.name, result.accuracy, result.interval, *counts))
        found.append(("worst case", self.robust_accuracy, self.robust_interval, "", ""))
        rows = [
            (name, f"{accuracy:.2%}", f"[{low:>6.2%}, {high:>7.2%}]", *counts)
            for name, accuracy, (low, high), *counts in found
        ]
        what = "accuracy" if self.goal == "classes" else "all labels right"
        return ("", what, "95% interval", "attacked", "broken"), rows

    def _losses(self) -> TablePart:
        found = [("clean", self.clean_loss, "")]
        found += [(result.name, result.loss, str(result.attacked)) for result in self.attacks]
        found.append(("worst case", self.robust_loss, ""))
        rows = [
            (name, "not finite" if loss is None else f"{loss:.4g}", count)
            for name, loss, count in found
        ]
        return ("", "mean loss", "attacked"), rows

    def _second(self) -> list[str]:
        """Returns a line on the second opinion, where there is one."""
        found = self.second_opinion
        if not found:
            return []
        if self.goal == "values":
            return [
                f"Second opinion by {', '.join(found['attacks'])} on {found['n']} of the examples: "
                f"a mean loss of {found['loss']:.4g} where the attacks above reach "
                f"{found['reported_loss']:.4g}."
            ]
        return [
            f"Second opinion by {', '.join(found['attacks'])} on {found['n']} of the examples: "
            f"{found['accuracy']:.1%} where the attacks above leave {found['reported']:.1%}."
        ]

    def _weakest(self) -> list[str]:
        """Returns a line on the least robust class or label, where there are several."""
        results, what = (self.labels, "label") if self.labels else (self.classes, "class")
        if len(results) < 2:
            return []
        label, found = min(
            results.items(), key=lambda item: (item[1].robust / item[1].n, item[1].clean)
        )
        return [
            f"Weakest {what}: {label}, {found.clean / found.n:.1%} clean and "
            f"{found.robust / found.n:.1%} in the worst case, of {found.n} examples."
        ]


def _figures(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns what `to_dict` made of figures as it was: intervals as pairs, NaN for None."""
    found = dict(fields)
    for name, value in fields.items():
        if name.endswith("interval"):
            found[name] = tuple(math.nan if end is None else end for end in value)
        elif name.endswith("accuracy") and value is None:
            found[name] = math.nan
    return found
