# SPDX-License-Identifier: Apache-2.0
"""`atmc study`: a grid of methods, trained, attacked, compared and drawn."""

from __future__ import annotations

import dataclasses
import itertools
import os
from typing import Any

from absl import flags
from rich.console import Console

from tfmot_atmc.cli.printing import print_table
from tfmot_atmc.study import Description, StudyError, load_description, run_study

__all__ = ["run"]


def run(values: flags.FlagValues, operands: list[str], console: Console) -> None:
    """Does what the command is for.

    Args:
        values: the flags.
        operands: the positional arguments.
        console: where to print.
    """
    description = load_description(operands[0]) if operands else Description()
    files = tuple(os.path.abspath(path) for path in values["import"].value)
    description = dataclasses.replace(description, imports=(*description.imports, *files))
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # in workers, whose lines would mix
    out = values.out or f"atmc_out/{description.name}"
    try:
        results = run_study(
            description,
            out,
            jobs=values.jobs,
            threads=values.threads,
            data_dir=values.data_dir,
            report_only=values.report_only,
            known=values.known,
            console=console,
        )
    except StudyError:
        console.print(f"Results of what is done are in {out}; see page.html there.")
        raise
    _show(results, console)
    console.print(f"All files are in {out}; see page.html there.")


def _show(results: dict[str, Any], console: Console) -> None:
    attacks = list(dict.fromkeys(entry["attack"] for entry in results["summary"]))
    keys = ("data", "model", "training", "variant", "ratio")
    found: dict[tuple, dict[str, Any]] = {}
    for entry in results["summary"]:
        row = found.setdefault(tuple(entry[key] for key in keys), {"size": entry["paper_ratio"]})
        row[entry["attack"]] = f"{entry['mean']:.2%}"
    rows = [
        (*map(str, key), f"{row['size']:.5f}", *(row.get(attack, "") for attack in attacks))
        for key, row in found.items()
    ]
    # What is the same in all rows stands above them.
    same = [len(rows) > 1 and len(set(column)) == 1 for column in list(zip(*rows, strict=True))[:3]]
    title = ", ".join(["Means over seeds", *itertools.compress(rows[0] if rows else (), same)])
    kept = [not alike for alike in same] + [True] * (3 + len(attacks))
    rows = [tuple(itertools.compress(row, kept)) for row in rows]
    columns = tuple(itertools.compress((*keys, "size ratio", *attacks), kept))
    print_table(console, title, columns, rows)
