# SPDX-License-Identifier: Apache-2.0
"""`atmc compress`: from a model's name or file to a checked .tflite file."""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf
from absl import flags
from rich.console import Console

from tfmot_atmc.cli.demonstration import training_output
from tfmot_atmc.cli.printing import print_table
from tfmot_atmc.recipes.measures import is_share
from tfmot_atmc.recipes.pipeline import run_compression
from tfmot_atmc.recipes.settings import CompressionSettings

__all__ = ["run"]


def run(values: flags.FlagValues, operands: list[str], console: Console) -> None:
    """Does what the command is for.

    Args:
        values: the flags.
        operands: the positional arguments.
        console: where to print.
    """
    del operands
    if values.threads is not None:
        _set_threads(values.threads)
    names = [field.name for field in dataclasses.fields(CompressionSettings)]
    settings = CompressionSettings(**{name: values[name].value for name in names}).resolved()
    command = ["atmc", "compress", *_given(values)]
    results = run_compression(settings, command=command, **training_output(console))
    _show_results(results, console)
    _show_budget(results["budget"], console)
    _show_code(results.get("c"), settings.cpu, console)
    for warning in results["warnings"]:
        console.print(f"Warning: {warning}", highlight=False, markup=False)
    console.print(f"All files are in {settings.out}; see results.png there.")


def _given(values: flags.FlagValues) -> list[str]:
    given = [values[name] for name in sorted(values) if values[name].present]
    listed = [(f.name, f.value if isinstance(f.value, list) else [f.value]) for f in given]
    return [f"--{name}={value}" for name, each in listed for value in each]


def _set_threads(count: int) -> None:
    try:
        tf.config.threading.set_intra_op_parallelism_threads(count)
        tf.config.threading.set_inter_op_parallelism_threads(count)
    except RuntimeError as error:
        raise ValueError("--threads must be set before TensorFlow runs in this process.") from error


def _show_results(results: dict[str, Any], console: Console) -> None:
    """Prints the table of results.

    Args:
        results: what `run_compression` returned.
        console: where to print.
    """
    found, sizes, compression = (results[key] for key in ("evaluation", "bytes", "compression"))
    rows = []
    for name, nonzeros, size in (
        ("dense", compression["dense_parameters"], sizes["dense_tflite"]),
        ("compressed", compression["nonzeros"], None),
        ("tflite", None, sizes["tflite"]),
        ("c", None, None),
    ):
        if name not in found:
            continue
        shown = ".2%" if is_share(results["measure"]) else ".4g"
        values = [format(found[name][kind], shown) for kind in ("clean", "PGD-16", "PGD-40")]
        rows.append((name, *values, nonzeros, size))
    title = f"{results['measure'].capitalize()} on {found['dense']['report']['n']:,} test examples"
    columns = ("model", "clean", "PGD-16", "PGD-40", "nonzeros", "bytes on disk")
    print_table(console, title, columns, rows)
    parts = ", ".join(f"{part} {n:,}" for part, n in compression["nonzeros_by_part"].items())
    console.print(
        f"Nonzeros: {parts}. At most {compression['max_distinct']} values a matrix. By the paper's "
        f"metric {compression['paper_bits']:,} bits, a ratio of {compression['paper_ratio']:.5f}.",
        highlight=False,
    )
    macs, dense = compression.get("macs"), compression.get("dense_macs")
    if macs is not None and dense:
        console.print(
            f"Multiply-accumulates for one example: {macs:,} of {dense:,} ({macs / dense:.2%}).",
            highlight=False,
        )


def _show_budget(budget: dict[str, Any] | None, console: Console) -> None:
    if budget is None:
        return
    said = f"Budget: {budget['bytes']:,} of {budget['max_bytes']:,} bytes, "
    said += f"at a ratio of {budget['ratio']:.4f}"
    if budget["channels_removed"]:
        gone = sum(budget["channels_removed"].values())
        said += (
            f", with {gone} channels removed after training: compare the last two rows. A smaller "
            "--max_bytes, trained into another --out, may keep more"
        )
    console.print(f"{said}.", highlight=False)


def _show_code(code: dict[str, Any] | None, cpu: str, console: Console) -> None:
    if code is None:
        return
    sizes = [
        f"{found['flash']:,} bytes of flash and {found['static'] + (found['stack'] or 0):,} of RAM "
        f"at {found['optimize']}"
        for found in code["footprints"]
    ]
    told = ", ".join(sizes) or f"{code['static_bytes']:,} bytes of static RAM; flash not measured"
    console.print(f"C code for {cpu}: {told}.", highlight=False)
