# SPDX-License-Identifier: Apache-2.0
"""Reports as HTML, for notebooks."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

__all__ = ["html_report"]

_CELL = "padding:2px 10px;text-align:{side};white-space:nowrap"


def html_report(rows: Sequence[Sequence[Any]], notes: Sequence[str] = ()) -> str:
    """Returns a table with lines of text below it.

    Args:
        rows: the header, then a row for each line; columns that hold numbers stand right.
        notes: lines below the table; those that begin with "Warning" stand out.

    Example:

    >>> html_report([("name", "bytes"), ("a", "1,024")]).count("<tr>")
    2
    """
    numeric = [
        len(rows) > 1 and all(_is_number(row[i]) for row in rows[1:]) for i in range(len(rows[0]))
    ]
    sides = ["right" if number else "left" for number in numeric]

    def line(cells: Sequence[Any], tag: str) -> str:
        made = (
            f'<{tag} style="{_CELL.format(side=side)}">{html.escape(str(cell))}</{tag}>'
            for cell, side in zip(cells, sides, strict=True)
        )
        return f"<tr>{''.join(made)}</tr>"

    table = [line(rows[0], "th"), *(line(row, "td") for row in rows[1:])]
    below = (
        f'<div style="{"color:#b5442e" if note.startswith("Warning") else ""}">'
        f"{html.escape(note)}</div>"
        for note in notes
    )
    return f'<table style="border-collapse:collapse">{"".join(table)}</table>{"".join(below)}'


def _is_number(cell: Any) -> bool:
    text = str(cell).strip().replace(",", "").rstrip("%x")
    if text in ("", "-"):
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True
