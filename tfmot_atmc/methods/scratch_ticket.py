# SPDX-License-Identifier: Apache-2.0
"""Robust scratch tickets: subnetworks of fixed real weights, with the same ratio in each layer."""

from __future__ import annotations

import dataclasses

from tfmot_atmc.kernels import Site
from tfmot_atmc.methods.random_subnetwork import RandomSubnetwork
from tfmot_atmc.methods.stages import Stage

_DECAY = (0.5, 0.75)


class RobustScratchTicket(RandomSubnetwork, name="robust_scratch_ticket"):
    """As `RandomSubnetwork`, with real weights and the same ratio in each layer.

    Weights are +-sqrt(2/fan_in) and scores start uniform in [-1/sqrt(fan_in), 1/sqrt(fan_in)]. Only
    the search is here, not a training of the weights that it finds.

    Source: Fu et al., "Drawing Robust Scratch Tickets: Subnetworks with Inborn Robustness Are Found
    within Randomly Initialized Networks", NeurIPS 2021, section 3; figures from their code.
    """

    def __init__(self, ratio: float | None = None, k: int | None = None, weights_seed: int = 0):
        super().__init__(
            ratio, k, layer_exponent=1.0, weights="constant", weights_seed=weights_seed
        )

    def draws(self, site: Site) -> tuple[float, float]:
        return (2 / site.fan_in) ** 0.5, site.fan_in**-0.5

    def stages(
        self, epochs: int, preset: str = "default", *, phases: str = "own", finish: bool = False
    ) -> list[Stage]:
        """Returns the stage of `RandomSubnetwork`, its rate a tenth after 1/2 and after 3/4."""
        (stage,) = super().stages(epochs, preset, phases=phases, finish=finish)
        return [dataclasses.replace(stage, decay=_DECAY)]
