# SPDX-License-Identifier: Apache-2.0
"""Numbers as people write them."""

from __future__ import annotations

import fractions

__all__ = ["parse_number"]


def parse_number(text: object) -> float:
    """Returns the number that a text is, also a fraction such as 8/255.

    Args:
        text: the text, or a number.

    Raises:
        ValueError: if it is none.

    Example:

    >>> parse_number("51/255")
    0.2
    """
    try:
        over, *under = str(text).split("/", 1)
        return float(fractions.Fraction(over)) / (float(under[0]) if under else 1.0)
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"Expected a number such as 0.1 or 8/255. Received {text!r}.") from error
