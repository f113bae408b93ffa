# SPDX-License-Identifier: Apache-2.0
"""Accuracy under one attack as its radius or its number of steps grows."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from tfmot_atmc import attacks as attacks_lib
from tfmot_atmc.attacks import Attack
from tfmot_atmc.evaluation.robustness import evaluate_robustness
from tfmot_atmc.utils.files import write_json
from tfmot_atmc.utils.shown import Shown, TablePart

__all__ = ["RobustnessCurve", "robustness_curve"]

_RISING = (
    "The accuracy rises from {before:.1%} at {over} {low:g} to {after:.1%} at {high:g}, though the "
    "stronger attack could have made the same examples: the attack is not strong enough."
)


@dataclasses.dataclass(frozen=True)
class RobustnessCurve(Shown):
    """Accuracy against the strength of an attack.

    Attributes:
        target: name of the evaluated model or file.
        source: name of the model the examples were made on; None if the target itself.
        attack: class name of the attack.
        over: `"epsilon"` (input units), `"steps"` or `"queries"`.
        values: where it was measured, ascending.
        accuracies: fraction of all examples right there.
        intervals: their 95% Wilson intervals.
        clean_accuracy: accuracy without an attack.
        n: number of examples.
        warnings: reasons to trust the curve less.
    """

    target: str
    source: str | None
    attack: str
    over: str
    values: list[float]
    accuracies: list[float]
    intervals: list[tuple[float, float]]
    clean_accuracy: float
    n: int
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Returns the curve as plain Python values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the curve as JSON, whole or not at all.

        Args:
            path: file to write or replace; its folder must exist.
        """
        write_json(path, self.to_dict())

    def _parts(self) -> list[str | TablePart]:
        made = f", made on {self.source}" if self.source else ""
        title = (
            f"{self.target} under {self.attack}{made}: {self.n} examples, clean "
            f"{self.clean_accuracy:.2%}"
        )
        rows = [
            (f"{value:g}", f"{accuracy:.2%}", f"{low:.2%} - {high:.2%}")
            for value, accuracy, (low, high) in zip(
                self.values, self.accuracies, self.intervals, strict=True
            )
        ]
        warned = [f"Warning: {warning}" for warning in self.warnings]
        return [title, ((self.over, "right", "95% interval"), rows), *warned]

    def plot(self) -> Any:
        """Returns a `matplotlib.figure.Figure` of the curve with its intervals."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot()
        low, high = (100 * np.asarray(ends) for ends in zip(*self.intervals, strict=True))
        axes.fill_between(self.values, low, high, color="#d98c5f", alpha=0.25, linewidth=0)
        axes.plot(
            self.values, 100 * np.asarray(self.accuracies), "o-", color="#b5442e", label=self.attack
        )
        axes.axhline(100 * self.clean_accuracy, color="#9db8d3", linestyle="--", label="clean")
        axes.set(
            ylim=(0, 102),
            ylabel="% right",
            xlabel="epsilon (input units)" if self.over == "epsilon" else self.over,
            title=f"{self.target}, {self.n} examples"
            + (f"\nmade on {self.source}" if self.source else ""),
        )
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        return figure


def robustness_curve(
    target: Any,
    data: Any,
    *,
    attack: Any,
    epsilons: Sequence[float] | None = None,
    steps: Sequence[int] | None = None,
    **options: Any,
) -> RobustnessCurve:
    """Measures the accuracy under an attack for several radii or several numbers of steps.

    A sound curve falls to zero as epsilon covers the bounds, and levels off as steps are added.
    Every point is measured anew; where the accuracy rises by more than a point and two examples,
    the curve says so.

    Args:
        target: as in `evaluate_robustness`.
        data: as in `evaluate_robustness`; a dataset must give the same examples each time.
        attack: an `Attack`, its serialised form, or with `epsilons` also its name. An ensemble is
            run as a whole. A `step_size` given in input units is scaled along with epsilon.
        epsilons: radii in input units. Give these or `steps`.
        steps: numbers of steps, or of queries for an attack that counts those.
        **options: further arguments of `evaluate_robustness`, such as `source` and `batch_size`.
            The checks, unless switched off, run once, at the strongest point.

    Returns:
        `RobustnessCurve`; `plot` draws it, `save` writes JSON.

    Raises:
        ValueError: neither or both of `epsilons` and `steps`, or an attack without that argument.

    Example:
    >>> import tensorflow as tf
    >>> model = lambda x: tf.concat([0.5 - x, x - 0.5], axis=-1)
    >>> data = np.array([[0.9], [0.55], [0.3]], "float32"), [1, 1, 0]
    >>> robustness_curve(model, data, attack="fgsm", epsilons=[0, 0.1, 0.5], verbose=0).accuracies
    [1.0, 0.6666666666666666, 0.0]
    """
    for name in ("attacks", "epsilon", "state"):
        if name in options:
            raise ValueError(f"A curve has no argument `{name}`; give `attack=` and `epsilons=`.")
    over, ladder = _ladder(attack, epsilons, steps)
    checks = options.pop("checks", True)
    reports = [
        evaluate_robustness(
            target, data, attacks=one, checks=checks and value == max(ladder), **options
        )
        for value, one in ladder.items()
    ]
    if reports[-1].goal == "values":
        raise ValueError(
            f"A curve is one of accuracies, and {reports[-1].target} has a loss only. Compare the "
            "`robust_loss` of one `evaluate_robustness` each."
        )
    values, accuracies = list(ladder), [report.robust_accuracy for report in reports]
    intervals = [report.robust_interval for report in reports]
    last = reports[-1]
    return RobustnessCurve(
        target=last.target,
        source=last.source,
        attack=type(next(iter(ladder.values()))).__name__,
        over=over,
        values=values,
        accuracies=accuracies,
        intervals=intervals,
        clean_accuracy=last.clean_accuracy,
        n=last.n,
        warnings=[*last.warnings, *_rises(over, values, accuracies, last.n)],
    )


def _ladder(
    attack: Any, epsilons: Sequence[float] | None, steps: Sequence[int] | None
) -> tuple[str, dict[float, Attack]]:
    """Returns what is varied, and the attack for each value, ascending."""
    if (epsilons is None) == (steps is None):
        raise ValueError("Pass either `epsilons=` or `steps=`.")
    given = sorted({float(value) for value in (epsilons if steps is None else steps)})  # type: ignore[union-attr]
    if not given or not all(math.isfinite(value) and value >= 0 for value in given):
        raise ValueError(f"A curve needs finite values of at least 0. Received {given}.")
    if isinstance(attack, str):
        if epsilons is None:
            raise ValueError(
                f"Over `steps` the attack {attack!r} needs its epsilon: pass an instance."
            )
        attack = attacks_lib.get(attack, epsilon=given[-1])
    attack = attacks_lib.get(attack)
    config = attack.get_config()
    if steps is None:
        if "epsilon" not in config:
            raise ValueError(f"{type(attack).__name__} has no epsilon to vary.")
        return "epsilon", {value: _rescaled(attack, config, value) for value in given}
    over = next((name for name in ("steps", "queries") if name in config), None)
    if over is None:
        raise ValueError(f"{type(attack).__name__} takes no number of steps.")
    return over, {value: attack.from_config(config | {over: int(value)}) for value in given}


def _rescaled(attack: Attack, config: dict[str, Any], epsilon: float) -> Attack:
    changed = config | {"epsilon": epsilon}
    largest = float(np.max(attack.epsilon))
    if config.get("step_size") is not None and largest > 0:
        changed["step_size"] = (np.asarray(config["step_size"]) * epsilon / largest).tolist()
    return attack.from_config(changed)


def _rises(over: str, values: list[float], accuracies: list[float], n: int) -> list[str]:
    """Returns a warning for each rise beyond one percent and two examples."""
    allowed = max(0.01, 2 / n)
    return [
        _RISING.format(over=over, before=before, after=after, low=low, high=high)
        for before, after, low, high in zip(
            accuracies, accuracies[1:], values, values[1:], strict=False
        )
        if after > before + allowed
    ]
