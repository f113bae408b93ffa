# SPDX-License-Identifier: Apache-2.0
"""Pictures of results, drawn without a display."""

from __future__ import annotations

import os
import textwrap
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tfmot_atmc.utils.files import written_whole

__all__ = ["accuracy_bars", "results_figure", "save_figure"]

_COLORS = {"clean": "#9db8d3", "PGD-16": "#d98c5f", "PGD-40": "#b5442e"}
_PARTS = {"W": "#5b7f95", "V": "#5b7f95", "U": "#d98c5f", "C": "#7a9e5f"}
_MANY_LAYERS = 12


def results_figure(results: dict[str, Any]) -> Figure:
    """Draws what `run_compression` found: accuracies, sizes, and nonzeros layer by layer.

    Args:
        results: its results, or the content of a `results.json`.

    Returns:
        A matplotlib figure.
    """
    settings = results["settings"]
    figure = Figure(figsize=(12, 7.4), layout="constrained")
    grid = figure.add_gridspec(2, 5)
    accuracy, sizes = figure.add_subplot(grid[0, :3]), figure.add_subplot(grid[0, 3:])
    named = {"dense": "dense", "compressed": "compressed", "tflite": ".tflite"}
    measured = {
        label: {kind: results["evaluation"][name][kind] for kind in _COLORS}
        for name, label in named.items()
    }
    if results.get("measure") == "mean square error":
        _loss_bars(accuracy, measured)
    else:
        accuracy_bars(accuracy, measured)
    measure = results.get("measure", "accuracy").capitalize()
    accuracy.set_title(f"{measure}, epsilon {_short(settings['epsilon'])}")
    _size_bars(sizes, results["bytes"], results.get("budget"))
    _layer_bars(figure.add_subplot(grid[1, :]), results["compression"])
    figure.suptitle(
        f"{settings['method'].upper()} on {settings.get('data') or settings['dataset']}, "
        f"{settings['bits']} bits, "
        f"{results['compression']['nonzeros']:,} nonzeros for "
        f"{results['compression']['dense_parameters']:,} dense parameters"
    )
    return figure


def _short(epsilon: Any) -> str:
    return f"{epsilon:.3g}" if isinstance(epsilon, float) else textwrap.shorten(epsilon, 40)


def _loss_bars(axes: Any, losses: dict[str, dict[str, float]]) -> None:
    """Draws grouped bars of losses; less is better."""
    width = 0.8 / len(_COLORS)
    for number, (kind, color) in enumerate(_COLORS.items()):
        places = np.arange(len(losses)) + (number - (len(_COLORS) - 1) / 2) * width
        heights = [group[kind] for group in losses.values()]
        bars = axes.bar(places, heights, 0.93 * width, label=kind, color=color)
        axes.bar_label(bars, fmt="%.3g", fontsize=8, padding=1)
    axes.set_xticks(range(len(losses)), list(losses))
    axes.set(ylabel="less is better")
    axes.margins(y=0.2)
    axes.legend(ncols=len(_COLORS), frameon=False, loc="upper center")
    axes.spines[["top", "right"]].set_visible(False)


def accuracy_bars(axes: Any, accuracies: dict[str, dict[str, float]]) -> None:
    """Draws grouped bars of accuracies in percent.

    Args:
        axes: matplotlib axes.
        accuracies: for each group, the accuracy in [0, 1] of each kind, the same kinds in all.
    """
    kinds = list(next(iter(accuracies.values())))
    width = 0.8 / len(kinds)
    spare = iter(("#5b7f95", "#7a9e5f", "#a77fae"))
    for number, kind in enumerate(kinds):
        places = np.arange(len(accuracies)) + (number - (len(kinds) - 1) / 2) * width
        heights = [100 * group[kind] for group in accuracies.values()]
        color = _COLORS.get(kind) or next(spare, "#999999")
        bars = axes.bar(places, heights, 0.93 * width, label=kind, color=color)
        axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=1)
    axes.set_xticks(range(len(accuracies)), list(accuracies))
    axes.set(ylim=(0, 118), ylabel="%", yticks=range(0, 101, 20))
    axes.legend(ncols=len(kinds), frameon=False, loc="upper center")
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a figure, whole or not at all; the name's end says in which format."""
    with written_whole(path) as partial:
        figure.savefig(partial, dpi=120)


def _size_bars(axes: Any, found: dict[str, int], budget: dict[str, Any] | None) -> None:
    names = {
        "dense_kernels": "dense kernels",
        "dense_tflite": "dense .tflite",
        "tflite": ".tflite",
        "paper": "paper's metric",
    }
    if budget is not None:
        names["tflite"] += f", at most {budget['max_bytes'] / 1024:.4g} KiB"
    values = [found[name] / 1024 for name in names]
    colors = ["#c9c9c9", "#c9c9c9", "#5b7f95", "#5b7f95"]
    bars = axes.barh(list(names.values()), values, color=colors)
    axes.bar_label(
        bars,
        [f"{v:,.1f} ({max(values) / max(v, 1e-9):,.1f}x)" for v in values],
        padding=3,
        fontsize=8,
    )
    axes.set(xlim=(0, 1.35 * max(values)), xlabel="KiB", title="Size")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)


def _layer_bars(axes: Any, compression: dict[str, Any]) -> None:
    """Share of the dense kernel's parameters that is left, layer by layer, stacked by factor."""
    layers = [layer for layer in compression["layers"] if layer["action"] != "left alone"]
    names = [layer["layer"] for layer in layers]
    places = np.arange(len(layers))
    bottom = np.zeros(len(layers))
    for part in sorted({factor["part"] for factor in compression["factors"]}, key="WVUC".find):
        counts = np.zeros(len(layers))
        for factor in compression["factors"]:
            name = factor["name"].rsplit("/", 1)[0]
            if factor["part"] == part and name in names:
                counts[names.index(name)] += factor["nonzeros"]
        heights = 100 * counts / [max(layer["parameters"], 1) for layer in layers]
        axes.bar(places, heights, bottom=bottom, label=part, color=_PARTS.get(part, "#999999"))
        bottom += heights
    totals = np.array([layer["parameters"] for layer in layers]) * bottom / 100
    few = len(layers) <= _MANY_LAYERS
    if few:
        for place, height, total in zip(places, bottom, totals, strict=True):
            axes.annotate(
                f"{round(total):,}",
                (place, height),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
    axes.set_xticks(places, names, rotation=0 if few else 90, fontsize=9 if few else 7)
    axes.set(ylabel="% of dense", title="Nonzeros in each layer, by factor")
    axes.set_ylim(0, 1.15 * max(float(bottom.max(initial=0.0)), 1e-9))  # room for the counts
    axes.legend(ncols=4, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
