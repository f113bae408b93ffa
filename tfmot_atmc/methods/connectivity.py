# SPDX-License-Identifier: Apache-2.0
"""Bayesian connectivity sampling: sparse training with fixed signs and random rewiring."""

from __future__ import annotations

from tfmot_atmc.constraints import Constraint, Rewiring
from tfmot_atmc.methods.base import Method
from tfmot_atmc.methods.stages import Stage, from_scratch


class BCS(Method):
    """Sparse from the start: a connection that crosses zero dies, and another is drawn, `Rewiring`.

    Args:
        ratio: connections as a ratio of the dense kernels' parameters, in (0, 1].
        k: their number; give `ratio` or `k`.
        noise: as for `Rewiring`.
        support_seed: seed of places and noise.

    Raises:
        ValueError: if a value is out of range.

    Source: Ozdenizci and Legenstein, "Training Adversarially Robust Sparse Networks via Bayesian
    Connectivity Sampling", ICML 2021, algorithm 1.

    Example:

    >>> BCS(ratio=0.1).stages(4)[0].name
    'rewired'
    """

    starts_dense = False

    def __init__(
        self,
        ratio: float | None = None,
        k: int | None = None,
        noise: float = 1e-7,
        support_seed: int = 0,
    ):
        self.ratio, self.k, self.noise, self.support_seed = ratio, k, noise, support_seed
        self.constraints()  # refuses values out of range now

    def constraints(self) -> list[Constraint]:
        return [Rewiring(self.ratio, self.k, self.noise, self.support_seed)]

    def stages(
        self, epochs: int, preset: str = "default", *, phases: str = "own", finish: bool = False
    ) -> list[Stage]:
        """Returns one stage, with the rates of the paper.

        `finish` makes it longer, by as much as other methods take for codebooks.
        """
        return from_scratch(self, "rewired", epochs, preset, finish=finish)
