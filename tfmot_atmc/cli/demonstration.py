# SPDX-License-Identifier: Apache-2.0
"""The model that a command takes where none is given, and how a run tells of its progress."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rich.console import Console

from tfmot_atmc.recipes.pipeline import run_compression
from tfmot_atmc.recipes.settings import CompressionSettings

__all__ = ["demonstration_file", "training_output"]


def demonstration_file(name: str, console: Console) -> str:
    """Returns a file of the compressed digits network, made first if it is not there.

    Args:
        name: the file's name within the folder.
        console: where to tell.
    """
    settings = CompressionSettings().resolved()
    path = Path(str(settings.out)) / name
    if not path.is_file():
        console.print(f"No file given, and no {path}: running `atmc compress` on digits first.")
        run_compression(settings, log=console.print)
    return os.fspath(path)


def training_output(console: Console) -> dict[str, Any]:
    """Returns arguments of `run_compression`: bars on a terminal, lines elsewhere."""
    return {"verbose": int(console.is_terminal), "log": console.print}
