# SPDX-License-Identifier: Apache-2.0
"""`atmc quantize`: few distinct values for a trained .keras file, without training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from absl import flags
from rich.console import Console

from tfmot_atmc.cli.command import Command, demonstration_file, print_table
from tfmot_atmc.compression.quantization import WAYS, quantize_after_training, stored_kernels
from tfmot_atmc.recipes.pipeline import load_keras
from tfmot_atmc.utils.files import written_whole

__all__ = ["COMMAND"]

_COLUMNS = ("name", "nonzeros", "values", "nonzeros after", "values after", "mean square error")


def _define(values: flags.FlagValues) -> None:
    at = {"flag_values": values}
    flags.DEFINE_integer("bits", 8, "b: at most 2^b nonzero values a kernel, 1..16.", **at)
    flags.DEFINE_enum("how", "uniform", list(WAYS), "How the values are chosen.", **at)
    flags.DEFINE_integer("grid", None, "Only integers in [-n, n] times a scale; 127: int8.", **at)
    flags.DEFINE_string("out", None, "File to write. [beside the model]", **at)


def _run(values: flags.FlagValues, operands: list[str], console: Console) -> None:
    name = operands[0] if operands else demonstration_file("final.keras", console)
    given = Path(name)
    out = Path(values.out or given.with_name(f"{given.stem}-{values.how}{values.bits}.keras"))
    if out.suffix != ".keras":
        raise ValueError(f"--out must end in .keras. Received {str(out)!r}.")
    if out.resolve() == given.resolve():
        raise ValueError(f"--out is the model itself, {name!r}. Give another name.")
    model = load_keras(name)
    small = quantize_after_training(model, values.bits, values.how, grid=values.grid)
    out.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(out) as partial:
        small.save(partial)
    before, after = stored_kernels(model), stored_kernels(small)
    rows = [
        (
            kernel,
            *_counts(old),
            *_counts(new),
            f"{np.mean(np.square(new - old, dtype=np.float64)):.3g}",
        )
        for (kernel, old), new in zip(before.items(), after.values(), strict=True)
    ]
    print_table(console, f"{name}: {values.how}, {values.bits} bits", _COLUMNS, rows)
    console.print(f"Wrote {out}. No training followed: evaluate it.", highlight=False)


def _counts(value: np.ndarray) -> tuple[int, int]:
    nonzero = value[value != 0]
    return int(nonzero.size), int(np.unique(nonzero).size)


COMMAND = Command(
    "quantize",
    "Gives the kernels of a .keras model few distinct values, without training.",
    _define,
    _run,
    operand="MODEL.keras",
)
