# SPDX-License-Identifier: Apache-2.0
"""Methods, one file each: kernels, constraints, objective, attack policy and stages."""

from tfmot_atmc.methods.atmc import ATMC
from tfmot_atmc.methods.base import (
    CodebookMethod,
    Method,
    arguments_in_channels,
    arguments_in_macs,
    class_of,
    get,
    name_of,
    names,
)
from tfmot_atmc.methods.binary_connect import BinaryConnect
from tfmot_atmc.methods.connectivity import BCS
from tfmot_atmc.methods.costs import Cost, EnergyCost, MacCost, WeightCost, get_cost
from tfmot_atmc.methods.dense import DA
from tfmot_atmc.methods.few_bits import FewBits
from tfmot_atmc.methods.flying_bird import FlyingBird, FlyingBirdPlus
from tfmot_atmc.methods.harp import HARP
from tfmot_atmc.methods.hydra import HYDRA
from tfmot_atmc.methods.in_train_pruning import InTrainPruning
from tfmot_atmc.methods.l0 import AL0
from tfmot_atmc.methods.lowrank import ALR
from tfmot_atmc.methods.masks import MaskMethod
from tfmot_atmc.methods.objectives import AdversarialLoss, Objective, TradesLoss, get_objective
from tfmot_atmc.methods.pruned import AP, NAP
from tfmot_atmc.methods.random_subnetwork import RandomSubnetwork
from tfmot_atmc.methods.scratch_ticket import RobustScratchTicket
from tfmot_atmc.methods.small_dense import SmallDense
from tfmot_atmc.methods.stages import Stage

__all__ = [
    "AL0",
    "ALR",
    "AP",
    "ATMC",
    "BCS",
    "DA",
    "DEFAULT",
    "HARP",
    "HYDRA",
    "InTrainPruning",
    "MacCost",
    "NAP",
    "AdversarialLoss",
    "BinaryConnect",
    "CodebookMethod",
    "Cost",
    "EnergyCost",
    "FlyingBird",
    "FlyingBirdPlus",
    "FewBits",
    "MaskMethod",
    "Method",
    "Objective",
    "RandomSubnetwork",
    "RobustScratchTicket",
    "SmallDense",
    "Stage",
    "TradesLoss",
    "WeightCost",
    "arguments_in_channels",
    "arguments_in_macs",
    "class_of",
    "get",
    "get_cost",
    "get_objective",
    "name_of",
    "names",
]

DEFAULT = "atmc"
"""Name of the method that is meant where none is named, and that others are compared with."""


def __dir__() -> list[str]:
    return __all__
