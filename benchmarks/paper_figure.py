# SPDX-License-Identifier: Apache-2.0
"""Figure 1 of the paper (Gui et al., NeurIPS 2019) for MNIST, and studies of ours beside it.

The paper prints no numbers for it: the values here were read off, with an error of about 0.006 in
accuracy (0.012 where curves overlap) and 4% in size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

Curve = list[tuple[float, float]]

_SIZES = (0.0015, 0.003, 0.006, 0.01, 0.025, 0.05, 0.1, 0.2)
_SIZES_8 = (0.00068, 0.0019, 0.0034, 0.0049, 0.0101, 0.0167, 0.0296, 0.0563)
_SIZES_ALR = (0.0056, 0.0068, 0.0141, 0.0284)


def _curve(sizes: tuple[float, ...], *accuracies: float) -> Curve:
    return list(zip(sizes, accuracies, strict=True))


# Gui et al., NeurIPS 2019, figure 1: MNIST, LeNet, PGD-16 at epsilon 76/255.
PAPER: dict[str, dict[str, Curve]] = {
    "clean": {
        "nap": _curve(_SIZES, 0.195, 0.897, 0.979, 0.986, 0.990, 0.991, 0.993, 0.993),
        "ap": _curve(_SIZES, 0.670, 0.758, 0.807, 0.847, 0.942, 0.966, 0.975, 0.978),
        "al0": _curve(_SIZES, 0.767, 0.784, 0.834, 0.861, 0.951, 0.969, 0.975, 0.980),
        "alr": _curve(_SIZES_ALR, 0.114, 0.203, 0.570, 0.740),
        "atmc": _curve(_SIZES, 0.778, 0.795, 0.845, 0.874, 0.952, 0.969, 0.975, 0.979),
        "atmc-8": _curve(_SIZES_8, 0.779, 0.798, 0.844, 0.871, 0.949, 0.969, 0.976, 0.979),
    },
    "PGD-16": {
        "nap": _curve(_SIZES, 0.055, 0.001, 0.001, 0.002, 0.007, 0.009, 0.016, 0.024),
        "ap": _curve(_SIZES, 0.528, 0.617, 0.658, 0.694, 0.702, 0.741, 0.765, 0.760),
        "al0": _curve(_SIZES, 0.587, 0.612, 0.704, 0.723, 0.716, 0.751, 0.771, 0.779),
        "alr": _curve(_SIZES_ALR, 0.114, 0.163, 0.402, 0.563),
        "atmc": _curve(_SIZES, 0.605, 0.640, 0.701, 0.723, 0.730, 0.761, 0.777, 0.787),
        "atmc-8": _curve(_SIZES_8, 0.595, 0.638, 0.703, 0.730, 0.730, 0.747, 0.774, 0.783),
    },
}
PAPER_DENSE = {"clean": 0.982, "PGD-16": 0.785}
COLORS = {
    "nap": "#b5442e",
    "ap": "#5b7f95",
    "al0": "#7a9e5f",
    "alr": "#d98c5f",
    "atmc": "#a77fae",
    "atmc-8": "#3d5a80",
}


def ours(results: dict[str, Any], attack: str) -> dict[str, list[dict[str, Any]]]:
    """The entries of the study's summary under one attack, by method, smallest first.

    A study may have a method several times, by different names: all are points of one curve.
    """
    methods = {entry["name"]: entry["method"] for entry in results["description"]["methods"]}
    found: dict[str, list[dict[str, Any]]] = {}
    for entry in results["summary"]:
        if entry["attack"] == attack:
            variant = entry["variant"]
            mine = max((name for name in methods if variant.startswith(name)), key=len, default="")
            found.setdefault(variant.replace(mine, methods.get(mine, ""), 1), []).append(entry)
    return {name: sorted(rows, key=lambda row: row["paper_ratio"]) for name, rows in found.items()}


def in_the_paper(curve: Curve, size: float) -> float | None:
    """The paper's accuracy at a size; None where it has no value around."""
    sizes, accuracies = zip(*curve, strict=True)
    if not 0.95 * sizes[0] <= size <= 1.05 * sizes[-1]:
        return None
    return float(np.interp(np.log(size), np.log(sizes), accuracies))


def differences(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Ours beside the paper's, where both have a value."""
    rows = []
    for attack, curves in PAPER.items():
        for name, entries in ours(results, attack).items():
            for entry in entries if name in curves else ():
                paper = in_the_paper(curves[name], entry["paper_ratio"])
                rows.append(
                    {
                        "study": results["name"],
                        "attack": attack,
                        "variant": name,
                        "ratio": entry["ratio"],
                        "seeds": entry["seeds"],
                        "paper_ratio": entry["paper_ratio"],
                        "ours": entry["mean"],
                        "paper": paper,
                        "difference": None if paper is None else entry["mean"] - paper,
                    }
                )
    return rows


def best(rows: list[dict[str, Any]]) -> str:
    """The training of each method that is best under PGD-16 at each size of the paper's figure."""
    lines = [
        "| method | size | clean | PGD-16 | paper: clean | PGD-16 | difference | study | seeds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    clean = {_key(row): row for row in rows if row["attack"] == "clean"}
    known = [row for row in rows if row["attack"] == "PGD-16" and row["paper"] is not None]
    for name in PAPER["PGD-16"]:
        mine = sorted((r for r in known if r["variant"] == name), key=lambda r: -r["paper_ratio"])
        while mine:
            close = [row for row in mine if row["paper_ratio"] > 0.8 * mine[0]["paper_ratio"]]
            mine = mine[len(close) :]
            row = max(close, key=lambda row: row["ours"])
            both = clean[_key(row)]
            values = (both["ours"], row["ours"], both["paper"], row["paper"])
            cells = [f"{100 * value:.1f}" for value in values]
            cells = [name, f"{row['paper_ratio']:.4f}", *cells, f"{100 * row['difference']:+.1f}"]
            lines.append(f"| {' | '.join([*cells, row['study'], str(row['seeds'])])} |")
    return "\n".join(lines)


def _key(row: dict[str, Any]) -> tuple[str, str, float, float]:
    return row["study"], row["variant"], row["ratio"], row["paper_ratio"]


def draw_entries(axes: Any, entries: list[dict[str, Any]], style: str, **look: Any) -> None:
    """Means with bars from the least to the greatest."""
    means = np.asarray([entry["mean"] for entry in entries])
    spread = [
        means - [entry["min"] for entry in entries],
        np.asarray([entry["max"] for entry in entries]) - means,
    ]
    axes.errorbar([entry["paper_ratio"] for entry in entries], means, spread, fmt=style, **look)


def draw(results: dict[str, Any], longer: list[dict[str, Any]]) -> Figure:
    """Clean and robust accuracy against size, a column for each method of the figure."""
    names = [
        name
        for name in PAPER["PGD-16"]
        if any(name in ours(s, "clean") for s in (results, *longer))
    ]
    figure = Figure(figsize=(2.3 * len(names) + 0.8, 5.6), layout="constrained")
    grid = figure.subplots(2, len(names), sharex=True, sharey=True, squeeze=False)
    for row, (attack, curves) in zip(grid, PAPER.items(), strict=True):
        found, others = ours(results, attack), [ours(study, attack) for study in longer]
        row[0].set_ylabel("clean accuracy" if attack == "clean" else f"accuracy under {attack}")
        for axes, name in zip(row, names, strict=True):
            axes.axhline(
                PAPER_DENSE[attack], color="black", linestyle=":", linewidth=1, label="dense, paper"
            )
            axes.axhline(
                found["da"][0]["mean"], color="black", linewidth=1, label="dense, ours, equal steps"
            )
            axes.plot(*zip(*curves[name], strict=True), "--", color="gray", label="paper")
            color = COLORS[name]
            if name in found:
                draw_entries(axes, found[name], "o-", color=color, label="equal steps")
            for other in (other for other in others if name in other):
                draw_entries(
                    axes, other[name], "D", color=color, mfc="white", label="other trainings"
                )
            axes.set(xscale="log", ylim=(0, 1))
            axes.grid(alpha=0.3)
    labels: dict[str, Any] = {}
    for top, bottom, name in zip(*grid, names, strict=True):
        top.set_title(name)
        bottom.set_xlabel("size / dense size")
        labels |= dict(zip(*reversed(top.get_legend_handles_labels()), strict=True))
    figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=5)
    return figure
