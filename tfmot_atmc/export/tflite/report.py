# SPDX-License-Identifier: Apache-2.0
"""What an export wrote and how it was checked; inspection of any .tflite file."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tfmot_atmc.export.tflite import flatbuffer, sparse
from tfmot_atmc.math.sizes import entropy_bits
from tfmot_atmc.slimming import SlimmingReport
from tfmot_atmc.utils.files import write_json
from tfmot_atmc.utils.shown import Shown, TablePart
from tfmot_atmc.utils.tables import table_text


@dataclasses.dataclass(frozen=True)
class TensorSummary:
    """A constant tensor of a .tflite file.

    Attributes:
        name: name of the tensor; empty where the file has none.
        index: number of the tensor in its subgraph.
        subgraph: number of the subgraph.
        shape: shape of the dense tensor, in the layout of the file.
        dtype: type of the stored values, such as `"int8"`.
        format: `"dense"`, or the traversal of a sparse tensor, `~` marking CSR levels.
        nonzeros: number of entries that are not zero; None for types that are not decoded.
        distinct: number of distinct nonzero values; None for types that are not decoded.
        value_bytes: bytes of the stored values.
        index_bytes: bytes of the indices of a sparse tensor.
        segment_bytes: bytes of the segments of a sparse tensor.
        entropy_bytes: bytes that a perfect coder would need for the positions and codes of the
            nonzeros, without a codebook; None for types that are not decoded.
    """

    name: str
    index: int
    subgraph: int
    shape: tuple[int, ...]
    dtype: str
    format: str
    nonzeros: int | None
    distinct: int | None
    value_bytes: int
    index_bytes: int = 0
    segment_bytes: int = 0
    entropy_bytes: float | None = None

    @property
    def size(self) -> int:
        """Number of entries of the dense tensor."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Bytes of values, indices and segments."""
        return self.value_bytes + self.index_bytes + self.segment_bytes

    @property
    def is_sparse(self) -> bool:
        """Whether the file stores the tensor sparsely."""
        return self.format != "dense"


@dataclasses.dataclass(frozen=True)
class ExportReport(Shown):
    """The measured outcome of `export_tflite`.

    Attributes:
        path: the file written.
        bytes: its size.
        dense_bytes: size of what the converter writes without sparse storage: a float32 file, or
            for `values="full_int8"` a full-integer one.
        gzip_bytes: size of the file under gzip.
        dense_gzip_bytes: size of the converter's file under gzip.
        tensors: the weights (constants of rank 2 or more) of the file.
        max_difference: largest absolute difference from Keras, divided by the largest absolute
            Keras output; the worst output of the model, default delegates on.
        max_difference_without_delegates: the same with default delegates off.
        label_agreement: fraction of examples whose largest output is the same; None where no
            output has several classes.
        examples: number of examples compared.
        slimming: what was removed before; None where nothing was.
        delegated_partitions: parts of the graph taken over by a delegate; 1 is best.
        latency_ms: milliseconds per batch, one thread; None where not measured.
        dense_latency_ms: the same for the converter's file.
        warnings: what makes the figures say little, such as an output that never changes.
    """

    path: str
    bytes: int
    dense_bytes: int
    gzip_bytes: int
    dense_gzip_bytes: int
    tensors: tuple[TensorSummary, ...]
    max_difference: float
    max_difference_without_delegates: float
    label_agreement: float | None
    examples: int
    delegated_partitions: int
    latency_ms: float | None = None
    dense_latency_ms: float | None = None
    slimming: SlimmingReport | None = None
    warnings: tuple[str, ...] = ()

    @property
    def overhead_bytes(self) -> int:
        """Bytes of the graph and of all that is not a weight."""
        return self.bytes - sum(tensor.nbytes for tensor in self.tensors)

    @property
    def entropy_bytes(self) -> float:
        """Bytes that a perfect coder would need for the weights' positions and codes."""
        return sum(tensor.entropy_bytes or 0.0 for tensor in self.tensors)

    @property
    def compression(self) -> float:
        """How many times smaller the file is than the converter's."""
        return self.dense_bytes / self.bytes

    @property
    def latency_ratio(self) -> float | None:
        """Latency of the file divided by that of the converter's; None where not measured."""
        if self.latency_ms is None or not self.dense_latency_ms:
            return None
        return self.latency_ms / self.dense_latency_ms

    @property
    def num_sparse(self) -> int:
        """Number of weights that the file stores sparsely."""
        return sum(tensor.is_sparse for tensor in self.tensors)

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as plain Python objects, derived figures included."""
        return {
            **dataclasses.asdict(self),
            "tensors": [dataclasses.asdict(t) | {"nbytes": t.nbytes} for t in self.tensors],
            "slimming": None if self.slimming is None else self.slimming.to_dict(),
            "overhead_bytes": self.overhead_bytes,
            "entropy_bytes": self.entropy_bytes,
            "compression": self.compression,
            "latency_ratio": self.latency_ratio,
            "num_sparse": self.num_sparse,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the report as JSON, whole or not at all."""
        write_json(path, self.to_dict())

    def _parts(self) -> list[str | TablePart]:
        lines: list[str | TablePart] = [
            f"{self.path}: {self.bytes:,} bytes ({self.compression:.2f}x smaller than the "
            f"converter's {self.dense_bytes:,}; gzip {self.gzip_bytes:,} and "
            f"{self.dense_gzip_bytes:,})",
            f"largest difference from Keras {self.max_difference:.2e} (delegates off "
            f"{self.max_difference_without_delegates:.2e}) on {self.examples} examples"
            + (
                "" if self.label_agreement is None else f", labels agree {self.label_agreement:.2%}"
            ),
        ]
        if self.latency_ms is not None and self.dense_latency_ms is not None:
            lines.append(
                f"latency {self.latency_ms:.3f} ms, dense {self.dense_latency_ms:.3f} ms "
                f"(ratio {self.latency_ratio:.2f}), one thread"
            )
        if self.slimming is not None:
            (before, after), (macs, fewer) = self.slimming.parameters, self.slimming.macs
            lines.append(
                f"slimmed from {before:,} to {after:,} parameters and from {macs:,} to {fewer:,} "
                "multiply-accumulates"
            )
        weights = self.bytes - self.overhead_bytes
        lines.append(
            f"weights {weights:,} bytes (entropy bound {self.entropy_bytes:,.0f}), the rest "
            f"{self.overhead_bytes:,}"
        )
        if not self.num_sparse:
            lines.append("no weight was sparse enough to be stored sparsely: the file is dense")
        lines += [f"Warning: {warning}" for warning in self.warnings]
        return [*lines, _tensor_table(self.tensors)]


def format_tensors(tensors: tuple[TensorSummary, ...] | list[TensorSummary]) -> str:
    """Returns a table of tensors as text.

    Args:
        tensors: summaries from `inspect_tflite` or of a report.

    Returns:
        One header line and one line per tensor.
    """
    return table_text(*_tensor_table(tensors))


def _tensor_table(tensors: tuple[TensorSummary, ...] | list[TensorSummary]) -> TablePart:
    header = (
        "tensor",
        "shape",
        "nonzeros",
        "distinct",
        "type",
        "format",
        "values",
        "indices",
        "segments",
        "bound",
    )
    rows = []
    for tensor in tensors:
        unknown = tensor.nonzeros is None
        share = 0.0 if unknown or not tensor.size else 100.0 * (tensor.nonzeros or 0) / tensor.size
        rows.append(
            (
                tensor.name or f"#{tensor.index}",
                "x".join(map(str, tensor.shape)),
                "?" if unknown else f"{tensor.nonzeros:,} ({share:.2f}%)",
                "?" if unknown else f"{tensor.distinct:,}",
                tensor.dtype,
                tensor.format,
                f"{tensor.value_bytes:,}",
                f"{tensor.index_bytes:,}",
                f"{tensor.segment_bytes:,}",
                "?" if tensor.entropy_bytes is None else f"{tensor.entropy_bytes:,.0f}",
            )
        )
    return header, rows


def inspect_tflite(path: str | os.PathLike[str]) -> list[TensorSummary]:
    """Lists the constant tensors of any .tflite file, sparse ones decoded and checked.

    Args:
        path: a .tflite file, from this package or any other source.

    Returns:
        One `TensorSummary` per constant tensor, in the order of the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not a .tflite model, or is truncated or damaged.
    """
    try:
        return summarise_tensors(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error


def summarise_tensors(
    data: bytes, names: Mapping[tuple[int, int], str] | None = None
) -> list[TensorSummary]:
    """Does the work of `inspect_tflite` on a file's content.

    Args:
        data: content of a .tflite file.
        names: names for tensors without one, by subgraph and tensor number.

    Returns:
        One `TensorSummary` per constant tensor.

    Raises:
        ValueError: if the content is not a .tflite model, or is truncated or damaged.
    """
    model = flatbuffer.read_model(data)
    summaries = []
    for number, subgraph in enumerate(model.subgraphs):
        for index, tensor in enumerate(subgraph.tensors or []):
            name = flatbuffer.tensor_name(tensor) or (names or {}).get((number, index), "")
            summary = _summarise(model, tensor, name, index, number)
            if summary is not None:
                summaries.append(summary)
    return summaries


def _summarise(
    model: Any, tensor: Any, name: str, index: int, subgraph: int
) -> TensorSummary | None:
    try:
        constant = flatbuffer.read_constant(model, tensor)
        if constant is None:
            return None
        encoding = constant.encoding
        array = constant.array
        if encoding is not None:
            sparse.stored_positions(encoding)  # checks it
            array = encoding.values
    except ValueError as error:
        raise ValueError(f"Tensor {index} ({name or 'no name'}): {error}") from error
    shape = tuple(int(size) for size in (() if tensor.shape is None else tensor.shape))
    nonzero = None if array is None else array[array != 0]
    counts = None if nonzero is None else np.unique(nonzero, return_counts=True)[1]
    return TensorSummary(
        name=name,
        index=index,
        subgraph=subgraph,
        shape=shape,
        dtype=flatbuffer.type_name(tensor),
        format="dense" if encoding is None else encoding.describe(),
        nonzeros=None if nonzero is None else int(nonzero.size),
        distinct=None if counts is None else int(counts.size),
        value_bytes=constant.nbytes,
        index_bytes=0 if encoding is None else encoding.index_bytes,
        segment_bytes=0 if encoding is None else encoding.segment_bytes,
        entropy_bytes=(
            None
            if counts is None
            else entropy_bits(math.prod(shape), int(counts.sum()), counts) / 8
        ),
    )
