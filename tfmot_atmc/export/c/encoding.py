# SPDX-License-Identifier: Apache-2.0
"""How the rows of a kernel are stored in flash: as gaps between nonzeros and as codes of values.

All rows form one stream. A gap is the number of zeros before a weight; it runs over the end of a
row, so that rows need no counts. The largest gap that its bits can say means: as many zeros, no
weight, and more to come. After the last weight a gap leads beyond the end.
"""

from __future__ import annotations

import dataclasses
import enum

import numpy as np

__all__ = ["Form", "Rows", "decode_rows", "encode_rows"]

_MOST_GAP_BITS = 16
_BYTE = 8
_MOST_CODES = 256
_MOST_SHARED_BITS = 5


class Form(enum.IntEnum):
    """How a stream is laid out; the numbers are those in the C code."""

    DENSE = 0
    BYTES = 1
    BITS = 2
    SHARED = 3


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of a kernel as stored.

    Attributes:
        form: the layout: a code for every weight (DENSE), a byte for each gap and each code
            (BYTES), one byte for a gap and a code together, the code in its high bits (SHARED), or
            `gap_bits` and `value_bits` (BITS; 0 gap bits say that no weight is zero).
        stream: the bytes.
        gap_bits: bits of a gap.
        value_bits: bits of a code; 0 where `table` holds one value for each weight, in order.
        table: the values that codes stand for; None where the code is the int8 value itself.
        shape: rows and columns.
        nonzeros: weights that are not zero.
    """

    form: Form
    stream: bytes
    gap_bits: int
    value_bits: int
    table: np.ndarray | None
    shape: tuple[int, int]
    nonzeros: int

    @property
    def nbytes(self) -> int:
        """Bytes in flash, the table included."""
        return len(self.stream) + (0 if self.table is None else self.table.nbytes)


def encode_rows(rows: np.ndarray, *, fast: bool = False, shared: bool = False) -> Rows:
    """Stores the rows of a kernel in the fewest bytes.

    Args:
        rows: int8 or float32 array `[rows, columns]`.
        fast: whether to use whole bytes only, which are read faster.
        shared: whether a gap and a code may share a byte, where a kernel has few values.

    Returns:
        The smallest of the layouts.
    """
    rows = np.ascontiguousarray(rows)
    flat = rows.reshape(-1)
    positions = np.flatnonzero(flat)
    gaps = np.diff(positions, prepend=-1) - 1
    # The last gap must lead out of the last row.
    last = flat.size - (int(positions[-1]) + 1 if positions.size else 0)
    gaps = np.append(gaps, last)
    values = flat[positions]
    if rows.dtype == np.int8:
        found = _integer_layouts(flat, gaps, values, fast)
    else:
        found = _float_layouts(flat, gaps, values, fast)
    if shared:
        found += _shared_layouts(gaps, values)
    shape = (int(rows.shape[0]), int(rows.shape[1]))
    layouts = [Rows(*layout, shape=shape, nonzeros=positions.size) for layout in found]
    return min(layouts, key=lambda layout: (layout.nbytes, layout.form))


_Layout = tuple[Form, bytes, int, int, "np.ndarray | None"]


def _integer_layouts(
    flat: np.ndarray, gaps: np.ndarray, values: np.ndarray, fast: bool
) -> list[_Layout]:
    codes = values.view(np.uint8)
    found: list[_Layout] = [
        (Form.DENSE, flat.tobytes(), 0, _BYTE, None),
        (Form.BYTES, _interleave(gaps, codes), _BYTE, _BYTE, None),
    ]
    if fast:
        return found
    choices: list[tuple[np.ndarray, int, np.ndarray | None]] = [(codes, _BYTE, None)]
    table, indices = np.unique(values, return_inverse=True)
    width = _width(table.size)
    if table.size and width < _BYTE:
        choices.append((indices, width, table))
    for chosen, bits, own in choices:
        found.append((*_narrowest(gaps, chosen, bits), bits, own))
    if table.size and _width(np.unique(flat).size) < _BYTE:
        own, indices = np.unique(flat, return_inverse=True)
        bits = _width(own.size)
        found.append((Form.BITS, _pack([(indices, bits)]), 0, bits, own))
    return found


def _float_layouts(
    flat: np.ndarray, gaps: np.ndarray, values: np.ndarray, fast: bool
) -> list[_Layout]:
    """Codes of a table where there are at most 256 values, and the plain floats."""
    found: list[_Layout] = [
        (Form.DENSE, b"", 0, 0, flat.astype(np.float32)),
        (Form.BYTES, _gap_bytes(gaps), _BYTE, 0, values.astype(np.float32)),
    ]
    for every in (False, True):
        table, indices = np.unique(flat if every else values, return_inverse=True)
        if not 0 < table.size <= _MOST_CODES:
            continue
        if every:
            found.append((Form.DENSE, indices.astype(np.uint8).tobytes(), 0, _BYTE, table))
        else:
            found.append((Form.BYTES, _interleave(gaps, indices), _BYTE, _BYTE, table))
            if not fast:
                bits = _width(table.size)
                found.append((*_narrowest(gaps, indices, bits), bits, table))
    return found


def _shared_layouts(gaps: np.ndarray, values: np.ndarray) -> list[_Layout]:
    table, indices = np.unique(values, return_inverse=True)
    bits = _width(table.size)
    if not table.size or bits > _MOST_SHARED_BITS:
        return []
    fields, last = _escaped(gaps, _BYTE - bits)
    fields[last[:-1]] |= indices << (_BYTE - bits)
    stream = fields.astype(np.uint8).tobytes()
    return [(Form.SHARED, stream, _BYTE - bits, bits, table)]


def _width(count: int) -> int:
    return max(1, (count - 1).bit_length()) if count else 1


def _escaped(gaps: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the fields of all gaps, and the place of the last field of each."""
    most = (1 << bits) - 1
    ends = np.cumsum(gaps // most + 1)
    fields = np.full(int(ends[-1]), most, np.int64)
    fields[ends - 1] = gaps % most
    return fields, ends - 1


def _gap_bytes(gaps: np.ndarray) -> bytes:
    return _escaped(gaps, _BYTE)[0].astype(np.uint8).tobytes()


def _interleave(gaps: np.ndarray, codes: np.ndarray) -> bytes:
    fields, last = _escaped(gaps, _BYTE)
    return np.insert(fields, last[:-1] + 1, codes).astype(np.uint8).tobytes()


def _narrowest(gaps: np.ndarray, codes: np.ndarray, value_bits: int) -> tuple[Form, bytes, int]:
    def size(bits: int) -> int:
        return int((gaps // ((1 << bits) - 1) + 1).sum()) * bits

    bits = min(range(1, _MOST_GAP_BITS + 1), key=size)
    fields, last = _escaped(gaps, bits)
    order = np.zeros(fields.size + codes.size, bool)
    order[last[:-1] + 1 + np.arange(codes.size)] = True
    mixed = np.empty(order.size, np.int64)
    mixed[order], mixed[~order] = codes, fields
    return Form.BITS, _pack([(mixed, np.where(order, value_bits, bits))]), bits


def _pack(parts: list[tuple[np.ndarray, int | np.ndarray]]) -> bytes:
    """Writes fields one after the other, the lowest bit first."""
    bits: list[np.ndarray] = []
    for fields, widths in parts:
        widths = np.broadcast_to(np.asarray(widths), fields.shape)
        starts = np.concatenate([[0], np.cumsum(widths)])
        place = np.arange(starts[-1]) - np.repeat(starts[:-1], widths)
        bits.append((np.repeat(np.asarray(fields, np.int64), widths) >> place) & 1)
    return np.packbits(np.concatenate(bits).astype(np.uint8), bitorder="little").tobytes()


def decode_rows(rows: Rows) -> np.ndarray:
    """Reads a stream back, field by field as the C code does.

    Args:
        rows: what `encode_rows` returned.

    Returns:
        The array `[rows, columns]`, int8 or float32.
    """
    bits = np.unpackbits(np.frombuffer(rows.stream, np.uint8), bitorder="little")
    total = rows.shape[0] * rows.shape[1]
    dtype = np.dtype(np.int8) if rows.table is None else rows.table.dtype
    flat = np.zeros(total, dtype)
    place = taken = 0

    def take(width: int) -> int:
        nonlocal place
        field = int(bits[place : place + width] @ (1 << np.arange(width))) if width else 0
        place += width
        return field

    most = (1 << rows.gap_bits) - 1
    position = -1
    while True:
        field = take(rows.gap_bits)
        code = take(rows.value_bits) if rows.form == Form.SHARED else 0
        position += field
        if rows.gap_bits and field == most:
            continue
        position += 1
        if position >= total:
            return flat.reshape(rows.shape)
        if rows.form != Form.SHARED:
            code = take(rows.value_bits)
        if rows.table is None:
            flat[position] = np.uint8(code).view(np.int8)
        else:
            flat[position] = rows.table[taken if rows.value_bits == 0 else code]
        taken += 1
