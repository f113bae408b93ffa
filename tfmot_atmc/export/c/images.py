# SPDX-License-Identifier: Apache-2.0
"""What tries a written C file without a device or its sensors: a project, and examples."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from tfmot_atmc.export.c.compiled import CModel
from tfmot_atmc.export.c.macros import number_text
from tfmot_atmc.utils.files import write_bytes

__all__ = ["write_board", "write_images"]

_PROJECT = Path(__file__).parent.parent / "board"


def write_board(folder: str | os.PathLike[str]) -> None:
    """Writes a project that runs `model.c` on emulated boards: `make run` in its folder.

    It needs `arm-none-eabi-gcc`, `qemu-system-arm` and `make`, and `images.h`; see `write_images`.

    Args:
        folder: where to; files of these names are replaced.
    """
    for file in sorted(_PROJECT.iterdir()):
        if file.is_file():
            write_bytes(Path(folder) / file.name, file.read_bytes())


def write_images(path: str | os.PathLike[str], model: CModel, inputs: Any, labels: Any) -> None:
    """Writes examples as `images` and `labels`, as the project of `write_board` reads them.

    Args:
        path: the header to write, such as `"images.h"`.
        model: the C file that shall take them.
        inputs: array `[examples, ...]`, as the Keras model takes it.
        labels: integers `[examples]`.

    Raises:
        ValueError: if there is no example, or not one label for each.
    """
    codes = model.quantize(inputs).reshape(len(inputs), -1)
    found = np.asarray(labels).reshape(-1)
    if not len(codes) or len(codes) != len(found):
        raise ValueError(f"Expected a label for each of {len(codes)} examples, at least one.")
    kind = np.float32 if codes.dtype == np.float32 else int
    rows = ("{" + ",".join(number_text(kind(v)) for v in row) + "}" for row in codes)
    text = (
        "#include <stdint.h>\n"
        f'#include "{model.header.name}"\n\n'
        f"#define IMAGES {len(codes)}\n\n"
        f"static const {model.name}_input images[IMAGES][{codes.shape[1]}] = {{\n"
        + ",\n".join(rows)
        + "};\n\n"
        f"static const int labels[IMAGES] = {{{', '.join(str(int(label)) for label in found)}}};\n"
    )
    write_bytes(path, text.encode())
