# SPDX-License-Identifier: Apache-2.0
"""What every exporter checks: where it writes, what it is given, and that the file is the model."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfmot_atmc.export.tflite.conversion import ExportError, InputSpec
from tfmot_atmc.slimming.dead import constant_output, dead_layers, dead_message

__all__ = [
    "check_class_names",
    "check_types",
    "check_units",
    "calibration_samples",
    "check_agreement",
    "check_model",
    "check_path",
    "comparison_examples",
    "label_agreement",
    "largest_difference",
    "warn_of_dead_layers",
]

# Eight bits of activations move outputs, but must not move decisions.
_INTEGER_AGREEMENT = 0.9
_TYPES = ("float32", "uint8", "int8")
_OTHER_UNITS = 100.0
_MOST_COMPARED = 256
_GENERATED_EXAMPLES = 16


def check_path(path: str | os.PathLike[str], suffix: str, overwrite: bool) -> Path:
    """Returns the path of a file to write, if it may be written.

    Raises:
        ValueError: if the name ends otherwise, or its folder is missing.
        FileExistsError: if the file exists and `overwrite` is False.
    """
    target = Path(path)
    if target.suffix != suffix:
        raise ValueError(f"The file name must end in {suffix}. Received {target.name!r}.")
    if not target.parent.is_dir():
        raise ValueError(f"The directory {str(target.parent)!r} does not exist; create it first.")
    if target.is_dir():
        raise ValueError(f"{str(target)!r} is a directory; give the name of a file.")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{str(target)!r} exists; pass overwrite=True to replace it.")
    return target


def check_model(model: Any) -> keras.Model:
    """Returns a built, plain Keras model as it is, and refuses everything else.

    Raises:
        TypeError: if `model` is not a Keras model.
        ValueError: if it is wrapped for compression or not built.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a keras.Model. Received {type(model).__name__}.")
    if hasattr(model, "compression_report"):
        raise ValueError(
            f"The model {model.name!r} is wrapped for compression; call "
            "`strip_compression(model)` first and export what it returns."
        )
    if not model.built:
        raise ValueError(
            f"The model {model.name!r} is not built; give it an Input, or call it on a batch."
        )
    return model


def calibration_samples(spec: InputSpec, representative: Any) -> list[np.ndarray]:
    """Returns representative data as one finite array per input.

    Raises:
        ValueError: if it does not fit the model, or is not finite.
    """
    samples = spec.flatten(representative, "representative")
    for name, array in zip(spec.names, samples, strict=True):
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise ValueError(f"`representative` for {name!r} holds values that are not finite.")
    return samples


def comparison_examples(
    spec: InputSpec, inputs: Any, samples: Sequence[np.ndarray] | None
) -> list[np.ndarray]:
    """Returns what to compare on: `inputs`, the first of `samples`, or made-up examples."""
    if inputs is not None:
        return spec.flatten(inputs)
    if samples is not None:
        return [array[:_MOST_COMPARED] for array in samples]
    return _generate(spec)


def _generate(spec: InputSpec) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = []
    for name, shape, dtype in zip(spec.names, spec.shapes, spec.dtypes, strict=True):
        full = (_GENERATED_EXAMPLES, *(size or 1 for size in shape[1:]))
        if dtype == "float32":
            arrays.append(rng.random(full, np.float32))
        elif dtype == "bool" or np.issubdtype(np.dtype(dtype), np.integer):
            arrays.append(rng.integers(0, 2, full).astype(dtype))
        else:
            raise ValueError(
                f"Examples of dtype {dtype} for input {name!r} cannot be generated; pass `inputs`."
            )
    return arrays


def largest_difference(outputs: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    """Returns the largest difference, relative to the largest expected value; the worst output.

    Raises:
        ExportError: if shapes differ.
    """
    worst = 0.0
    for output, reference in zip(outputs, expected, strict=True):
        if output.shape != reference.shape:
            raise ExportError(f"The file returns shape {output.shape}, Keras {reference.shape}.")
        reference = reference.astype(np.float64)
        largest = float(np.abs(reference).max(initial=0.0))
        difference = float(np.abs(output - reference).max(initial=0.0))
        worst = float(np.maximum(worst, difference / (largest or 1.0)))  # NaN propagates
    return worst


def label_agreement(outputs: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float | None:
    """Returns the share of examples with the same largest output; None without several classes."""
    shares = [
        float(np.mean(output.argmax(-1) == reference.argmax(-1)))
        for output, reference in zip(outputs, expected, strict=True)
        if reference.ndim > 1 and reference.shape[-1] > 1
    ]
    return min(shares) if shares else None


def check_agreement(agreement: float | None, is_integer: bool, min_agreement: float | None) -> None:
    """Refuses a file that gives the label of Keras too rarely.

    Raises:
        ExportError: if it does so for less than `min_agreement`, by default 0.9 for integer files.
    """
    floor = min_agreement
    if floor is None:
        floor = _INTEGER_AGREEMENT if is_integer else 0.0
    if agreement is not None and agreement < floor:
        raise ExportError(
            f"The exported file gives the label of Keras for {agreement:.1%} of the examples, at "
            f"least {floor:.1%} is asked for; pass other `representative` data, a lower "
            '`min_agreement`, or values="int8".'
        )


def warn_of_dead_layers(
    model: keras.Model, arrays: Sequence[np.ndarray], expected: Sequence[np.ndarray]
) -> tuple[str, ...]:
    """Warns of a model whose agreement with its file says nothing."""
    constant = constant_output(expected) and not constant_output(arrays)
    message = dead_message(dead_layers(model), constant)
    if message is None:
        return ()
    warnings.warn(message, stacklevel=3)
    return (message,)


def check_types(full_int8: bool, input_type: str, output_type: str) -> None:
    """Refuses types at the ends of a file that it cannot have.

    Raises:
        ValueError: for an unknown type, or integers at the ends of a file that computes in floats.
    """
    for name, given in (("input_type", input_type), ("output_type", output_type)):
        if given not in _TYPES:
            raise ValueError(f"`{name}` must be one of {_TYPES}. Received {given!r}.")
        if given != "float32" and not full_int8:
            raise ValueError(
                f"{name}={given!r} needs a file that computes in integers: pass "
                'values="full_int8" and `representative`.'
            )


def check_class_names(names: Sequence[str] | None, expected: Sequence[np.ndarray]) -> None:
    """Refuses class names that are not one for each output.

    Raises:
        ValueError: if their number is another.
    """
    if names is not None and len(names) != expected[0].shape[-1]:
        raise ValueError(
            f"`class_names` must name each of the {expected[0].shape[-1]} outputs. Received "
            f"{len(names)} names."
        )


def check_units(arrays: Sequence[np.ndarray], samples: Sequence[np.ndarray] | None) -> None:
    """Refuses calibration data in other units than the examples that the file is compared on.

    Raises:
        ValueError: if the largest values of the two differ by more than a factor of a hundred.
    """
    for given, sample in zip(arrays, samples or (), strict=False):
        largest = float(np.abs(given).max(initial=0.0)), float(np.abs(sample).max(initial=0.0))
        if max(largest) > _OTHER_UNITS * min(largest) > 0:
            raise ValueError(
                f"`representative` reaches {largest[1]:g} and `inputs` {largest[0]:g}: they are in "
                "different units. Scale the calibration images as those of training, for example "
                "by 1 / 255."
            )
