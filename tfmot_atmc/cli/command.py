# SPDX-License-Identifier: Apache-2.0
"""One command: its flags, its help, and where its work is, which is loaded when it is called."""

from __future__ import annotations

import dataclasses
import importlib
import textwrap
from collections.abc import Callable, Sequence

from absl import flags
from rich.console import Console
from rich.text import Text

from tfmot_atmc.utils.own_files import import_file

__all__ = ["Command"]

_PACKAGE = __name__.split(".")[0]
_WIDTH = 100
_INDENT = 20


@dataclasses.dataclass(frozen=True)
class Command:
    """One command with flags of its own.

    The module of its name in this package has the function `run(values, operands, console)` that
    does the work, from the flags, the positional arguments and a console.

    Attributes:
        name: its name.
        summary: what it does, in a line.
        define: defines its flags on a `FlagValues`.
        operand: how its positional argument is called; empty for none.
        after_interrupt: what to tell after Ctrl-C.
    """

    name: str
    summary: str
    define: Callable[[flags.FlagValues], None]
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
        at = {"flag_values": values}
        flags.DEFINE_bool("help", False, "Show this.", short_name="h", **at)
        flags.DEFINE_bool("helpfull", False, "Show this and the names that flags take.", **at)
        flags.DEFINE_bool("debug", False, "Show tracebacks and TensorFlow's messages.", **at)
        flags.DEFINE_multi_string(
            "import", [], "Python file of methods, attacks, ... of your own; again for more.", **at
        )
        values.set_gnu_getopt(True)
        operands = values([f"atmc {self.name}", *arguments])[1:]
        own = values["import"].value
        if values.help or values.helpfull:
            console.print(self._help(values), soft_wrap=True)
        if values.helpfull or (values.help and own):
            _load(own)
            console.print(_names(), soft_wrap=True)
        if values.help or values.helpfull:
            return
        if len(operands) > bool(self.operand):
            raise ValueError(
                f"`atmc {self.name}` takes {'one file' if self.operand else 'flags only'}. "
                f"Received {' '.join(operands)!r}."
            )
        _load(own)
        importlib.import_module(f"{_PACKAGE}.cli.{self.name}").run(values, operands, console)

    def _help(self, values: flags.FlagValues) -> Text:
        operand = f" [{self.operand}]" if self.operand else ""
        lines = [f"Usage: atmc {self.name}{operand} [flags]", "", self.summary, ""]
        for flag in dict.fromkeys(values[name] for name in values):  # once if it has a short name
            default = "" if flag.default in (None, False, []) else f" (default: {flag.default})"
            choices = getattr(flag.parser, "enum_values", None)
            among = f" One of {', '.join(choices)}." if choices else ""
            text = flag.help.partition(">: ")[2] if choices else flag.help  # absl's <a|b>
            lines.append(_entry(f"--{flag.name}", f"{text}{among}{default}"))
        return Text("\n".join(lines))


def _load(own: Sequence[str]) -> None:
    """Registers all classes, of which a model may be: the package's, and the user's own."""
    importlib.import_module(f"{_PACKAGE}.api")
    for path in own:
        import_file(path)


def _names() -> Text:
    """Returns the names that are registered; only for them does a help load TensorFlow."""
    known = importlib.import_module(f"{_PACKAGE}.cli.names").known()
    entries = [_entry(kind, ", ".join(names)) for kind, names in known.items()]
    return Text("\n".join(["", "Names:", "", *entries]))


def _entry(term: str, text: str) -> str:
    first = f"  {term:<{_INDENT - 3}} "
    return textwrap.fill(text, _WIDTH, initial_indent=first, subsequent_indent=" " * _INDENT)
