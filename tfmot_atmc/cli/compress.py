# SPDX-License-Identifier: Apache-2.0
"""`atmc compress`: from a model's name or file to a checked .tflite file."""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf
from absl import flags
from rich.console import Console

from tfmot_atmc import models
from tfmot_atmc.cli.command import Command, define_number, print_table, training_output
from tfmot_atmc.recipes.pipeline import run_compression
from tfmot_atmc.recipes.run import PRESETS
from tfmot_atmc.recipes.settings import METHODS, CompressionSettings

__all__ = ["COMMAND"]


def _define(values: flags.FlagValues) -> None:
    def text(name: str, default: str | None, about: str) -> None:
        flags.DEFINE_string(name, default, about, flag_values=values)

    def whole(name: str, about: str, default: int | None = None, least: int = 1) -> None:
        flags.DEFINE_integer(name, default, about, lower_bound=least, flag_values=values)

    def choice(name: str, among: tuple[str, ...], about: str) -> None:
        flags.DEFINE_enum(name, among[0], list(among), about, flag_values=values)

    text("model", None, f"A .keras file, or one of {', '.join(models.names())}. [by dataset]")
    text("dataset", "digits", "digits, mnist, cifar10, ... (tensorflow-datasets).")
    text("data_dir", None, "Folder of tensorflow-datasets.")
    choice("method", METHODS, "How to compress; da is dense adversarial training alone.")
    define_number("ratio", "Nonzeros per dense kernel parameter, in (0, 1]. [by dataset]", values)
    text("max_bytes", None, "In place of --ratio: largest size of the .tflite file, such as 24KB.")
    whole("bits", "Bits of ATMC's codebooks, 32 for none. [by dataset]")
    define_number(
        "layer_exponent",
        "Budgets of layers by their sizes to this power, in [0, 1]. [one budget for all]",
        values,
    )
    define_number("epsilon", "Radius of the attacks in input units: 8/255. [by dataset]", values)
    text("attack", "pgd", "Training attack: pgd, fgsm, rfgsm, atta, wrm, trades, mifgsm, ...")
    whole("steps", "Steps of the training attack. [by dataset]")
    choice(
        "objective",
        ("adversarial", "half", "trades"),
        "Loss on attacked inputs; half on clean ones; or that of TRADES, for --attack=trades.",
    )
    choice("preset", PRESETS, "Stages of training; paper follows the authors' code.")
    whole("dense_epochs", "Epochs of the dense start; 0 for a .keras file. [by dataset]", least=0)
    whole("epochs", "Epochs of the pruning stage. [by dataset]")
    define_number("learning_rate", "Factor on the rates of the stages after the start.", values)
    text("optimizer", None, "Optimizer of those stages, at rates for it: sgd, adam. [by stage]")
    whole("batch_size", "Examples a step. [by stage]")
    whole("seed", "Seed of everything.", default=0, least=0)
    whole("limit", "Use at most so many examples of each split.")
    text("out", None, "Folder for all files. [atmc_out/DATASET]")
    whole("threads", "Threads of TensorFlow. [all cores]")


def _run(values: flags.FlagValues, operands: list[str], console: Console) -> None:
    del operands
    if values.threads is not None:
        _set_threads(values.threads)
    names = [field.name for field in dataclasses.fields(CompressionSettings)]
    settings = CompressionSettings(**{name: values[name].value for name in names}).resolved()
    command = ["atmc", "compress", *_given(values)]
    results = run_compression(settings, command=command, **training_output(console))
    _show_results(results, console)
    _show_budget(results["budget"], console)
    console.print(f"All files are in {settings.out}; see results.png there.")


def _given(values: flags.FlagValues) -> list[str]:
    return [f"--{name}={values[name].value}" for name in sorted(values) if values[name].present]


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
    ):
        accuracies = [f"{found[name][kind]:.2%}" for kind in ("clean", "PGD-16", "PGD-40")]
        rows.append((name, *accuracies, nonzeros, size))
    title = f"Accuracy on {found['dense']['report']['n']:,} test examples"
    columns = ("model", "clean", "PGD-16", "PGD-40", "nonzeros", "bytes on disk")
    print_table(console, title, columns, rows)
    parts = ", ".join(f"{part} {n:,}" for part, n in compression["nonzeros_by_part"].items())
    console.print(
        f"Nonzeros: {parts}. At most {compression['max_distinct']} values a matrix. By the paper's "
        f"metric {compression['paper_bits']:,} bits, a ratio of {compression['paper_ratio']:.5f}.",
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


COMMAND = Command(
    "compress",
    "Trains, compresses, exports and attacks a model; the same command again goes on.",
    _define,
    _run,
    after_interrupt="Run the same command again to go on after the last finished epoch.",
)
