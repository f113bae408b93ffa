# SPDX-License-Identifier: Apache-2.0
"""What can be asked for by name."""

from __future__ import annotations

from tfmot_atmc import attacks, models
from tfmot_atmc.recipes import PRESETS
from tfmot_atmc.recipes.settings import METHODS

__all__ = ["known"]


def known() -> dict[str, list[str]]:
    """Returns the names of networks, methods, attacks and presets.

    Example:

    >>> "pgd" in known()["attacks"]
    True
    """
    return {
        "networks": models.names(),
        "methods": list(METHODS),
        "attacks": attacks.names(),
        "presets": list(PRESETS),
    }
