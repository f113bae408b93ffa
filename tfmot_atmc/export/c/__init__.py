# SPDX-License-Identifier: Apache-2.0
"""C99 for microcontrollers: sparse kernels, planned memory, and checks on what is written."""

from tfmot_atmc.export.c.compiled import CModel, CompilerMissingError
from tfmot_atmc.export.c.export import C_VALUE_MODES, OPTIMIZATIONS, export_c
from tfmot_atmc.export.c.images import write_board, write_images
from tfmot_atmc.export.c.network import UnsupportedError
from tfmot_atmc.export.c.report import CReport, LayerSummary
from tfmot_atmc.export.c.sizes import Footprint, measure_footprint

__all__ = [
    "C_VALUE_MODES",
    "OPTIMIZATIONS",
    "CModel",
    "CReport",
    "CompilerMissingError",
    "Footprint",
    "LayerSummary",
    "UnsupportedError",
    "export_c",
    "measure_footprint",
    "write_board",
    "write_images",
]
