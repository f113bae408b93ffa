# SPDX-License-Identifier: Apache-2.0
"""What the trainable factors of a model must satisfy.

A constraint projects, penalises and finally enforces; it knows variables, not layers. Several
constraints on the same factors act together inside one train step.
"""

from tfmot_atmc.constraints.base import Constraint, Factor
from tfmot_atmc.constraints.box import Box
from tfmot_atmc.constraints.channel_budget import ChannelBudget
from tfmot_atmc.constraints.channels import ChannelGroups
from tfmot_atmc.constraints.codebook import Codebook
from tfmot_atmc.constraints.floors import FlooredSparsity
from tfmot_atmc.constraints.layerwise import LayerwiseSparsity, sparsity
from tfmot_atmc.constraints.moving import MovingSupport
from tfmot_atmc.constraints.operations import ChannelMasks
from tfmot_atmc.constraints.rank import GlobalRank
from tfmot_atmc.constraints.rates import RateTarget
from tfmot_atmc.constraints.rewired import Rewiring
from tfmot_atmc.constraints.schedules import (
    BudgetSchedule,
    ConstantBudget,
    CubicBudget,
    PruningScheduleBudget,
    get_schedule,
)
from tfmot_atmc.constraints.sparsity import GlobalSparsity, GradientGrowth
from tfmot_atmc.constraints.support import FixedSupport

__all__ = [
    "Box",
    "BudgetSchedule",
    "ChannelBudget",
    "ChannelGroups",
    "ChannelMasks",
    "Codebook",
    "ConstantBudget",
    "Constraint",
    "CubicBudget",
    "Factor",
    "FixedSupport",
    "FlooredSparsity",
    "GlobalRank",
    "GlobalSparsity",
    "GradientGrowth",
    "LayerwiseSparsity",
    "MovingSupport",
    "PruningScheduleBudget",
    "RateTarget",
    "Rewiring",
    "get_schedule",
    "sparsity",
]


def __dir__() -> list[str]:
    return __all__
