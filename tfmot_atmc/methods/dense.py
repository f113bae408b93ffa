# SPDX-License-Identifier: Apache-2.0
"""DA: dense adversarial training, the start of all other methods."""

from __future__ import annotations

from tfmot_atmc.methods.base import Method
from tfmot_atmc.methods.stages import Stage


class DA(Method):
    """Dense adversarial training: plain kernels, no constraint.

    Source: Madry et al., 2018; "DA" in Gui et al., NeurIPS 2019, section 4.1.
    """

    def stages(
        self, epochs: int, preset: str = "default", *, phases: str = "own", finish: bool = False
    ) -> list[Stage]:
        """Returns none: the dense start, with which recipes begin, is all."""
        return []
