# SPDX-License-Identifier: Apache-2.0
"""Export of Keras models: sparse .tflite files, C code for microcontrollers, and archives."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from tfmot_atmc.export.c import (
    C_VALUE_MODES,
    CModel,
    CompilerMissingError,
    CReport,
    UnsupportedError,
    export_c,
)
from tfmot_atmc.export.tflite.conversion import ExportError
from tfmot_atmc.export.tflite.estimate import file_bytes, graph_bytes, weight_bytes
from tfmot_atmc.export.tflite.export import TooLargeError, export_tflite
from tfmot_atmc.export.tflite.interpreter import TFLiteModel, measure_latency
from tfmot_atmc.export.tflite.notes import list_operators, read_notes
from tfmot_atmc.export.tflite.report import (
    ExportReport,
    TensorSummary,
    format_tensors,
    inspect_tflite,
)
from tfmot_atmc.export.tflite.rewrite import ROUNDED, VALUE_MODES, stored_bytes
from tfmot_atmc.export.tflite.xnnpack import (
    SparseKernelReport,
    SparseLayer,
    xnnpack_sparse_layers,
)

if TYPE_CHECKING:
    from tfmot_atmc.export.archive import (
        ArchiveError,
        ArchiveReport,
        pack_archive,
        unpack_archive,
    )

__all__ = [
    "C_VALUE_MODES",
    "ROUNDED",
    "VALUE_MODES",
    "ArchiveError",
    "ArchiveReport",
    "CModel",
    "CReport",
    "CompilerMissingError",
    "ExportError",
    "ExportReport",
    "SparseKernelReport",
    "SparseLayer",
    "TFLiteModel",
    "TensorSummary",
    "TooLargeError",
    "UnsupportedError",
    "export_c",
    "export_tflite",
    "format_tensors",
    "file_bytes",
    "graph_bytes",
    "inspect_tflite",
    "list_operators",
    "measure_latency",
    "pack_archive",
    "read_notes",
    "stored_bytes",
    "unpack_archive",
    "weight_bytes",
    "xnnpack_sparse_layers",
]

_ARCHIVE = ("ArchiveError", "ArchiveReport", "pack_archive", "unpack_archive")


def __getattr__(name: str) -> Any:
    """Loads what makes archives, with the package that only it needs, when it is asked for."""
    if name not in _ARCHIVE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.archive"), name)


def __dir__() -> list[str]:
    return __all__
