# SPDX-License-Identifier: Apache-2.0
"""What compression did to each layer, as a table people can read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import keras
import numpy as np

from tfmot_atmc.compression.wrapping import LayerDecision, WrappedKernel
from tfmot_atmc.math import paper_bits
from tfmot_atmc.slimming.dead import ADVICE, DeadLayer
from tfmot_atmc.utils.shown import Shown, TablePart


@dataclass(frozen=True)
class FactorReport:
    """Nonzeros and values of one factor.

    Attributes:
        name: the factor's name, such as `"dense/kernel:V"`.
        part: `"U"`, `"V"`, `"C"` or `"W"`.
        shape: its shape.
        nonzeros: number of nonzero entries.
        distinct: number of distinct nonzero values.
        paper_bits: size in bits by the paper's metric; positions are not counted.
        macs: multiply-accumulates of the nonzeros for one example; None where not known.
    """

    name: str
    part: str
    shape: tuple[int, ...]
    nonzeros: int
    distinct: int
    paper_bits: int
    macs: int | None = None


@dataclass(frozen=True)
class CompressionReport(Shown):
    """What was compressed, what was left alone and why.

    Attributes:
        layers: one `LayerDecision` for every layer with weights.
        factors: one `FactorReport` for every factor.
        dense_parameters: parameters of the dense kernels that are compressed.
        empty: layers whose kernel is zero, so that nothing passes through them.
        model_parameters: all numbers of the uncompressed model; 0 where that is not known.
        dropped: which methods of the model's own are not called, such as `train_step`; or "".
        dense_macs: multiply-accumulates of the dense kernels that are compressed, for one example;
            None where not known.
    """

    layers: tuple[LayerDecision, ...]
    factors: tuple[FactorReport, ...]
    dense_parameters: int
    empty: tuple[str, ...] = ()
    model_parameters: int = 0
    dropped: str = ""
    dense_macs: int | None = None

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates of the nonzeros over all factors; None where not known."""
        found = [factor.macs for factor in self.factors]
        return None if None in found else sum(n for n in found if n is not None)

    @property
    def nonzeros(self) -> int:
        """Nonzeros over all factors."""
        return sum(factor.nonzeros for factor in self.factors)

    @property
    def max_distinct(self) -> int:
        """The largest number of distinct nonzero values in one factor."""
        return max((factor.distinct for factor in self.factors), default=0)

    @property
    def paper_bits(self) -> int:
        """Size in bits by the paper's metric, over all factors."""
        return sum(factor.paper_bits for factor in self.factors)

    @property
    def paper_ratio(self) -> float:
        """Paper-metric size as a ratio of the dense kernels at 32 bits."""
        return self.paper_bits / (32 * max(self.dense_parameters, 1))

    def parts(self) -> dict[str, int]:
        """Returns the number of nonzeros in each kind of factor, such as U, V and C."""
        totals: dict[str, int] = {}
        for factor in self.factors:
            totals[factor.part] = totals.get(factor.part, 0) + factor.nonzeros
        return totals

    def to_dict(self) -> dict[str, Any]:
        """Returns plain Python values, ready for JSON."""
        return {
            "layers": [asdict(layer) for layer in self.layers],
            "factors": [asdict(factor) for factor in self.factors],
            "dense_parameters": self.dense_parameters,
            "empty_layers": list(self.empty),
            "model_parameters": self.model_parameters,
            "untouched_parameters": self.untouched_parameters,
            "nonzeros": self.nonzeros,
            "nonzeros_by_part": self.parts(),
            "max_distinct": self.max_distinct,
            "paper_bits": self.paper_bits,
            "paper_ratio": self.paper_ratio,
            "dense_macs": self.dense_macs,
            "macs": self.macs,
        }

    @property
    def untouched_parameters(self) -> int:
        """Numbers of the model outside compressed kernels, such as biases and normalisation."""
        return max(self.model_parameters - self.dense_parameters, 0)

    @property
    def model_bytes(self) -> tuple[int, int]:
        """Bytes of all numbers of the model before (float32) and after, by the paper's metric."""
        rest = 4 * self.untouched_parameters
        return 4 * self.dense_parameters + rest, -(-self.paper_bits // 8) + rest

    def _parts(self) -> list[str | TablePart]:
        columns = ("layer", "type", "what", "parameters", "nonzeros", "values", "why")
        return [(columns, self._rows()), *self._notes()]

    def _rows(self) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = []
        for layer in self.layers:
            mine = [f for f in self.factors if f.name.rsplit("/", 1)[0] == layer.layer]
            rows.append(
                (
                    layer.layer,
                    layer.type,
                    layer.action,
                    layer.parameters,
                    " ".join(f"{f.part}:{f.nonzeros:,}" for f in mine),
                    " ".join(f"{f.part}:{f.distinct:,}" for f in mine),
                    layer.reason,
                )
            )
        return rows

    def _notes(self) -> list[str]:
        share = self.nonzeros / max(self.dense_parameters, 1)
        notes = [
            f"total: {self.nonzeros:,} nonzeros of {self.dense_parameters:,} compressed "
            f"parameters ({share:.2%}); {self.paper_bits:,} bits without positions, a ratio of "
            f"bits of {self.paper_ratio:.5f}"
        ]
        if self.model_parameters:
            before, after = self.model_bytes
            untouched = self.untouched_parameters
            notes.append(
                f"whole model: {self.model_parameters:,} parameters, {untouched:,} "
                f"({untouched / self.model_parameters:.1%}) untouched; {before:,} bytes before, "
                f"{after:,} after without positions ({after / before:.1%})"
            )
        if self.dense_macs and self.macs is not None:
            notes.append(
                f"multiply-accumulates for one example: {self.macs:,} with nonzeros of "
                f"{self.dense_macs:,} ({self.macs / self.dense_macs:.2%})"
            )
        if self.empty:
            notes.append(f"Warning: nothing passes through {', '.join(self.empty)}. {ADVICE}")
        if self.dropped:
            notes.append(f"Warning: {self.dropped}")
        return notes


def compression_report(
    kernels: Sequence[WrappedKernel],
    decisions: Sequence[LayerDecision],
    bits: int = 32,
    weights: Sequence[Any] = (),
) -> CompressionReport:
    """Returns the report for wrapped kernels as their variables are now.

    Args:
        kernels: the wrapped kernels of a model.
        decisions: what was decided for each layer.
        bits: b of the codebooks; 32 for none.
        weights: all weights of the model, factors included, for figures over the whole of it.
    """
    factors, own = [], {id(v) for kernel in kernels for v in kernel.variables.values()}
    for kernel in kernels:
        named = {p: keras.ops.convert_to_numpy(v) for p, v in kernel.variables.items()}
        for part, value in kernel.kernel.counted(named).items():
            nonzero = value[value != 0]
            distinct = int(np.unique(nonzero).size)
            factors.append(
                FactorReport(
                    f"{kernel.name}:{part}",
                    part,
                    tuple(value.shape),
                    int(nonzero.size),
                    distinct,
                    paper_bits(int(nonzero.size), distinct, bits),
                    None if kernel.site.uses is None else int(nonzero.size) * kernel.site.uses,
                )
            )
    dense = sum(int(np.prod(kernel.shape)) for kernel in kernels)
    rest = sum(int(np.prod(weight.shape)) for weight in weights if id(weight) not in own)
    empty = tuple(layer.layer for layer in empty_kernels(kernels))
    whole = dense + rest if weights else 0
    macs = [kernel.site.operations for kernel in kernels]
    dense_macs = None if None in macs else sum(n for n in macs if n is not None)
    return CompressionReport(
        tuple(decisions), tuple(factors), dense, empty, whole, dense_macs=dense_macs
    )


def empty_kernels(kernels: Sequence[WrappedKernel]) -> list[DeadLayer]:
    """Returns the layers whose composed kernel is zero, from the variables as they are now.

    Args:
        kernels: the wrapped kernels of a model.
    """
    return [
        DeadLayer(kernel.layer.name, "all its weights are zero")
        for kernel in kernels
        if not keras.ops.convert_to_numpy(kernel.compose()).any()
    ]
