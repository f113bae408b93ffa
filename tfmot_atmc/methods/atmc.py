# SPDX-License-Identifier: Apache-2.0
"""ATMC: factorised kernels under one budget of nonzeros and one codebook a matrix."""

from __future__ import annotations

import dataclasses
from typing import Any

from tfmot_atmc.constraints import Codebook, GradientGrowth
from tfmot_atmc.kernels import FactorizedKernel, Kernel, PlainKernel, Site
from tfmot_atmc.methods.l0 import AL0
from tfmot_atmc.methods.stages import Stage


class ATMC(AL0):
    """Adversarially trained model compression: W = (U + I)V + C, l0 budget, codebooks.

    All U, V and C of all layers share one budget of nonzeros, kept by projection at every step;
    with `bits` below 32 every one of them takes at most 2^bits distinct nonzero values.

    Args:
        ratio: final nonzeros as a ratio of the dense kernels' parameters, in (0, 1].
        k: final nonzeros; give `ratio` or `k`.
        bits: b, in 1..16, or 32 for no quantisation.
        schedule: how the budget shrinks: `"cubic"` (the default: it decides robustness at small
            budgets), `"constant"` (the paper's, at once), a `BudgetSchedule` or a TFMOT
            `PruningSchedule`, whose final sparsity takes the place of `ratio`.
        growth: None, or a `GradientGrowth`, which opens entries in V and U: under a global
            magnitude threshold alone U and C stay all but empty.
        algorithm: how the codebook is trained: `"shared"` or `"admm"` (the paper's).
        codebook_begin: step (int) or fraction of the planned steps (float) at which the codebook
            starts to act.
        rho: weight of the ADMM penalty.
        interval: steps between two ADMM updates.
        grid: None, or n to confine the codebooks to integers in [-n, n] times one scale.
        layer_exponent: None for one budget over all layers; p in [0, 1] for a budget of its own in
            each layer, in proportion to the p-th power of its size.
        floors: share in [0, 1] of the one budget that is assured to layers, so that small ones are
            not emptied (`FlooredSparsity`); 0 for the paper's global budget, None for the default.
        ratio_of: what the budget counts: `"weights"`, `"macs"`, `"energy"` or a `Cost`.
        channels: None, or the ratio of multiply-accumulates to which whole channels are dropped
            first, as for `AL0`.

    Raises:
        ValueError: if a value is out of range.

    Source: Gui et al., "Model Compression with Adversarial Robustness: A Unified Optimization
    Framework", NeurIPS 2019, algorithm 1.

    Example:

    >>> ATMC(ratio=0.01, bits=8).get_config()["bits"]
    8
    """

    codebooks = True
    stage_name = "atmc32"

    def __init__(
        self,
        ratio: float | None = None,
        k: int | None = None,
        bits: int = 32,
        schedule: Any = "cubic",
        growth: GradientGrowth | None = None,
        algorithm: str = "shared",
        codebook_begin: int | float = 0.75,
        rho: float = 0.1,
        interval: int = 10,
        grid: int | None = None,
        layer_exponent: float | None = None,
        floors: float | None = None,
        ratio_of: Any = "weights",
        channels: float | None = None,
    ):
        self.algorithm, self.rho, self.interval, self.grid = algorithm, rho, interval, grid
        super().__init__(
            ratio,
            k,
            bits,
            schedule,
            growth,
            codebook_begin,
            layer_exponent,
            floors,
            ratio_of,
            channels,
        )

    def stages(
        self, epochs: int, preset: str = "default", *, phases: str = "own", finish: bool = False
    ) -> list[Stage]:
        """Returns the stages after the dense start.

        The default prunes along a cubic, then hardens the few weights that are left under an attack
        of three times the steps (they learn to fool a short attack), polishes them with a larger
        share of clean inputs, and with `bits` below 32 ties them to codebooks. It does not grow by
        gradient, which lost in paired runs. The preset `"paper"` is l0 projection of plain kernels,
        then ATMC-32, then ATMC-b by ADMM, with the learning rates of the authors' code and one
        budget of which nothing is assured to layers.

        Hardening and polishing take a fourth more epochs each, and a codebook a twelfth.

        Source of the paper's: Gui et al., NeurIPS 2019, section 4.1, and the authors' code.
        """
        if preset != "paper":
            phases = "all" if phases == "own" else phases
            return super().stages(epochs, preset, phases=phases, finish=finish)
        first, *later = super().stages(epochs, preset, finish=finish)
        found = first.method
        projected = AL0(
            found.ratio,
            found.k,
            layer_exponent=found.layer_exponent,
            floors=found.floors,
            ratio_of=found.ratio_of,
            channels=found.channels,
        )
        return [
            *projected.stages(epochs, preset),
            dataclasses.replace(first, learning_rate=0.005, decay=(0.3, 0.4, 0.6)),
            *(
                dataclasses.replace(stage, method=stage.method.but(algorithm="admm"))
                if stage.method.bits != 32
                else stage
                for stage in later
            ),
        ]

    def kernel_for(self, site: Site) -> Kernel:
        return FactorizedKernel() if site.factorizable else PlainKernel()

    def codebook(self, bits: int) -> Codebook:
        return Codebook(
            bits, self.algorithm, self.codebook_begin, self.rho, self.interval, self.grid
        )
