# SPDX-License-Identifier: Apache-2.0
"""The header of a written C file: sizes, scales and the function."""

from __future__ import annotations

from tfmot_atmc.export.c.camera import ByteInput
from tfmot_atmc.export.c.macros import number_text
from tfmot_atmc.export.c.program import Program

__all__ = ["element_types", "header_text", "prototype", "with_pair"]


def element_types(program: Program, bytes_in: ByteInput | None) -> tuple[str, str]:
    """Returns the C types of the function's input and output."""
    own = "int8_t" if program.network.is_integer else "float"
    return own if bytes_in is None else "uint8_t", own


def prototype(program: Program, name: str, bytes_in: ByteInput | None) -> str:
    """Returns the declaration of the function, without a semicolon."""
    taken, returned = element_types(program, bytes_in)
    return f"void {name}_invoke(const {taken} *input, {returned} *output)"


def header_text(
    program: Program,
    name: str,
    digest: str,
    static: int,
    bytes_in: ByteInput | None,
) -> str:
    """Returns the header of a C file.

    Args:
        program: the program.
        name: prefix of the function and of the constants.
        digest: of the .tflite model that it computes.
        static: bytes of static memory.
        bytes_in: how the caller's bytes are converted; None where the caller gives elements.
    """
    network, upper = program.network, name.upper()
    source, result = network.input, network.output
    lines = [
        f"/* {name}: written by tfmot_atmc. Not for two threads at once. */",
        f"#ifndef {upper}_H",
        f"#define {upper}_H",
        "",
        "#include <stdint.h>",
        "",
        "/* Elements of one example, in the order of rows, pixels and channels. */",
        f"#define {upper}_INPUT_SIZE {source.size}",
        *(
            f"#define {upper}_INPUT_{what} {size}"
            for what, size in zip(("ROWS", "PIXELS", "CHANNELS"), source.extents, strict=True)
        ),
        f"#define {upper}_OUTPUT_SIZE {result.size}",
    ]
    if bytes_in is not None:
        lines += [
            "/* The input is bytes, as cameras give them; a real input v is v / scale. */",
            f"#define {upper}_INPUT_SCALE {number_text(bytes_in.unit)}",
            f"#define {upper}_INPUT_ZERO_POINT 0",
        ]
    elif network.is_integer:
        lines += [
            "/* A real input v is the code v / scale + zero point, rounded, in [-128, 127]. */",
            f"#define {upper}_INPUT_SCALE {number_text(float(source.scale[0]))}",
            f"#define {upper}_INPUT_ZERO_POINT {number_text(source.zero_point)}",
        ]
    if network.is_integer:
        lines += [
            "/* A code q of the output is the real number (q - zero point) * scale. */",
            f"#define {upper}_OUTPUT_SCALE {number_text(float(result.scale[0]))}",
            f"#define {upper}_OUTPUT_ZERO_POINT {number_text(result.zero_point)}",
        ]
    lines += _end(program, name, digest, static, bytes_in)
    return "\n".join(lines) + "\n"


def with_pair(text: str, name: str, pair: str) -> str:
    """Returns a header with the number that its C file asks for.

    Args:
        text: the header.
        name: prefix of the constants.
        pair: hexadecimal digits, made from both files.
    """
    guard = f"#define {name.upper()}_H\n"
    return text.replace(guard, f"{guard}#define {name.upper()}_PAIR 0x{pair}\n", 1)


def _end(
    program: Program, name: str, digest: str, static: int, bytes_in: ByteInput | None
) -> list[str]:
    taken, returned = element_types(program, bytes_in)
    upper = name.upper()
    return [
        f"typedef {taken} {name}_input;",
        f"typedef {returned} {name}_output;",
        "/* Bytes of static memory; the stack is not counted. */",
        f"#define {upper}_STATIC_BYTES {static}",
        "/* SHA-256 of the .tflite model that it computes. */",
        f'#define {upper}_DIGEST "{digest}"',
        "",
        "#ifdef __cplusplus",
        'extern "C" {',
        "#endif",
        f"{prototype(program, name, bytes_in)};",
        "#ifdef __cplusplus",
        "}",
        "#endif",
        "",
        "#endif",
    ]
