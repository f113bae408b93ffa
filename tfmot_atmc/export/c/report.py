# SPDX-License-Identifier: Apache-2.0
"""What the C exporter wrote, what it needs, and how it was checked."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from tfmot_atmc.export.c.sizes import Footprint
from tfmot_atmc.slimming import SlimmingReport
from tfmot_atmc.utils.files import write_json
from tfmot_atmc.utils.shown import Shown, TablePart

__all__ = ["CReport", "LayerSummary"]


@dataclasses.dataclass(frozen=True)
class LayerSummary:
    """A layer with weights, as stored.

    Attributes:
        kind: `"conv"`, `"depthwise"` or `"dense"`.
        shape: rows (outputs or filters) and columns (weights of each).
        nonzeros: weights that are not zero.
        form: how they are stored: `"dense"`, `"bytes"` (a byte for each gap and value) or
            the bits of a gap and of a value, such as `"4+8 bits"`.
        nbytes: bytes of the weights in flash, a table of values included.
        operations: multiplications for one example.
        dense_operations: those that a dense kernel would do.
    """

    kind: str
    shape: tuple[int, int]
    nonzeros: int
    form: str
    nbytes: int
    operations: int
    dense_operations: int


@dataclasses.dataclass(frozen=True)
class CReport(Shown):
    """The measured outcome of `export_c`.

    Attributes:
        path: the C file; its header lies beside it.
        values: `"full_int8"` or `"float32"`.
        layers: layers with weights.
        weight_bytes: bytes of weights in flash.
        table_bytes: bytes of biases and other tables in flash.
        static_bytes: bytes of static RAM: activations and one filter's weights.
        input_bytes: bytes of the caller's input array.
        output_bytes: bytes of the caller's output array.
        footprints: flash and RAM as a cross-compiler makes them; empty where none is installed.
        compiled: whether the C file itself was run; without a C compiler the same integers are
            computed by NumPy instead.
        max_difference: largest absolute difference from Keras, divided by the largest absolute
            Keras output.
        label_agreement: fraction of examples whose largest output is the same; None where there is
            one output only.
        examples: number of examples compared.
        digest: SHA-256 of the .tflite model that the C file computes.
        slimming: what was removed before; None where nothing was.
        warnings: what makes the comparison say little, such as layers without any effect.
    """

    path: str
    values: str
    layers: tuple[LayerSummary, ...]
    weight_bytes: int
    table_bytes: int
    static_bytes: int
    input_bytes: int
    output_bytes: int
    footprints: tuple[Footprint, ...]
    compiled: bool
    max_difference: float
    label_agreement: float | None
    examples: int
    digest: str
    slimming: SlimmingReport | None = None
    warnings: tuple[str, ...] = ()

    @property
    def operations(self) -> int:
        """Multiplications for one example."""
        return sum(layer.operations for layer in self.layers)

    @property
    def dense_operations(self) -> int:
        """Multiplications that dense kernels would do."""
        return sum(layer.dense_operations for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as plain Python objects, derived figures included."""
        return {
            **dataclasses.asdict(self),
            "slimming": None if self.slimming is None else self.slimming.to_dict(),
            "operations": self.operations,
            "dense_operations": self.dense_operations,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the report as JSON, whole or not at all."""
        write_json(path, self.to_dict())

    def _parts(self) -> list[str | TablePart]:
        nonzeros = sum(layer.nonzeros for layer in self.layers)
        skipped = self.dense_operations - self.operations
        labels = (
            "" if self.label_agreement is None else f", labels agree {self.label_agreement:.2%}"
        )
        how = "the C code on this machine" if self.compiled else "NumPy in its place: no C compiler"
        parts: list[str | TablePart] = [
            f"{self.path}: {nonzeros:,} nonzero weights in {self.weight_bytes:,} bytes, "
            f"{self.table_bytes:,} bytes of other tables",
            f"{self.operations:,} multiplications an example, {skipped:,} skipped",
            f"static RAM {self.static_bytes:,} bytes; the caller's input {self.input_bytes:,} and "
            f"output {self.output_bytes:,}",
            f"largest difference from Keras {self.max_difference:.2e} on {self.examples} examples"
            f"{labels} ({how})",
        ]
        if self.slimming is not None:
            before, after = self.slimming.parameters
            parts.append(f"slimmed from {before:,} to {after:,} parameters")
        if self.footprints:
            rows = [
                (f.cpu, f.optimize, f"{f.flash:,}", f"{f.static:,}", _stack(f))
                for f in self.footprints
            ]
            parts.append((("core", "level", "flash", "static RAM", "stack"), rows))
        else:
            parts.append(
                "flash not measured: install arm-none-eabi-gcc to see it with the code included"
            )
        stored = [
            (
                layer.kind,
                "x".join(map(str, layer.shape)),
                f"{layer.nonzeros:,}",
                layer.form,
                f"{layer.nbytes:,}",
                f"{layer.operations:,}",
                f"{layer.dense_operations:,}",
            )
            for layer in self.layers
        ]
        header = ("layer", "rows", "nonzeros", "form", "bytes", "multiplications", "dense")
        parts += [f"Warning: {warning}" for warning in self.warnings]
        return [*parts, (header, stored)]


def _stack(footprint: Footprint) -> str:
    return "?" if footprint.stack is None else f"{footprint.stack:,}"
