# SPDX-License-Identifier: Apache-2.0
"""The command line: `atmc compress | evaluate | export | inspect | quantize | study`."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from absl import flags as absl_flags
from rich.console import Console
from rich.text import Text

from tfmot_atmc.cli import flags
from tfmot_atmc.cli.command import Command
from tfmot_atmc.cli.printing import make_console
from tfmot_atmc.cli.quiet import native_messages_held
from tfmot_atmc.version import __version__

__all__ = ["main"]

_COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        Command(
            "compress",
            "Trains, compresses, exports and attacks a model; the same command again goes on.",
            flags.compress,
            after_interrupt="Run the same command again to go on after the last finished epoch.",
        ),
        Command(
            "evaluate",
            "Measures a .keras, .tflite or C model on clean data and under attack.",
            flags.evaluate,
            operand="MODEL",
        ),
        Command(
            "export",
            "Writes a .keras model as a sparse .tflite file or C code, run before it is kept.",
            flags.export,
            operand="MODEL.keras",
        ),
        Command(
            "inspect",
            "Shows shapes, nonzeros and distinct values of a .keras or .tflite file.",
            flags.inspect,
            operand="FILE",
        ),
        Command(
            "quantize",
            "Gives the kernels of a .keras model few distinct values, without training.",
            flags.quantize,
            operand="MODEL.keras",
        ),
        Command(
            "study",
            "Trains, attacks and compares methods as a YAML file says; again, it goes on.",
            flags.study,
            operand="FILE",
            after_interrupt="Run the same command again to go on.",
        ),
    )
}
# What a user can put right; anything else is a fault of ours and keeps its traceback.
_EXPECTED = (
    ValueError,
    TypeError,
    OSError,
    ImportError,
    RuntimeError,
    FloatingPointError,
    absl_flags.Error,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: arguments without the program's name; None for those of the process.

    Returns:
        The exit code: 0, 2 after an error that is told in one line, 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    debug = "--debug" in arguments
    if debug:
        return _answer(arguments, debug)
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # its advice is for our code
    with native_messages_held(), warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return _answer(arguments, debug)


def _answer(arguments: list[str], debug: bool) -> int:
    console, errors = make_console(), make_console(stderr=True)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        console.print(_overview())
        return 0
    if arguments[0] == "--version":
        console.print(__version__, highlight=False)
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in _COMMANDS:
        _fail(errors, f"Unknown command {name!r}. Known: {', '.join(_COMMANDS)}.")
        return 2
    try:
        _COMMANDS[name].run(rest, console)
    except KeyboardInterrupt:
        errors.print(Text(f"\nInterrupted. {_COMMANDS[name].after_interrupt}"))
        return 130
    except _EXPECTED as error:
        if debug:
            raise
        _fail(errors, str(error) or type(error).__name__)
        return 2
    return 0


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    """Shows what a user should know; what is for programmers (deprecations) is left out."""
    del filename, lineno, file, line
    if issubclass(category, UserWarning):
        make_console(stderr=True).print(Text(f"Warning: {message}"), soft_wrap=True)


def _fail(console: Console, message: str) -> None:
    console.print(Text(f"atmc: error: {' '.join(message.split())}"), soft_wrap=True)


def _overview() -> Text:
    lines = ["Usage: atmc COMMAND [flags]", "", "Compresses Keras models that stay robust.", ""]
    lines += [f"  {command.name:<10}{command.summary}" for command in _COMMANDS.values()]
    lines += [
        "",
        "`atmc COMMAND --help` lists a command's flags. Each runs without any, on digits.",
    ]
    return Text("\n".join(lines))


def __dir__() -> list[str]:
    return __all__
