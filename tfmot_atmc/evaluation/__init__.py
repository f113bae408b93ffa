# SPDX-License-Identifier: Apache-2.0
"""Measuring accuracy under attack, for Keras models, callables and .tflite files alike."""

from tfmot_atmc.evaluation.curves import RobustnessCurve, robustness_curve
from tfmot_atmc.evaluation.pictures import plot_examples
from tfmot_atmc.evaluation.report import (
    AttackResult,
    ClassResult,
    RobustnessReport,
    wilson_interval,
)
from tfmot_atmc.evaluation.robustness import evaluate_robustness
from tfmot_atmc.evaluation.sets import AdversarialSet

__all__ = [
    "AdversarialSet",
    "AttackResult",
    "ClassResult",
    "RobustnessCurve",
    "RobustnessReport",
    "evaluate_robustness",
    "plot_examples",
    "robustness_curve",
    "wilson_interval",
]


def __dir__() -> list[str]:
    return __all__
