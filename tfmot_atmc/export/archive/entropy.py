# SPDX-License-Identifier: Apache-2.0
"""The coding half of the transfer archive: chooses models and writes what `unpacking` reads.

Positions are coded as the gaps between them, in blocks of the array that differ in density: the
coordinates of every dimension are put into classes (those without a single nonzero are left out),
and each combination of classes is a block. Values are coded as bytes or as numbers into a codebook.
All probabilities follow from small whole numbers in the archive.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import constriction
import numpy as np

from tfmot_atmc.export.archive import unpacking

_CODE_TYPES = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_SAMPLE = 1 << 16
_CHUNK = 1 << 18
_COUNT_BITS = 16  # what a count in the plan costs, about
_NEWTON_STEPS = 30


def number_bytes(value: int) -> bytes:
    """A whole number, not negative, seven bits to a byte, the lowest first."""
    groups = bytearray()
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])


def choice_bits(size: int, count: int) -> float:
    """Bits that tell which `count` of `size` positions are taken."""
    choices = math.lgamma(size + 1) - math.lgamma(count + 1) - math.lgamma(size - count + 1)
    return max(choices, 0.0) / math.log(2.0)


def _class_bits(classes: np.ndarray | None) -> float:
    if classes is None:
        return 0.0
    counts = np.bincount(classes)
    counts = counts[counts > 0]
    return float(counts @ np.log2(classes.size / counts)) + _COUNT_BITS * counts.size


class PositionModel:
    """How the positions of one tensor are coded: classes of coordinates of each dimension.

    Args:
        sizes: sizes of the dimensions.
        positions: ascending flat positions, int64.

    Attributes:
        bits: bits that the positions cost, about.
    """

    def __init__(self, sizes: Sequence[int], positions: np.ndarray):
        self.sizes = list(sizes)
        self.classes: list[np.ndarray | None] = [None] * len(self.sizes)
        self._coordinates: list[np.ndarray] = []
        for size in reversed(self.sizes):
            positions, coordinate = np.divmod(positions, size)
            self._coordinates.insert(0, coordinate)
        self.count = positions.size
        self.bits = self._cost()
        # A dimension's classes depend on the other dimensions', so go round twice.
        for dimension in [*range(len(self.sizes))] * 2:
            self._improve(dimension)

    def _improve(self, dimension: int) -> None:
        size = self.sizes[dimension]
        if not 2 <= size <= 8 * self.count + 64:
            return
        counts = np.bincount(self._coordinates[dimension], minlength=size)
        best = self.classes[dimension]
        for candidate in _class_candidates(counts):
            self.classes[dimension] = candidate
            bits = self._cost()
            if bits < self.bits:
                self.bits, best = bits, candidate
        self.classes[dimension] = best

    def _extents(self) -> list[list[int]]:
        """Sizes of the classes of each dimension, without class 0."""
        return [
            [size] if classes is None else np.bincount(classes)[1:].tolist()
            for size, classes in zip(self.sizes, self.classes, strict=True)
        ]

    def _blocks(self) -> np.ndarray:
        """Number of the block that each position is in."""
        block = np.zeros(self.count, np.int64)
        for classes, coordinate, extents in zip(
            self.classes, self._coordinates, self._extents(), strict=True
        ):
            if classes is not None:
                block = block * len(extents) + classes[coordinate] - 1
        return block

    def _cost(self) -> float:
        extents = self._extents()
        if math.prod(len(classes) for classes in extents) > 256:
            return math.inf
        totals = [math.prod(extent) for extent in itertools.product(*extents)]
        counts = np.bincount(self._blocks(), minlength=len(totals)).tolist()
        blocks = sum(choice_bits(t, n) + _COUNT_BITS for t, n in zip(totals, counts, strict=True))
        return blocks + sum(_class_bits(classes) for classes in self.classes)

    def block_positions(self) -> list[tuple[int, np.ndarray]]:
        """Size of each block and the ascending flat positions in it, in the order of the plan."""
        flat = np.zeros(self.count, np.int64)
        strides = np.ones(self.count, np.int64)
        extents = self._extents()
        for classes, coordinate, extent in zip(
            self.classes[::-1], self._coordinates[::-1], extents[::-1], strict=True
        ):
            if classes is None:
                flat += coordinate * strides
                strides *= extent[0]
                continue
            ranks = np.zeros(classes.size, np.int64)
            for number in range(len(extent)):
                ranks[classes == number + 1] = np.arange(extent[number])
            flat += ranks[coordinate] * strides
            strides *= np.array(extent)[classes[coordinate] - 1]
        blocks = self._blocks()
        totals = [math.prod(extent) for extent in itertools.product(*extents)]
        return [(total, np.sort(flat[blocks == b])) for b, total in enumerate(totals)]


def _class_candidates(counts: np.ndarray) -> list[np.ndarray | None]:
    """Ways to put coordinates with these numbers of nonzeros into classes of like density."""
    alive = np.flatnonzero(counts)
    candidates: list[np.ndarray | None] = [None]
    order = alive[np.argsort(counts[alive], kind="stable")]
    share = np.cumsum(counts[order]) - counts[order]
    for number in range(1, unpacking.MAX_CLASSES + 1):
        # Classes of about equally many nonzeros; equal counts stay together.
        split = share * number // max(int(counts.sum()), 1)
        starts = np.searchsorted(counts[order], counts[order])
        _, ranks = np.unique(split[starts], return_inverse=True)
        for with_dead in (True, False) if alive.size < counts.size else (True,):
            classes = np.full(counts.size, 0 if with_dead else 1, np.int64)
            classes[order] = ranks + 1
            candidates.append(classes)
    return candidates


class CodeModel:
    """The cheapest distribution of codes: a quadratic shape or a histogram.

    Args:
        codes: the alphabet, ascending.
        counts: how often each code occurs.

    Attributes:
        plan: what tells the model in the archive.
        weights: its weights; None where there is one code only.
        bits: bits of all codes and of the model, about.
    """

    def __init__(self, codes: np.ndarray, counts: np.ndarray):
        below, above = int(np.sum(codes < 0)), int(np.sum(codes > 0))
        zero = codes.size - below - above
        self._head = number_bytes(below) + number_bytes(2 * above + zero)
        self._counts = counts
        self.plan, self.bits = self._head, 0.0
        self.weights: np.ndarray | None = None
        if codes.size == 1:
            return
        self.bits = math.inf
        for slope, curvature in {(1 << 16, 0), *_fit_shapes(np.abs(codes), counts)}:
            plan = number_bytes(unpacking.SHAPE) + number_bytes(slope) + number_bytes(curvature)
            self._offer(unpacking.shape_weights(codes, slope, curvature), plan)
        for shift in range((codes.size - 1).bit_length()):
            starts = np.arange(0, codes.size, 1 << shift)
            widths = np.diff(np.append(starts, codes.size))
            density = np.add.reduceat(counts, starts) / widths
            heights = np.ceil(density * (255 / density.max())).astype(np.uint8).tobytes()
            table = [heights[number >> shift] for number in range(codes.size)]
            plan = number_bytes(unpacking.HISTOGRAM) + number_bytes(shift) + heights
            self._offer(unpacking.scaled(table), plan)

    def _offer(self, weights: np.ndarray, plan: bytes) -> None:
        bits = float(self._counts @ np.log2(weights.sum() / weights)) + 8 * len(plan)
        if bits < self.bits:
            self.bits, self.weights, self.plan = bits, weights, self._head + plan


def _fit_shapes(sizes: np.ndarray, counts: np.ndarray) -> list[tuple[int, int]]:
    """Slope and curvature of the likeliest Laplace and of the likeliest quadratic shape."""
    top = float(sizes.max())
    features = np.stack([sizes / top, (sizes / top) ** 2])
    shapes = []
    for free in (1, 2):
        theta = np.zeros(2)
        x = features[:free]
        for _ in range(_NEWTON_STEPS):
            logits = theta[:free] @ x
            p = np.exp(logits - logits.max())
            p /= p.sum()
            mean = x @ p
            gradient = x @ counts / counts.sum() - mean
            hessian = (x * p) @ x.T - np.outer(mean, mean) + 1e-9 * np.eye(free)
            step = np.linalg.solve(hessian, gradient)
            theta[:free] += np.clip(step, -8.0, 8.0)
        bend = min(theta[1] / top**2, 0.0)
        slope = np.exp(np.clip(theta[0] / top + bend, -11.0, 1.38)) * (1 << 16)
        curvature = min(int(-np.expm1(2 * bend) * (1 << 24)), unpacking.MAX_CURVATURE)
        shapes.append((max(int(slope), 1), curvature))
    return shapes


class ValueModel:
    """The cheapest coding of values: byte by byte, or as numbers into a codebook.

    Args:
        rows: the values as bytes, uint8 `[count, itemsize]`, not empty.
        kind: NumPy's letter of their type: "f" float, "i" signed, "u" anything else.

    Attributes:
        bits: bits of the values, model and codebook included, about.
        book_size: bytes of the codebook.
    """

    def __init__(self, rows: np.ndarray, kind: str):
        self._rows = np.ascontiguousarray(rows)
        self.book_size = 0
        self.parts: list[tuple[CodeModel, np.ndarray, bytes]] = []
        for plane in self._rows.T:
            self.parts.append((*_plane(plane), b""))
        self.kind = unpacking.PLANES
        self.bits = sum(model.bits for model, _, _ in self.parts)
        self._try_codebook(kind)

    def _try_codebook(self, kind: str) -> None:
        count, itemsize = self._rows.shape
        values = self._rows.view(_CODE_TYPES[itemsize])[:, 0]
        if np.unique(values[:_SAMPLE]).size > unpacking.MAX_CODES:
            return
        book, symbols = _distinct(values)
        if book.size > min(unpacking.MAX_CODES, count):
            return
        # In ascending order of the numbers, so that the codes of like values are alike.
        top = np.array(1 << (8 * itemsize - 1), book.dtype)
        negative = (book >= top) if kind in "fi" else np.zeros(book.size, bool)
        key = np.where(negative, ~book if kind == "f" else book ^ top, book | top)
        order = np.argsort(key if kind in "fi" else book)
        ranks = np.empty(book.size, np.int64)
        ranks[order] = np.arange(book.size)
        below, zero = int(negative.sum()), int(np.any(book == 0))
        codes = unpacking.alphabet(below, book.size - below - zero, zero)
        symbols = ranks[symbols]
        model = CodeModel(codes, np.bincount(symbols, minlength=book.size))
        planes = book[order].view(np.uint8).reshape(-1, itemsize).T.tobytes()
        bits = model.bits + 8 * len(planes)
        if bits < self.bits:
            self.kind, self.bits, self.book_size = unpacking.CODEBOOK, bits, len(planes)
            self.parts = [(model, symbols, planes)]


def _distinct(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values in ascending order and the number of each value; bytes without sorting."""
    if values.itemsize > 1:
        return np.unique(values, return_inverse=True)
    used = np.bincount(values, minlength=256) > 0
    return np.flatnonzero(used).astype(values.dtype), (np.cumsum(used) - 1)[values]


def _plane(plane: np.ndarray) -> tuple[CodeModel, np.ndarray]:
    signed = plane.view(np.int8) if plane.flags.c_contiguous else plane.copy().view(np.int8)
    low, high = int(signed.min()), int(signed.max())
    zero = int(np.any(signed == 0))
    codes = unpacking.alphabet(max(-low, 0), max(high, 0), zero)
    symbols = signed.astype(np.int16) + np.int16(max(-low, 0))
    if not zero:
        symbols -= signed > 0
    return CodeModel(codes, np.bincount(symbols, minlength=codes.size)), symbols


class Encoder:
    """Writes plan and stream; the order of calls is that in which `unpacking` reads.

    Attributes:
        plan: what tells how to decode, so far.
        codebook_at: start and end of each codebook in the plan.
        position_bits: bits of the stream that are positions.
        code_bits: bits of the stream that are codes.
    """

    def __init__(self) -> None:
        self.plan = bytearray()
        self.codebook_at: list[tuple[int, int]] = []
        self.position_bits = self.code_bits = 0.0
        self._coder = constriction.stream.queue.RangeEncoder()

    def stream(self) -> bytes:
        """Returns the coded stream."""
        return self._coder.get_compressed().astype("<u4").tobytes()

    def numbers(self, *values: int) -> None:
        """Adds whole numbers to the plan."""
        for value in values:
            self.plan += number_bytes(value)

    def positions(self, model: PositionModel) -> None:
        """Adds the positions of a tensor."""
        for classes in model.classes:
            if classes is None:
                self.numbers(0)
                continue
            counts = np.bincount(classes).tolist()
            self.numbers(len(counts) - 1, *counts[1:])
            self.position_bits += self._encode(classes, unpacking.scaled(counts))
        for size, positions in model.block_positions():
            self.numbers(positions.size)
            if positions.size:
                self._gaps(size, positions)

    def _gaps(self, size: int, positions: np.ndarray) -> None:
        shift, weights = unpacking.gap_model(size, positions.size)
        gaps = np.diff(positions, prepend=-1) - 1
        high = gaps >> shift
        escapes = high // unpacking.ESCAPE
        steps = np.full(positions.size + int(escapes.sum()), unpacking.ESCAPE)
        steps[np.cumsum(escapes + 1) - 1] = high % unpacking.ESCAPE
        self.numbers(int(escapes.sum()))
        self.position_bits += self._encode(steps, weights)
        for start in range(0, shift, 16):
            width = min(16, shift - start)
            self.position_bits += self._encode(gaps >> start & ((1 << width) - 1), 1 << width)

    def values(self, model: ValueModel) -> None:
        """Adds the values of a tensor."""
        self.numbers(model.kind)
        for codes, symbols, book in model.parts:
            self.plan += codes.plan
            if codes.weights is not None:
                self.code_bits += self._encode(symbols, codes.weights)
            if book:
                self.codebook_at.append((len(self.plan), len(self.plan) + len(book)))
            self.plan += book

    def _encode(self, symbols: np.ndarray, weights: np.ndarray | int) -> float:
        model = unpacking.entropy_model(weights)
        for start in range(0, symbols.size, _CHUNK):
            self._coder.encode(symbols[start : start + _CHUNK].astype(np.int32), model)
        if isinstance(weights, int):
            return symbols.size * math.log2(weights)
        used = np.bincount(symbols, minlength=weights.size)
        return float(used @ np.log2(weights.sum() / weights))
