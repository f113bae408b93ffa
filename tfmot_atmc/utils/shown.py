# SPDX-License-Identifier: Apache-2.0
"""Reports as text and, for notebooks, as HTML: the same lines and tables."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

from tfmot_atmc.utils.tables import is_number, shown_cell, table_text

__all__ = ["Shown", "TablePart"]

TablePart = tuple[Sequence[str], Iterable[Sequence[Any]]]
"""The columns of a table, and its rows."""

_CELL = "padding:2px 10px;text-align:{side};vertical-align:top"
_WARNING = "color:#b5442e"


class Shown:
    """What is printed as lines and tables; a subclass says which, by `_parts`."""

    def _parts(self) -> Sequence[str | TablePart]:
        """Returns lines of text and tables, in order."""
        raise NotImplementedError

    def __str__(self) -> str:
        return "\n".join(
            part if isinstance(part, str) else table_text(*part) for part in self._parts()
        )

    def _repr_html_(self) -> str:
        return "".join(
            _line(part) if isinstance(part, str) else _table(*part) for part in self._parts()
        )


def _line(text: str) -> str:
    style = _WARNING if text.startswith("Warning") else ""
    return f'<div style="{style}">{html.escape(text)}</div>'


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    cells = [[shown_cell(value) for value in row] for row in rows]
    numeric = [bool(cells) and all(is_number(row[i]) for row in cells) for i in range(len(columns))]
    sides = ["right" if number else "left" for number in numeric]

    def line(values: Sequence[str], tag: str) -> str:
        made = (
            f'<{tag} style="{_CELL.format(side=side)}">{html.escape(value)}</{tag}>'
            for value, side in zip(values, sides, strict=True)
        )
        return f"<tr>{''.join(made)}</tr>"

    body = "".join(line(row, "td") for row in cells)
    return f'<table style="border-collapse:collapse">{line(list(columns), "th")}{body}</table>'
