# SPDX-License-Identifier: Apache-2.0
"""`atmc export`: from a .keras file to a sparse .tflite file."""

from __future__ import annotations

from pathlib import Path

from absl import flags
from rich.console import Console

from tfmot_atmc import datasets
from tfmot_atmc.cli.command import Command, demonstration_file
from tfmot_atmc.compression.deploy import OBJECTIVES, deploy
from tfmot_atmc.compression.model import CompressedModel
from tfmot_atmc.export import VALUE_MODES, export_tflite
from tfmot_atmc.recipes.pipeline import load_keras

__all__ = ["COMMAND"]

_EXAMPLES = 256
_CALIBRATED = "full_int8"


def _define(values: flags.FlagValues) -> None:
    at = {"flag_values": values}
    flags.DEFINE_string("out", None, "File to write. [beside the model]", **at)
    flags.DEFINE_string("dataset", None, "Compare on its test images. [random inputs]", **at)
    flags.DEFINE_string("data_dir", None, "Folder of tensorflow-datasets.", **at)
    flags.DEFINE_integer("batch_size", 1, "Batch of the file; 0: open.", lower_bound=0, **at)
    flags.DEFINE_bool("sparse", True, "Store sparse weights sparsely; --nosparse: not.", **at)
    flags.DEFINE_enum(
        "optimize", "size", OBJECTIVES, "What decides the form of compressed kernels.", **at
    )
    flags.DEFINE_enum(
        "values", "auto", VALUE_MODES, "How values are stored; full_int8 computes so too.", **at
    )
    flags.DEFINE_string("max_bytes", None, "Largest file to accept, such as 24KB.", **at)
    flags.DEFINE_float(
        "tolerance", None, "Largest relative difference from Keras. [by the values]", **at
    )


def _run(values: flags.FlagValues, operands: list[str], console: Console) -> None:
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


COMMAND = Command(
    "export",
    "Writes a .keras model as a sparse .tflite file, run and compared before it is kept.",
    _define,
    _run,
    operand="MODEL.keras",
)
