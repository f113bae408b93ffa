# SPDX-License-Identifier: Apache-2.0
"""Keeps a study: its results and figures go beside the others, its tables into the documents.

    atmc study benchmarks/studies/mnist_chain.yaml --out mnist_chain
    python benchmarks/keep_study.py --study mnist_chain

copies description, results, tables, figures and page to benchmarks/results/NAME, and replaces what
stands in README.md and docs/results.md between `<!-- NAME: WHAT -->` and `<!-- end -->`, where WHAT
is `accuracies ATTACK, ...` or `FIRST minus SECOND`, and ` trained under NAME` where a study has
several trainings.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import yaml
from absl import app, flags

from tfmot_atmc.files import write_bytes
from tfmot_atmc.study.plots import groups
from tfmot_atmc.study.tables import accuracies, comparisons

ROOT = Path(__file__).resolve().parent.parent

STUDY = flags.DEFINE_string("study", None, "Folder that `atmc study --out` wrote.")
NAME = flags.DEFINE_string("name", None, "Name of the kept study. [the study's own]")
DOCUMENTS = flags.DEFINE_list(
    "documents", [str(ROOT / "README.md"), str(ROOT / "docs" / "results.md")], "Where tables go."
)
RESULTS = flags.DEFINE_string("results", str(ROOT / "benchmarks" / "results"), "Kept studies.")

FILES = ("results.json", "results.csv", "tables.md", "page.html")


def keep(study: Path, folder: Path) -> dict[str, Any]:
    """Copies a study's results; its models stay where they are."""
    results = json.loads((study / "results.json").read_text())
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(study / name, folder / name)
    shutil.rmtree(folder / "figures", ignore_errors=True)
    shutil.copytree(study / "figures", folder / "figures")
    description = yaml.safe_dump(results["description"], sort_keys=False)
    write_bytes(folder / "description.yaml", description.encode())
    return results


def table(results: dict[str, Any], what: str) -> str:
    """Returns the table that a mark in the document asks for.

    Raises:
        ValueError: if the study does not have it, or has one for each of several networks, datasets
            or training attacks: no row could say which it is of.
    """
    asked, _, training = what.partition(" trained under ")
    summary, pairs = (
        [entry for entry in results[name] if training in ("", entry["training"])]
        for name in ("summary", "comparisons")
    )
    if len(titles := groups(summary)) != 1:
        raise ValueError(
            f"The mark {what!r} needs results of one kind. There are {', '.join(titles) or 'none'}."
        )
    if asked.startswith("accuracies "):
        attacks = [name.strip() for name in asked.removeprefix("accuracies ").split(",")]
        return accuracies(summary, attacks)
    found = [e for e in pairs if [e["first"], e["second"]] == asked.split(" minus ")]
    if not found:
        raise ValueError(f"The study has no table {what!r}.")
    return comparisons(found)


def write_tables(text: str, name: str, results: dict[str, Any]) -> str:
    """Returns a document's text with the tables of a study as they are now."""
    mark = re.compile(rf"(<!-- {re.escape(name)}: (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)
    return mark.sub(lambda m: f"{m[1]}\n{table(results, m[2])}\n\n{m[3]}", text)


def main(_: list[str]) -> None:
    if not STUDY.value and not NAME.value:
        raise app.UsageError("give --study, or --name of one that is kept")
    if STUDY.value:
        study = Path(STUDY.value)
        name = NAME.value or json.loads((study / "results.json").read_text())["name"]
        results = keep(study, Path(RESULTS.value) / name)
    else:
        name = NAME.value
        results = json.loads((Path(RESULTS.value) / name / "results.json").read_text())
    for document in map(Path, DOCUMENTS.value):
        write_bytes(document, write_tables(document.read_text(), name, results).encode())


if __name__ == "__main__":
    app.run(main)
