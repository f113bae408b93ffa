# SPDX-License-Identifier: Apache-2.0
"""How a layer's kernel is made from trainable tensors.

A `Kernel` turns a few tensors (its *factors*) into the one tensor a layer multiplies with. It
knows tensors only: no layers, no constraints, no training. A `Site` says where one sits.
"""

from tfmot_atmc.kernels.base import Kernel, PlainKernel, live_channels
from tfmot_atmc.kernels.binary import BinaryKernel, binary_signs
from tfmot_atmc.kernels.factorized import FactorizedKernel
from tfmot_atmc.kernels.grid import GridKernel
from tfmot_atmc.kernels.lowrank import LowRankKernel
from tfmot_atmc.kernels.masked import (
    MaskedKernel,
    SeededKernel,
    score_mask,
    signs_from_seed,
)
from tfmot_atmc.kernels.rated import RatedKernel, kept_of, rate_of, raw_of
from tfmot_atmc.kernels.site import Site, SiteChannels
from tfmot_atmc.kernels.thin import thin_conv2d

__all__ = [
    "BinaryKernel",
    "FactorizedKernel",
    "GridKernel",
    "Kernel",
    "LowRankKernel",
    "MaskedKernel",
    "PlainKernel",
    "RatedKernel",
    "SeededKernel",
    "Site",
    "SiteChannels",
    "binary_signs",
    "kept_of",
    "live_channels",
    "rate_of",
    "raw_of",
    "score_mask",
    "signs_from_seed",
    "thin_conv2d",
]


def __dir__() -> list[str]:
    return __all__
