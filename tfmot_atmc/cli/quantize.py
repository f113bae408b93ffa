# SPDX-License-Identifier: Apache-2.0
"""`atmc quantize`: few distinct values for a trained .keras file, without training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from absl import flags
from rich.console import Console

from tfmot_atmc.cli.demonstration import demonstration_file
from tfmot_atmc.cli.printing import print_table
from tfmot_atmc.compression.quantization import quantize_after_training, stored_kernels
from tfmot_atmc.recipes.pipeline import load_keras
from tfmot_atmc.utils.files import written_whole

__all__ = ["run"]

_COLUMNS = ("name", "nonzeros", "values", "nonzeros after", "values after", "mean square error")


def run(values: flags.FlagValues, operands: list[str], console: Console) -> None:
    """Does what the command is for.

    Args:
        values: the flags.
        operands: the positional arguments.
        console: where to print.
    """
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
