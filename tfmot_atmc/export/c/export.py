# SPDX-License-Identifier: Apache-2.0
"""Exports Keras models to C99 for microcontrollers, and runs what was written before it is kept."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfmot_atmc.export.c.camera import ByteInput, byte_input
from tfmot_atmc.export.c.compiled import CModel, find_compiler
from tfmot_atmc.export.c.emitting import Source, emit
from tfmot_atmc.export.c.encoding import Form, Rows
from tfmot_atmc.export.c.lowering import lower
from tfmot_atmc.export.c.network import Network, UnsupportedError
from tfmot_atmc.export.c.planning import plan_network
from tfmot_atmc.export.c.program import Layer, Program
from tfmot_atmc.export.c.reading import read_network
from tfmot_atmc.export.c.reference import run_network
from tfmot_atmc.export.c.report import CReport, LayerSummary
from tfmot_atmc.export.c.sizes import CPUS, Footprint, allowed_footprint, measure_footprint
from tfmot_atmc.export.tflite.checks import (
    calibration_samples,
    check_agreement,
    check_model,
    check_path,
    comparison_examples,
    label_agreement,
    largest_difference,
    warn_of_dead_layers,
)
from tfmot_atmc.export.tflite.conversion import ExportError, convert, describe_inputs, predict
from tfmot_atmc.export.tflite.export import TooLargeError
from tfmot_atmc.math.sizes import parse_bytes
from tfmot_atmc.slimming import SlimmingReport, compare_models, is_graph, slim_model
from tfmot_atmc.utils.files import write_bytes

__all__ = ["C_VALUE_MODES", "OPTIMIZATIONS", "export_c"]

C_VALUE_MODES = ("full_int8", "float32")
OPTIMIZATIONS = ("balanced", "size", "speed")
_TOLERANCES = {"full_int8": 0.25, "float32": 1e-5}
_LEVELS = ("-O2", "-Os")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_KEYWORDS = frozenset(
    "auto break case char const continue default do double else enum extern float for goto if "
    "inline int long register restrict return short signed sizeof static struct switch typedef "
    "union unsigned void volatile while".split()
)


def export_c(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    values: str = "full_int8",
    representative: Any = None,
    inputs: Any = None,
    pixel_max: float | None = None,
    per_channel: bool = False,
    name: str = "model",
    optimize: str = "balanced",
    slim: bool | None = None,
    tolerance: float | None = None,
    min_agreement: float | None = None,
    max_flash: int | str | None = None,
    max_ram: int | str | None = None,
    cpu: str = "cortex-m4",
    overwrite: bool = True,
) -> CReport:
    """Writes a Keras model as one C99 file and a header, for microcontrollers.

    The code is small and fast because zeros are skipped: only nonzero weights are stored, and only
    they are multiplied. It needs no library, no heap and no operating system; compilers may call
    `memset` and `memcpy` by themselves, and their own support library for floats where the core
    has none. Activations share one static block of memory, so that the function is not for two
    threads at once.

    With `values="full_int8"` it computes in int8, bit for bit what TensorFlow Lite Micro computes
    from the same model (LiteRT's int8 kernels round differently). With `"float32"` it computes
    what Keras computes, but for the order of sums.

    With `pixel_max` the C function takes bytes, as cameras give them, and a `Rescaling` or a
    normalization at the beginning of the model is part of reading them.

    The file is compiled and run on this machine, and compared with Keras, before it takes its name:
    when that fails, nothing is written and what was at `path` before stays.

    Args:
        model: a built Keras model with one input and one output.
        path: file to write; its name ends in `.c`. The header's name ends in `.h` instead.
        values: `"full_int8"` or `"float32"`.
        representative: some hundred of the training examples, for the scales of int8 activations.
        inputs: examples to compare on, by default the first 256 of `representative`, or made-up
            ones.
        pixel_max: what the byte 255 means to the Keras model, such as 1.0 or 255.0, where the C
            function shall take bytes. By default 255 for a model that begins with a `Rescaling` of
            such numbers, and no bytes otherwise. Examples are rounded to bytes then.
        per_channel: whether each output channel of a kernel has its own scale, which is more exact
            where channels differ much, as those of depthwise convolutions do. It takes 5 bytes of
            flash a channel, and codebooks then take no less flash than other values.
        name: prefix of the C names: the function is called `{name}_invoke`.
        optimize: `"speed"`, `"size"`, or `"balanced"`, which packs weights into fewer bits where
            that costs little time.
        slim: whether to remove channels that change nothing; None does it where the graph of the
            model is known.
        tolerance: largest difference from Keras to accept, relative to the largest output; by
            default 1e-5, and 0.25 with `"full_int8"`.
        min_agreement: least share of the examples, in [0, 1], whose largest output is that of
            Keras; by default 0.9 with `"full_int8"` and 0 otherwise.
        max_flash: most flash to accept, in bytes or as text such as `"16KB"` (1 KB is 1,024
            bytes), code included, at `-O2` or else at `-Os`. Without `arm-none-eabi-gcc` the code
            is allowed for with 8,192 bytes.
        max_ram: most RAM to accept: static memory and stack, without the caller's input and
            output. Without `arm-none-eabi-gcc` the stack is allowed for with 512 bytes.
        cpu: the core that flash and stack are measured for: `"cortex-m0plus"` or `"cortex-m4"`.
        overwrite: whether existing files may be replaced.

    Returns:
        A `CReport`; print it for a table.

    Raises:
        TypeError: if `model` is not a Keras model.
        ValueError: if an argument is out of range, or `representative` is missing, not needed, not
            finite or of another shape.
        FileExistsError: if a file exists and `overwrite` is False.
        ExportError: if the model has an operator without a kernel, or the written code does not
            compute what Keras computes.
        TooLargeError: if more flash or RAM is needed than allowed; an `ExportError`.

    Example:
        >>> report = export_c(model, "model.c", representative=x_train[:300])  # doctest: +SKIP
        >>> print(report)  # doctest: +SKIP
    """
    target = check_path(path, ".c", overwrite)
    header = check_path(target.with_suffix(".h"), ".h", overwrite)
    _check_model(check_model(model), target)
    _check_options(values, name, optimize, cpu, pixel_max, tolerance, min_agreement)
    _check_representative(values, representative, per_channel)
    limits = _limit(max_flash), _limit(max_ram)
    spec = describe_inputs(model, representative if inputs is None else inputs, 1)
    _check_single(spec.names)
    samples = None if representative is None else calibration_samples(spec, representative)
    given, inner = byte_input(model, pixel_max)
    arrays = _examples(comparison_examples(spec, inputs, samples), given, inputs, samples)
    expected = predict(model, spec, arrays)
    slimmed, slimming = _slimmed(inner, slim)
    samples = _rescaled(samples, given)
    spec = describe_inputs(slimmed, arrays, 1)
    data = convert(slimmed, spec, samples, per_channel=per_channel)
    plan = plan_network(read_network(data), convert_input=given is not None)
    program = lower(plan, optimize=optimize)
    source = emit(program, name, _digest(data), header=header.name, bytes_in=given)
    with tempfile.TemporaryDirectory(prefix="atmc-") as folder:
        draft = Path(folder) / target.name
        draft.write_text(source.code)
        draft.with_suffix(".h").write_text(source.header)
        outputs, compiled = _run(draft, program.network, given, arrays[0])
        checks = _gate(outputs, expected, values, tolerance, min_agreement)
        footprints = _footprints(draft, cpu)
    _hold(limits, source, footprints, cpu)
    write_bytes(header, source.header.encode())
    write_bytes(target, source.code.encode())
    return CReport(
        path=str(target),
        values=values,
        **_sizes(program, source, given),
        footprints=footprints,
        compiled=compiled,
        examples=len(arrays[0]),
        digest=_digest(data),
        slimming=slimming,
        warnings=warn_of_dead_layers(model, arrays, expected),
        **checks,
    )


def _check_model(model: keras.Model, target: Path) -> None:
    """Refuses what cannot be written, before the model is converted."""
    if re.search(r'["\\\n]', target.name):
        raise ValueError(
            f"The file's name stands in an #include and cannot be {target.name!r}; leave quotes "
            "and backslashes out."
        )
    batches = {tensor.shape[0] for tensor in getattr(model, "inputs", None) or ()}
    if batches - {None, 1}:
        raise ValueError(
            f"The C function takes one example, and the model was built for {batches.pop()} at "
            "once; build it with keras.Input(shape) instead of batch_shape."
        )
    for weight in model.weights:
        if not np.isfinite(np.asarray(weight)).all():
            raise UnsupportedError(f"The weights of {weight.path!r} are not finite.")


def _slimmed(model: keras.Model, slim: bool | None) -> tuple[keras.Model, SlimmingReport | None]:
    """The model without channels that change nothing, and what was removed, if anything was."""
    if not (slim or (slim is None and is_graph(model))):
        return model, None
    slimmed = slim_model(model)
    report = compare_models(model, slimmed)
    return slimmed, report if report.parameters[0] != report.parameters[1] else None


def _rescaled(samples: list[np.ndarray] | None, given: ByteInput | None) -> list[np.ndarray] | None:
    """Examples as the layers after the reading of bytes take them."""
    if samples is None or given is None:
        return samples
    return [given.rescale(sample) for sample in samples]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _sizes(program: Program, source: Source, given: ByteInput | None) -> dict[str, Any]:
    taken, returned = program.network.input, program.network.output
    return {
        "layers": tuple(map(_summary, program.layers)),
        "weight_bytes": source.weight_bytes,
        "table_bytes": source.table_bytes,
        "static_bytes": source.static_bytes,
        "input_bytes": taken.size * (taken.dtype.itemsize if given is None else 1),
        "output_bytes": returned.size * returned.dtype.itemsize,
    }


def _check_options(
    values: str,
    name: str,
    optimize: str,
    cpu: str,
    pixel_max: float | None,
    tolerance: float | None,
    min_agreement: float | None,
) -> None:
    for what, given, known in (
        ("values", values, C_VALUE_MODES),
        ("optimize", optimize, OPTIMIZATIONS),
        ("cpu", cpu, tuple(CPUS)),
    ):
        if given not in known:
            raise ValueError(f"`{what}` must be one of {known}. Received {given!r}.")
    if not _IDENTIFIER.fullmatch(name) or name in _KEYWORDS:
        raise ValueError(
            f"`name` must be a name that C accepts: letters, digits and underscores. Received "
            f"{name!r}."
        )
    if pixel_max is not None and (isinstance(pixel_max, str) or not 0.0 < pixel_max < float("inf")):
        raise ValueError(f"`pixel_max` must be a positive number. Received {pixel_max!r}.")
    if tolerance is not None and not tolerance > 0.0:
        raise ValueError(f"`tolerance` must be positive. Received {tolerance}.")
    if min_agreement is not None and not 0.0 <= min_agreement <= 1.0:
        raise ValueError(f"`min_agreement` must be in [0, 1]. Received {min_agreement}.")


def _check_single(names: tuple[str, ...]) -> None:
    if len(names) != 1:
        raise UnsupportedError(
            f"The C exporter writes networks of one input. Received a model with {names}; "
            'write a .tflite file with export_tflite(model, path, values="full_int8") instead.'
        )


def _check_representative(values: str, representative: Any, per_channel: bool) -> None:
    if per_channel and values != "full_int8":
        raise ValueError("`per_channel` is for values='full_int8': floats have no scales.")
    if values == "full_int8" and representative is None:
        raise ValueError(
            "values='full_int8' computes in 8 bits and must know the range of every activation; "
            "pass `representative`, an array of some hundred training examples, such as "
            "representative=x_train[:300], or values='float32'."
        )
    if values != "full_int8" and representative is not None:
        raise ValueError(
            f"`representative` is for values='full_int8'. Received values={values!r}; leave it out."
        )


def _limit(size: int | str | None) -> int | None:
    return None if size is None else parse_bytes(size)


def _examples(
    arrays: list[np.ndarray],
    given: ByteInput | None,
    inputs: Any,
    samples: list[np.ndarray] | None,
) -> list[np.ndarray]:
    """The examples to compare on; where the C function takes bytes, such as bytes can say."""
    if given is None:
        return arrays
    if inputs is None and samples is None:
        arrays = [array * np.float32(given.unit * 255.0) for array in arrays]
    return [given.on_grid(array) for array in arrays]


def _run(
    draft: Path, network: Network, given: ByteInput | None, examples: np.ndarray
) -> tuple[np.ndarray, bool]:
    """Runs the C file, or the network it was made from where there is no compiler."""
    if find_compiler() is not None:
        try:
            return CModel(draft)(examples), True
        except ValueError as error:
            raise ExportError(f"The written C file does not compile: {error}") from error
    source, result = network.input, network.output
    real = examples if given is None else given.rescale(examples)
    if not network.is_integer:
        return run_network(network, real), False
    codes = np.clip(np.rint(real / source.scale[0]) + source.zero_point, -128, 127)
    outputs = run_network(network, codes.astype(np.int8))
    return (outputs.astype(np.float32) - result.zero_point) * result.scale[0], False


def _gate(
    outputs: np.ndarray,
    expected: list[np.ndarray],
    values: str,
    tolerance: float | None,
    min_agreement: float | None,
) -> dict[str, Any]:
    """Compares with Keras; raises `ExportError` if the code is not the model."""
    wanted = [expected[0].reshape(len(outputs), -1)]
    if not np.isfinite(wanted[0]).all():
        raise ExportError("The Keras model returns values that are not finite on these inputs.")
    difference = largest_difference([outputs], wanted)
    allowed = tolerance or _TOLERANCES[values]
    # Written so that NaN fails too.
    if not difference <= allowed:
        raise ExportError(
            f"The C code differs from Keras by {difference:.3g} of the largest output, tolerance "
            f"{allowed:.3g}; pass other `representative` data, a larger `tolerance`, or "
            "values='float32'."
        )
    agreement = label_agreement([outputs], wanted)
    check_agreement(agreement, values == "full_int8", min_agreement)
    return {"max_difference": difference, "label_agreement": agreement}


def _footprints(draft: Path, cpu: str) -> tuple[Footprint, ...]:
    measured = (measure_footprint(draft, cpu, level) for level in _LEVELS)
    return tuple(footprint for footprint in measured if footprint is not None)


def _hold(
    limits: tuple[int | None, int | None],
    source: Source,
    footprints: tuple[Footprint, ...],
    cpu: str,
) -> None:
    """Refuses what needs more flash or RAM than allowed, at every level of the compiler."""
    constants = source.weight_bytes + source.table_bytes
    own = footprints or (allowed_footprint(cpu, constants, source.static_bytes),)
    most_flash, most_ram = limits
    fitting = [
        f
        for f in own
        if (most_flash is None or f.flash <= most_flash) and (most_ram is None or f.ram <= most_ram)
    ]
    if fitting:
        return
    least = min(own, key=lambda f: f.flash)
    raise TooLargeError(
        f"The C code needs {least.flash:,} bytes of flash and {least.ram:,} of RAM "
        f"({least.static:,} static, {least.stack or 0:,} stack) at {least.optimize} on {cpu}; "
        f"allowed are {_shown(most_flash)} of flash and {_shown(most_ram)} of RAM. Compress the "
        'model further, give it smaller activations, or pass optimize="size".'
    )


def _shown(limit: int | None) -> str:
    return "any" if limit is None else f"{limit:,}"


def _summary(layer: Layer) -> LayerSummary:
    return LayerSummary(
        kind=layer.kind,
        shape=layer.rows.shape,
        nonzeros=layer.rows.nonzeros,
        form=_form(layer.rows),
        nbytes=layer.rows.nbytes,
        operations=layer.operations,
        dense_operations=layer.dense_operations,
    )


def _form(rows: Rows) -> str:
    if rows.form in (Form.BITS, Form.SHARED):
        return f"{rows.gap_bits}+{rows.value_bits} bits"
    return rows.form.name.lower()
