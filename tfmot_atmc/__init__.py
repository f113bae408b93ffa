# SPDX-License-Identifier: Apache-2.0
"""Compression with adversarial robustness for Keras 3.

`compress` wraps a Keras model, `fit` trains it under attack and under constraints,
`strip_compression` gives a plain Keras model back, `export_tflite` writes and checks a small
.tflite file, and `evaluate_robustness` says what it withstands.

The packages: `attacks`, `augmentation`, `callbacks`, `constraints`, `datasets`, `evaluation`,
`export`, `interop`, `kernels`, `math`, `methods`, `models`, `references`, `replicas`,
`slimming`.
"""

from tfmot_atmc import (
    attacks,
    augmentation,
    callbacks,
    constraints,
    datasets,
    evaluation,
    export,
    interop,
    kernels,
    math,
    methods,
    models,
    objectives,
    recipes,
    references,
    replicas,
    slimming,
)
from tfmot_atmc.budget import fit_to_bytes, plan_budget
from tfmot_atmc.compression import compress, compression_scope, strip_compression
from tfmot_atmc.evaluation import evaluate_robustness
from tfmot_atmc.export import export_tflite
from tfmot_atmc.forms import deploy
from tfmot_atmc.quantization import quantize_after_training
from tfmot_atmc.slimming import slim_model
from tfmot_atmc.version import __version__

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
    "export_tflite",
    "fit_to_bytes",
    "interop",
    "kernels",
    "math",
    "methods",
    "models",
    "objectives",
    "plan_budget",
    "quantize_after_training",
    "recipes",
    "references",
    "replicas",
    "slim_model",
    "slimming",
    "strip_compression",
]
