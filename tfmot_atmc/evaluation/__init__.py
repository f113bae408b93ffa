# SPDX-License-Identifier: Apache-2.0
"""Measuring accuracy under attack, for Keras models, callables and .tflite files alike."""

from tfmot_atmc.evaluation.report import AttackResult, RobustnessReport, wilson_interval
from tfmot_atmc.evaluation.robustness import evaluate_robustness

__all__ = ["AttackResult", "RobustnessReport", "evaluate_robustness", "wilson_interval"]
