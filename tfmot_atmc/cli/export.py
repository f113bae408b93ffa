# SPDX-License-Identifier: Apache-2.0
"""`atmc export`: from a .keras file to a sparse .tflite file."""

from __future__ import annotations

from pathlib import Path

from absl import flags
from rich.console import Console

from tfmot_atmc import datasets
from tfmot_atmc.cli.demonstration import demonstration_file
from tfmot_atmc.compression.deploy import deploy
from tfmot_atmc.compression.model import CompressedModel
from tfmot_atmc.export import export_tflite
from tfmot_atmc.recipes.pipeline import load_keras

__all__ = ["run"]

_EXAMPLES = 256
_CALIBRATED = "full_int8"


def run(values: flags.FlagValues, operands: list[str], console: Console) -> None:
    """Does what the command is for.

    Args:
        values: the flags.
        operands: the positional arguments.
        console: where to print.
    """
    if values.values == _CALIBRATED and values.dataset is None:
        raise ValueError(
            f"--values={_CALIBRATED} needs --dataset, whose training images settle the scales; for "
            f'data of your own call export_tflite(model, path, values="{_CALIBRATED}", '
            "representative=x_train[:300]) in Python."
        )
    name = operands[0] if operands else demonstration_file("final.keras", console)
    model = load_keras(name)
    if isinstance(model, CompressedModel):
        deployment = deploy(model, optimize=values.optimize, values=values.values)
        console.print(str(deployment), highlight=False, markup=False)
        model = deployment.model
    inputs = representative = None
    if values.dataset is not None:
        data = datasets.load(values.dataset, data_dir=values.data_dir, limit=_EXAMPLES)
        inputs = data.x_test
        representative = data.x_train if values.values == _CALIBRATED else None
    report = export_tflite(
        model,
        values.out or Path(name).with_suffix(".tflite"),
        inputs=inputs,
        representative=representative,
        sparse=values.sparse,
        batch_size=values.batch_size or None,
        values=values.values,
        max_bytes=values.max_bytes,
        tolerance=values.tolerance,
    )
    console.print(str(report), highlight=False, markup=False)
