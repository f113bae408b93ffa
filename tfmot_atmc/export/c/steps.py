# SPDX-License-Identifier: Apache-2.0
"""The steps of the C code, and the plan that they make."""

from __future__ import annotations

import dataclasses

from tfmot_atmc.export.c.layout import Storage, View
from tfmot_atmc.export.c.network import Network, Operation

__all__ = ["Plan", "Step"]


@dataclasses.dataclass(eq=False)
class Step:
    """One call of a kernel.

    Attributes:
        kind: the kernel: that of the operation, `"copy"`, or `"load"`, which converts the input.
        reads: views of what it reads, weights left out.
        writes: view of what it writes.
        operation: what it computes; None for a copy.
        pool: rows and pixels of the max-pool that is fused into a convolution.
        pooled: its output, where there is one.
        add: the sum that is fused into a convolution, which adds the last of `reads`.
        scratch: memory for the sums of a row; None where none is needed.
        border: storage whose border is filled before.
    """

    kind: str
    reads: list[View]
    writes: View
    operation: Operation | None = None
    pool: tuple[int, int] = (1, 1)
    add: Operation | None = None
    scratch: Storage | None = None
    border: Storage | None = None


@dataclasses.dataclass(eq=False)
class Plan:
    """All that the C code does, in order.

    Attributes:
        network: the network.
        steps: the calls.
        arena: elements of the arena.
        largest: elements of the largest storage, the caller's included.
    """

    network: Network
    steps: list[Step]
    arena: int
    largest: int
