# SPDX-License-Identifier: Apache-2.0
"""A study's curves beside those of the paper.

    cd benchmarks/results
    python ../paper_comparison.py --results mnist_chain/results.json --write_documents \
        --longer $(echo mnist_{best,bits,close,first_steps,ranks}/results.json | tr ' ' ,)

The picture has a column for each method: ours at equal steps with lines, other trainings of ours
with diamonds, the paper's with dashes. A table says how far each is from the paper at the sizes
that we ran, interpolated on the logarithm of the size; the best of each method at each size goes
into the documents.
"""

from __future__ import annotations

import json
from pathlib import Path

from absl import app, flags
from documents import DOCUMENTS, fill
from paper_figure import best, differences, draw
from rich.console import Console
from rich.table import Table

from tfmot_atmc.utils.figures import save_figure
from tfmot_atmc.utils.files import write_bytes, write_json

RESULTS = flags.DEFINE_string("results", None, "results.json of a study.", required=True)
LONGER = flags.DEFINE_list("longer", [], "results.json of studies of longer trainings.")
OUT = flags.DEFINE_string("out", None, "Folder for paper.png and paper.json. [beside the results]")
WRITE_DOCUMENTS = flags.DEFINE_bool(
    "write_documents", False, "Write the best between `<!-- paper: best -->` and `<!-- end -->`."
)


def main(_: list[str]) -> None:
    results = json.loads(Path(RESULTS.value).read_text())
    out = Path(OUT.value or Path(RESULTS.value).parent)
    rows = differences(results)
    longer = [json.loads(Path(path).read_text()) for path in LONGER.value]
    for study in longer:
        rows += differences(study)
    table = Table("attack", "method", "size", "ours", "paper", "ours - paper")
    for row in rows:
        known = row["paper"] is not None
        table.add_row(
            row["attack"],
            f"{row['variant']} ({row['study']})",
            f"{row['paper_ratio']:.4f}",
            f"{row['ours']:.3f}",
            f"{row['paper']:.3f}" if known else "-",
            f"{row['difference']:+.3f}" if known else "-",
        )
    Console().print(table)
    out.mkdir(parents=True, exist_ok=True)
    save_figure(draw(results, longer), out / "paper.png")
    write_json(out / "paper.json", rows)
    for document in DOCUMENTS if WRITE_DOCUMENTS.value else ():
        write_bytes(document, fill(document.read_text(), "paper", lambda _: best(rows)).encode())


if __name__ == "__main__":
    app.run(main)
