# SPDX-License-Identifier: Apache-2.0
"""What a robustness evaluation found, as data, JSON and a table."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
from typing import Any

__all__ = ["AttackResult", "RobustnessReport", "wilson_interval"]

# The 97.5% quantile of the normal distribution: two-sided 95%.
_Z95 = 1.959963984540054


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Returns the Wilson score interval of a proportion, at 95%.

    Unlike the normal approximation it stays within [0, 1] and is honest at 0 and 1. It accounts
    for the sampling of the data only. Wilson, JASA 22, 1927.

    Args:
        successes: Number of successes, from 0 to `n`.
        n: Number of trials, at least 1.

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
        name: Name in the report, with "transfer from ..." where made on another model.
        accuracy: Fraction of all examples still right. Under `drop_broken`, right after this
            attack and all before it; otherwise after this attack alone.
        interval: 95% Wilson interval of `accuracy`.
        attacked: Examples the attack was run on.
        broken: Those it made the target get wrong.
        attack: `{"class_name", "config"}`.
    """

    name: str
    accuracy: float
    interval: tuple[float, float]
    attacked: int
    broken: int
    attack: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class RobustnessReport:
    """Clean and adversarial accuracy of one target.

    Attributes:
        target: Name of the evaluated model or file.
        source: Name of the model the examples were made on; None if the target itself.
        n: Number of examples.
        clean_accuracy, clean_interval: Accuracy on the data as given, and its 95% interval.
        robust_accuracy, robust_interval: Fraction right on the data and under every attack.
        attacks: One `AttackResult` each, in the order run.
        drop_broken: Whether an attack saw only what the attacks before it had left.
        seed, batch_size: Together with the attacks, they fix the result.
        warnings: Reasons to trust the figures less.
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

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as plain Python values; custom losses become their `repr`."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=repr))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the report as JSON, whole or not at all.

        Args:
            path: File to write or replace; its folder must exist.
        """
        path = os.fspath(path)
        text = json.dumps(self.to_dict(), indent=2) + "\n"
        descriptor, temporary = tempfile.mkstemp(
            dir=os.path.dirname(path) or ".", prefix=os.path.basename(path), suffix=".tmp"
        )
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise

    def __str__(self) -> str:
        rows = [("clean", self.clean_accuracy, self.clean_interval, "", "")]
        for result in self.attacks:
            counts = (str(result.attacked), str(result.broken))
            rows.append((result.name, result.accuracy, result.interval, *counts))
        rows.append(("worst case", self.robust_accuracy, self.robust_interval, "", ""))
        width = max(len(row[0]) for row in rows)
        title = f"Robustness of {self.target} on {self.n} examples"
        title += f", examples made on {self.source}" if self.source else ""
        lines = [
            title,
            f"{'':<{width}}  accuracy  95% interval    attacked  broken",
            *(
                f"{name:<{width}}  {accuracy:>7.2%}  [{low:>6.2%}, {high:>7.2%}]"
                f"  {attacked:>6}  {broken:>6}".rstrip()
                for name, accuracy, (low, high), attacked, broken in rows
            ),
            *(f"Warning: {warning}" for warning in self.warnings),
        ]
        return "\n".join(lines)
