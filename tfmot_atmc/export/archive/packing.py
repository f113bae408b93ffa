# SPDX-License-Identifier: Apache-2.0
"""Transfer archives: a .tflite file in one small file for over-the-air updates.

The archive holds the graph compressed, and for every constant that gains by it the positions and
values entropy-coded; see docs/archive.md for the format. It unpacks to the very same bytes, on a
device with `unpacking.py` alone. Any .tflite file can be packed: what does not look as expected is
kept as it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import lzma
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from tfmot_atmc.export.archive import entropy, unpacking
from tfmot_atmc.export.archive.recoverable import (
    DAMAGES,
    Constant,
    constants,
    offset_of,
    stored_cells,
)
from tfmot_atmc.export.archive.unpacking import ArchiveError, Level, unpack
from tfmot_atmc.export.tflite.flatbuffer import FILE_IDENTIFIER
from tfmot_atmc.math.sizes import entropy_bits
from tfmot_atmc.utils.files import write_bytes
from tfmot_atmc.utils.shown import Shown, TablePart

__all__ = ["ArchiveError", "ArchiveReport", "pack", "pack_archive", "unpack", "unpack_archive"]

_PLAN_BYTES = 24
_SAMPLE_BYTES = 1 << 18
# Settings of LZMA (literal context and position bits, position bits) to try on a graph.
_LZMA_SETTINGS = ((3, 0, 2), (0, 2, 2), (2, 2, 2), (0, 0, 2), (3, 0, 0), (0, 0, 0))
_SMALL = 1 << 20


@dataclasses.dataclass(frozen=True)
class ArchiveReport(Shown):
    """What `pack_archive` wrote. All sizes are in bytes.

    Attributes:
        path: the archive.
        bytes: size of the .tflite file.
        archive_bytes: size of the archive, the sum of the next four.
        graph_bytes: header, graph, biases and whatever else is not coded, compressed.
        position_bytes: positions of the sparse constants.
        code_bytes: values of the coded constants.
        codebook_bytes: codebooks of the coded constants.
        entropy_bound: entropy of positions and codes (`math.entropy_bits`) of the coded constants,
            codebooks not included; values for which a codebook would not pay count in full.
        tensors: number of coded constants.
    """

    path: str
    bytes: int
    archive_bytes: int
    graph_bytes: int
    position_bytes: int
    code_bytes: int
    codebook_bytes: int
    entropy_bound: float
    tensors: int

    @property
    def ratio(self) -> float:
        """How many times smaller the archive is than the file."""
        return self.bytes / self.archive_bytes

    @property
    def overhead(self) -> float | None:
        """Positions and codes as stored, over their entropy bound; None where nothing is coded."""
        if not self.entropy_bound:
            return None
        return (self.position_bytes + self.code_bytes) / self.entropy_bound

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as plain Python objects, derived figures included."""
        return {**dataclasses.asdict(self), "ratio": self.ratio, "overhead": self.overhead}

    def _parts(self) -> list[str | TablePart]:
        head = (
            f"{self.path}: {self.archive_bytes:,} bytes ({self.ratio:.2f}x smaller than the file's "
            f"{self.bytes:,}), {self.tensors} constants coded"
        )
        parts: list[str | TablePart] = [head]
        if self.overhead is not None:
            parts.append(
                f"positions and codes {self.overhead:.3f} times their entropy bound of "
                f"{self.entropy_bound:,.0f} bytes"
            )
        rows = []
        for name in ("graph", "position", "code", "codebook", "archive"):
            nbytes = getattr(self, f"{name}_bytes")
            label = {"graph": "graph", "archive": "total"}.get(name, f"{name}s")
            rows.append((label, nbytes, f"{nbytes / self.archive_bytes:.1%}"))
        return [*parts, (("part", "bytes", "share"), rows)]


class _Packer:
    """Codes the constants of one file and remembers what the codes weigh."""

    def __init__(self, data: bytes):
        self._base = np.frombuffer(data, np.uint8)
        self.encoder = entropy.Encoder()
        self.holes: list[tuple[int, int]] = []
        self.bound_bits = 0.0
        self.tensors = 0

    def add(self, constant: Constant) -> None:
        """Codes a constant if it is regular and becomes smaller, and else leaves it alone."""
        rows = constant.holes[0].view(np.uint8).reshape(-1, constant.dtype.itemsize)
        if constant.levels:
            with contextlib.suppress(ValueError):
                self._add_sparse(constant, rows)
        else:
            self._add_dense(constant, rows)

    def _add_dense(self, constant: Constant, rows: np.ndarray) -> None:
        sample = rows[: _SAMPLE_BYTES // rows.shape[1]]
        bits = entropy.ValueModel(sample, constant.dtype.kind).bits
        if _is_run(sample.size, bits) or not _pays(bits, [sample]):
            return
        self._header(unpacking.DENSE, rows)
        self.encoder.numbers(rows.shape[0])
        self.encoder.values(entropy.ValueModel(rows, constant.dtype.kind))
        self._place(constant.holes)
        self._bound(rows.shape[0], rows, constant.dtype)

    def _add_sparse(self, constant: Constant, rows: np.ndarray) -> None:
        levels, vectors = constant.levels, constant.holes[1:]
        sizes = [size for size, _, _ in levels]
        depth = max(number + 1 for number, level in enumerate(levels) if level[2])
        total, block = int(np.prod(sizes, dtype=object)), int(np.prod(sizes[depth:]))
        if not 1 <= total <= unpacking.MAX_POSITIONS or len(levels) > unpacking.MAX_LEVELS:
            return
        cells = stored_cells(levels[:depth], vectors, sum(v.size for v in vectors))
        regular = cells.size * block == len(rows) and (np.diff(cells) > 0).all()
        if not regular or not _restores(levels[:depth], cells, vectors):
            return
        kind, letter = unpacking.POSITIONS, constant.dtype.kind
        positions = entropy.PositionModel(sizes[:depth], cells)
        values = entropy.ValueModel(rows, letter)
        nonzero = rows.any(axis=1)
        filled = block > 1 and nonzero.reshape(-1, block).any(axis=1).all()
        if filled and not nonzero.all():
            taken = (cells[:, np.newaxis] * block + np.arange(block)).ravel()[nonzero]
            fewer = entropy.PositionModel(sizes, taken), entropy.ValueModel(rows[nonzero], letter)
            if fewer[0].bits + fewer[1].bits < positions.bits + values.bits:
                kind, (positions, values) = unpacking.NONZEROS, fewer
        bits = positions.bits + values.bits
        if _is_run(unpacking.POSITION_COST * positions.count + rows.size, bits):
            return
        if not _pays(bits, constant.holes):
            return
        self._header(kind, rows)
        self.encoder.numbers(len(levels))
        for size, *widths in levels:
            code = [unpacking.WIDTHS.index(width) for width in widths] if widths[1] else []
            self.encoder.numbers(1 + 3 * code[0] + code[1] if code else 0, size)
        self.encoder.positions(positions)
        self.encoder.values(values)
        self._place(constant.holes)
        self._bound(total, rows, constant.dtype)

    def _header(self, kind: int, rows: np.ndarray) -> None:
        self.encoder.numbers(kind, rows.shape[1].bit_length() - 1)
        self.tensors += 1

    def _place(self, holes: list[np.ndarray]) -> None:
        for hole in holes:
            start = offset_of(self._base, hole)
            step = start - (self.holes[-1][1] if self.holes else 0)
            self.encoder.numbers(2 * step if step >= 0 else -2 * step - 1)
            self.holes.append((start, start + hole.nbytes))

    def plan(self) -> bytes:
        """What tells the device how to decode."""
        return entropy.number_bytes(self.tensors) + bytes(self.encoder.plan)

    def _bound(self, size: int, rows: np.ndarray, dtype: np.dtype) -> None:
        values = rows.reshape(-1).view(dtype)
        stored = values[values != 0]
        _, counts = np.unique(stored, return_counts=True)
        bits = entropy_bits(size, stored.size, counts.tolist())
        positions = entropy_bits(size, stored.size, [stored.size])
        whole = 8 * dtype.itemsize * stored.size
        # A codebook of nearly all values would be larger than the values.
        if dtype.itemsize > 1 and bits - positions + 8 * dtype.itemsize * counts.size > whole:
            bits = positions + whole
        self.bound_bits += bits


def _is_run(symbols: int, bits: float) -> bool:
    """Whether symbols need so few bits that the graph's compression is better for them.

    The device refuses archives that expand to a little more, whatever they hold.
    """
    return 1.25 * symbols > unpacking.SYMBOLS_PER_BYTE * bits / 8


def _pays(bits: float, holes: list[np.ndarray]) -> bool:
    plain = b"".join(hole.tobytes()[:_SMALL] for hole in holes)
    whole = sum(hole.nbytes for hole in holes)
    compressed = len(
        lzma.compress(plain, lzma.FORMAT_RAW, filters=unpacking.lzma_filters(93, len(plain)))
    )
    return bits / 8 + _PLAN_BYTES < compressed * (whole / len(plain))


def _restores(levels: list[Level], cells: np.ndarray, vectors: list[np.ndarray]) -> bool:
    """Whether the device would make the very same segments and indices."""
    try:
        restored = unpacking.level_vectors(levels, cells, lambda nbytes: None)
    except ArchiveError:
        return False
    pairs = zip(restored, vectors, strict=True)
    return all(ours.tobytes() == theirs.tobytes() for ours, theirs in pairs)


def _compress(graph: bytes) -> tuple[int, bytes]:
    """The smallest of the compressions that the format knows, as `(coding, content)`."""
    best = (0, graph)
    settings = _LZMA_SETTINGS if len(graph) <= _SMALL else _LZMA_SETTINGS[:1]
    for lc, lp, pb in settings:
        properties = (pb * 5 + lp) * 9 + lc
        chosen = unpacking.lzma_filters(properties, len(graph))[0]
        preset = 9 | lzma.PRESET_EXTREME if len(graph) <= _SMALL else 6
        packed = lzma.compress(graph, lzma.FORMAT_RAW, filters=[{"preset": preset, **chosen}])
        if len(packed) < len(best[1]):
            best = (properties + 1, packed)
    return best


def _archive(data: bytes, graph: bytes, stream: bytes) -> bytes:
    coding, packed = _compress(graph)
    digest = hashlib.sha256(data).digest()
    fields = [unpacking.MAGIC, unpacking.VERSION, coding, 0, 0]
    fields += [len(data), len(graph), len(packed), digest]
    content = bytearray(unpacking.HEADER.pack(*fields) + packed + stream)
    content[8:12] = struct.pack("<I", zlib.crc32(content[12:], zlib.crc32(content[:8])))
    return bytes(content)


def _without(data: bytes, holes: list[tuple[int, int]]) -> bytes:
    pieces, end = [], 0
    for start, stop in sorted(holes):
        pieces.append(data[end:start])
        end = stop
    return b"".join([*pieces, data[end:]])


def _pack(data: bytes, path: str) -> tuple[bytes, ArchiveReport]:
    if data[4:8] != FILE_IDENTIFIER:
        raise ArchiveError(
            f"Not a .tflite model: expected the identifier {FILE_IDENTIFIER!r} at byte 4. Received "
            f"{bytes(data[4:8])!r} in {len(data)} bytes."
        )
    packer = _Packer(data)
    with contextlib.suppress(*DAMAGES):
        for constant in constants(data):
            packer.add(constant)
    archive = _finish(data, packer)
    if not _unpacks_to(archive, data):
        # A short archive may expand only so far; without codes there is no such bound.
        packer = _Packer(data)
        archive = _finish(data, packer)
        if not _unpacks_to(archive, data):
            raise ArchiveError("The file cannot be packed; please report this with the file.")
    return archive, _report(path, data, archive, packer)


def _finish(data: bytes, packer: _Packer) -> bytes:
    graph = packer.plan() + _without(data, packer.holes)
    return _archive(data, graph, packer.encoder.stream())


def _report(path: str, data: bytes, archive: bytes, packer: _Packer) -> ArchiveReport:
    encoder = packer.encoder
    stream = len(encoder.stream())
    coded = encoder.position_bits + encoder.code_bits
    positions = round(stream * encoder.position_bits / coded) if coded else 0
    bare = _without(bytes(encoder.plan), encoder.codebook_at) + _without(data, packer.holes)
    graph = unpacking.HEADER.size + len(_compress(bare)[1]) if encoder.codebook_at else None
    graph = len(archive) - stream if graph is None else min(graph, len(archive) - stream)
    return ArchiveReport(
        path=path,
        bytes=len(data),
        archive_bytes=len(archive),
        graph_bytes=graph,
        position_bytes=positions,
        code_bytes=stream - positions,
        codebook_bytes=len(archive) - stream - graph,
        entropy_bound=packer.bound_bits / 8,
        tensors=packer.tensors,
    )


def _unpacks_to(archive: bytes, data: bytes) -> bool:
    try:
        return unpack(archive, max_bytes=len(data)) == data
    except ArchiveError:
        return False


def pack(data: bytes) -> bytes:
    """Packs the content of a .tflite file.

    Args:
        data: the content, from this package or any other source.

    Returns:
        The content of an archive, which was unpacked once to see that it yields `data`.

    Raises:
        ArchiveError: if the content is not a .tflite model.

    Example:
        >>> unpack(pack(b"0000TFL3" + bytes(1000))) == b"0000TFL3" + bytes(1000)
        True
    """
    return _pack(bytes(data), "")[0]


def pack_archive(
    tflite_path: str | os.PathLike[str],
    archive_path: str | os.PathLike[str],
    *,
    overwrite: bool = True,
) -> ArchiveReport:
    """Packs a .tflite file into a transfer archive.

    Args:
        tflite_path: the file to pack.
        archive_path: the archive to write, whole or not at all.
        overwrite: whether an existing archive may be replaced.

    Returns:
        An `ArchiveReport`; print it to see what the parts weigh.

    Raises:
        FileExistsError: if the archive exists and must not be replaced.
        FileNotFoundError: if there is no file to pack.
        ArchiveError: if the file is not a .tflite model.
    """
    _check_target(archive_path, overwrite)
    try:
        content, report = _pack(Path(tflite_path).read_bytes(), os.fspath(archive_path))
    except ArchiveError as error:
        raise ArchiveError(f"{os.fspath(tflite_path)}: {error}") from error
    write_bytes(archive_path, content)
    return report


def unpack_archive(
    archive_path: str | os.PathLike[str],
    tflite_path: str | os.PathLike[str],
    *,
    max_bytes: int = unpacking.DEFAULT_MAX_BYTES,
    overwrite: bool = True,
) -> None:
    """Restores the .tflite file that an archive was made of, to the byte.

    Args:
        archive_path: the archive.
        tflite_path: the file to write, whole or not at all.
        max_bytes: largest file to restore; an archive that claims more is refused.
        overwrite: whether an existing file may be replaced.

    Raises:
        FileExistsError: if the file exists and must not be replaced.
        FileNotFoundError: if there is no such archive.
        ArchiveError: if the archive is damaged, truncated, hostile, of another version or too big.
    """
    _check_target(tflite_path, overwrite)
    try:
        content = unpack(Path(archive_path).read_bytes(), max_bytes=max_bytes)
    except ArchiveError as error:
        raise ArchiveError(f"{os.fspath(archive_path)}: {error}") from error
    write_bytes(tflite_path, content)


def _check_target(path: str | os.PathLike[str], overwrite: bool) -> None:
    if not overwrite and Path(path).exists():
        raise FileExistsError(f"{os.fspath(path)} exists; pass overwrite=True to replace it.")
