# SPDX-License-Identifier: Apache-2.0
"""Keeps a study: its results and figures go beside the others, its tables into the documents.

    atmc study benchmarks/studies/mnist_chain.yaml --out mnist_chain
    python benchmarks/keep_study.py --study mnist_chain

copies description, results, tables and the figures that a document shows to benchmarks/results/NAME
(`atmc study DESCRIPTION --known RESULTS --report_only` makes the rest of them again), and replaces
what stands in README.md and the pages of results between `<!-- NAME: WHAT -->` and `<!-- end -->`,
where WHAT is `accuracies ATTACK, ...` or `FIRST minus SECOND`, and ` trained under NAME` where a
study has several trainings.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml
from absl import app, flags
from documents import DOCUMENTS, ROOT, fill, study_table

from tfmot_atmc.utils.files import write_bytes

STUDY = flags.DEFINE_string("study", None, "Folder that `atmc study --out` wrote.")
NAME = flags.DEFINE_string("name", None, "Name of the kept study. [the study's own]")
RESULTS = flags.DEFINE_string("results", str(ROOT / "benchmarks" / "results"), "Kept studies.")

FILES = ("results.json", "tables.md")


def keep(study: Path, folder: Path) -> dict[str, Any]:
    """Copies a study's results; its models stay where they are."""
    documents = "".join(document.read_text() for document in DOCUMENTS)
    results = json.loads((study / "results.json").read_text())
    folder.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(study / name, folder / name)
    shutil.rmtree(folder / "figures", ignore_errors=True)
    for figure in (study / "figures").glob("*.png"):
        if f"/{folder.name}/figures/{figure.name})" in documents:
            (folder / "figures").mkdir(exist_ok=True)
            shutil.copyfile(figure, folder / "figures" / figure.name)
    description = yaml.safe_dump(results["description"], sort_keys=False)
    write_bytes(folder / "description.yaml", description.encode())
    return results


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
    for document in DOCUMENTS:
        text = fill(document.read_text(), name, lambda what: study_table(results, what))
        write_bytes(document, text.encode())


if __name__ == "__main__":
    app.run(main)
