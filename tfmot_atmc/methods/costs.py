# SPDX-License-Identifier: Apache-2.0
"""What one entry of a kernel takes of a budget: the currencies in which budgets are counted."""

from __future__ import annotations

from typing import Any

from tfmot_atmc.kernels import Site
from tfmot_atmc.utils.configurable import Configurable, get_configured

__all__ = ["Cost", "EnergyCost", "MacCost", "WeightCost", "get_cost"]


class Cost(Configurable, kind="cost"):
    """What one nonzero of a kernel costs.

    Subclasses override `of`. By being defined they are known by their names to `ratio_of` of the
    methods that have it.
    """

    def of(self, site: Site) -> float:
        """Returns the cost of one entry, above 0.

        Args:
            site: where the entry's kernel sits.

        Raises:
            ValueError: if it cannot be known there.
        """
        raise NotImplementedError


class WeightCost(Cost, name="weights"):
    """One for each nonzero, wherever it sits: the budget of the ATMC paper."""

    def of(self, site: Site) -> float:
        return 1.0


class MacCost(Cost, name="macs"):
    """As many multiply-accumulates as an entry takes part in for one example.

    Example:

    >>> MacCost().of(Site("a/kernel", "a", "Conv2D", (3, 3, 2, 4), positions=64, calls=2))
    128.0
    """

    def of(self, site: Site) -> float:
        return float(_uses(site))


class EnergyCost(Cost, name="energy"):
    """The energy of an entry: it is fetched from memory once, and then used at each position.

    Each use takes two reads from a small buffer, of the weight and of its input, and one
    multiplication with addition. All are 32 bits wide.

    Args:
        memory: energy of a read from memory, in pJ.
        buffer: energy of a read from the buffer, in pJ.
        operation: energy of a multiplication and an addition, in pJ.

    Raises:
        ValueError: if one is negative, or all are zero.

    Source: Horowitz, "Computing's Energy Problem", ISSCC 2014, for 45 nm: DRAM 640 pJ, SRAM of
    8 KB 5 pJ, multiplication 3.7 pJ, addition 0.9 pJ.

    Example:

    >>> site = Site("a/kernel", "a", "Conv2D", (3, 3, 2, 4), positions=100)
    >>> EnergyCost().of(site) == 640 + 100 * (2 * 5 + 4.6)
    True
    """

    def __init__(self, memory: float = 640.0, buffer: float = 5.0, operation: float = 4.6):
        if min(memory, buffer, operation) < 0 or not memory + buffer + operation > 0:
            raise ValueError(
                "Energies must be at least 0, and not all 0. Received "
                f"memory={memory!r}, buffer={buffer!r}, operation={operation!r}."
            )
        self.memory, self.buffer, self.operation = memory, buffer, operation

    def of(self, site: Site) -> float:
        return self.memory + _uses(site) * (2 * self.buffer + self.operation)


def _uses(site: Site) -> int:
    """Returns how often an entry is used for one example."""
    if site.uses is None:
        raise ValueError(
            f"The number of output positions of {site.name!r} is not known, so its operations "
            "cannot be counted. Build the model for a fixed size of its inputs."
        )
    return site.uses


def get_cost(identifier: Any) -> Cost:
    """Returns a cost.

    Args:
        identifier: a `Cost`; `"weights"`, `"macs"`, `"energy"` or the name of one of your own; a
            serialised cost.

    Raises:
        ValueError: for an unknown name.
        TypeError: for an object that is none of these.

    Example:

    >>> get_cost("macs")
    MacCost()
    """
    return get_configured(Cost, identifier, {})
