# SPDX-License-Identifier: Apache-2.0
"""All public names. Importing them registers every class with Keras, so that models load."""

from tfmot_atmc import (
    attacks,
    constraints,
    datasets,
    evaluation,
    export,
    kernels,
    math,
    methods,
    models,
    recipes,
    slimming,
)
from tfmot_atmc.compression import (
    callbacks,
    compress,
    compression_scope,
    deploy,
    fit_to_bytes,
    mask_figure,
    mask_stats,
    measure_operators,
    plan_budget,
    plan_latency,
    plan_macs,
    quantize_after_training,
    reestimate_batch_norm,
    strip_compression,
)
from tfmot_atmc.datasets import augmentation
from tfmot_atmc.evaluation import evaluate_robustness, interop
from tfmot_atmc.export import export_c, export_tflite
from tfmot_atmc.methods import objectives
from tfmot_atmc.models import references
from tfmot_atmc.slimming import slim_model
from tfmot_atmc.utils import distribution as replicas
from tfmot_atmc.utils.moved import keep_old_names
from tfmot_atmc.version import __version__

keep_old_names()

__all__ = [
    "__version__",
    "attacks",
    "augmentation",
    "callbacks",
    "compress",
    "compression_scope",
    "constraints",
    "datasets",
    "deploy",
    "evaluate_robustness",
    "evaluation",
    "export",
    "export_c",
    "export_tflite",
    "fit_to_bytes",
    "interop",
    "kernels",
    "mask_figure",
    "mask_stats",
    "math",
    "methods",
    "models",
    "objectives",
    "measure_operators",
    "plan_budget",
    "plan_latency",
    "plan_macs",
    "quantize_after_training",
    "recipes",
    "reestimate_batch_norm",
    "references",
    "replicas",
    "slim_model",
    "slimming",
    "strip_compression",
]


def __dir__() -> list[str]:
    return __all__
