# SPDX-License-Identifier: Apache-2.0
"""The rival of every compressed network: one that was small from the start."""

from __future__ import annotations

import dataclasses

from tfmot_atmc.methods.dense import DA
from tfmot_atmc.methods.l0 import AL0
from tfmot_atmc.methods.stages import Stage, starting


class SmallDense(DA, name="small_dense"):
    """Dense adversarial training of a narrower network of the same family.

    What a method that prunes has to beat at the same size. The network is the widest of its family
    whose weights, or the bytes of whose file, are within the budget, so it is built by the recipe
    or the study; `compress` takes a network as it is given.

    Args:
        ratio: weights as a ratio of those of the network at width 1, in (0, 1].

    Raises:
        ValueError: if `ratio` is out of range.
    """

    narrows = True

    def __init__(self, ratio: float = 1.0):
        if not 0 < ratio <= 1:
            raise ValueError(f"`ratio` must lie in (0, 1]. Received {ratio!r}.")
        self.ratio = ratio

    def stages(
        self, epochs: int, preset: str = "default", *, phases: str = "own", finish: bool = False
    ) -> list[Stage]:
        """Returns none for `"own"`; else one with as many gradient passes as A-l0 has.

        The dense start, with which recipes begin, is of the narrower network.
        """
        if phases == "own":
            return []
        rival = AL0(ratio=0.5).stages(epochs, preset, phases=phases, finish=finish)
        passes = sum(stage.epochs * stage.attack_factor for stage in rival)
        return [dataclasses.replace(starting(self, passes, preset, "small_dense"), warmup_epochs=0)]
