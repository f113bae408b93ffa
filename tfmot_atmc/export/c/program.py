# SPDX-License-Identifier: Apache-2.0
"""The program that is written out: encoded layers, and calls of kernels with their parameters."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tfmot_atmc.export.c.encoding import Rows
from tfmot_atmc.export.c.network import Network
from tfmot_atmc.export.c.steps import Plan

__all__ = ["Call", "Layer", "Program"]


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer with weights, as stored.

    Attributes:
        kind: `"conv"`, `"depthwise"` or `"dense"`.
        rows: its encoded weights.
        biases: one for each output channel.
        operations: multiply-accumulates that are done for one example.
        dense_operations: those that a dense kernel would do.
    """

    kind: str
    rows: Rows
    biases: np.ndarray
    operations: int
    dense_operations: int


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a kernel.

    Attributes:
        function: its name.
        type: type of its parameters; empty where all are arguments.
        fields: the parameters, by field; nested ones are dictionaries.
        arguments: what follows: views and numbers.
    """

    function: str
    type: str
    fields: dict[str, Any]
    arguments: tuple[Any, ...]


@dataclasses.dataclass
class Program:
    """All that is written out.

    Attributes:
        plan: the steps and the memory.
        layers: layers with weights; a call's `weights` field is the number of one.
        calls: the calls, in order.
        tables: arrays in flash that calls refer to by name.
        taps: most nonzeros of a convolution's filter.
        block: pixels that are computed at once.
    """

    plan: Plan
    layers: list[Layer]
    calls: list[Call]
    tables: dict[str, np.ndarray]
    taps: int = 0
    block: int = 1

    @property
    def network(self) -> Network:
        """The network."""
        return self.plan.network
