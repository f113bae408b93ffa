# SPDX-License-Identifier: Apache-2.0
"""`atmc export`: from a .keras file to a sparse .tflite file, or to C code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
from absl import flags
from rich.console import Console

from tfmot_atmc import models
from tfmot_atmc.cli.demonstration import demonstration_file
from tfmot_atmc.compression.deploy import deploy
from tfmot_atmc.compression.model import CompressedModel
from tfmot_atmc.datasets.splits import Dataset
from tfmot_atmc.export import (
    C_VALUE_MODES,
    CModel,
    CReport,
    ExportReport,
    export_c,
    export_tflite,
)
from tfmot_atmc.export.c import write_board, write_images
from tfmot_atmc.recipes.pipeline import load_keras
from tfmot_atmc.recipes.sources import load_data

__all__ = ["run"]

_EXAMPLES = 256
_BOARD_IMAGES = 10
_CALIBRATED = "full_int8"
_ONLY_C = ("max_flash", "max_ram", "cpu", "pixel_max", "test_images", "board")
_ONLY_TFLITE = ("sparse", "batch_size", "max_bytes", "input_type", "output_type")
# What the exporter of C code calls what the flag says.
_OPTIMIZE = {"size": "size", "latency": "speed", "balanced": "balanced"}


def run(values: flags.FlagValues, operands: list[str], console: Console) -> None:
    """Does what the command is for.

    Args:
        values: the flags.
        operands: the positional arguments.
        console: where to print.
    """
    calibrated = values.values == _CALIBRATED or (values.format == "c" and values.values == "auto")
    dataset = values.dataset
    if dataset is None and values.format == "c" and not operands:
        dataset = "digits"  # what the demonstration is trained on
    _check(values, calibrated, dataset)
    name = operands[0] if operands else demonstration_file("final.keras", console)
    model = models.references.load(name) if name in models.references.names() else load_keras(name)
    if isinstance(model, CompressedModel):
        kept = "full_int8" if calibrated else values.values
        deployment = deploy(model, optimize=values.optimize, values=kept)
        console.print(str(deployment), highlight=False, markup=False)
        model = deployment.model
    data = None
    if dataset is not None or values.data is not None:
        data = load_data(
            str(dataset),
            values.data,
            bounds=values.bounds,
            image_size=values.image_size,
            data_dir=values.data_dir,
            limit=_EXAMPLES,
        )
    given: dict[str, Any] = {
        "inputs": None if data is None else data.x_test,
        "representative": data.x_train if data is not None and calibrated else None,
        "tolerance": values.tolerance,
    }
    if data is not None:
        if values.format == "tflite":
            given |= {"class_names": data.class_names}
        if data.task != "classes":
            given |= {"min_agreement": 0.0}  # the largest output means nothing there
    write = _write_c if values.format == "c" else _write_tflite
    path = Path(values.out or Path(name).with_suffix(f".{values.format}"))
    if values.board:
        path.parent.mkdir(parents=True, exist_ok=True)
    report = write(values, model, path, given)
    console.print(str(report), highlight=False, markup=False)
    if data is not None and (values.test_images or values.board):
        _write_project(values, path, data, console)


def _write_project(values: flags.FlagValues, path: Path, data: Dataset, console: Console) -> None:
    """Writes test images beside the C file, and what runs it in an emulator."""
    count = values.test_images or _BOARD_IMAGES
    images, labels = data.x_test[:count], data.y_test[:count]
    write_images(path.with_name("images.h"), CModel(path), images, labels)
    said = f"{path.with_name('images.h')}: {len(images)} test images"
    if values.board:
        write_board(path.parent)
        said += f"; run them on an emulated microcontroller by: make -C {path.parent} run"
    console.print(said, highlight=False, markup=False)


def _check(values: flags.FlagValues, calibrated: bool, dataset: str | None) -> None:
    own = values.data is not None
    if own and values["dataset"].present:
        raise ValueError("Give --dataset or --data, not both.")
    if calibrated and dataset is None and not own:
        raise ValueError(
            f"--values={_CALIBRATED} needs --dataset, or --data of your own, whose training "
            "examples settle the scales."
        )
    if values.format == "c" and values.values not in ("auto", *C_VALUE_MODES):
        raise ValueError(
            f"--format=c writes --values={' or '.join(C_VALUE_MODES)}. Received {values.values}."
        )
    for_other = _ONLY_TFLITE if values.format == "c" else _ONLY_C
    wrong = [flag for flag in for_other if values[flag].present]
    if wrong:
        raise ValueError(f"--{wrong[0]} is not for --format={values.format}.")
    if (values.test_images or values.board) and dataset is None and not own:
        raise ValueError("--test_images and --board need --dataset or --data.")
    if values.board and Path(values.out or "").name != "model.c":
        raise ValueError("--board needs --out=FOLDER/model.c: the folder of the project.")


def _write_tflite(
    values: flags.FlagValues, model: keras.Model, path: Path, given: dict[str, Any]
) -> ExportReport:
    return export_tflite(
        model,
        path,
        sparse=values.sparse,
        batch_size=values.batch_size or None,
        values=values.values,
        max_bytes=values.max_bytes,
        input_type=values.input_type,
        output_type=values.output_type,
        **given,
    )


def _write_c(
    values: flags.FlagValues, model: keras.Model, path: Path, given: dict[str, Any]
) -> CReport:
    return export_c(
        model,
        path,
        values=_CALIBRATED if values.values == "auto" else values.values,
        optimize=_OPTIMIZE[values.optimize] if values["optimize"].present else "balanced",
        pixel_max=values.pixel_max,
        max_flash=values.max_flash,
        max_ram=values.max_ram,
        cpu=values.cpu,
        **given,
    )
