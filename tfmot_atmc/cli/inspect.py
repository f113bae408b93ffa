# SPDX-License-Identifier: Apache-2.0
"""`atmc inspect`: what is in a .keras or .tflite file, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
from absl import flags
from rich.console import Console

from tfmot_atmc.cli.demonstration import demonstration_file
from tfmot_atmc.cli.printing import print_table
from tfmot_atmc.compression.model import CompressedModel
from tfmot_atmc.export import inspect_tflite, list_operators, read_notes
from tfmot_atmc.recipes.pipeline import load_keras

__all__ = ["run"]

_COLUMNS = ("name", "what", "shape", "nonzeros", "of", "values")


def run(values: flags.FlagValues, operands: list[str], console: Console) -> None:
    """Does what the command is for.

    Args:
        values: the flags.
        operands: the positional arguments.
        console: where to print.
    """
    del values
    name = operands[0] if operands else demonstration_file("final.keras", console)
    if Path(name).suffix == ".tflite":
        _show_tflite(name, console)
        return
    if Path(name).suffix != ".keras":
        raise ValueError(f"Expected a .keras or .tflite file. Received {name!r}.")
    model = load_keras(name)
    if isinstance(model, CompressedModel):
        _show_compressed(name, model, console)
    else:
        _show_plain(name, model, console)


def _show_compressed(name: str, model: CompressedModel, console: Console) -> None:
    report = model.compression_report()
    rows: list[tuple[Any, ...]] = []
    for layer in report.layers:
        rows.append((layer.layer, layer.action, layer.reason or layer.type, None, None, None))
        for factor in report.factors:
            if factor.name.rsplit("/", 1)[0] == layer.layer:
                size = int(np.prod(factor.shape))
                rows.append(
                    (factor.name, factor.part, _shape(factor.shape))
                    + (factor.nonzeros, size, factor.distinct)
                )
    method = type(model.method).__name__
    print_table(console, f"{name}: compressed by {method}", _COLUMNS, rows)
    console.print(
        f"{report.nonzeros:,} nonzeros for {report.dense_parameters:,} dense parameters; by the "
        f"paper's metric {report.paper_bits:,} bits, a ratio of {report.paper_ratio:.5f}.",
        highlight=False,
    )


def _show_plain(name: str, model: keras.Model, console: Console) -> None:
    rows = []
    for variable in model.weights:
        value = keras.ops.convert_to_numpy(variable)
        nonzero = value[value != 0]
        what = "trained" if variable.trainable else "state"
        distinct = int(np.unique(nonzero).size)
        rows.append(
            (variable.path, what, _shape(value.shape), int(nonzero.size), value.size, distinct)
        )
    print_table(console, f"{name}: plain Keras model '{model.name}'", _COLUMNS, rows)
    total = sum(row[4] for row in rows)
    console.print(f"{sum(row[3] for row in rows):,} nonzeros of {total:,}.", highlight=False)


def _show_tflite(name: str, console: Console) -> None:
    tensors = inspect_tflite(name)
    columns = (*_COLUMNS, "type", "format", "bytes")
    rows = [
        (t.name or f"#{t.index}", "constant", _shape(t.shape), t.nonzeros, t.size, t.distinct)
        + (t.dtype, t.format, t.nbytes)
        for t in tensors
    ]
    print_table(console, f"{name}: {Path(name).stat().st_size:,} bytes", columns, rows)
    used = ", ".join(f"{count} {operator}" for operator, count in list_operators(name).items())
    console.print(f"Operators: {used}.", highlight=False)
    for what, said in read_notes(name).items():
        console.print(f"{what}: {said}", highlight=False, markup=False)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
