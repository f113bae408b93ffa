# SPDX-License-Identifier: Apache-2.0
"""Tables as text, the one way in which all reports and commands print them."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["WIDTH", "is_number", "made_table", "shown_cell", "table_text"]

WIDTH = 100
"""Columns of text that a table takes at most; longer cells go on in the next line."""

_SHORT = 16  # cells up to here stay in one line, and longer ones give way
_NUMBER = re.compile(r"[-+]?[\d,.]*\d[\d,.]*(e[-+]?\d+)?\s?(%|B|ms)?|[-?]?")


def made_table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "", **style: Any
) -> Table:
    """Returns a table for a console; columns of numbers stand right.

    Args:
        columns: their names.
        rows: the cells. Whole numbers get separators, fractions four digits, None a dash.
        title: what stands above it.
        **style: arguments of `rich.table.Table`.
    """
    cells = [[shown_cell(value) for value in row] for row in rows]
    table = Table(title=title or None, title_justify="left", **style)
    for position, name in enumerate(columns):
        numeric = bool(cells) and all(is_number(row[position]) for row in cells)
        justify: Any = "right" if numeric else "left"
        short = all(len(row[position]) <= _SHORT for row in cells)
        table.add_column(Text(name), justify=justify, overflow="fold", no_wrap=short)
    for row in cells:
        table.add_row(*map(Text, row))
    return table


def table_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns a table as plain text without rules, of at most `WIDTH` columns.

    Args:
        columns: their names.
        rows: the cells, as in `made_table`.

    Example:

    >>> print(table_text(("layer", "bytes"), [("conv", 1200), ("head", 64)]))
    layer  bytes
    conv   1,200
    head      64
    """
    table = made_table(columns, rows, box=None, padding=(0, 2, 0, 0), pad_edge=False)
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def is_number(cell: str) -> bool:
    """Whether a cell holds a number, a dash or nothing, and so stands right.

    Args:
        cell: its text.
    """
    return _NUMBER.fullmatch(cell) is not None


def shown_cell(value: Any) -> str:
    """Returns the text of a cell.

    Args:
        value: whole numbers get separators, fractions four digits, None a dash.
    """
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
