# SPDX-License-Identifier: Apache-2.0
"""Modules under the paths that users know: `from tfmot_atmc.callbacks import ...` still works."""

from __future__ import annotations

import importlib
import sys

__all__ = ["MOVED", "keep_old_names"]

MOVED = {
    "augmentation": "datasets.augmentation",
    "budget": "compression.budget",
    "callbacks": "compression.callbacks",
    "forms": "compression.deploy",
    "interop": "evaluation.interop",
    "objectives": "methods.objectives",
    "pipeline": "recipes.pipeline",
    "quantization": "compression.quantization",
    "references": "models.references",
    "replicas": "utils.distribution",
    "settings": "recipes.settings",
    "stages": "recipes.stages",
    "training": "compression.model",
}
"""Old module names, and where the modules are now."""

_PACKAGE = __name__.split(".")[0]


def keep_old_names() -> None:
    """Lets the old names be imported; each is the module itself, not a copy."""
    for old, new in MOVED.items():
        module = importlib.import_module(f"{_PACKAGE}.{new}")
        sys.modules.setdefault(f"{_PACKAGE}.{old}", module)
