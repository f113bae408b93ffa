# SPDX-License-Identifier: Apache-2.0
"""Recipes: how a run is made of stages, what it takes by default, and the run itself."""

from tfmot_atmc.recipes.defaults import DatasetDefaults, defaults
from tfmot_atmc.recipes.pipeline import run_compression
from tfmot_atmc.recipes.run import run_stages
from tfmot_atmc.recipes.settings import CompressionSettings
from tfmot_atmc.recipes.stages import (
    PRESETS,
    CoupledSGD,
    Stage,
    atmc_stages,
    baseline_stages,
    dense_stage,
    l0_stages,
)

__all__ = [
    "PRESETS",
    "CompressionSettings",
    "CoupledSGD",
    "DatasetDefaults",
    "Stage",
    "atmc_stages",
    "baseline_stages",
    "defaults",
    "dense_stage",
    "l0_stages",
    "run_compression",
    "run_stages",
]


def __dir__() -> list[str]:
    return __all__
