# SPDX-License-Identifier: Apache-2.0
"""Where the elements of tensors lie: planes of channels with borders, and views into them."""

from __future__ import annotations

import dataclasses

import numpy as np

__all__ = ["Storage", "View", "place"]

_ALIGNMENT = 4
_TRIALS = 64


@dataclasses.dataclass(eq=False)
class Storage:
    """Memory of one or several tensors that share it.

    Rows of a plane share their borders: what is right of a row is left of the next one.

    Attributes:
        channels: number of planes.
        height: rows of a plane, without borders.
        width: elements of a row, without borders.
        zero_point: the code that borders are filled with.
        role: `"arena"`, `"input"` or `"output"`: whose memory it is.
        top: rows above a plane that belong to its border; so on for the other sides.
        first: number of the step that writes it first.
        last: number of the last step that uses it.
        offset: where it lies in the arena, in elements.
    """

    channels: int
    height: int
    width: int
    zero_point: int = 0
    role: str = "arena"
    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0
    first: int = 1 << 30
    last: int = -1
    offset: int = 0

    @property
    def row(self) -> int:
        """Elements from one row to the next."""
        return self.width + max(self.left, self.right)

    @property
    def between(self) -> int:
        """Rows between two planes."""
        return max(self.top, self.bottom)

    @property
    def plane(self) -> int:
        """Elements from one plane to the next."""
        return self.row * (self.height + self.between)

    @property
    def origin(self) -> int:
        """Element of the first plane's first pixel."""
        return self.top * self.row + self.left

    @property
    def size(self) -> int:
        """Elements, borders included."""
        if not self.is_padded:
            return self.channels * self.height * self.width
        # The border's fill runs over whole rows.
        return self.origin + self.channels * self.plane

    @property
    def is_padded(self) -> bool:
        """Whether there is a border."""
        return bool(self.top or self.bottom or self.left or self.right)

    def pad(self, top: int, bottom: int, left: int, right: int) -> None:
        """Widens the border to at least these sides."""
        self.top, self.bottom = max(self.top, top), max(self.bottom, bottom)
        self.left, self.right = max(self.left, left), max(self.right, right)


@dataclasses.dataclass(frozen=True)
class View:
    """A tensor's place in a storage.

    Attributes:
        storage: the memory.
        height: rows of the tensor; width and channels alike.
        top: first row in the storage's planes; negative where it begins in the border.
        left: first element of a row.
        channel: first plane.
        interleaved: whether the channels of a pixel lie side by side, the whole storage being one
            plain array; otherwise each channel is a plane.
        source: what is seen here as one row of elements, in the order of rows, pixels and
            channels; None for a view of its own.
    """

    storage: Storage
    height: int
    width: int
    channels: int
    top: int = 0
    left: int = 0
    channel: int = 0
    interleaved: bool = False
    source: View | None = None

    @property
    def steps(self) -> tuple[int, int, int]:
        """Elements from one channel, row and pixel to the next."""
        if self.interleaved:
            return 1, self.width * self.channels, self.channels
        return self.storage.plane, self.storage.row, 1

    @property
    def start(self) -> int:
        """Element of the storage where the view begins."""
        if self.source is not None:
            return self.source.start
        if self.interleaved:
            return self.channel
        storage = self.storage
        return storage.origin + self.channel * storage.plane + self.top * storage.row + self.left

    def offsets(self) -> np.ndarray:
        """Returns the element of each value `[height, width, channels]`, from `start`."""
        if self.source is not None:
            return self.source.offsets().reshape(1, 1, -1)
        plane, row, pixel = self.steps
        return (
            np.arange(self.height)[:, None, None] * row
            + np.arange(self.width)[None, :, None] * pixel
            + np.arange(self.channels)[None, None, :] * plane
        )


def place(storages: list[Storage], itemsize: int) -> int:
    """Gives storages places in the arena such that those in use at once do not overlap.

    The best of some orders is taken: the largest first, the longest used first, and random ones.

    Args:
        storages: the storages; their `offset` is set.
        itemsize: bytes of an element.

    Returns:
        Elements of the arena.
    """
    step = _ALIGNMENT // itemsize
    rng = np.random.default_rng(0)
    by_size = sorted(storages, key=lambda s: -s.size)
    orders = [by_size, sorted(storages, key=lambda s: (s.first - s.last, -s.size))]
    orders += [[by_size[i] for i in rng.permutation(len(by_size))] for _ in range(_TRIALS)]
    best: tuple[int, list[int]] | None = None
    for order in orders:
        total = _place_in_order(order, step)
        if best is None or total < best[0]:
            best = total, [storage.offset for storage in storages]
    if best is None:
        return 0
    for storage, offset in zip(storages, best[1], strict=True):
        storage.offset = offset
    return best[0]


def _place_in_order(order: list[Storage], step: int) -> int:
    total, done = 0, list[Storage]()
    for storage in order:
        offset = 0
        busy = [o for o in done if o.first <= storage.last and storage.first <= o.last]
        for other in sorted(busy, key=lambda o: o.offset):
            if offset + storage.size <= other.offset:
                break
            offset = max(offset, -(-(other.offset + other.size) // step) * step)
        storage.offset = offset
        done.append(storage)
        total = max(total, offset + storage.size)
    return -(-total // step) * step
