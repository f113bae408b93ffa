# SPDX-License-Identifier: Apache-2.0
"""ALR: low-rank kernels, their ranks chosen over all layers together."""

from __future__ import annotations

from tfmot_atmc.constraints import Constraint, GlobalRank
from tfmot_atmc.kernels import Kernel, LowRankKernel, PlainKernel
from tfmot_atmc.methods.base import Method


class ALR(Method):
    """Adversarial low rank: every kernel a product of two factors, trained further.

    Start from a model trained adversarially (`DA`) and give `compress` an attack.

    Args:
        ratio: parameters of the factors as a ratio of the dense kernels' parameters, in (0, 1].

    Source: "ALR" in Gui et al., NeurIPS 2019, section 4.1.
    """

    def __init__(self, ratio: float):
        self.ratio = ratio
        self.constraints()

    def kernel_for(self, factorizable: bool) -> Kernel:
        return LowRankKernel() if factorizable else PlainKernel()

    def constraints(self) -> list[Constraint]:
        return [GlobalRank(self.ratio)]
