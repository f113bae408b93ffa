# SPDX-License-Identifier: Apache-2.0
"""What is settled before the kernels are compiled: which parts are needed, what never varies."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfmot_atmc.export.c.camera import ByteInput
from tfmot_atmc.export.c.encoding import Form
from tfmot_atmc.export.c.program import Program

__all__ = ["has_wide_sums", "macro_text", "named_fields", "number_text", "wide_sizes"]

# Outputs that the kernels for wide registers compute at once.
_LANES = 8


def macro_text(program: Program, bytes_in: ByteInput | None, extent: str, bias: str) -> str:
    """Returns what the kernels need to know before they are compiled.

    Args:
        program: the program; a table for bytes of the caller is added to it where one is needed.
        bytes_in: how the caller's bytes are converted; None where the caller gives elements.
        extent: the C type of sizes and strides.
        bias: the C type of biases.
    """
    integer = program.network.is_integer
    rows = [layer.rows for layer in program.layers]
    forms = {row.form for row in rows}
    scales = [each for c in program.calls for s in _scales(c.fields)
              for each in _of_channels(s, program.tables)]  # fmt: skip
    calls = program.calls
    pools = {(c.fields["pool_rows"], c.fields["pool_pixels"]) for c in calls
             if "pool_rows" in c.fields}  # fmt: skip
    bits, whole = Form.BITS in forms, bool(forms - {Form.BITS})
    flags = {
        "IS_INTEGER": integer,
        "HAS_BITS": bits,
        "HAS_BOTH_FORMS": bits and whole,
        "HAS_BYTES": Form.BYTES in forms,
        "HAS_SHARED": Form.SHARED in forms,
        "HAS_DENSE_FORM": Form.DENSE in forms,
        "HAS_VALUES": any(row.value_bits == 0 for row in rows),
        "HAS_ZERO_CODES": any(row.gap_bits == 0 for row in rows),
        "HAS_POOL_OF_2": (2, 2) in pools,
        "HAS_OTHER_POOL": bool(pools - {(1, 1), (2, 2)}),
        "HAS_FUSED_ADD": any("add" in c.fields for c in calls),
        "HAS_CHANNEL_SCALES": any("shifts" in scale for scale in scales),
        "HAS_DEPTHWISE": any(c.fields.get("shared") for c in calls),
    }
    lines = [f"#define {key} {int(value)}" for key, value in flags.items()]
    lines += [
        f"#define BLOCK {program.block}",
        *(f"#define {key} {size}" for key, size in wide_sizes(program).items()),
        f"#define IS_BITS(w) {'((w).form == 2)' if bits and whole else int(bits)}",
        f"#define IS_BYTES(w) {_form_test(Form.BYTES, forms)}",
        f"#define IS_SHARED(w) {_form_test(Form.SHARED, forms)}",
        f"#define CODE(w, c) {_code_macro(program)}",
    ]
    if integer:
        lines += _integer_macros(scales)
    else:
        sigmoid = any(c.fields.get("sigmoid") for c in calls)
        applied = "((s)->sigmoid ? sigmoid(v) : finish(v, q))" if sigmoid else "finish(v, q)"
        lines += [
            "#define SWAPPED(add) 0",
            "#define CENTERED(v, zero) (v)",
            f"#define APPLIED(s, v, q) {applied}",
        ]
    if bytes_in is not None:
        lines.append(f"#define LOADED(v, c) {_loaded(program, bytes_in)}")
    lines += [
        "",
        f"typedef {extent} extent;",
        f"typedef {'int8_t' if integer else 'float'} weight;",
        f"typedef {bias} bias;",
    ]
    return "\n".join(lines) + "\n"


def _form_test(form: Form, forms: set[Form]) -> str:
    return f"((w).form == {int(form)})" if forms - {form} else "1"


def _code_macro(program: Program) -> str:
    rows = [layer.rows for layer in program.layers]
    if not program.network.is_integer:
        return "((w).table[c])"
    if any(row.table is not None for row in rows):
        return "((w).table ? (w).table[c] : (int8_t)(c))"
    return "((int8_t)(c))"


def wide_sizes(program: Program) -> dict[str, int]:
    """Returns how much memory the kernels for wide registers need, which decode weights once.

    Args:
        program: the program.

    Returns:
        Taps, filters and layers in all, and the most sums of a filter; all are 0 where no layer is
        wide enough.
    """
    found = {"WIDE_TAPS": 0, "WIDE_FILTERS": 0, "WIDE_LAYERS": 0, "WIDE_SUMS": 0}
    for call in program.calls:
        fields = call.fields
        if "pool_rows" not in fields or fields["pixels"] < _LANES:
            continue
        outputs = fields["rows"] * fields["pool_rows"]
        blocks = -(-fields["pixels"] // _LANES) * outputs
        found["WIDE_TAPS"] += program.layers[fields["kernel"]].rows.nonzeros + 1
        found["WIDE_FILTERS"] += fields["filters"]
        found["WIDE_LAYERS"] += 1
        found["WIDE_SUMS"] = max(found["WIDE_SUMS"], blocks * _LANES)
    return found


def has_wide_sums(program: Program) -> bool:
    """Tells whether a sum of int8 may not be doubled within 32 bits."""
    return any(s.get("wide") for c in program.calls for s in _scales(c.fields))


def _integer_macros(scales: list[dict[str, Any]]) -> list[str]:
    lines = [
        "#define SWAPPED(add) ((add)->swapped)",
        "#define CENTERED(v, zero) ((v) - (zero))",
    ]
    for key, macro in (("lowest", "LOWEST"), ("highest", "HIGHEST"), ("left", "LEFT")):
        values = {scale[key] for scale in scales}
        text = f"({values.pop()})" if len(values) == 1 else f"((q).{key})"
        lines.append(f"#define {macro}(q) {text}")
    lines.append(f"#define HAS_WIDE_SUMS {int(any(s['wide'] for s in scales))}")
    whole = all((scale["lowest"], scale["highest"]) == (-128, 127) for scale in scales)
    lines.append(f"#define ALL_CODES {int(whole)}")
    always = all(scale["right"] for scale in scales)
    sign = "((h) >> 31)" if always else "(((h) >> 31) & -((q).right > 0))"
    lines.append(f"#define ROUNDING(h, q) {sign}")
    return lines


def _loaded(program: Program, given: ByteInput) -> str:
    tables = program.tables
    same = np.ptp(given.scale) == 0 and np.ptp(given.offset) == 0
    if not program.network.is_integer:
        if same:
            scale, offset = number_text(given.unit * given.scale[0]), number_text(given.offset[0])
            return f"((float)(v) * {scale} + {offset})"
        tables["input_scale"] = (given.unit * given.scale).astype(np.float32)
        tables["input_offset"] = given.offset.astype(np.float32)
        return "((float)(v) * input_scale[c] + input_offset[c])"
    source = program.network.input
    codes = given.codes(float(source.scale[0]), source.zero_point)
    if same and np.array_equal(codes[0], np.arange(-128, 128)):
        return "((element)((v) - 128))"
    tables["input_codes"] = codes[0] if same else codes
    return "(input_codes[v])" if same else "(input_codes[(c) * 256 + (v)])"


def named_fields(fields: dict[str, Any]) -> list[tuple[str, Any]]:
    """Returns all fields of a call, nested ones too, by their last name."""
    found: list[tuple[str, Any]] = []
    for key, value in fields.items():
        found += named_fields(value) if isinstance(value, dict) else [(key, value)]
    return found


def _scales(fields: dict[str, Any]) -> list[dict[str, Any]]:
    found = [fields["scale"]] if "scale" in fields else []
    return found + (_scales(fields["add"]) if "add" in fields else [])


def _of_channels(scale: dict[str, Any], tables: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """A scale for each shift that the channels of a layer have."""
    if "shifts" not in scale:
        return [scale]
    shifts = np.unique(tables[scale["shifts"]]).tolist()
    return [{**scale, "left": max(shift, 0), "right": max(-shift, 0)} for shift in shifts]


def number_text(value: Any) -> str:
    """Returns a number as C writes it."""
    if isinstance(value, float | np.floating):
        text = repr(float(np.float32(value)))
        return text + "f"
    return str(int(value))
