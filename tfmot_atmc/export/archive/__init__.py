# SPDX-License-Identifier: Apache-2.0
"""Transfer archives: a .tflite file in as few bytes as it can be sent in."""

try:
    from tfmot_atmc.export.archive.packing import (
        ArchiveError,
        ArchiveReport,
        pack_archive,
        unpack_archive,
    )
except ModuleNotFoundError as error:
    if error.name != "constriction":
        raise
    raise ImportError(
        "Transfer archives need the package `constriction`, which is not installed: "
        '`pip install "tfmot-atmc[archive]"`.'
    ) from error

__all__ = ["ArchiveError", "ArchiveReport", "pack_archive", "unpack_archive"]


def __dir__() -> list[str]:
    return __all__
