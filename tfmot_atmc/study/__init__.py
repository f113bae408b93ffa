# SPDX-License-Identifier: Apache-2.0
"""Studies: a grid of models, methods, ratios and seeds, trained, attacked, compared and drawn."""

from tfmot_atmc.study.description import Description, load_description
from tfmot_atmc.study.entries import AttackEntry, MethodEntry
from tfmot_atmc.study.runner import StudyError, run_study

__all__ = [
    "AttackEntry",
    "Description",
    "MethodEntry",
    "StudyError",
    "load_description",
    "run_study",
]


def __dir__() -> list[str]:
    return __all__
