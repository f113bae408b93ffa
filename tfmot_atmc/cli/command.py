# SPDX-License-Identifier: Apache-2.0
"""What the commands share: flags of their own, help, tables, and models to run on."""

from __future__ import annotations

import dataclasses
import fractions
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tfmot_atmc.recipes.pipeline import run_compression
from tfmot_atmc.recipes.settings import CompressionSettings

__all__ = [
    "Command",
    "NumberParser",
    "define_number",
    "demonstration_file",
    "make_console",
    "print_table",
    "training_output",
]

_WIDTH_OF_A_FILE = 140


@dataclasses.dataclass(frozen=True)
class Command:
    """One command with flags of its own.

    Attributes:
        name: its name.
        summary: what it does, in a line.
        define: defines its flags on a `FlagValues`.
        body: does the work, from the flags, the positional arguments and a console.
        operand: how its positional argument is called; empty for none.
        after_interrupt: what to tell after Ctrl-C.
    """

    name: str
    summary: str
    define: Callable[[flags.FlagValues], None]
    body: Callable[[flags.FlagValues, list[str], Console], None]
    operand: str = ""
    after_interrupt: str = "Nothing was written."

    def run(self, arguments: Sequence[str], console: Console) -> None:
        """Parses the arguments and does the work, or prints the help.

        Args:
            arguments: what follows the command's name.
            console: where to print.

        Raises:
            flags.Error: for unknown flags and values that do not fit.
            ValueError: for too many positional arguments.
        """
        values = flags.FlagValues()
        self.define(values)
        flags.DEFINE_bool("help", False, "Show this.", short_name="h", flag_values=values)
        flags.DEFINE_bool("debug", False, "Show errors with traceback.", flag_values=values)
        values.set_gnu_getopt(True)
        operands = values([f"atmc {self.name}", *arguments])[1:]
        if values.help:
            console.print(self._help(values))
            return
        if len(operands) > bool(self.operand):
            raise ValueError(
                f"`atmc {self.name}` takes {'one file' if self.operand else 'flags only'}. "
                f"Received {' '.join(operands)!r}."
            )
        self.body(values, operands, console)

    def _help(self, values: flags.FlagValues) -> Text:
        operand = f" [{self.operand}]" if self.operand else ""
        lines = [f"Usage: atmc {self.name}{operand} [flags]", "", self.summary, ""]
        for name in sorted(values):
            flag = values[name]
            if name != flag.name:
                continue  # its short name
            default = "" if flag.default in (None, False) else f" (default: {flag.default})"
            choices = getattr(flag.parser, "enum_values", None)
            among = f" One of {', '.join(choices)}." if choices else ""
            lines.append(f"  --{name:<15} {flag.help}{among}{default}")
        return Text("\n".join(lines))


class NumberParser(flags.ArgumentParser):
    """Numbers, also as fractions such as 8/255."""

    syntactic_help = "a number or a fraction such as 8/255"

    def parse(self, argument: Any) -> float:
        """Returns the number.

        Args:
            argument: text, or a number.

        Raises:
            ValueError: if it is none.

        Example:

        >>> NumberParser().parse("51/255")
        0.2
        """
        try:
            over, *under = str(argument).split("/", 1)
            return float(fractions.Fraction(over)) / (float(under[0]) if under else 1.0)
        except (ValueError, ZeroDivisionError) as error:
            raise ValueError(f"expected a number such as 0.1 or 8/255, got {argument!r}") from error


def define_number(name: str, text: str, values: flags.FlagValues) -> None:
    """Defines a flag for a number or a fraction, None by default."""
    flags.DEFINE(NumberParser(), name, None, text, values, flags.ArgumentSerializer())


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


def demonstration_file(name: str, console: Console) -> str:
    """Returns a file of the compressed digits network, made first if it is not there.

    Args:
        name: the file's name within the folder.
        console: where to tell.
    """
    settings = CompressionSettings().resolved()
    path = Path(str(settings.out)) / name
    if not path.is_file():
        console.print(f"No file given, and no {path}: running `atmc compress` on digits first.")
        run_compression(settings, log=console.print)
    return os.fspath(path)


def training_output(console: Console) -> dict[str, Any]:
    """Returns arguments of `run_compression`: bars on a terminal, lines elsewhere."""
    return {"verbose": int(console.is_terminal), "log": console.print}


def _cell(value: Any) -> Text:
    if value is None:
        return Text("-")
    if isinstance(value, int):
        return Text(f"{value:,}")
    return Text(f"{value:.4f}" if isinstance(value, float) else str(value))
