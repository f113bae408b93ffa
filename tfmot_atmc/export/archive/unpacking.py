# SPDX-License-Identifier: Apache-2.0
"""Unpacks a transfer archive to the .tflite file it was made of: the half that runs on the device.

This file needs NumPy and `constriction` and nothing of the package, so it can be copied alone:

    python unpacking.py model.atmc model.tflite

The format is described in docs/archive.md. Nothing in an archive is trusted: every number is
bounded before anything is allocated for it, and the result must have the SHA-256 promised.
"""

from __future__ import annotations

import hashlib
import itertools
import lzma
import math
import os
import struct
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import constriction
import numpy as np

MAGIC, VERSION = b"ATMC", 1
# Magic, version, coding of the graph, zero, CRC-32 of all other bytes, sizes of the file and of the
# graph, plain and coded, SHA-256 of the file.
HEADER = struct.Struct("<4sBBHIQQQ32s")
DEFAULT_MAX_BYTES = 64 << 20
DENSE, POSITIONS, NONZEROS = range(3)
PLANES, CODEBOOK = range(2)
SHAPE, HISTOGRAM = range(2)
WIDTHS = (1, 2, 4)
MAX_CODES, MAX_CLASSES = 4096, 4
MAX_SLOPE, MAX_CURVATURE = 1 << 18, (1 << 24) - 1
ESCAPE = 511
# What one byte of an archive may expand to, in decoded symbols.
SYMBOLS_PER_BYTE, POSITION_COST = 64, 16
MAX_LEVELS, MAX_POSITIONS = 12, 1 << 40
# Size of a level and the widths in bytes of its segments and indices, 0 where it is dense.
Level = tuple[int, int, int]


class ArchiveError(ValueError):
    """A transfer archive that is damaged, truncated or hostile, or that cannot be made."""


def _require(sane: Any, complaint: str) -> None:
    if not sane:
        raise ArchiveError(f"The archive {complaint}; it is damaged or was not made by `pack`.")


def scaled(weights: Sequence[int]) -> np.ndarray:
    """Scales whole weights to sum to at most 2**24; exact, hence alike on every machine."""
    top, unit = max(1, *weights), (1 << 24) // len(weights)
    return np.array([max(1, weight * unit // top) for weight in weights], np.float64)


def alphabet(below: int, above: int, zero: int) -> np.ndarray:
    """Returns the codes from `-below` to `above`, ascending, with or without zero."""
    codes = np.arange(-below, above + 1)
    return codes if zero else codes[codes != 0]


def shape_weights(codes: np.ndarray, slope: int, curvature: int) -> np.ndarray:
    """Weights whose logarithm is quadratic in the code's size: uniform, Laplace, Gaussian.

    `slope` is the ratio of the weights at 1 and at 0, times 2**16; `curvature` is one minus the
    ratio of neighbouring ratios, times 2**24.
    """
    ratio, factor = slope << 16, (1 << 32) - (curvature << 8)
    weights = [1 << 32]
    for _ in range(int(np.abs(codes).max())):
        weights.append(weights[-1] * ratio >> 32)
        ratio = ratio * factor >> 32
    return scaled([weights[abs(code)] for code in codes.tolist()])


def gap_model(size: int, count: int) -> tuple[int, np.ndarray]:
    """Returns `(shift, weights)` of the gaps between `count` random positions among `size`.

    The lowest `shift` bits of a gap are uniform, the rest has the geometric distribution `weights`,
    whose last symbol means "this much, and more follows".
    """
    shift = max(0, (size // count).bit_length() - 5)
    ratio = ((size - count) << 64) // size
    for _ in range(shift):
        ratio = ratio * ratio >> 64
    weights = [1 << 64]
    for _ in range(ESCAPE):
        weights.append(weights[-1] * ratio >> 64)
    weights[ESCAPE] = (weights[ESCAPE] << 64) // ((1 << 64) - ratio)
    return shift, scaled(weights)


def entropy_model(weights: np.ndarray | int) -> Any:
    """The coder's model of symbols with these weights, or of so many alike."""
    if isinstance(weights, int):
        return constriction.stream.model.Uniform(weights)
    return constriction.stream.model.Categorical(weights, perfect=False)


def level_vectors(levels: Sequence[Level], cells: np.ndarray, reserve: Any) -> list[np.ndarray]:
    """Restores segments and indices, in the types of the file, from the positions stored.

    `levels` end with the last one that is not dense, `cells` are ascending flat positions in their
    array, and `reserve` is called with a number of bytes before they are allocated.
    """
    vectors: list[np.ndarray] = []
    stride = math.prod(size for size, _, _ in levels)
    parent, parents = np.zeros(cells.size, np.int64), 1
    for size, *widths in levels:
        stride //= size
        key = parent * size + cells // stride % size
        if not any(widths):
            parent, parents = key, parents * size
            continue
        first = np.diff(key, prepend=-1) != 0
        owner, indices = np.divmod(key[first], size)
        limits = [1 << min(8 * width, 31) for width in widths]
        fits = owner.size < limits[0] and indices.max(initial=0) < limits[1]
        _require(fits, "has a vector that does not fit its type")
        reserve((parents + 1) * widths[0] + owner.size * widths[1])
        types = [np.dtype(f"<u{width}") for width in widths]
        segments = np.zeros(parents + 1, types[0])
        owners, counts = np.unique(owner, return_counts=True)
        segments[owners + 1] = counts
        vectors += [np.cumsum(segments, dtype=types[0], out=segments), indices.astype(types[1])]
        parent, parents = np.cumsum(first) - 1, owner.size
    return vectors


def lzma_filters(properties: int, size: int) -> list[dict[str, int]]:
    """The settings of the LZMA coder: the byte of .lzma files, and a window for `size` bytes."""
    rest, lc = divmod(properties, 9)
    pb, lp = divmod(rest, 5)
    window = min(max(1 << (max(size, 2) - 1).bit_length(), 1 << 12), 1 << 24)
    return [{"id": lzma.FILTER_LZMA1, "lc": lc, "lp": lp, "pb": pb, "dict_size": window}]


def _expand(data: bytes, coding: int, size: int) -> bytes:
    """Undoes the compression of the graph, never past the size that it must have."""
    try:
        if coding:
            filters = lzma_filters(coding - 1, size)
            data = lzma.LZMADecompressor(lzma.FORMAT_RAW, None, filters).decompress(data, size)
    except (lzma.LZMAError, ValueError) as error:
        raise ArchiveError(f"The archive's graph is damaged: {error}.") from error
    _require(len(data) == size, f"has a graph of {len(data)} bytes, not {size}")
    return data


class _Reader:
    """Reads whole numbers from bytes and refuses those that are too large."""

    def __init__(self, data: bytes):
        self._data, self.position = data, 0

    def take(self, count: int) -> bytes:
        start, self.position = self.position, self.position + count
        _require(self.position <= len(self._data), "has a plan that ends early")
        return self._data[start : self.position]

    def number(self, largest: int, what: str) -> int:
        value = 0
        for shift in range(0, 63, 7):
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                break
        _require(byte < 128 and value <= largest, f"has {what} of {value}, more than {largest}")
        return value


class _Decoder:
    """Restores the parts of a file that the archive does not hold as they are."""

    def __init__(self, plan: _Reader, stream: bytes, size: int, budget: int):
        self._plan = plan
        words = np.frombuffer(stream, "<u4").astype(np.uint32)
        self._coder = constriction.stream.queue.RangeDecoder(words)
        self._size, self._room, self._budget, self._end = size, size, budget, 0
        self.parts: list[tuple[int, bytes]] = []

    def run(self) -> None:
        """Follows the plan; `parts` are the bytes restored, with their offsets."""
        for _ in range(self._plan.number(self._size, "a number of tensors")):
            self._spend(ESCAPE)
            kind = self._plan.number(NONZEROS, "a kind of tensor")
            itemsize = 1 << self._plan.number(3, "a type of value")
            if kind == DENSE:
                count = self._plan.number(self._size // itemsize, "a number of values")
                self._reserve(count * itemsize)
                self._place(self._values(count, itemsize).tobytes())
            else:
                self._sparse(itemsize, kind)

    def _sparse(self, itemsize: int, kind: int) -> None:
        levels = [self._level() for _ in range(self._plan.number(MAX_LEVELS, "levels"))]
        depth = max((n + 1 for n, (_, _, width) in enumerate(levels) if width), default=0)
        sizes = [size for size, _, _ in levels]
        total, block = math.prod(sizes), math.prod(sizes[depth:])
        _require(depth and 1 <= total <= MAX_POSITIONS, f"describes a tensor of {total} entries")
        step, coded = (block, sizes) if kind == NONZEROS else (1, sizes[:depth])
        taken = self._positions(coded, self._size // itemsize * step // block)
        cells = taken // step
        first = np.diff(cells, prepend=-1) != 0
        cells = cells[first]
        self._reserve(cells.size * block * itemsize)
        count = taken.size if kind == NONZEROS else cells.size * block
        rows = self._values(count, itemsize)
        if kind == NONZEROS:
            where = (np.cumsum(first) - 1) * block + taken % block
            filled = np.zeros((cells.size * block, itemsize), np.uint8)
            filled[where], rows = rows, filled
        self._place(rows.tobytes())
        for vector in level_vectors(levels[:depth], cells, self._reserve):
            self._place(vector.tobytes())

    def _level(self) -> Level:
        code = self._plan.number(9, "a level format") - 1
        size = self._plan.number(MAX_POSITIONS, "a level size")
        return (size, WIDTHS[code // 3], WIDTHS[code % 3]) if code >= 0 else (size, 0, 0)

    def _reserve(self, nbytes: int) -> None:
        self._room -= nbytes
        _require(self._room >= 0, "describes more bytes than its file has")

    def _place(self, content: bytes) -> None:
        step = self._plan.number(2 * self._size + 1, "an offset")
        offset = self._end + (step >> 1 ^ -(step & 1))
        _require(0 <= offset <= self._size - len(content), "puts a part outside its file")
        self._end = offset + len(content)
        self.parts.append((offset, content))

    def _spend(self, symbols: int) -> None:
        self._budget -= symbols
        _require(self._budget >= 0, "expands to far more than its length allows")

    def _symbols(self, weights: Any, count: int, dtype: Any = np.int64) -> np.ndarray:
        """Decodes in pieces: the coder gives int32, of which there might be many."""
        symbols, model = np.empty(count, dtype), entropy_model(weights)
        for start in range(0, count, 1 << 18):
            piece = symbols[start : start + (1 << 18)]
            try:
                piece[:] = self._coder.decode(model, piece.size)
            except AssertionError as error:  # what the coder raises
                raise ArchiveError(f"The archive's stream is damaged: {error}") from error
        return symbols

    def _positions(self, sizes: list[int], limit: int) -> np.ndarray:
        """Ascending flat positions in an array of these sizes."""
        classes = [self._classes(size) for size in sizes]
        parts = []
        for members in itertools.product(*classes):
            total = math.prod(extent for extent, _ in members)
            self._spend(ESCAPE)
            count = self._plan.number(min(limit, total), "a number of positions")
            limit -= count
            rest = self._gaps(total, count) if count else np.zeros(0, np.int64)
            flat, stride = np.zeros_like(rest), 1
            for size, (extent, where) in zip(sizes[::-1], members[::-1], strict=True):
                rest, rank = np.divmod(rest, max(extent, 1))
                flat += (rank if where is None else where[rank]) * stride
                stride *= size
            parts.append(flat)
        return np.sort(np.concatenate(parts)) if len(parts) > 1 else parts[0]

    def _classes(self, size: int) -> list[tuple[int, np.ndarray | None]]:
        """The classes of a dimension's coordinates; one class of all unless the plan says more."""
        count = self._plan.number(MAX_CLASSES, "a number of classes")
        if not count:
            return [(size, None)]
        members = [self._plan.number(size, "a class size") for _ in range(count)]
        dead = size - sum(members)
        self._spend(size)
        _require(dead >= 0, f"puts more than {size} coordinates into classes")
        model = scaled([dead, *members])
        symbols = self._symbols(model, size, np.uint8)
        ranks = [np.flatnonzero(symbols == number + 1) for number in range(count)]
        return [(rank.size, rank) for rank in ranks]

    def _gaps(self, size: int, count: int) -> np.ndarray:
        escapes = self._plan.number(count // 16 + 1, "a number of escapes")
        self._spend(POSITION_COST * (count + escapes))
        shift, weights = gap_model(size, count)
        steps = self._symbols(weights, count + escapes)
        ends = steps != ESCAPE
        _require(np.count_nonzero(ends) == count, "has damaged positions")
        low = np.ones(count, np.int64)
        for start in range(0, shift, 16):
            low += self._symbols(1 << min(16, shift - start), count) << start
        steps <<= shift
        steps[ends] += low
        flat = np.cumsum(steps, out=steps)[ends] - 1
        _require(flat[-1] < size, "has positions outside their tensor")
        return flat

    def _values(self, count: int, itemsize: int) -> np.ndarray:
        """Values as bytes, `[count, itemsize]`."""
        kind = self._plan.number(CODEBOOK, "a kind of values")
        self._spend(count * (1 if kind == CODEBOOK else itemsize))
        if kind == CODEBOOK:
            codes, symbols = self._codes(count)
            book = np.frombuffer(self._plan.take(codes.size * itemsize), np.uint8)
            return book.reshape(itemsize, -1).T[symbols]
        rows = np.empty((count, itemsize), np.uint8)
        for plane in range(itemsize):
            codes, symbols = self._codes(count)
            rows[:, plane] = codes.astype(np.uint8)[symbols]
        return rows

    def _codes(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        below = self._plan.number(MAX_CODES, "a number of codes")
        above, zero = divmod(self._plan.number(2 * MAX_CODES, "a number of codes"), 2)
        codes = alphabet(below, above, zero)
        _require(1 <= codes.size <= MAX_CODES, f"describes {codes.size} different codes")
        self._spend(codes.size)
        if codes.size == 1:
            return codes, np.zeros(count, np.uint16)
        if self._plan.number(HISTOGRAM, "a model of codes") == SHAPE:
            slope = self._plan.number(MAX_SLOPE, "a slope")
            weights = shape_weights(codes, slope, self._plan.number(MAX_CURVATURE, "a bend"))
        else:
            shift = self._plan.number(12, "a bin width")
            heights = self._plan.take(((codes.size - 1) >> shift) + 1)
            weights = scaled([heights[number >> shift] for number in range(codes.size)])
        return codes, self._symbols(weights, count, np.uint16)


def unpack(data: bytes, *, max_bytes: int = DEFAULT_MAX_BYTES) -> bytes:
    """Restores the very bytes of a .tflite file, at most `max_bytes`, from those of an archive.

    Raises:
        ArchiveError: if the archive is damaged, truncated, hostile, of another version or too big.
    """
    if len(data) < HEADER.size or data[:4] != MAGIC:
        raise ArchiveError(
            f"Not a transfer archive: expected {MAGIC!r} and at least {HEADER.size} bytes. "
            f"Received {bytes(data[:4])!r} and {len(data)} bytes."
        )
    header = HEADER.unpack_from(data)
    version, coding, zero, crc, size, graph_size, graph_bytes, digest = header[1:]
    if version != VERSION:
        raise ArchiveError(
            f"The archive has format version {version}, not {VERSION}; use the unpacking.py of the "
            "release that made it."
        )
    if zlib.crc32(data[12:], zlib.crc32(data[:8])) != crc:
        raise ArchiveError("The archive is damaged or truncated (CRC-32); transfer it again.")
    if size > max_bytes:
        raise ArchiveError(
            f"The archive claims a file of {size} bytes, more than max_bytes={max_bytes}; raise "
            "that if you trust the archive."
        )
    start = HEADER.size + graph_bytes
    rest = len(data) - start
    sane = not zero and coding <= 225 and rest >= 0 and rest % 4 == 0
    _require(sane and graph_size <= size + 4096, "has a header that contradicts itself")
    graph = _expand(data[HEADER.size : start], coding, graph_size)
    plan = _Reader(graph)
    decoder = _Decoder(plan, data[start:], size, SYMBOLS_PER_BYTE * len(data) + (1 << 16))
    decoder.run()
    content = _assemble(graph[plan.position :], decoder.parts)
    if hashlib.sha256(content).digest() != digest:
        raise ArchiveError("The file restored is not the one packed (SHA-256); nothing is written.")
    return content


def _assemble(skeleton: bytes, parts: list[tuple[int, bytes]]) -> bytes:
    """Puts the parts into the holes of the skeleton."""
    content, used = bytearray(), 0
    for offset, part in sorted(parts):
        gap = offset - len(content)
        _require(gap >= 0, "has parts that overlap")
        content += skeleton[used : used + gap] + part
        used += gap
    return bytes(content + skeleton[used:])


def main(arguments: Sequence[str] | None = None) -> None:
    """Unpacks the archive named first to the file named second, whole or not at all."""
    try:
        source, target = sys.argv[1:] if arguments is None else arguments
        content = unpack(Path(source).read_bytes())
        with open(f"{target}.part", "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(f"{target}.part", target)
    except (OSError, ValueError) as error:
        sys.exit(f"usage: unpacking.py ARCHIVE TFLITE: {error}")


if __name__ == "__main__":
    main()
