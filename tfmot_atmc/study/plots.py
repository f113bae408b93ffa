# SPDX-License-Identifier: Apache-2.0
"""The figures of a study, in the manner of the paper's figures 1 and 2."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from tfmot_atmc.study.entries import DENSE
from tfmot_atmc.study.results import CLEAN
from tfmot_atmc.utils.figures import save_figure

__all__ = ["accuracy_figure", "groups", "tradeoff_figure", "write_figures"]

_MARKERS = "osD^vP*Xdh<>"
_COLORS = (
    "#b5442e",
    "#5b7f95",
    "#7a9e5f",
    "#d98c5f",
    "#a77fae",
    "#3d5a80",
    "#c9a227",
    "#6b705c",
    "#8d5b4c",
    "#444444",
)
_COLUMNS = 3
_LEGEND_INCHES = 1.9

_Curves = dict[str, tuple[list[float], list[float]]]
"""The coordinates of each variant's points, the largest ratio first."""


def groups(summary: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Returns the entries of a summary by network, data and training attack."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for entry in summary:
        key = f"{entry['model']} on {entry['data']}, trained under {entry['training']}"
        found.setdefault(key, []).append(entry)
    return found


def write_figures(results: Mapping[str, Any], folder: str | Path) -> dict[str, Path]:
    """Draws all figures of a study.

    Args:
        results: what `results.json` holds.
        folder: where to write them, as PNG.

    Returns:
        The files by title.
    """
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    methods = results["description"]["methods"]
    after = {entry["name"]: entry["after"] for entry in methods if entry.get("after")}
    written = {}
    for title, summary in groups(results["summary"]).items():
        attacks = list(dict.fromkeys(entry["attack"] for entry in summary))
        tested = [name for name in attacks if name != CLEAN]
        drawn = {"size": accuracy_figure(summary, [CLEAN, *tested[:1]], after)}
        if tested[1:]:
            drawn["attacks"] = accuracy_figure(summary, tested[1:], after)
        drawn["tradeoff"] = tradeoff_figure(summary, tested[0], after)
        about = {
            "size": f"Clean and robust accuracy ({tested[0]}) against size",
            "attacks": "Accuracy under the other attacks against size",
            "tradeoff": f"Accuracy against robustness ({tested[0]})",
        }
        for name, figure in drawn.items():
            figure.suptitle(title, fontsize=10)
            path = out / f"{re.sub(r'[^A-Za-z0-9]+', '-', title)}-{name}.png"
            save_figure(figure, path)
            written[f"{about[name]}: {title}"] = path
    return written


def accuracy_figure(
    summary: Sequence[Mapping[str, Any]],
    attacks: Sequence[str],
    after: Mapping[str, str] | None = None,
) -> Figure:
    """Draws accuracy against the paper's size ratio, one panel for each attack.

    Points are means over seeds, bars reach from the least to the greatest. The dense model is a
    dashed line. Methods of which one goes on from the other have one colour, and a faint line
    joins them.

    Args:
        summary: entries of a summary, of one network, dataset and training attack.
        attacks: names of attacks, or `"clean"`.
        after: for a method that goes on from another one's end, the name of that one.

    Returns:
        A matplotlib figure.
    """
    columns = min(len(attacks), _COLUMNS)
    rows = -(-len(attacks) // columns)
    figure = Figure(figsize=(4.6 * columns + 0.4, 3.6 * rows + 1.0), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, attack in zip(panels, attacks, strict=False):
        _panel(axes, [entry for entry in summary if entry["attack"] == attack], after or {})
        axes.set_title("clean inputs" if attack == CLEAN else attack, fontsize=10)
    for axes in panels[len(attacks) :]:
        axes.set_axis_off()
    _legend(figure, panels[0])
    return figure


def tradeoff_figure(
    summary: Sequence[Mapping[str, Any]], attack: str, after: Mapping[str, str] | None = None
) -> Figure:
    """Draws robust against clean accuracy; a curve joins the ratios of a variant.

    Args:
        summary: entries of a summary, of one network, dataset and training attack.
        attack: name of the attack that gives the robust accuracy.
        after: as for `accuracy_figure`.

    Returns:
        A matplotlib figure.
    """
    figure = Figure(figsize=(6.4, 5.4), layout="constrained")
    axes = figure.subplots()
    styles = _styles(summary, after or {})
    curves: _Curves = {}
    for name, entries in _by_variant(summary).items():
        points = {(entry["ratio"], entry["attack"]): entry for entry in entries}
        ratios = sorted({ratio for ratio, kind in points if kind == attack}, reverse=True)
        pairs = [(points[ratio, CLEAN], points[ratio, attack]) for ratio in ratios]
        clean, robust = ([100 * pair[i]["mean"] for pair in pairs] for i in (0, 1))
        if name == DENSE:
            axes.axvline(clean[0], color="#444444", linestyle="--", linewidth=1)
            axes.axhline(robust[0], color="#444444", linestyle="--", linewidth=1, label="dense")
            continue
        bars = [_bars([pair[i] for pair in pairs]) for i in (0, 1)]
        axes.errorbar(clean, robust, bars[1], bars[0], label=name, **styles[name])
        curves[name] = (clean, robust)
        if _bare(name) != name:
            continue  # ratios at the points of 32-bit curves only
        for ratio, x, y in zip(ratios, clean, robust, strict=True):
            offset: dict[str, Any] = {
                "xytext": (3, 3),
                "textcoords": "offset points",
                "fontsize": 6,
            }
            axes.annotate(f"{ratio:g}", (x, y), color=styles[name]["color"], **offset)
    _join(axes, curves, styles, after or {})
    axes.set(xlabel="clean accuracy, %", ylabel=f"accuracy under {attack}, %")
    _finish(axes)
    _legend(figure, axes)
    return figure


def _panel(axes: Any, entries: Sequence[Mapping[str, Any]], after: Mapping[str, str]) -> None:
    styles = _styles(entries, after)
    curves: _Curves = {}
    for name, points in _by_variant(entries).items():
        if name == DENSE:
            level = 100 * points[0]["mean"]
            axes.axhline(level, color="#444444", linestyle="--", linewidth=1, label="dense")
            continue
        points = sorted(points, key=lambda entry: -entry["paper_ratio"])
        sizes = [max(entry["paper_ratio"], 1e-9) for entry in points]
        means = [100 * entry["mean"] for entry in points]
        axes.errorbar(sizes, means, _bars(points), label=name, **styles[name])
        curves[name] = (sizes, means)
    _join(axes, curves, styles, after)
    axes.set(xscale="log", xlabel="size / dense size (paper's metric)", ylabel="accuracy, %")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize=8)
    _finish(axes)


def _by_variant(
    entries: Sequence[Mapping[str, Any]],
) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        found.setdefault(entry["variant"], []).append(entry)
    return found


def _join(
    axes: Any, curves: _Curves, styles: Mapping[str, Mapping[str, Any]], after: Mapping[str, str]
) -> None:
    """Draws a faint line from the end of a curve to the beginning of one that goes on from it."""
    for name, own in curves.items():
        method = _bare(name)
        before = curves.get(after.get(method, "") + name.removeprefix(method))
        if before is not None:
            look = {key: styles[name][key] for key in ("color", "linestyle")}
            ends = [(b[-1], o[0]) for b, o in zip(before, own, strict=True)]
            axes.plot(*ends, linewidth=0.8, alpha=0.5, **look)


def _styles(
    entries: Sequence[Mapping[str, Any]], after: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Returns a look for each variant: a marker a method, a line by bits and quantisation.

    Methods have a colour each, and one together where one goes on from the other.
    """
    variants = [name for name in dict.fromkeys(e["variant"] for e in entries) if name != DENSE]
    bare = list(map(_bare, variants))
    methods = list(dict.fromkeys(bare))
    origins = list(dict.fromkeys(_origin(method, after) for method in methods))
    styles: dict[str, dict[str, Any]] = {}
    for name, method in zip(variants, bare, strict=True):
        number = methods.index(method)
        line = "-" if name == method else "--"
        if " + " in name:
            line = ":" if "uniform" in name else "-."
        styles[name] = {
            "color": _COLORS[origins.index(_origin(method, after)) % len(_COLORS)],
            "marker": _MARKERS[number % len(_MARKERS)],
            "markerfacecolor": None if name == method else "white",
            "linestyle": line,
            "linewidth": 1.2,
            "markersize": 5,
            "capsize": 2,
            "elinewidth": 0.8,
        }
    return styles


def _origin(method: str, after: Mapping[str, str]) -> str:
    while method in after:
        method = after[method]
    return method


def _bare(name: str) -> str:
    """Returns the method of a variant."""
    return re.sub(r"( \+ .*|-\d+)$", "", name)


def _bars(entries: Sequence[Mapping[str, Any]]) -> np.ndarray:
    lengths = np.array([[e["mean"] - e["min"], e["max"] - e["mean"]] for e in entries]).T
    return 100 * np.maximum(lengths, 0.0)  # a mean of equal values may be off by a rounding


def _finish(axes: Any) -> None:
    axes.grid(alpha=0.3, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=max(1, min(len(labels), int(figure.get_figwidth() / _LEGEND_INCHES))),
        frameon=False,
        fontsize=8,
        title="means over seeds; bars from least to greatest",
        title_fontsize=7,
    )
