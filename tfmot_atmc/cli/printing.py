# SPDX-License-Identifier: Apache-2.0
"""What the commands print: consoles and tables."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console

from tfmot_atmc.utils.tables import WIDTH, made_table

__all__ = ["make_console", "print_table"]


def make_console(stderr: bool = False) -> Console:
    """Returns a console that does not squeeze tables where no terminal sets a width."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else WIDTH)


def print_table(
    console: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
    """Prints a table; see `made_table`."""
    console.print(made_table(columns, rows, title))
