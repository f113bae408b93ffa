# SPDX-License-Identifier: Apache-2.0
"""The picture and the tables of docs/frontier.md, from kept results.

    python benchmarks/frontier_page.py

draws docs/frontier.png and fills the marks `frontier: rows` and `frontier: ranks` of the document.
Nothing is measured: benchmarks/frontier.py keeps the figures in benchmarks/results/frontier.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from documents import ROOT, fill
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from scipy import stats

from tfmot_atmc.evaluation.report import wilson_interval
from tfmot_atmc.utils.figures import save_figure
from tfmot_atmc.utils.files import write_bytes

KEPT = ROOT / "benchmarks" / "results" / "frontier" / "sizes.json"
# Label, colour, and the runs that make a line.
LINES = {
    "sparse, trained through a slope": ("#b5442e", ("al0-4", "al0-8", "al0-16", "al0-32")),
    "small dense": ("#5b7f95", ("s2k", "s5k", "few8/dense", "few16/dense")),
    "dense, 4 bits a weight": ("#7a9e5f", ("few8", "few16")),
}


def kept() -> tuple[int, list[dict[str, Any]]]:
    """Number of images, and the rows by size."""
    found = json.loads(KEPT.read_text())
    return found["images"], sorted(found["rows"], key=lambda row: row["bytes"])


def rows(what: str = "rows") -> str:
    """The table that a mark asks for: the networks, or how well cheap attacks rank them."""
    images, found = kept()
    if what == "ranks":
        return ranks(found)
    lines = [
        "| run | weights | bytes | clean | PGD-40 | quick | AutoAttack | 95% interval |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in found:
        low, high = wilson_interval(round(row["AutoAttack"] * images), images)
        shown = ("clean", "PGD-40", "QuickAutoAttack", "AutoAttack")
        figures = [f"{row[name]:.1%}" for name in shown] + [f"{low:.1%} to {high:.1%}"]
        label = f"`{row['run']}`" + (f", seed {row['seed']}" if row["seed"] else "")
        cells = [label, f"{row['weights']:,}", f"{row['bytes']:,}", *figures]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ranks(found: list[dict[str, Any]]) -> str:
    """Rank correlation with AutoAttack, and how much higher than it, of the cheaper attacks."""
    exact = [row["AutoAttack"] for row in found]
    lines = [
        f"| of {len(found)} networks | rank correlation with AutoAttack | above it, on average |",
        "| --- | ---: | ---: |",
    ]
    for name in ("PGD-40", "QuickAutoAttack"):
        values = [row[name] for row in found]
        above = 100 * float(np.mean(values) - np.mean(exact))
        order = float(stats.spearmanr(values, exact)[0])
        lines.append(f"| {name} | {order:.2f} | {above:.1f} points |")
    return "\n".join(lines)


def draw() -> Figure:
    """Clean accuracy and AutoAttack against bytes, a line for each kind of network."""
    images, found = kept()
    figure = Figure(figsize=(7.2, 3.8), layout="constrained")
    axes = figure.subplots()
    for label, (color, names) in LINES.items():
        own = [row for row in found if row["run"] in names and not row["seed"]]
        sizes = [row["bytes"] for row in own]
        left = np.array([row["AutoAttack"] for row in own])
        bounds = np.array([wilson_interval(round(images * v), images) for v in left])
        spread = np.abs(bounds.T - left)
        axes.errorbar(sizes, 100 * left, 100 * spread, fmt="o-", color=color, label=label)
        axes.plot(sizes, [100 * row["clean"] for row in own], "s--", color=color, alpha=0.6)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size / 1024:g} KB"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(ylim=(60, 100), xlabel="bytes of the .tflite file", ylabel="accuracy, %")
    title = "MNIST, epsilon 76/255: AutoAttack (whole lines) and clean (broken ones)"
    axes.set_title(title, fontsize="medium", loc="left")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small", loc="lower right")
    return figure


def main() -> None:
    save_figure(draw(), ROOT / "docs" / "frontier.png")
    for path in (ROOT / "docs" / "frontier.md", ROOT / "README.md"):
        write_bytes(path, fill(path.read_text(), "frontier", rows).encode())


if __name__ == "__main__":
    main()
