# SPDX-License-Identifier: Apache-2.0
"""HARP: how many weights each layer keeps is learnt together with which."""

from __future__ import annotations

from tfmot_atmc.constraints import Constraint, RateTarget
from tfmot_atmc.constraints.rates import LARGEST
from tfmot_atmc.kernels import Kernel, RatedKernel, Site
from tfmot_atmc.methods.hydra import HYDRA

_START, _LEAST = 0.1, 0.1


class HARP(HYDRA):
    """As HYDRA, with a number of weights for each layer that is learnt with the scores.

    Start from a model trained adversarially (`DA`). Each layer starts with a tenth of its weights,
    or with the ratio where that is more; the loss grows with what all use beyond the budget, and in
    the end they use exactly it.

    Args:
        ratio: weights that are used as a ratio of the dense kernels' parameters, in (0, 1).
        k: their number; give `ratio` or `k`.
        gamma: factor of what is used beyond the budget in the loss, see `RateTarget`.
        phase: `"scores"`, in which rates and scores are trained, or `"weights"`, in which the
            weights are; None for the first.

    Raises:
        ValueError: if a value is out of range, or the budget leaves a layer without weights.

    Source: Zhao and Wressnegger, "Holistic Adversarially Robust Pruning", ICLR 2023; figures from
    their code.

    Example:

    >>> [(stage.name, stage.epochs) for stage in HARP(ratio=0.01).stages(10)]
    [('scores', 2), ('weights', 10)]
    """

    def __init__(
        self,
        ratio: float | None = None,
        k: int | None = None,
        gamma: float = 0.01,
        phase: str | None = None,
    ):
        super().__init__(ratio, k, phase=phase)
        self.gamma = gamma
        RateTarget(ratio, k, _LEAST, gamma)  # refuses it now

    def kernel_for(self, site: Site) -> Kernel:
        self.kept(site)  # refuses a budget that is too small
        share = min(self.share(site), LARGEST)
        return RatedKernel(_LEAST * share, max(_START, share), self._trained(), site.fan_in)

    def constraints(self) -> list[Constraint]:
        if self._trained() == "weights":
            return []
        return [RateTarget(self.ratio, self.k, _LEAST, self.gamma)]
