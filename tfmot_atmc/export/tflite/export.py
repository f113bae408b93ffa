# SPDX-License-Identifier: Apache-2.0
"""Exports Keras models to sparse .tflite files, and runs what was written before it is kept."""

from __future__ import annotations

import gzip
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfmot_atmc.export.tflite import cleaning, flatbuffer, interpreter, notes, rewrite
from tfmot_atmc.export.tflite.calibration import other_range
from tfmot_atmc.export.tflite.checks import (
    calibration_samples,
    check_agreement,
    check_class_names,
    check_model,
    check_path,
    check_types,
    check_units,
    comparison_examples,
    label_agreement,
    largest_difference,
    warn_of_dead_layers,
)
from tfmot_atmc.export.tflite.conversion import (
    ExportError,
    convert,
    describe_inputs,
    predict,
)
from tfmot_atmc.export.tflite.report import ExportReport, summarise_tensors
from tfmot_atmc.export.tflite.tracing import computing_in_float32
from tfmot_atmc.math.sizes import parse_bytes
from tfmot_atmc.slimming import SlimmingReport, compare_models, is_graph, slim_model
from tfmot_atmc.utils.files import written_whole
from tfmot_atmc.utils.keras_internals import flat_layers

_SUFFIX = ".tflite"
_TOLERANCES = {"auto": 1e-5, "float32": 1e-5, rewrite.FULL_INT8: 0.25}
_TOLERANCES |= dict.fromkeys(rewrite.ROUNDED, 0.1)
# Rounding adds up along a model: beyond so many weighted layers its tolerance grows.
_SHALLOW = 8
_MOST_ALLOWED = 10.0
# The interpreter without delegates is several times slower, and runs the same file.
_EXAMPLES_WITHOUT_DELEGATES = 32


class TooLargeError(ExportError):
    """The file is larger than it may be."""


def export_tflite(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    inputs: Any = None,
    sparse: bool = True,
    slim: bool | None = None,
    min_sparsity: float = 0.5,
    values: str = "auto",
    representative: Any = None,
    batch_size: int | None = 1,
    tolerance: float | None = None,
    min_agreement: float | None = None,
    max_bytes: int | str | None = None,
    input_type: str = "float32",
    output_type: str = "float32",
    class_names: Sequence[str] | None = None,
    names: bool | None = None,
    measure_latency: bool = True,
    overwrite: bool = True,
) -> ExportReport:
    """Writes a Keras model as a .tflite file whose sparse weights are stored sparsely.

    Channels whose removal changes nothing are removed first (`slim_model`). The other weights stay
    float32, bit for bit as the converter computes them (it folds batch normalisation into
    convolutions), unless `values="int8"` allows rounding. A kernel whose values are integers in
    [-127, 127] times one float32 scale is stored as int8, which restores the same bits. A dense
    layer of more than 256 inputs becomes a convolution where that makes its indices smaller.

    With `values="full_int8"` the file computes in integers: int8 weights of one scale each, int8
    activations, int32 biases, and float32 only at the inputs and outputs. Weights of convolutions
    are stored sparsely as they are, and those of dense layers where the layer can become a
    convolution: inputs of rank 2, a static batch, a kernel that no other layer shares. An
    operator without an int8 version, such as a sine, keeps float32; recurrent layers are refused.

    The file needs builtin operators only. It is run in the stock interpreter, with and without
    delegates, and compared with Keras before it takes its name: when that fails, nothing is written
    and what was at `path` before stays.

    Args:
        model: a built Keras model of any kind. Mixed precision is exported as float32.
        path: file to write; its name ends in `.tflite`.
        inputs: examples to compare on: an array, or a nest or dictionary of arrays as the model
            takes them. By default the first 256 of `representative`, or 16 examples: uniform in
            [0, 1) for floating inputs, 0 or 1 for integer inputs. Pass real data where that is not
            in the range of the model.
        sparse: whether to store sparse weights sparsely.
        slim: whether to remove channels that change nothing; None does it where the graph of the
            model is known.
        min_sparsity: least fraction of zeros, in [0, 1], from which sparse storage is considered.
            It is used only where it is smaller.
        values: `"auto"` stores int8 where it is exact; `"float32"` never does; `"int8"` also rounds
            weights and biases to 8 bits, each tensor by its best scale, where that saves bytes;
            `"int4"` and `"int2"` do the same, and store in 4 or 2 bits what is whole numbers up to
            7 or 1 times one scale (`methods.FewBits`): no delegate takes such a file, which makes
            it slower, and old interpreters do not load it;
            `"full_int8"` computes in integers too, and needs `representative`.
        representative: examples like `inputs`, some hundred of the training data: the ranges of
            their activations become the scales of a `"full_int8"` file.
        batch_size: static batch size of the file, or None for a dynamic one.
        tolerance: largest difference from Keras to accept, relative to the largest output; by
            default 1e-5, 0.1 where values are rounded and 0.25 with `"full_int8"`, more where the
            model is deep, or up to 1e-4 where the converter's own file differs as much. The report
            gives the difference.
        min_agreement: least share of the examples, in [0, 1], whose largest output is that of
            Keras; by default 0.9 with `values="full_int8"` and 0 otherwise.
        max_bytes: largest file to accept, in bytes or as text such as `"24KB"` (1 KB is 1,024
            bytes); None for any size.
        input_type: type of the inputs of a `"full_int8"` file: `"float32"`, or `"uint8"` or
            `"int8"` for what a camera or a microcontroller has. The file holds scale and zero
            point; the calibration settles them.
        output_type: type of its outputs, likewise.
        class_names: names of the outputs, to be written into the file (`export.read_notes`).
        names: whether weights keep their layers' names in the file; None unless `max_bytes` asks
            for few bytes.
        measure_latency: whether to time the file against the dense one (a fraction of a second for
            small models).
        overwrite: whether an existing file may be replaced.

    Returns:
        An `ExportReport`; print it for a table.

    Raises:
        TypeError: if `model` is not a Keras model.
        ValueError: if an argument is out of range, or the model is not built or still wrapped for
            compression, or cannot be slimmed though `slim` is True, or `representative` is missing,
            not needed, not finite or of another shape.
        FileExistsError: if the file exists and `overwrite` is False.
        ExportError: if the converter rejects the model, or the file does not run, does not match
            Keras or is not smaller than the dense one.
        TooLargeError: if the file is larger than `max_bytes`; an `ExportError`.

    Example:
        >>> report = export_tflite(model, "classifier.tflite", inputs=x_test)  # doctest: +SKIP
        >>> print(report)  # doctest: +SKIP
    """
    target = check_path(path, _SUFFIX, overwrite)
    model = computing_in_float32(check_model(model))
    _check_options(min_sparsity, values, batch_size, tolerance, min_agreement)
    _check_calibration(values, representative)
    check_types(values == rewrite.FULL_INT8, input_type, output_type)
    limit = None if max_bytes is None else parse_bytes(max_bytes)
    spec = describe_inputs(model, representative if inputs is None else inputs, batch_size)
    samples = None if representative is None else calibration_samples(spec, representative)
    arrays = comparison_examples(spec, inputs, samples)
    check_units(arrays, samples)
    expected = predict(model, spec, arrays)
    check_class_names(class_names, expected)
    types = (input_type, output_type)
    dense = convert(model, spec, samples, types)
    slimmed, slimming = _slimmed(model, slim)
    source = convert(slimmed, spec, samples, types) if slimming is not None else dense
    kept = notes.layer_names(flat_layers(model)) if _keeps(names, limit) else {}
    data, found = _rewrite(source, min_sparsity if sparse else None, values, kept, class_names)
    with written_whole(target) as temporary:
        temporary.write_bytes(data)
        allowed = tolerance or _default_tolerance(values, source, dense, arrays, expected)
        gate = _gate(temporary, arrays, expected, allowed)
        check_agreement(gate["label_agreement"], values == rewrite.FULL_INT8, min_agreement)
        latency = _latency(temporary, dense, arrays, batch_size) if measure_latency else {}
        report = ExportReport(
            path=str(target),
            bytes=temporary.stat().st_size,
            dense_bytes=len(dense),
            gzip_bytes=_gzip_size(data),
            dense_gzip_bytes=_gzip_size(dense),
            tensors=tuple(t for t in summarise_tensors(data, found) if len(t.shape) > 1),
            examples=len(arrays[0]),
            slimming=slimming,
            warnings=_doubts(model, arrays, expected, samples),
            **gate,
            **latency,
        )
        _check_size(report, limit)
    return report


def _doubts(
    model: keras.Model,
    arrays: Sequence[np.ndarray],
    expected: Sequence[np.ndarray],
    samples: Sequence[np.ndarray] | None,
) -> tuple[str, ...]:
    """Returns what makes the figures of a report say little."""
    found = warn_of_dead_layers(model, arrays, expected)
    return found if samples is None else found + other_range(model, samples)


def _slimmed(model: keras.Model, slim: bool | None) -> tuple[keras.Model, SlimmingReport | None]:
    """Returns the model without idle channels, and what that saved; None where there were none."""
    if not (slim or (slim is None and is_graph(model))):
        return model, None
    slimmed = slim_model(model)
    report = compare_models(model, slimmed)
    return slimmed, report if report.parameters[0] != report.parameters[1] else None


def _check_size(report: ExportReport, limit: int | None) -> None:
    if report.num_sparse and report.bytes >= report.dense_bytes:
        raise ExportError(
            f"The sparse file needs {report.bytes} bytes, the dense one {report.dense_bytes}; "
            "pass sparse=False."
        )
    if limit is not None and report.bytes > limit:
        raise TooLargeError(
            f"The file needs {report.bytes:,} bytes, `max_bytes` allows {limit:,}; compress "
            'the model further, or pass values="int8".'
        )


def _check_options(
    min_sparsity: float,
    values: str,
    batch_size: int | None,
    tolerance: float | None,
    min_agreement: float | None,
) -> None:
    if not 0.0 <= min_sparsity <= 1.0:
        raise ValueError(f"`min_sparsity` must be in [0, 1]. Received {min_sparsity}.")
    if values not in rewrite.VALUE_MODES:
        raise ValueError(f"`values` must be one of {rewrite.VALUE_MODES}. Received {values!r}.")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"`batch_size` must be positive or None. Received {batch_size}.")
    if tolerance is not None and not tolerance > 0.0:
        raise ValueError(f"`tolerance` must be positive. Received {tolerance}.")
    if min_agreement is not None and not 0.0 <= min_agreement <= 1.0:
        raise ValueError(f"`min_agreement` must be in [0, 1]. Received {min_agreement}.")


def _check_calibration(values: str, representative: Any) -> None:
    if values == rewrite.FULL_INT8 and representative is None:
        raise ValueError(
            f"values={values!r} computes in 8 bits and must know the range of every activation; "
            "pass `representative`, an array (or a nest of arrays, as the model takes them) of "
            "some hundred training examples, such as representative=x_train[:300]."
        )
    if values != rewrite.FULL_INT8 and representative is not None:
        raise ValueError(
            f"`representative` is for values={rewrite.FULL_INT8!r}. Received values={values!r}."
        )


def _keeps(names: bool | None, limit: int | None) -> bool:
    return limit is None if names is None else names


def _default_tolerance(
    values: str,
    source: bytes,
    dense: bytes,
    arrays: Sequence[np.ndarray],
    expected: Sequence[np.ndarray],
) -> float:
    """Returns what may be lost by storage: more in deep models, and no less than stock loses."""
    base = _TOLERANCES[values]
    if base >= _TOLERANCES["int8"]:
        depth = len(rewrite.weight_names(flatbuffer.read_model(source)))
        base *= max(1.0, (depth / _SHALLOW) ** 0.5)
    try:
        stock = interpreter.TFLiteModel(dense)(*arrays)
    except ValueError:
        return base  # what the interpreter cannot run at all is told of the file itself
    own = largest_difference(stock, expected)
    # A wrong calibration, too, is stock's own: so much is never accepted.
    most = _MOST_ALLOWED * base if values in ("auto", "float32") else base
    return min(max(base, 2.0 * own), most) if np.isfinite(own) else base


def _rewrite(
    dense: bytes,
    min_sparsity: float | None,
    values: str,
    layers: Mapping[str, str],
    class_names: Sequence[str] | None = None,
) -> tuple[bytes, dict[tuple[int, int], str]]:
    """Returns the file's content, and the names that its weights had."""
    model = flatbuffer.read_model(dense)
    names = rewrite.weight_names(model)
    if min_sparsity is not None:
        rewrite.sparsify_weights(model, min_sparsity=min_sparsity, values=values)
    numbers = cleaning.clean_model(model)
    kept = {(key[0], numbers[key]): name for key, name in names.items() if key in numbers}
    notes.write_names(model, notes.short_names(kept, layers))
    notes.add_notes(model, class_names)
    return flatbuffer.pack_model(model), kept


def _gate(
    path: Path, arrays: Sequence[np.ndarray], expected: Sequence[np.ndarray], tolerance: float
) -> dict[str, Any]:
    """Runs the file with and without delegates; raises `ExportError` if it is not the model."""
    if not all(np.isfinite(output).all() for output in expected):
        raise ExportError("The Keras model returns values that are not finite on these inputs.")
    few = min(len(arrays[0]), _EXAMPLES_WITHOUT_DELEGATES)
    try:
        default = interpreter.TFLiteModel(path)
        outputs = default(*arrays)
        plain = interpreter.TFLiteModel(path, delegates=False)(*(array[:few] for array in arrays))
    except ValueError as error:
        raise ExportError(f"The exported file does not run: {error}") from error
    difference = largest_difference(outputs, expected)
    without = largest_difference(plain, [output[:few] for output in expected])
    for what, measured in (("", difference), (" without delegates", without)):
        # Written so that NaN fails too.
        if not measured <= tolerance:
            raise ExportError(
                f"The exported file{what} differs from Keras by {measured:.3g} of the largest "
                f"output, more than {tolerance:.3g}; pass a larger `tolerance=` if that will do."
            )
    return {
        "max_difference": difference,
        "max_difference_without_delegates": without,
        "label_agreement": label_agreement(outputs, expected),
        "delegated_partitions": default.num_delegated_partitions,
    }


def _latency(
    path: Path, dense: bytes, arrays: Sequence[np.ndarray], batch_size: int | None
) -> dict[str, Any]:
    rows = np.arange(batch_size or 1) % len(arrays[0])
    batch = [array[rows] for array in arrays]
    measured = interpreter.measure_latency({"file": path, "dense": dense}, batch)
    return {"latency_ms": measured["file"], "dense_latency_ms": measured["dense"]}


def _gzip_size(data: bytes) -> int:
    return len(gzip.compress(data, mtime=0))
