# SPDX-License-Identifier: Apache-2.0
"""What the commands print: consoles and tables."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["make_console", "print_table"]

_WIDTH_OF_A_FILE = 140


def make_console(stderr: bool = False) -> Console:
    """Returns a console that does not squeeze tables where no terminal sets a width."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else _WIDTH_OF_A_FILE)


def print_table(
    console: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
    """Prints a table; whole numbers get separators, None a dash; numbers stand right."""
    rows = [list(row) for row in rows]
    table = Table(title=title, title_justify="left")
    for position, column in enumerate(columns):
        numeric = all(isinstance(row[position], (int, float, type(None))) for row in rows)
        table.add_column(column, justify="right" if numeric and rows else "left")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console.print(table)


def _cell(value: Any) -> Text:
    if value is None:
        return Text("-")
    if isinstance(value, int):
        return Text(f"{value:,}")
    return Text(f"{value:.4f}" if isinstance(value, float) else str(value))
