# SPDX-License-Identifier: Apache-2.0
"""What several benchmarks do alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from rich.console import Console
from rich.table import Table

import tfmot_atmc as atmc
from tfmot_atmc.compression.model import CompressedModel
from tfmot_atmc.recipes.pipeline import load_keras


def load_plain(path: str) -> keras.Model:
    """A model from a file, stripped if it is compressed."""
    model = load_keras(path)
    return atmc.strip_compression(model) if isinstance(model, CompressedModel) else model


def named_files(pairs: Sequence[str]) -> dict[str, str]:
    """Files by name, from `name=file`."""
    return dict(pair.split("=", 1) for pair in pairs)


def show(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints rows as a table whose columns are the keys of the first; nothing without rows."""
    if not rows:
        return
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)
