# SPDX-License-Identifier: Apache-2.0
"""Compression with adversarial robustness for Keras 3.

`compress` wraps a Keras model, `fit` trains it under attack and under constraints,
`strip_compression` gives a plain Keras model back, `export_tflite` writes and checks a small
.tflite file, and `evaluate_robustness` says what it withstands.

The packages: `attacks`, `augmentation`, `callbacks`, `constraints`, `datasets`, `evaluation`,
`export`, `interop`, `kernels`, `math`, `methods`, `models`, `objectives`, `recipes`, `references`,
`replicas`, `slimming`.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any


def _started_as_command() -> bool:
    """Whether this process is `atmc` or `python -m tfmot_atmc`, and not a program of the user's."""
    if sys.argv[:1] == ["-m"]:  # what Python puts there while it looks for the module
        given = sys.orig_argv
        return given[given.index("-m") + 1 :][:1] == [__name__] if "-m" in given else False
    return os.path.basename(sys.argv[0] if sys.argv else "") in ("atmc", "atmc.exe")


def __getattr__(name: str) -> Any:
    api = importlib.import_module(f"{__name__}.api")
    if name != "__all__" and name not in api.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(api, name)


def __dir__() -> list[str]:
    return list(importlib.import_module(f"{__name__}.api").__all__)


# Keras finds the classes of a saved model only where they are registered, so the package imports
# all of them, and TensorFlow with them. Only the command line puts that off: its help needs none.
if TYPE_CHECKING or not _started_as_command():
    from tfmot_atmc.api import *  # noqa: F403
    from tfmot_atmc.api import __all__  # noqa: F401
