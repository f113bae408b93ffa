# SPDX-License-Identifier: Apache-2.0
"""The flags of all commands; nothing here loads TensorFlow."""

from __future__ import annotations

from typing import Any

from absl import flags

from tfmot_atmc.cli.declared import define_fields
from tfmot_atmc.cli.numbers import define_number

__all__ = ["compress", "evaluate", "export", "inspect", "quantize", "study"]

# What the library takes, as it lists them itself; a test keeps them equal.
_OPTIMIZE = ["size", "latency", "balanced"]
_VALUES = ["auto", "float32", "int8", "int4", "int2", "full_int8"]
_TYPES = ["float32", "uint8", "int8"]
_FORMATS = ["tflite", "c"]
_CPUS = ["cortex-m0plus", "cortex-m4"]
_WAYS = ["uniform", "zero_kmeans"]


def compress(values: flags.FlagValues) -> None:
    """Defines the flags of `atmc compress`: the settings of a run, and the threads."""
    define_fields("recipes/settings.py", "CompressionSettings", values)
    _whole(values, "threads", None, "Threads of TensorFlow. [all cores]", least=1)


def evaluate(values: flags.FlagValues) -> None:
    """Defines the flags of `atmc evaluate`."""
    at: dict[str, Any] = {"flag_values": values}
    flags.DEFINE_string("dataset", "digits", "digits, mnist, cifar10, ...", **at)
    flags.DEFINE_string("data_dir", None, "Folder of tensorflow-datasets.", **at)
    flags.DEFINE_list(
        "attack",
        [],
        "pgd, fgsm, autoattack, square, ... or several with commas. [PGD of 16 and of 40 steps; "
        "for a .tflite file without --source, square]",
        **at,
    )
    flags.DEFINE_string(
        "epsilon",
        None,
        "Radius in input units: 8/255; of vectors also 0.1,0.2 or age=1,income=50. [by dataset]",
        **at,
    )
    _own_data(values)
    _whole(values, "steps", None, "Steps of --attack.", least=1)
    flags.DEFINE_string("source", None, "Keras twin of a .tflite file, to attack it through.", **at)
    _whole(values, "limit", None, "Use only so many examples.", least=1)
    _whole(values, "batch_size", 250, "Examples attacked at once.", least=1)
    _whole(values, "seed", 0, "Seed of the attacks.")
    flags.DEFINE_bool("checks", True, "Look for signs of fake robustness.", **at)
    flags.DEFINE_bool(
        "second_opinion", True, "With the checks: run stronger attacks on a sample.", **at
    )
    flags.DEFINE_string("state", None, "File from which a stopped run goes on.", **at)
    flags.DEFINE_enum(
        "curve",
        None,
        ["epsilon", "steps"],
        "Measure one attack at several radii, or at several numbers of steps (or queries).",
        **at,
    )
    flags.DEFINE_list("values", [], "Where: 0.1,0.2 or 4/255,8/255. [six values]", **at)
    flags.DEFINE_string("out", None, "JSON file for the report or the curve.", **at)
    flags.DEFINE_string(
        "picture", None, "PNG of the curve, or of examples under the first attack.", **at
    )


def export(values: flags.FlagValues) -> None:
    """Defines the flags of `atmc export`."""
    at: dict[str, Any] = {"flag_values": values}
    flags.DEFINE_string("out", None, "File to write. [beside the model]", **at)
    flags.DEFINE_string("dataset", None, "Compare on its test images. [random inputs]", **at)
    flags.DEFINE_string("data_dir", None, "Folder of tensorflow-datasets.", **at)
    _own_data(values)
    _whole(values, "batch_size", 1, "Batch of the file; 0: open.")
    flags.DEFINE_bool("sparse", True, "Store sparse weights sparsely; --nosparse: not.", **at)
    flags.DEFINE_enum(
        "optimize", "size", _OPTIMIZE, "What decides the form of compressed kernels.", **at
    )
    flags.DEFINE_enum(
        "values", "auto", _VALUES, "How values are stored; full_int8 computes so too.", **at
    )
    flags.DEFINE_string("max_bytes", None, "Largest file to accept, such as 24KB.", **at)
    flags.DEFINE_enum("input_type", "float32", _TYPES, "Inputs of a full_int8 file.", **at)
    flags.DEFINE_enum("output_type", "float32", _TYPES, "Outputs of a full_int8 file.", **at)
    define_number("tolerance", "Largest relative difference from Keras. [by the values]", values)
    flags.DEFINE_enum(
        "format", "tflite", _FORMATS, "c: C99 for microcontrollers, full_int8 or float32.", **at
    )
    flags.DEFINE_string("max_flash", None, "Most flash of the C code, such as 16KB.", **at)
    flags.DEFINE_string("max_ram", None, "Most RAM of the C code, such as 8KB.", **at)
    flags.DEFINE_enum("cpu", "cortex-m4", _CPUS, "Core that flash is measured for.", **at)
    define_number("pixel_max", "The C code takes bytes: what 255 means to the model.", values)
    _whole(values, "test_images", 0, "Write so many test images as images.h beside the C code.")
    flags.DEFINE_bool(
        "board", False, "Also a project with 10 images: make run emulates a microcontroller.", **at
    )


def inspect(values: flags.FlagValues) -> None:
    """Defines the flags of `atmc inspect`: none."""
    del values


def quantize(values: flags.FlagValues) -> None:
    """Defines the flags of `atmc quantize`."""
    at: dict[str, Any] = {"flag_values": values}
    flags.DEFINE_integer("bits", 8, "b: at most 2^b nonzero values a kernel, 1..16.", **at)
    flags.DEFINE_enum("how", "uniform", _WAYS, "How the values are chosen.", **at)
    flags.DEFINE_integer("grid", None, "Only integers in [-n, n] times a scale; 127: int8.", **at)
    flags.DEFINE_string("out", None, "File to write. [beside the model]", **at)


def study(values: flags.FlagValues) -> None:
    """Defines the flags of `atmc study`."""
    at: dict[str, Any] = {"flag_values": values}
    flags.DEFINE_string("out", None, "Folder for all files. [atmc_out/NAME]", **at)
    _whole(values, "jobs", None, "Processes at once; 0 for this one. [by cores]")
    _whole(values, "threads", None, "Threads of each. [an equal share of the cores]", least=1)
    flags.DEFINE_string("data_dir", None, "Folder of tensorflow-datasets.", **at)
    flags.DEFINE_bool("report_only", False, "Run nothing; write results of what is done.", **at)
    flags.DEFINE_list(
        "known", [], "results.json of earlier runs: what they measured is not run again.", **at
    )


def _own_data(values: flags.FlagValues) -> None:
    """Defines the flags for data of one's own in place of a dataset."""
    at: dict[str, Any] = {"flag_values": values}
    flags.DEFINE_string(
        "data", None, "Own data: a folder of images, an .npz file, or saved by tf.data.", **at
    )
    flags.DEFINE_string("bounds", None, "Its lowest and highest value: 0,255.", **at)
    flags.DEFINE_string("image_size", None, "Bring images of a folder to 96,96.", **at)


def _whole(
    values: flags.FlagValues, name: str, default: int | None, text: str, least: int = 0
) -> None:
    flags.DEFINE_integer(name, default, text, lower_bound=least, flag_values=values)
