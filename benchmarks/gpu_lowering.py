# SPDX-License-Identifier: Apache-2.0
"""Lowers the programs of `gpu.py` to XLA's own form, to look at or to run without TensorFlow.

    python benchmarks/gpu_lowering.py --out lowered --section ratios

writes, for every program, an HLO module and what its parameters start from. `gpu_replay.py`
compiles and runs them with any XLA, for example that of JAX on a GPU for which no TensorFlow is at
hand. Variables are parameters of such a module, and those that a call changes are outputs: the
module says itself which output takes which parameter's place.
"""

from __future__ import annotations

import collections
import json
import lzma
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from tensorflow.compiler.xla.service import hlo_pb2

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from gpu_programs import Program, precision, sections  # noqa: E402

FLAGS = flags.FLAGS
flags.DEFINE_string("out", None, "Folder for the programs.")
flags.DEFINE_list("section", [], "Sections to lower; all if empty.")
flags.DEFINE_list("only", [], "Parts of the names of the programs to lower; all if empty.")
flags.DEFINE_list("part", ["0", "1"], "Which part of how many to lower, such as 0,2.")

# What leaves the device in the middle of a program, or may.
_LEAVING = ("infeed", "outfeed", "send", "recv", "send-done", "recv-done", "custom-call")
# Arrays of more entries are not written but drawn anew: of the same size and range.
_STORED = 1 << 12


class Lowered(NamedTuple):
    """One program in XLA's form.

    Attributes:
        module: the serialised HLO module.
        parameters: value of each parameter: the inputs, then what the function captured.
        updates: pairs of an output and the parameter whose new value it is.
        outputs: names of the other outputs, in their order.
        variables: the variable behind each parameter; None for an input.
    """

    module: bytes
    parameters: list[np.ndarray]
    updates: list[tuple[int, int]]
    outputs: list[str]
    variables: list[tf.Variable | None]


def lower(function: Callable[..., Any], inputs: Sequence[np.ndarray]) -> Lowered:
    """Returns the XLA program of a function of tensors, which may read and write variables."""
    traced = tf.function(function, jit_compile=True, autograph=False)
    tensors = [tf.constant(array) for array in inputs]
    concrete = traced.get_concrete_function(*tensors)
    by_handle = {id(v.handle): v for v in concrete.graph.variables}
    variables = [None] * len(inputs) + [by_handle.get(id(c)) for c in concrete.captured_inputs]
    held = [*tensors, *concrete.captured_inputs]
    parameters = [(t if v is None else v).numpy() for v, t in zip(variables, held, strict=True)]
    module = traced.experimental_get_compiler_ir(*tensors)(stage="hlo_serialized")
    entries = parsed(module).input_output_alias.entries
    updates = [
        (e.output_shape_index[0] if e.output_shape_index else 0, e.parameter_number)
        for e in entries
    ]
    shapes = parsed(module).host_program_shape.parameters
    if [tuple(shape.dimensions) for shape in shapes] != [p.shape for p in parameters]:
        raise RuntimeError("The parameters of the module are not those of the function.")
    names = [name for name, _ in flat_outputs(concrete.structured_outputs)]
    return Lowered(module, parameters, updates, names, variables)


def flat_outputs(outputs: Any) -> list[tuple[str, Any]]:
    """Returns the outputs of a function with a name each, as a graph orders them."""
    flat = tf.nest.flatten(outputs)
    if isinstance(outputs, dict):
        return list(zip(sorted(outputs), flat, strict=True))
    return [(str(i), value) for i, value in enumerate(flat)]


def parsed(module: bytes) -> hlo_pb2.HloModuleProto:
    """Returns a serialised HLO module as a message."""
    return hlo_pb2.HloModuleProto.FromString(module)


def portable(module: bytes) -> bytes:
    """Returns a module in which all operations have a counterpart in StableHLO.

    Copies, and statements that a dimension has its full size, become reshapes to the same shape.
    """
    message = parsed(module)
    for computation in message.computations:
        for instruction in computation.instructions:
            static = not any(instruction.shape.is_dynamic_dimension)
            if instruction.opcode == "copy" or (
                instruction.opcode == "set-dimension-size" and static
            ):
                instruction.opcode = "reshape"
                del instruction.operand_ids[1:], instruction.dimensions[:]
    return message.SerializeToString()


def faults(module: bytes) -> list[str]:
    """Returns what keeps a program from running on the device alone: empty if nothing does.

    A call to the host, a custom call, an infeed or outfeed, or a shape known at run time only.
    """
    found = []
    for computation in parsed(module).computations:
        for instruction in computation.instructions:
            if instruction.opcode in _LEAVING:
                found.append(f"{instruction.opcode} {instruction.custom_call_target}".strip())
            shapes = [instruction.shape, *instruction.shape.tuple_shapes]
            if any(any(shape.is_dynamic_dimension) for shape in shapes):
                found.append(f"dynamic shape of {instruction.opcode}")
    return sorted(set(found))


def opcodes(module: bytes) -> collections.Counter:
    """Returns how often each operation stands in a program."""
    computations = parsed(module).computations
    return collections.Counter(i.opcode for c in computations for i in c.instructions)


def description(array: np.ndarray, exact: bool) -> tuple[dict[str, Any], np.ndarray | None]:
    """Returns what a parameter starts from, and its value where that has to be kept."""
    record: dict[str, Any] = {"shape": list(array.shape), "dtype": str(array.dtype)}
    first = array.reshape(-1)[:1]
    if array.size and (array == first[0]).all():
        return {**record, "constant": first[0].item()}, None
    if exact or array.size <= _STORED or array.dtype.kind != "f":
        return record, array
    return {**record, "low": float(array.min()), "high": float(array.max())}, None


def write(folder: Path, name: str, lowered: Lowered, exact: bool, record: dict[str, Any]) -> None:
    """Writes a program: `NAME.hlo.xz`, `NAME.npz` with arrays, `NAME.json` with all the rest."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / name.replace("/", "--").replace(" ", "_")
    arrays, parameters = {}, []
    for i, array in enumerate(lowered.parameters):
        told, kept = description(array, exact)
        parameters.append(told)
        if kept is not None:
            arrays[f"p{i}"] = kept
    arrays |= {f"expected_{key}": value for key, value in record.pop("expected", {}).items()}
    np.savez_compressed(f"{stem}.npz", **arrays)
    Path(f"{stem}.hlo.xz").write_bytes(lzma.compress(portable(lowered.module), preset=2))
    whole = {
        "name": name,
        "parameters": parameters,
        "updates": lowered.updates,
        "outputs": lowered.outputs,
        "faults": faults(lowered.module),
        **record,
    }
    Path(f"{stem}.json").write_text(json.dumps(whole), encoding="utf-8")


def lower_programs(
    folder: Path, section: str, programs: Sequence[tuple[int, Program]], exact: bool
) -> None:
    """Lowers and writes numbered programs; exact ones with all values and what one call gives."""
    for order, program in programs:
        keras.utils.clear_session()  # which forgets the precision too
        with precision(program.precision):
            function, inputs = program.make()
            lowered = lower(function, inputs)
            record = {
                "section": section,
                "order": order,
                "group": program.group,
                "images": program.images,
                "flops": program.flops,
                "bytes": program.bytes,
                "precision": program.precision,
                "kept": program.kept,
                "expected": expected(function, lowered, inputs) if exact else {},
            }
        write(folder, program.name, lowered, exact, record)
        print(section, program.name, len(lowered.module), faults(lowered.module), flush=True)


def expected(
    function: Callable[..., Any], lowered: Lowered, inputs: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns what one call gives on this machine, by plain TensorFlow: outputs and updates."""
    plain = tf.function(function, autograph=False)
    outputs = flat_outputs(plain(*[tf.constant(array) for array in inputs]))
    values = {name: np.asarray(value) for name, value in outputs}
    for _, parameter in lowered.updates:
        values[f"p{parameter}"] = lowered.variables[parameter].numpy()
    return values


def main(_: Sequence[str]) -> None:
    index, parts = map(int, FLAGS.part)
    for section, programs in sections().items():
        if FLAGS.section and section not in FLAGS.section:
            continue
        chosen = [
            (i, p)
            for i, p in enumerate(programs)
            if not FLAGS.only or any(part in p.name for part in FLAGS.only)
        ]
        lower_programs(Path(FLAGS.out), section, chosen[index::parts], section == "correctness")


if __name__ == "__main__":
    app.run(main)
