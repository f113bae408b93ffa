# SPDX-License-Identifier: Apache-2.0
"""Sparse storage of constant arrays: the level formats of TFLite's `SparsityParameters`.

An array of rank `r` is stored as `r` levels, one per dimension, in a freely chosen traversal order.
A level is `DENSE` (every coordinate is present, nothing is stored for it) or `SPARSE_CSR` (only the
coordinates that lead to a nonzero are present; the level stores `segments`, one entry more than it
has parents, and `indices`, one entry per coordinate kept). Which order and which formats are
smallest depends on where the zeros are, so `find_layout` tries them all. Segments and indices
are counted at the narrowest integer type that holds their largest value, the rule of the file
format.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

# Bytes that the file format adds for one level's table, beside its vectors (measured).
_DENSE_LEVEL_BYTES = 16
_CSR_LEVEL_BYTES = 56


class LevelFormat(enum.IntEnum):
    """How one level of a sparse array is stored; the numbers are those of the file format."""

    DENSE = 0
    SPARSE_CSR = 1


@dataclass(frozen=True)
class Level:
    """One level of a sparse array.

    Attributes:
        format: `LevelFormat.DENSE` or `LevelFormat.SPARSE_CSR`.
        size: number of coordinates of the dimension that this level walks.
        segments: for CSR, int64 `[parents + 1]`, offsets into `indices`; otherwise None.
        indices: for CSR, int64 `[entries]`, the coordinates kept; otherwise None.
    """

    format: LevelFormat
    size: int
    segments: np.ndarray | None = None
    indices: np.ndarray | None = None


@dataclass(frozen=True)
class Layout:
    """A choice of traversal order and level formats, with the bytes that it costs.

    Attributes:
        order: the array's dimensions in the order in which they are traversed.
        formats: one `LevelFormat` per entry of `order`.
        nbytes: bytes of values, indices, segments and level tables.
    """

    order: tuple[int, ...]
    formats: tuple[LevelFormat, ...]
    nbytes: int


@dataclass(frozen=True)
class SparseEncoding:
    """An array in sparse storage.

    Attributes:
        shape: shape of the dense array.
        order: traversal order: dimension numbers, then (where there are blocks) block dimensions,
            numbered from the rank upwards.
        levels: one `Level` per entry of `order`.
        values: 1-D array of the stored values, in traversal order.
        block_map: the dimension that each block dimension splits; empty without blocks.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]
    levels: tuple[Level, ...]
    values: np.ndarray
    block_map: tuple[int, ...] = ()

    @property
    def value_bytes(self) -> int:
        """Bytes of the stored values."""
        return int(self.values.nbytes)

    @property
    def index_bytes(self) -> int:
        """Bytes of all levels' indices, each at its narrowest type."""
        return sum(_vector_bytes(level.indices) for level in self.levels)

    @property
    def segment_bytes(self) -> int:
        """Bytes of all levels' segments, each at its narrowest type."""
        return sum(_vector_bytes(level.segments) for level in self.levels)

    @property
    def nbytes(self) -> int:
        """Bytes of values, indices and segments."""
        return self.value_bytes + self.index_bytes + self.segment_bytes

    def describe(self) -> str:
        """Returns the traversal as text, `~` marking CSR levels, such as `0 1 ~3`."""
        marks = ("", "~")
        return " ".join(
            f"{marks[level.format]}{dimension}"
            for dimension, level in zip(self.order, self.levels, strict=True)
        )


def narrowest_index_type(largest: int) -> np.dtype:
    """Returns the index type that the file format prescribes for a largest value.

    Args:
        largest: the largest index or segment, not negative.

    Returns:
        uint8, uint16 or int32.

    Raises:
        ValueError: if `largest` does not fit in int32.

    Example:
        >>> narrowest_index_type(255), narrowest_index_type(256)
        (dtype('uint8'), dtype('uint16'))
    """
    if largest < 1 << 8:
        return np.dtype(np.uint8)
    if largest < 1 << 16:
        return np.dtype(np.uint16)
    if largest < 1 << 31:
        return np.dtype(np.int32)
    raise ValueError(
        f"A sparse tensor needs the index {largest}, but the file format holds at most "
        f"{(1 << 31) - 1}; split the layer."
    )


def _vector_bytes(vector: np.ndarray | None) -> int:
    if vector is None:
        return 0
    largest = int(vector.max()) if vector.size else 0
    return int(vector.size) * narrowest_index_type(largest).itemsize


def _stored_mask(array: np.ndarray) -> np.ndarray:
    """Entries to store: the nonzeros, or the first entry where there are none.

    A constant without a single byte reads as "not a constant", so an all-zero array keeps one zero.
    """
    mask = np.not_equal(array, 0)
    if array.size and not mask.any():
        mask[(0,) * array.ndim] = True
    return mask


def _check_array(array: np.ndarray) -> np.ndarray:
    array = np.asarray(array)
    if array.ndim < 1 or array.size == 0:
        raise ValueError(
            "Expected an array of rank 1 or more with at least one entry. "
            f"Received shape {array.shape}."
        )
    return array


def _prefix_counts(mask: np.ndarray) -> dict[frozenset[int], int]:
    """For every set of dimensions: how many coordinate tuples over it lead to a stored entry."""
    rank = mask.ndim
    every = frozenset(range(rank))
    projections = {every: mask}
    counts = {every: int(np.count_nonzero(mask))}
    for size in range(rank - 1, 0, -1):
        for subset in itertools.combinations(range(rank), size):
            kept = frozenset(subset)
            # Project from the smallest projection that still holds these dimensions.
            parent = min(
                (p for p in projections if kept < p and len(p) == size + 1),
                key=lambda p: projections[p].size,
            )
            dropped = next(iter(parent - kept))
            projections[kept] = np.any(projections[parent], axis=dropped, keepdims=True)
            counts[kept] = int(np.count_nonzero(projections[kept]))
    return counts


def _largest_coordinates(mask: np.ndarray) -> list[int]:
    largest = []
    for axis in range(mask.ndim):
        others = tuple(a for a in range(mask.ndim) if a != axis)
        largest.append(int(np.flatnonzero(mask.any(axis=others))[-1]))
    return largest


def _layouts(
    mask: np.ndarray, value_bytes: int, orders: Iterator[tuple[int, ...]]
) -> Iterator[Layout]:
    """Yields every layout with at least one CSR level, with its cost."""
    counts = _prefix_counts(mask)
    index_bytes = [narrowest_index_type(c).itemsize for c in _largest_coordinates(mask)]
    for order in orders:
        entries = [counts[frozenset(order[: level + 1])] for level in range(mask.ndim)]
        for formats in itertools.product(LevelFormat, repeat=mask.ndim):
            if LevelFormat.SPARSE_CSR not in formats:
                continue
            parents, nbytes = 1, 0
            for dimension, level_format, kept in zip(order, formats, entries, strict=True):
                if level_format == LevelFormat.DENSE:
                    parents *= mask.shape[dimension]
                    nbytes += _DENSE_LEVEL_BYTES
                else:
                    segment_bytes = narrowest_index_type(kept).itemsize
                    nbytes += (parents + 1) * segment_bytes + kept * index_bytes[dimension]
                    nbytes += _CSR_LEVEL_BYTES
                    parents = kept
            yield Layout(order, formats, nbytes + parents * value_bytes)


def find_layout(array: np.ndarray, *, value_bytes: int | None = None) -> Layout:
    """Finds the smallest sparse storage of an array, by trying every one.

    All traversal orders and all assignments of `DENSE` and `SPARSE_CSR` to the levels are compared
    (`rank! * (2**rank - 1)`, 360 at rank 4). The costs come from `2**rank - 1` projections of the
    array's mask, so the search is linear in the array's size.

    Args:
        array: array of rank 1 or more, not empty. Entries equal to zero are not stored.
        value_bytes: bytes per stored value; by default those of the array's dtype.

    Returns:
        The cheapest `Layout`; the first in lexicographic order among equals.

    Raises:
        ValueError: if the array is empty or a scalar.

    Example:
        >>> weights = np.zeros((64, 64), np.float32)
        >>> weights[3, 5] = 1.0
        >>> [level.name for level in find_layout(weights).formats]
        ['SPARSE_CSR', 'SPARSE_CSR']
    """
    array = _check_array(array)
    if value_bytes is None:
        value_bytes = array.dtype.itemsize
    orders = itertools.permutations(range(array.ndim))
    candidates = _layouts(_stored_mask(array), value_bytes, orders)
    return min(candidates, key=lambda layout: layout.nbytes)


def encode(array: np.ndarray, layout: Layout | None = None) -> SparseEncoding:
    """Stores an array sparsely.

    Args:
        array: array of rank 1 or more, not empty. Negative zeros become zeros, every other value
            is kept bit for bit.
        layout: the storage to use; by default the smallest one (`find_layout`).

    Returns:
        The `SparseEncoding`. An all-zero array stores one explicit zero.

    Raises:
        ValueError: if the array is empty or a scalar, or if the layout is not of its rank.

    Example:
        >>> weights = np.array([[0, 0, 7], [0, 0, 0]], np.int8)
        >>> encoded = encode(weights)
        >>> encoded.values.tolist(), (decode(encoded) == weights).all().item()
        ([7], True)
    """
    array = _check_array(array)
    if layout is None:
        layout = find_layout(array)
    if sorted(layout.order) != list(range(array.ndim)) or len(layout.formats) != array.ndim:
        raise ValueError(
            f"The layout traverses the dimensions {layout.order} in {len(layout.formats)} levels, "
            f"but the array has shape {array.shape}."
        )
    traversed = np.transpose(array, layout.order)
    stored = np.nonzero(_stored_mask(traversed))
    parent = np.zeros(stored[0].size, np.int64)
    parents = 1
    levels = []
    for size, level_format, coordinate in zip(traversed.shape, layout.formats, stored, strict=True):
        key = parent * size + coordinate
        if level_format == LevelFormat.DENSE:
            levels.append(Level(LevelFormat.DENSE, size))
            parent, parents = key, parents * size
            continue
        # `np.nonzero` runs in traversal order, so equal keys are neighbours and keys ascend.
        first = np.concatenate(([True], key[1:] != key[:-1]))
        kept = key[first]
        segments = np.zeros(parents + 1, np.int64)
        segments[1:] = np.cumsum(np.bincount(kept // size, minlength=parents))
        levels.append(Level(LevelFormat.SPARSE_CSR, size, segments, kept % size))
        parent, parents = np.cumsum(first) - 1, kept.size
    values = np.zeros(parents, array.dtype)
    values[parent] = traversed[stored]
    values[values == 0] = 0  # the one zero of an all-zero array may be -0.0
    return SparseEncoding(array.shape, layout.order, tuple(levels), values)


def _strides(encoding: SparseEncoding) -> dict[int, tuple[int, int]]:
    """Size and flat stride of each traversed dimension, blocks included."""
    rank = len(encoding.shape)
    sizes = dict(enumerate(encoding.shape))
    strides = {d: int(np.prod(encoding.shape[d + 1 :], dtype=np.int64)) for d in range(rank)}
    for block, dimension in enumerate(encoding.block_map):
        width = encoding.levels[encoding.order.index(rank + block)].size
        if not 0 <= dimension < rank or width < 1 or sizes[dimension] % width:
            raise ValueError(
                f"Block {block} of width {width} does not divide dimension {dimension} of "
                f"shape {encoding.shape}."
            )
        sizes[rank + block], strides[rank + block] = width, strides[dimension]
        sizes[dimension] //= width
        strides[dimension] *= width
    return {d: (sizes[d], strides[d]) for d in sizes}


def _expand_csr(flat: np.ndarray, level: Level, size: int, stride: int) -> np.ndarray:
    segments, indices = level.segments, level.indices
    if segments is None or indices is None:
        raise ValueError("A SPARSE_CSR level needs segments and indices.")
    lengths = np.diff(segments)
    consistent = (
        segments.size == flat.size + 1
        and segments[0] == 0
        and segments[-1] == indices.size
        and (lengths >= 0).all()
    )
    if not consistent:
        raise ValueError(
            f"The segments of a SPARSE_CSR level must be {flat.size + 1} ascending offsets from 0 "
            f"to {indices.size}. Received {segments.size} of them."
        )
    if indices.size and (indices.min() < 0 or indices.max() >= size):
        raise ValueError(f"A SPARSE_CSR level has an index outside 0..{size - 1}.")
    return np.repeat(flat, lengths) + indices.astype(np.int64) * stride


def stored_positions(encoding: SparseEncoding) -> np.ndarray:
    """Returns where the stored values lie in the dense array, checking every bound on the way.

    Args:
        encoding: a `SparseEncoding`, possibly read from a file and possibly with blocks. Memory
            is bounded by what it stores, whatever shape it claims.

    Returns:
        int64 `[values]`, flat positions.

    Raises:
        ValueError: if the levels contradict each other, an index is out of bounds, or the number
            of values is not the number of stored positions.
    """
    traversed: Sequence[int] = range(len(encoding.shape) + len(encoding.block_map))
    if sorted(encoding.order) != list(traversed) or len(encoding.levels) != len(encoding.order):
        raise ValueError(
            f"A sparse tensor of shape {encoding.shape} with {len(encoding.block_map)} blocks "
            f"cannot be traversed in the order {encoding.order} with {len(encoding.levels)} levels."
        )
    dimensions = _strides(encoding)
    segments = [level.segments.size for level in encoding.levels if level.segments is not None]
    most = max([encoding.values.size, *segments])
    flat = np.zeros(1, np.int64)
    for dimension, level in zip(encoding.order, encoding.levels, strict=True):
        size, stride = dimensions[dimension]
        if level.format == LevelFormat.SPARSE_CSR:
            flat = _expand_csr(flat, level, size, stride)
        elif level.size != size or flat.size * size > most:
            raise ValueError(f"A DENSE level has size {level.size}, expected {size}.")
        else:
            flat = (flat[:, np.newaxis] + np.arange(size, dtype=np.int64) * stride).ravel()
    if flat.size != encoding.values.size:
        raise ValueError(
            f"The levels describe {flat.size} stored positions, but there are "
            f"{encoding.values.size} values."
        )
    return flat


def decode(encoding: SparseEncoding) -> np.ndarray:
    """Restores the dense array.

    Args:
        encoding: a `SparseEncoding`, possibly read from a file and possibly with blocks.

    Returns:
        Array of shape `encoding.shape` and of the dtype of `encoding.values`.

    Raises:
        ValueError: as `stored_positions`.
    """
    flat = stored_positions(encoding)
    array = np.zeros(int(np.prod(encoding.shape, dtype=np.int64)), encoding.values.dtype)
    array[flat] = encoding.values
    return array.reshape(encoding.shape)
