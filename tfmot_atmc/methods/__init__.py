# SPDX-License-Identifier: Apache-2.0
"""Methods: short recipes over shared kernels and constraints."""

from tfmot_atmc.methods.atmc import ATMC
from tfmot_atmc.methods.base import Method, get, names
from tfmot_atmc.methods.dense import DA
from tfmot_atmc.methods.l0 import AL0
from tfmot_atmc.methods.lowrank import ALR
from tfmot_atmc.methods.pruned import AP, NAP

__all__ = ["AL0", "ALR", "AP", "ATMC", "DA", "NAP", "Method", "get", "names"]
