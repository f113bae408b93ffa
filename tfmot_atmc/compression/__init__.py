# SPDX-License-Identifier: Apache-2.0
"""Compression in training: a Keras model goes in, is trained, and comes out small."""

from tfmot_atmc.compression.batch_norm import reestimate_batch_norm
from tfmot_atmc.compression.budget import BudgetPlan, FittedModel, fit_to_bytes, plan_budget
from tfmot_atmc.compression.compress import compress, compression_scope, strip_compression
from tfmot_atmc.compression.deploy import Deployment, FormChoice, deploy
from tfmot_atmc.compression.latency import (
    LatencyPlan,
    OperatorTable,
    measure_operators,
    plan_latency,
)
from tfmot_atmc.compression.masks import mask_figure, mask_stats
from tfmot_atmc.compression.model import CompressedModel
from tfmot_atmc.compression.operations import MacsPlan, plan_macs
from tfmot_atmc.compression.quantization import quantize_after_training
from tfmot_atmc.compression.report import CompressionReport, FactorReport

__all__ = [
    "BudgetPlan",
    "CompressedModel",
    "CompressionReport",
    "Deployment",
    "FactorReport",
    "FittedModel",
    "FormChoice",
    "LatencyPlan",
    "MacsPlan",
    "OperatorTable",
    "compress",
    "compression_scope",
    "deploy",
    "fit_to_bytes",
    "mask_figure",
    "mask_stats",
    "measure_operators",
    "plan_budget",
    "plan_latency",
    "plan_macs",
    "quantize_after_training",
    "reestimate_batch_norm",
    "strip_compression",
]


def __dir__() -> list[str]:
    return __all__
