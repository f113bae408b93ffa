# SPDX-License-Identifier: Apache-2.0
"""A-l0: plain kernels under one global budget of nonzeros."""

from __future__ import annotations

from typing import Any

from tfmot_atmc.constraints import (
    ChannelBudget,
    Constraint,
    CubicBudget,
    GradientGrowth,
    get_schedule,
    sparsity,
)
from tfmot_atmc.methods.base import CodebookMethod


class AL0(CodebookMethod):
    """Projected adversarial training: plain kernels, the k largest weights kept at every step.

    Args:
        ratio: final nonzeros as a ratio of the dense kernels' parameters, in (0, 1].
        k: final nonzeros; give `ratio` or `k`.
        bits: None, or b for a codebook of 2^b values a kernel.
        schedule: how the budget shrinks: `"cubic"`, `"constant"`, a `BudgetSchedule` or a TFMOT
            `PruningSchedule`, whose final sparsity takes the place of `ratio`.
        growth: None, or a `GradientGrowth`.
        codebook_begin: step (int) or fraction of the planned steps (float) at which the codebook
            starts to act.
        layer_exponent: None for one budget over all layers; p in [0, 1] for a budget of its own in
            each layer, in proportion to the p-th power of its size.
        floors: share in [0, 1] of the one budget that is assured to layers, so that small ones are
            not emptied (`FlooredSparsity`); 0 for the paper's global budget, None for the default.
        ratio_of: what the budget counts: `"weights"`, `"macs"`, `"energy"` or a `Cost`.
        channels: None, or the ratio of multiply-accumulates to which whole channels are dropped
            first (`ChannelBudget`), along the same schedule from all of them. With `ratio=1` only
            channels go.

    Source: "A-l0" in Gui et al., NeurIPS 2019, section 4.1.
    """

    stage_name = "l0"

    def __init__(
        self,
        ratio: float | None = None,
        k: int | None = None,
        bits: int | None = None,
        schedule: Any = "cubic",
        growth: GradientGrowth | None = None,
        codebook_begin: int | float = 0.75,
        layer_exponent: float | None = None,
        floors: float | None = None,
        ratio_of: Any = "weights",
        channels: float | None = None,
    ):
        self.schedule, self.growth, self.channels = get_schedule(schedule), growth, channels
        super().__init__(ratio, k, bits, codebook_begin, layer_exponent, floors, ratio_of)

    def channel_budgets(self) -> list[Constraint]:
        if self.channels is None:
            return []
        schedule: Any = self.schedule
        if isinstance(schedule, CubicBudget):
            schedule = CubicBudget(1.0, schedule.begin, schedule.end)
        elif schedule.final_ratio is not None:
            schedule = "constant"
        return [ChannelBudget(self.channels, schedule)]

    def budget(self) -> Constraint:
        return sparsity(
            self.ratio, self.k, self.schedule, self.growth, self.layer_exponent, self.floors
        )
