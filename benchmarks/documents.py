# SPDX-License-Identifier: Apache-2.0
"""The documents that show measured figures, and the marks between which tables are written."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tfmot_atmc.study.plots import groups
from tfmot_atmc.study.tables import accuracies, comparisons

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(ROOT.glob("docs/results/*.md"))
DOCUMENTS = (
    ROOT / "README.md",
    ROOT / "docs" / "frontier.md",
    ROOT / "docs" / "references.md",
    ROOT / "docs" / "results.md",
    *PAGES,
)


def fill(text: str, name: str, table: Callable[[str], str]) -> str:
    """Returns the text with `table(WHAT)` between each `<!-- NAME: WHAT -->` and `<!-- end -->`."""
    mark = re.compile(rf"(<!-- {re.escape(name)}: (.*?) -->\n).*?(<!-- end -->)", re.DOTALL)
    return mark.sub(lambda match: f"{match[1]}\n{table(match[2])}\n\n{match[3]}", text)


def study_table(results: dict[str, Any], what: str) -> str:
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
