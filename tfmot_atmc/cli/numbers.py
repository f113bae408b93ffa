# SPDX-License-Identifier: Apache-2.0
"""Flags for numbers, also as fractions."""

from __future__ import annotations

from typing import Any

from absl import flags

from tfmot_atmc.utils.numbers import parse_number

__all__ = ["NumberParser", "define_number"]


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
        return parse_number(argument)


def define_number(name: str, text: str, values: flags.FlagValues, default: Any = None) -> None:
    """Defines a flag for a number or a fraction.

    Args:
        name: its name.
        text: its help.
        values: where to define it.
        default: its default.
    """
    flags.DEFINE(NumberParser(), name, default, text, values, flags.ArgumentSerializer())
