# SPDX-License-Identifier: Apache-2.0
"""Writes a program as one C99 file and its header."""

from __future__ import annotations

import dataclasses
import hashlib
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from tfmot_atmc.export.c.camera import ByteInput
from tfmot_atmc.export.c.header import header_text, prototype, with_pair
from tfmot_atmc.export.c.layout import Storage, View
from tfmot_atmc.export.c.macros import (
    has_wide_sums,
    macro_text,
    named_fields,
    number_text,
    wide_sizes,
)
from tfmot_atmc.export.c.program import Call, Program

__all__ = ["Source", "emit"]

_FOLDER = Path(__file__).parent
_WIDTH = 96
_LARGEST_EXTENT = (1 << 16) - 1
# Fields that are 32 bits wide in any case, or no field at all.
_WIDE = (
    "multiplier",
    "by_area",
    "by_width",
    "high",
    "from_zero",
    "low",
    "rounded",
    "second_zero",
    "x_zero",
    "plane_skip",
    "row_skip",
    "kernel",
    "biases",
)
# Which kernels a function needs, in the order in which they are written.
_NEEDS = {
    "connect": ("stream", "connect"),
    "convolve": ("stream", "rows", "filter", "convolve"),
    "add_planes": ("add", "add_planes"),
    "combine": ("channelwise", "channelwise_planes"),
    "pool_max": ("pool", "pool_max"),
    "pool_average": ("pool", "average", "pool_average"),
    "mean": ("mean",),
    "look_up": ("lookup",),
    "apply": ("functions",),
    "softmax": ("exponential", "softmax"),
    "copy": ("copying", "copy"),
    "load": ("copying", "load"),
    "border": ("border",),
}
_ORDER = (
    "stream", "add", "rows", "filter", "wide", "convolve", "connect", "add_planes", "channelwise",
    "channelwise_planes", "pool", "average", "pool_max", "pool_average", "mean", "lookup",
    "exponential", "sigmoid", "functions", "softmax", "copying", "copy", "load", "border",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Source:
    """The written text.

    Attributes:
        code: the C file.
        header: the header.
        weight_bytes: bytes of encoded weights.
        table_bytes: bytes of biases, scales, strides and other constants.
        static_bytes: bytes of memory in use from start to end: the arena and the taps.
    """

    code: str
    header: str
    weight_bytes: int
    table_bytes: int
    static_bytes: int


def emit(
    program: Program,
    name: str,
    digest: str,
    *,
    header: str = "model.h",
    bytes_in: ByteInput | None = None,
) -> Source:
    """Writes a program.

    Args:
        program: what `lower` returned.
        name: prefix of the function and of the header's constants, and name of the files.
        digest: what the header says of its origin.
        header: name of the header's file.
        bytes_in: how the caller's bytes are converted; None where the caller gives elements.

    Returns:
        The `Source`.
    """
    return _Writer(program, name, digest, header, bytes_in).write()


class _Writer:
    def __init__(
        self,
        program: Program,
        name: str,
        digest: str,
        header: str,
        bytes_in: ByteInput | None,
    ) -> None:
        self._program, self._name, self._digest = program, name, digest
        self._header_name = header
        self._bytes_in = bytes_in
        self._integer = program.network.is_integer
        self._element = "int8_t" if self._integer else "float"
        self._itemsize = 1 if self._integer else 4
        self._extent = 4 if self._largest_extent() > _LARGEST_EXTENT else 2
        limits = np.iinfo(np.int16)
        fits = all(
            (layer.biases >= limits.min).all() and (layer.biases <= limits.max).all()
            for layer in program.layers
        )
        self._bias = "float" if not self._integer else "int16_t" if fits else "int32_t"
        self._weight_bytes = self._table_bytes = 0
        self._declared: list[str] = []

    def _largest_extent(self) -> int:
        fields = [f for c in self._program.calls for f in named_fields(c.fields)]
        return max(
            (int(v) for k, v in fields if k not in _WIDE and isinstance(v, int | np.integer)),
            default=0,
        )

    def write(self) -> Source:
        extent = "uint16_t" if self._extent == 2 else "int32_t"
        macros = macro_text(self._program, self._bytes_in, extent, self._bias)
        layers = [self._layer(number) for number in range(len(self._program.layers))]
        tables = [self._array(k, v) for k, v in self._program.tables.items()]
        calls = [self._call(number, call) for number, call in enumerate(self._program.calls)]
        static = self._memory()
        parts = [
            macros,
            *tables,
            self._kernels(),
            *layers,
            *self._declared,
            self._arena(),
            self._function(calls),
        ]
        body = "\n".join(part for part in parts if part)
        header = header_text(self._program, self._name, self._digest, static, self._bytes_in)
        pair = hashlib.sha256((header + body).encode()).hexdigest()[:8]
        code = f'{self._banner()}\n#include "{self._header_name}"\n{self._pair_check(pair)}\n{body}'
        return Source(
            code,
            with_pair(header, self._name, pair),
            self._weight_bytes,
            self._table_bytes,
            static,
        )

    # Data.

    def _array(self, name: str, values: np.ndarray) -> str:
        kind = {"int8": "int8_t", "int32": "int32_t", "uint8": "uint8_t", "int16": "int16_t"}.get(
            values.dtype.name, "float"
        )
        numbers = [number_text(v) for v in values.reshape(-1).tolist()]
        text = textwrap.fill(", ".join(numbers), _WIDTH, initial_indent="    ",
                             subsequent_indent="    ")  # fmt: skip
        self._table_bytes += values.nbytes
        return f"static const {kind} {name}[{max(1, values.size)}] = {{\n{text or '    0'}\n}};\n"

    def _layer(self, number: int) -> str:
        layer = self._program.layers[number]
        before = self._table_bytes
        parts = []
        if layer.rows.stream:
            stream = np.frombuffer(layer.rows.stream, np.uint8)
            parts.append(self._array(f"weights_{number}", stream))
        if layer.rows.table is not None:
            parts.append(self._array(f"values_{number}", layer.rows.table))
        self._weight_bytes += self._table_bytes - before
        self._table_bytes = before
        dtype = {"float": np.float32, "int16_t": np.int16, "int32_t": np.int32}[self._bias]
        parts.append(self._array(f"biases_{number}", layer.biases.astype(dtype)))
        return "".join(parts)

    def _weights(self, number: int) -> str:
        rows = self._program.layers[number].rows
        parts = []
        if rows.stream:
            parts.append(f".stream = weights_{number}")
        if rows.table is not None:
            parts.append(f".table = values_{number}")
        parts += [
            f".form = {int(rows.form)}",
            f".gap_bits = {rows.gap_bits}",
            f".value_bits = {rows.value_bits}",
        ]
        return "{" + ", ".join(parts) + "}"

    def _fields(self, fields: dict[str, Any]) -> list[str]:
        lines = []
        for key, value in fields.items():
            if key == "kernel":
                text = self._weights(value)
            elif key == "biases":
                text = f"biases_{value}"
            elif key == "add":
                text = "&" + self._struct("addition", value)
            elif isinstance(value, dict):
                inner = (self._fields({k: v})[0] for k, v in value.items() if k != "wide")
                text = "{" + ", ".join(inner) + "}"
            else:
                text = value if isinstance(value, str) else number_text(value)
            lines.append(f".{key} = {text}")
        return lines

    def _struct(self, kind: str, fields: dict[str, Any]) -> str:
        lines = self._fields(fields)
        name = f"{kind}_{len(self._declared)}"
        text = textwrap.fill(
            ", ".join(lines), _WIDTH, initial_indent="    ", subsequent_indent="    ",
            break_long_words=False,
        )  # fmt: skip
        self._declared.append(f"static const {kind} {name} = {{\n{text}\n}};\n")
        return name

    def _call(self, number: int, call: Call) -> str:
        arguments = [self._argument(argument) for argument in call.arguments]
        if call.type:
            arguments.insert(0, "&" + self._struct(call.type, call.fields))
        return f"    {call.function}({', '.join(arguments)});"

    def _argument(self, argument: Any) -> str:
        if argument is None:
            return "0"
        if isinstance(argument, tuple):
            view, start = argument
            return self._place(view.storage, view.start + start)
        if isinstance(argument, View):
            return self._place(argument.storage, argument.start)
        if isinstance(argument, Storage):
            kind = "int32_t" if self._integer else "float"
            return f"arena + {argument.offset * self._itemsize // 4}" if kind else ""
        return number_text(argument)

    def _place(self, storage: Storage, start: int) -> str:
        if storage.role != "arena":
            return f"{storage.role} + {start}" if start else storage.role
        place = storage.offset + start
        base = "(int8_t *)arena" if self._integer else "arena"
        return f"{base} + {place}" if place else base

    # Code.

    def _functions(self) -> set[str]:
        return {call.function for call in self._program.calls}

    def _needed(self) -> list[str]:
        needed = {kernel for function in self._functions() for kernel in _NEEDS[function]}
        if self._has_fused_add():
            needed.add("add")
        if wide_sizes(self._program)["WIDE_LAYERS"]:
            needed.add("wide")
        if not self._integer:
            if any(call.fields.get("sigmoid") for call in self._program.calls):
                needed |= {"exponential", "sigmoid"}
        elif "exponential" in needed:
            needed.remove("exponential")
        return [kernel for kernel in _ORDER if kernel in needed]

    def _has_fused_add(self) -> bool:
        return any("add" in call.fields for call in self._program.calls)

    def _kernels(self) -> str:
        own = "int8" if self._integer else "float32"
        parts = []
        strides = sorted({c.fields["stride"] for c in self._program.calls if "stride" in c.fields})
        for kernel in _needed_files(self._needed(), own):
            text = (_FOLDER / kernel).read_text()
            if kernel == "stream.c":
                parts.append(text + self._tap_type())
            elif kernel == "wide.c":
                parts += [(_FOLDER / f"wide_{own}.c").read_text(), text]
            elif kernel == "rows.c":
                for stride in strides:
                    parts.append(f"#define STRIDE {stride}\n{text}#undef STRIDE\n")
                parts.append(_row_choice(strides))
            else:
                parts.append(text)
        first = [f"{own}.c"]
        if self._integer:
            first += self._products()
        return "\n".join([*((_FOLDER / file).read_text() for file in first), *parts])

    def _products(self) -> list[str]:
        """Files of the arithmetic on sums of int8."""
        wide = has_wide_sums(self._program)
        softmax = any(call.function == "softmax" for call in self._program.calls)
        needed = {"product.c": wide or softmax, "high_half.c": not wide, "finish_int8.c": True}
        return [file for file, is_needed in needed.items() if is_needed]

    def _tap_type(self) -> str:
        if not self._program.taps:
            return ""
        step = "int32_t" if self._tap_bytes() == 8 else "int16_t"
        value = "int16_t" if self._integer else "float"
        return (
            "\n/* A nonzero weight, and the step to its input from the input before. */\n"
            f"typedef {step} tap_step;\ntypedef struct {{\n    tap_step step;\n"
            f"    {value} value;\n}} tap;\n\nstatic tap taps[{self._program.taps}];\n"
        )

    def _memory(self) -> int:
        arena = -(-self._program.plan.arena * self._itemsize // 4) * 4
        return arena + self._tap_bytes() * self._program.taps

    def _tap_bytes(self) -> int:
        near = self._program.plan.largest <= np.iinfo(np.int16).max
        return 4 if self._integer and near else 8

    def _arena(self) -> str:
        words = -(-self._program.plan.arena * self._itemsize // 4)
        if not words:
            return ""
        kind = "int32_t" if self._integer else "float"
        return f"static {kind} arena[{words}];\n"

    def _function(self, calls: list[str]) -> str:
        body = "\n".join(calls)
        return f"{prototype(self._program, self._name, self._bytes_in)} {{\n{body}\n}}\n"

    def _pair_check(self, pair: str) -> str:
        """Lets no compiler take the header of another export, which an interruption may leave."""
        macro = f"{self._name.upper()}_PAIR"
        return (
            f"#if {macro} != 0x{pair}\n"
            f'#error "{self._header_name} is of another export than this file; export again"\n'
            "#endif\n"
        )

    def _banner(self) -> str:
        kind = "int8" if self._integer else "float32"
        nonzeros = sum(layer.rows.nonzeros for layer in self._program.layers)
        done = sum(layer.operations for layer in self._program.layers)
        dense = sum(layer.dense_operations for layer in self._program.layers)
        return (
            f"/* {self._name}: a neural network in {kind}, written by tfmot_atmc. C99, no library "
            "but perhaps memset and\n   memcpy, which compilers call by themselves.\n   "
            f"{nonzeros:,} nonzero weights; {done:,} multiplications for an example, "
            f"{dense - done:,} skipped. */\n"
        )


def _needed_files(kernels: list[str], own: str) -> list[str]:
    found = []
    for kernel in kernels:
        plain = _FOLDER / f"{kernel}.c"
        found.append(plain.name if plain.exists() else f"{kernel}_{own}.c")
    return found


def _row_choice(strides: list[int]) -> str:
    *others, last = strides
    arguments = "x, t, end, start, out, width"
    text = f"row_{last}({arguments})"
    for stride in reversed(others):
        text = f"((stride) == {stride} ? row_{stride}({arguments}) : {text})"
    return f"#define ROW(stride, {arguments}) {text}\n"
