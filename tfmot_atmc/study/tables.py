# SPDX-License-Identifier: Apache-2.0
"""A study's means and paired differences as Markdown, to be read as text or put into a document."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tfmot_atmc.study.entries import DENSE
from tfmot_atmc.study.plots import groups
from tfmot_atmc.study.results import CLEAN
from tfmot_atmc.utils.files import write_bytes

__all__ = ["accuracies", "comparisons", "write_tables"]


def write_tables(results: Mapping[str, Any], out: str | Path) -> None:
    """Writes `tables.md`: accuracies under every attack, and differences with their intervals.

    Args:
        results: what `results.json` holds.
        out: folder of the study.
    """
    parts = [f"# {results['name']}"]
    for title, summary in groups(results["summary"]).items():
        parts += [f"## {title[:1].upper()}{title[1:]}", _ABOUT_MEANS]
        for attack in dict.fromkeys(entry["attack"] for entry in summary):
            parts += [f"### {attack}", accuracies(summary, [attack])]
    pairs = dict.fromkeys((e["first"], e["second"]) for e in results["comparisons"])
    if pairs:
        parts += ["## Paired differences", _ABOUT_DIFFERENCES]
    for first, second in pairs:
        entries = [
            e for e in results["comparisons"] if (e["first"], e["second"]) == (first, second)
        ]
        for title, mine in groups(entries).items():
            parts += [f"### {first} minus {second}: {title}", comparisons(mine)]
    write_bytes(Path(out) / "tables.md", ("\n\n".join(parts) + "\n").encode())


_ABOUT_MEANS = "Accuracies in percent, means over seeds, by ratio of nonzeros."
_ABOUT_DIFFERENCES = (
    "In points, paired by seed, with the 95% interval of Student's t where there are two seeds or "
    "more. All ratios: the mean over ratios of each seed that has them all."
)


def accuracies(summary: Sequence[Mapping[str, Any]], attacks: Sequence[str] = (CLEAN,)) -> str:
    """Returns a table of mean accuracies in percent: a row a method, a column a ratio.

    Args:
        summary: entries of `summary` in the results, of one network, dataset and training attack.
        attacks: names of attacks, `"clean"` for none; each has columns of its own.

    Example:

    >>> entry = {"variant": "al0", "ratio": 0.1, "attack": "clean", "mean": 0.5, "seeds": 3}
    >>> print(accuracies([entry]))
    | method | seeds | 0.1 |
    | --- | --- | --- |
    | al0 | 3 | 50.0 |
    """
    ratios = sorted({e["ratio"] for e in summary if e["variant"] != DENSE}, reverse=True)
    cells = {(e["variant"], e["ratio"], e["attack"]): 100 * e["mean"] for e in summary}
    rows = [["method", "seeds", *[f"{ratio:g}" for _ in attacks for ratio in ratios]]]
    if len(attacks) > 1:
        names = [[f"**{attack}**"] + [""] * (len(ratios) - 1) for attack in attacks]
        rows.append(["", "", *[name for group in names for name in group]])
    for name in dict.fromkeys(entry["variant"] for entry in summary):
        seeds = max(entry["seeds"] for entry in summary if entry["variant"] == name)
        row = [f"{name} (dense)" if name == DENSE else name, str(seeds)]
        for attack in attacks:
            for ratio in ratios:
                # The dense start has one size, shown once.
                at = 1.0 if name == DENSE and ratio == ratios[0] else ratio
                value = cells.get((name, at, attack))
                row.append("" if value is None else f"{value:.1f}")
        rows.append(row)
    return _markdown(rows)


def comparisons(entries: Sequence[Mapping[str, Any]]) -> str:
    """Returns a table of paired differences in points: a row for each attack, a column a ratio.

    Args:
        entries: entries of `comparisons` in the results, of one pair, network, dataset and training
            attack.

    Example:

    >>> entry = {"attack": "clean", "ratio": 0.1, "mean": 0.01, "low": -0.01, "high": 0.03}
    >>> print(comparisons([entry]))
    | attack | 0.1 |
    | --- | --- |
    | clean | +1.0 ± 2.0 |
    """
    ratios = sorted({e["ratio"] for e in entries if e["ratio"] is not None}, reverse=True)
    columns: list[float | None] = [*ratios]
    if any(entry["ratio"] is None for entry in entries):
        columns.append(None)
    cells = {(e["attack"], e["ratio"]): _difference(e) for e in entries}
    rows = [["attack", *["all ratios" if c is None else f"{c:g}" for c in columns]]]
    for attack in dict.fromkeys(entry["attack"] for entry in entries):
        rows.append([attack, *[cells.get((attack, column), "") for column in columns]])
    return _markdown(rows)


def _difference(entry: Mapping[str, Any]) -> str:
    mean = f"{100 * entry['mean']:+.1f}"
    if entry["low"] is None:
        return mean
    return f"{mean} ± {50 * (entry['high'] - entry['low']):.1f}"


def _markdown(rows: Iterable[Sequence[str]]) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|" + " --- |" * (head.count("|") - 1), *body])
