# SPDX-License-Identifier: Apache-2.0
"""What can be asked for by name."""

from __future__ import annotations

from tfmot_atmc import attacks, methods, models
from tfmot_atmc.recipes import PRESETS

__all__ = ["known"]


def known() -> dict[str, list[str]]:
    """Returns the names of networks, methods, attacks and presets.

    Example:

    >>> "pgd" in known()["attacks"]
    True
    """
    return {
        "networks": models.names(),
        "methods": methods.names(),
        "attacks": attacks.names(),
        "presets": list(PRESETS),
    }
