# SPDX-License-Identifier: Apache-2.0
"""Runs a written C file on this machine: compiled as a shared library, called on arrays."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["CModel", "CompilerMissingError", "find_compiler"]

_FLAGS = ("-std=c99", "-O2")
_DEFINE = re.compile(r"^#define (\w+?)_((?:INPUT|OUTPUT|STATIC|DIGEST)\w*) (.+)$", re.MULTILINE)
_PROTOTYPE = re.compile(
    r"^void (\w+)_invoke\(const (\w+) \*input, (\w+) \*output\);$", re.MULTILINE
)
_TYPES: dict[str, np.dtype[Any]] = {
    "int8_t": np.dtype(np.int8),
    "uint8_t": np.dtype(np.uint8),
    "float": np.dtype(np.float32),
}


class CompilerMissingError(RuntimeError):
    """There is no C compiler on this machine."""


def find_compiler() -> str | None:
    """Returns the C compiler of this machine: `$CC`, cc, gcc or clang; None where none is."""
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        found = shutil.which(name) if name else None
        if found:
            return found
    return None


class CModel:
    """A C file of `export_c`, compiled for this machine and callable on batches of arrays.

    The C code computes on this machine what it computes on a microcontroller: in int8 bit for bit,
    in float32 up to what the compiler does with sums.

    Args:
        path: the C file; its header lies beside it. It is compiled and run as it is, so take it
            from a source that you trust.
        flags: further flags of the compiler.

    Raises:
        FileNotFoundError: if the file or its header is missing.
        ValueError: if the header is not one of `export_c`, or the file does not compile.
        CompilerMissingError: if there is no compiler.

    Attributes:
        name: prefix of the C function.
        header: the header's path.
        input_shape: height, width and channels of one example.
        output_size: number of outputs.
        input_type: dtype of the C function's input: int8, uint8 or float32.
        output_type: dtype of its output.
    """

    def __init__(self, path: str | os.PathLike[str], *, flags: Sequence[str] = ()) -> None:
        source = Path(path)
        header = source.with_suffix(".h")
        for file in (source, header):
            if not file.is_file():
                raise FileNotFoundError(f"{str(file)!r} is missing; `export_c` writes both files.")
        self.header = header
        self._read_header(header)
        self._library = _compile(source, flags)
        self._invoke = getattr(self._library, f"{self.name}_invoke")
        self._invoke.argtypes, self._invoke.restype = [ctypes.c_void_p] * 2, None
        # The C code keeps its activations in one place.
        self._lock = threading.Lock()

    def _read_header(self, header: Path) -> None:
        text = header.read_text()
        prototype = _PROTOTYPE.search(text)
        found = {key: value for _, key, value in _DEFINE.findall(text)}
        try:
            if prototype is None:
                raise KeyError("prototype")
            self.name = prototype[1]
            self.input_type, self.output_type = _TYPES[prototype[2]], _TYPES[prototype[3]]
            self.input_shape = tuple(
                int(found[f"INPUT_{what}"]) for what in ("ROWS", "PIXELS", "CHANNELS")
            )
            self.output_size = int(found["OUTPUT_SIZE"])
        except (KeyError, ValueError) as error:
            raise ValueError(f"{str(header)!r} is not a header that `export_c` wrote.") from error
        self._in = _scale(found, "INPUT")
        self._out = _scale(found, "OUTPUT")

    def codes(self, inputs: np.ndarray) -> np.ndarray:
        """Runs the C function as it is.

        Args:
            inputs: array `[batch, ...]` of `input_type`, `input_shape` elements an example.

        Returns:
            Array `[batch, output_size]` of `output_type`.

        Raises:
            ValueError: if the inputs have another dtype or size.
        """
        size = int(np.prod(self.input_shape))
        if inputs.dtype != self.input_type or inputs[:1].size not in (0, size):
            raise ValueError(
                f"Expected {self.input_type} and {size} elements an example. Received "
                f"{inputs.dtype} of shape {inputs.shape}."
            )
        flat = np.ascontiguousarray(inputs).reshape(len(inputs), size)
        outputs = np.zeros((len(flat), self.output_size), self.output_type)
        with self._lock:
            for example, output in zip(flat, outputs, strict=True):
                self._invoke(example.ctypes.data, output.ctypes.data)
        return outputs

    def quantize(self, inputs: Any) -> np.ndarray:
        """Returns real inputs as the C function takes them: codes, bytes or floats."""
        values = np.asarray(inputs, np.float32)
        if self._in is not None:
            scale, zero = self._in
            values = np.floor(np.abs(values / scale) + np.float32(0.5)) * np.sign(values) + zero
            limits = np.iinfo(self.input_type)
            values = np.clip(values, limits.min, limits.max)
        return values.astype(self.input_type)

    def __call__(self, inputs: Any) -> np.ndarray:
        """Runs the model on real inputs, as the Keras model takes them.

        Args:
            inputs: array `[batch, ...]`.

        Returns:
            float32 array `[batch, outputs]`.
        """
        outputs = self.codes(self.quantize(inputs))
        if self._out is None:
            return outputs.astype(np.float32)
        scale, zero = self._out
        return (outputs.astype(np.float32) - zero) * scale


def _scale(found: dict[str, str], end: str) -> tuple[np.float32, int] | None:
    if f"{end}_SCALE" not in found:
        return None
    return np.float32(found[f"{end}_SCALE"].rstrip("f")), int(found[f"{end}_ZERO_POINT"])


def _compile(source: Path, flags: Sequence[str]) -> ctypes.CDLL:
    compiler = find_compiler()
    if compiler is None:
        raise CompilerMissingError(
            "A C compiler is needed to run a C file on this machine: install gcc or clang, or set "
            "CC to one."
        )
    # A library stays loaded, and its file can go, once it is open; some systems keep it locked.
    folder = tempfile.TemporaryDirectory(prefix="atmc-", ignore_cleanup_errors=True)
    library = Path(folder.name) / "model.so"
    command = [compiler, *_FLAGS, *flags, "-shared", "-fPIC", str(source), "-o", str(library)]
    outcome = subprocess.run(command, capture_output=True, text=True)
    if outcome.returncode:
        folder.cleanup()
        raise ValueError(f"{str(source)!r} does not compile:\n{outcome.stderr.strip()[:2000]}")
    loaded = ctypes.CDLL(str(library))
    weakref.finalize(loaded, folder.cleanup)
    return loaded
