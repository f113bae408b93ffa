# SPDX-License-Identifier: Apache-2.0
"""The network of the C exporter: tensors and operations."""

from __future__ import annotations

import dataclasses

import numpy as np

from tfmot_atmc.export.tflite.conversion import ExportError

__all__ = ["Network", "Operation", "Tensor", "UnsupportedError"]


class UnsupportedError(ExportError):
    """The model has operators, shapes or types that the C exporter does not write."""


@dataclasses.dataclass(eq=False)
class Tensor:
    """A tensor of a network of batch one.

    Attributes:
        shape: its shape, the batch first.
        dtype: float32, int8 or int32.
        scale: its scales: one, or one for each channel; empty for floats.
        zero_point: the code that means 0.0; 0 for floats.
        data: its values where it is a constant.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    scale: np.ndarray
    zero_point: int = 0
    data: np.ndarray | None = None

    @property
    def extents(self) -> tuple[int, int, int]:
        """Height, width and channels of one example; missing ones are 1."""
        inner = self.shape[1:] if len(self.shape) > 1 else self.shape
        height, width, channels = (1, 1, 1, *inner)[-3:] if inner else (1, 1, 1)
        return height, width, channels

    @property
    def size(self) -> int:
        """Number of values of one example."""
        return int(np.prod(self.extents))


@dataclasses.dataclass(eq=False)
class Operation:
    """One operation.

    Attributes:
        kind: what it does, such as `"conv"` or `"add"`.
        inputs: what it reads; weights and biases are constants, a missing bias is left out.
        output: what it computes.
        activation: `"none"`, `"relu"`, `"relu6"` or `"relu_n1_to_1"`.
        window: height and width of a kernel or a pool.
        stride: steps of it, vertical and horizontal.
        padding: rows above and below, columns left and right.
        dilation: steps between the weights of a kernel that were there before zeros were put
            between them.
        axis: where a concatenation happens: 0 rows, 1 columns, 2 channels.
        beta: factor inside a softmax.
    """

    kind: str
    inputs: list[Tensor]
    output: Tensor
    activation: str = "none"
    window: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    axis: int = 2
    beta: float = 1.0


@dataclasses.dataclass(eq=False)
class Network:
    """Operations in an order in which they can run.

    Attributes:
        operations: the operations.
        input: what the network takes.
        output: what it returns.
    """

    operations: list[Operation]
    input: Tensor
    output: Tensor

    @property
    def is_integer(self) -> bool:
        """Whether it computes in int8."""
        return self.input.dtype == np.int8
