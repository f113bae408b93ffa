# SPDX-License-Identifier: Apache-2.0
"""Where the nonzeros of a kernel sit: by filter, input channel and output channel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

__all__ = ["MaskStats", "aligned_channels", "kernel_stats", "random_channels", "random_filters"]


@dataclass(frozen=True, eq=False)
class MaskStats:
    """How many weights of one kernel are kept, and where.

    Attributes:
        name: name of the kernel.
        shape: its shape in Keras layout.
        kept: number of weights that are not zero.
        per_filter: those of each filter, the window of one input and one output, `(inputs,
            outputs)`; inputs of one group where there are groups.
        per_input: those of each input channel.
        per_output: those of each output channel.
    """

    name: str
    shape: tuple[int, ...]
    kept: int
    per_filter: np.ndarray
    per_input: np.ndarray
    per_output: np.ndarray

    @property
    def size(self) -> int:
        """Weights of the dense kernel."""
        return math.prod(self.shape)

    @property
    def empty_filters(self) -> int:
        """Filters without weights."""
        return int(np.count_nonzero(self.per_filter == 0))

    @property
    def empty_inputs(self) -> int:
        """Input channels that nothing reads."""
        return int(np.count_nonzero(self.per_input == 0))

    @property
    def empty_outputs(self) -> int:
        """Output channels to which no weight leads."""
        return int(np.count_nonzero(self.per_output == 0))

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.kept} of {self.size} weights; empty are {self.empty_filters} of "
            f"{self.per_filter.size} filters, {self.empty_inputs} of {self.per_input.size} inputs, "
            f"{self.empty_outputs} of {self.per_output.size} outputs"
        )


def kernel_stats(
    kernel: np.ndarray, name: str = "", *, groups: int = 1, depthwise: bool = False
) -> MaskStats:
    """Returns where the nonzeros of a kernel sit.

    Args:
        kernel: array `(..., inputs, outputs)`; of a depthwise convolution `(..., inputs,
            multiplier)`.
        name: name of the kernel.
        groups: groups of the convolution.
        depthwise: whether each input has outputs of its own.

    Raises:
        ValueError: for an array of fewer than two dimensions, or groups that do not divide outputs.

    Example:

    >>> print(kernel_stats(np.eye(3)[:, :2], "a"))
    a: 2 of 6 weights; empty are 4 of 6 filters, 1 of 3 inputs, 0 of 2 outputs
    """
    kernel = np.asarray(kernel)
    if kernel.ndim < 2 or kernel.shape[-1] % groups:
        raise ValueError(
            "A kernel has two dimensions or more, inputs and outputs last, and `groups` divides "
            f"the outputs. Received shape {kernel.shape}, groups={groups}."
        )
    inputs, outputs = kernel.shape[-2:]
    filters = np.count_nonzero(kernel.reshape(-1, inputs, outputs), axis=0)
    if depthwise:
        per_input, per_output = filters.sum(axis=1), filters.reshape(-1)
    else:
        grouped = filters.reshape(inputs, groups, outputs // groups)
        per_input, per_output = grouped.sum(axis=2).T.reshape(-1), filters.sum(axis=0)
    shape = tuple(int(side) for side in kernel.shape)
    return MaskStats(name, shape, int(filters.sum()), filters, per_input, per_output)


def random_filters(stats: MaskStats, count: int) -> float:
    """Returns how many filters would hold `count` weights if as many were kept at random.

    Args:
        stats: of a kernel.
        count: weights of a filter, at least 0.

    Returns:
        The expected number (hypergeometric distribution).

    Example:

    >>> round(random_filters(kernel_stats(np.eye(2)), 1), 9)
    2.0
    """
    filters = max(1, stats.per_filter.size)
    window, size, kept = stats.size // filters, stats.size, stats.kept
    if count > min(window, kept) or kept - count > size - window:
        return 0.0
    return filters * math.exp(
        _log_choose(window, count)
        + _log_choose(size - window, kept - count)
        - _log_choose(size, kept)
    )


def random_channels(stats: MaskStats, axis: str, draws: int = 200, seed: int = 0) -> np.ndarray:
    """Returns the weights of each channel, most first, that pruning as many at random would leave.

    Args:
        stats: of a kernel.
        axis: `"inputs"` or `"outputs"`.
        draws: number of random masks that are averaged, each sorted by itself.
        seed: their seed.

    Returns:
        A float array with one entry a channel, not rising.

    Raises:
        ValueError: for another axis.

    Example:

    >>> random_channels(kernel_stats(np.ones((2, 3))), "outputs").tolist()
    [2.0, 2.0, 2.0]
    """
    if axis not in ("inputs", "outputs"):
        raise ValueError(f"`axis` must be 'inputs' or 'outputs'. Received {axis!r}.")
    channels = stats.per_input.size if axis == "inputs" else stats.per_output.size
    sizes = np.full(channels, stats.size // channels)
    rng = np.random.default_rng(seed)
    kept = min(stats.kept, int(sizes.sum()))
    found = rng.multivariate_hypergeometric(sizes, kept, size=draws, method="marginals")
    return -np.sort(-found, axis=1).mean(axis=0)


def aligned_channels(first: MaskStats, second: MaskStats) -> tuple[int, float]:
    """Returns how many channels are empty on both sides, and how many would be by chance.

    Args:
        first: of a kernel.
        second: of the kernel that reads its outputs, channel by channel.

    Returns:
        `(both, expected)`: channels to which no weight of the first leads and which none of the
        second reads; and their expected number if the empty inputs of the second were drawn at
        random.

    Raises:
        ValueError: if the numbers of channels differ.

    Source: Liu et al., "Robust Binary Models by Pruning Randomly-initialized Networks", NeurIPS
    2022, section 4.4.

    Example:

    >>> a, b = kernel_stats(np.float32([[1, 0, 0]])), kernel_stats(np.float32([[1], [0], [2]]))
    >>> aligned_channels(a, b)
    (1, 0.6666666666666666)
    """
    if first.per_output.size != second.per_input.size:
        raise ValueError(
            f"'{first.name}' has {first.per_output.size} outputs and '{second.name}' "
            f"{second.per_input.size} inputs. Give two kernels of which the second reads the first."
        )
    both = int(np.count_nonzero((first.per_output == 0) & (second.per_input == 0)))
    return both, first.empty_outputs * second.empty_inputs / first.per_output.size


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
