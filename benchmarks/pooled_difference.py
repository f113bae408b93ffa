# SPDX-License-Identifier: Apache-2.0
"""What two methods differ by over all seeds of several kept studies.

    python benchmarks/pooled_difference.py --results mnist_study,mnist_chain --pair atmc,al0

Every seed of every study is one value: the mean difference over the ratios asked for. Entries that
a study has by other names count where both have the same ending, such as `atmc-layers` and
`al0-layers`. Studies that share a dense start are counted as independent, which they are only in
part.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from rich.console import Console
from rich.table import Table

from tfmot_atmc.study.comparisons import paired_difference
from tfmot_atmc.utils.files import write_json

ROOT = Path(__file__).resolve().parent / "results"

RESULTS = flags.DEFINE_list("results", ["mnist_study", "mnist_chain"], "Names of kept studies.")
PAIR = flags.DEFINE_list("pair", ["atmc", "al0"], "Two methods: the first minus the second.")
RATIOS = flags.DEFINE_list("ratios", [], "Only these ratios. [all]")
OUT = flags.DEFINE_string("out", None, "Where to write the result as JSON.")


def differences(name: str, attack: str) -> list[float]:
    """The mean difference over ratios of each seed that has them all."""
    results = json.loads((ROOT / name / "results.json").read_text())
    asked = [float(ratio) for ratio in RATIOS.value]
    first, second = PAIR.value
    entries = [
        entry
        for entry in results["comparisons"]
        if entry["attack"] == attack
        and entry["first"].startswith(first)
        and entry["second"] == second + entry["first"].removeprefix(first)
        and (entry["ratio"] in asked if asked else entry["ratio"] is not None)
    ]
    seeds = set.intersection(*(set(entry["by_seed"]) for entry in entries)) if entries else set()
    return [float(np.mean([e["by_seed"][seed] for e in entries])) for seed in sorted(seeds)]


def main(_: list[str]) -> None:
    first = json.loads((ROOT / RESULTS.value[0] / "results.json").read_text())
    table = Table("attack", "values", "mean", "95% interval", title=" minus ".join(PAIR.value))
    found: dict[str, Any] = {}
    for attack in dict.fromkeys(entry["attack"] for entry in first["comparisons"]):
        values = [value for name in RESULTS.value for value in differences(name, attack)]
        if len(values) < 2:
            continue
        found[attack] = {"values": values, **paired_difference(values, [0.0] * len(values))}
        low, high = 100 * found[attack]["low"], 100 * found[attack]["high"]
        listed = " ".join(f"{100 * value:+.2f}" for value in values)
        mean = f"{100 * found[attack]['mean']:+.2f}"
        table.add_row(attack, listed, mean, f"{low:+.2f} to {high:+.2f}")
    Console().print(table)
    if OUT.value:
        write_json(OUT.value, {"studies": RESULTS.value, "pair": PAIR.value, "attacks": found})


if __name__ == "__main__":
    app.run(main)
