# SPDX-License-Identifier: Apache-2.0
"""The picture and the three rows at the head of README.md, from kept results.

    python benchmarks/front_page.py

draws docs/front.png and fills the mark `<!-- front: rows -->`. Nothing is measured: the dense
network is that of benchmarks/results (autoattack, mnist_lenet), the others are the package's cards.
"""

from __future__ import annotations

import json
from typing import Any

from documents import ROOT, fill
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from tfmot_atmc import references
from tfmot_atmc.utils.figures import save_figure
from tfmot_atmc.utils.files import write_bytes

KEPT = ROOT / "benchmarks" / "results"
SHOWN = "lenet-mnist-0.01"
LINES = {"clean": "#5b7f95", "AutoAttack": "#b5442e"}


def attacked(name: str) -> dict[str, Any]:
    """A report of AutoAttack on the first 1,000 test images of MNIST."""
    return json.loads((KEPT / "autoattack" / "results.json").read_text())["reports"][name]


def dense_bytes() -> int:
    """Size of the dense network's .tflite file."""
    runs = json.loads((KEPT / "mnist_lenet" / "results.json").read_text())["runs"]
    return runs["dense"]["dense_tflite_bytes"]


def rows(_: str = "") -> str:
    """The three rows: dense, compressed, and the file of 8-bit values."""
    card = references.card(SHOWN)
    candidates = card["selection"]["candidates"]
    floats = next(c for c in candidates if c["stage"] == "polished" and "as" in c["values"])
    dense, small = attacked("dense"), attacked("atmc32")
    found = [("dense", dense_bytes(), dense["clean_accuracy"], dense["robust_accuracy"])]
    found += [
        ("compressed", floats["tflite_bytes"], small["clean_accuracy"], small["robust_accuracy"])
    ]
    accuracy = {name: card["accuracy"][name]["accuracy"] for name in LINES}
    size = card["files"]["tflite"]["bytes"]
    found += [("its int8 `.tflite`", size, accuracy["clean"], accuracy["AutoAttack"])]
    lines = ["| | bytes | clean | AutoAttack |", "| --- | ---: | ---: | ---: |"]
    lines += [f"| {n} | {size:,} | {clean:.1%} | {left:.1%} |" for n, size, clean, left in found]
    return "\n".join(lines)


def draw() -> Figure:
    """Accuracy against bytes: the networks of the package, and the dense one."""
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    axes = figure.subplots()
    cards = [references.card(name) for name in references.names()]
    sizes = [card["files"]["tflite"]["bytes"] for card in cards]
    dense = attacked("dense")
    ends = {"clean": dense["clean_accuracy"], "AutoAttack": dense["robust_accuracy"]}
    for name, color in LINES.items():
        values = [100 * card["accuracy"][name]["accuracy"] for card in cards]
        axes.plot(sizes, values, "o-", color=color, label=f"compressed, {name}")
        axes.plot(dense_bytes(), 100 * ends[name], "D", color=color, label=f"dense, {name}")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size / 1000:,.0f} KB"))
    axes.set(ylim=(0, 100), xlabel="bytes of the .tflite file", ylabel="accuracy, %")
    axes.set_title("LeNet on MNIST, l-infinity, epsilon 76/255", fontsize="medium", loc="left")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small", loc="lower right", ncols=2)
    return figure


def main() -> None:
    save_figure(draw(), ROOT / "docs" / "front.png")
    readme = ROOT / "README.md"
    write_bytes(readme, fill(readme.read_text(), "front", rows).encode())


if __name__ == "__main__":
    main()
