# SPDX-License-Identifier: Apache-2.0
"""Transfer archives: a .tflite file in as few bytes as it can be sent in."""

from tfmot_atmc.export.archive.packing import (
    ArchiveError,
    ArchiveReport,
    pack_archive,
    unpack_archive,
)

__all__ = ["ArchiveError", "ArchiveReport", "pack_archive", "unpack_archive"]
