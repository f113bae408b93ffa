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
        kind: The kernel: that of the operation, `"copy"`, or `"load"`, which converts the input.
        reads: Views of what it reads, weights left out.
        writes: View of what it writes.
        operation: What it computes; None for a copy.
        pool: Rows and pixels of the max-pool that is fused into a convolution.
        pooled: Its output, where there is one.
        add: The sum that is fused into a convolution, which adds the last of `reads`.
        scratch: Memory for the sums of a row; None where none is needed.
        border: Storage whose border is filled before.
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
        network: The network.
        steps: The calls.
        arena: Elements of the arena.
        largest: Elements of the largest storage, the caller's included.
    """

    network: Network
    steps: list[Step]
    arena: int
    largest: int
