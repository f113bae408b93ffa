# SPDX-License-Identifier: Apache-2.0
"""Where a kernel sits: all that a method may know of a layer, without the layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Site", "SiteChannels"]


@dataclass(frozen=True, eq=False)
class SiteChannels:
    """Which channels of a model go together with those of one layer.

    A number stands for all channels of the model that can only go together, such as those that are
    added up in residual sums. A channel that has to stay has -1: an input or an output of the
    model, or one that something reads of which nothing is known.

    Attributes:
        inputs: int64 `[inputs]`, one number for each input channel. Behind a flattened image each
            channel comes once per position.
        outputs: int64 `[outputs]`.
        mixes: whether every output reads every input; not so in a depthwise convolution.
    """

    inputs: np.ndarray
    outputs: np.ndarray
    mixes: bool = True


@dataclass(frozen=True)
class Site:
    """The place of one kernel in a model.

    Attributes:
        name: unique in the model, such as `"block/conv/kernel"`.
        layer: path of the layer, such as `"block/conv"`.
        kind: class name of the layer, such as `"Conv2D"`.
        shape: shape of the kernel in Keras layout.
        index: number of the site in the order of the layers.
        factorizable: whether the kernel is one matrix of inputs and outputs, so that it may be a
            product: Dense and ungrouped convolutions.
        fan_in: entries that add up to one output.
        inputs: input channels of the layer.
        outputs: output channels of the layer.
        positions: positions of the output for one example, so that an entry takes part in as many
            multiply-accumulates; None where shapes do not say.
        sizes: entries of the kernels of all sites of the model, in order.
        calls: how often the model calls the layer.
        sharing: returns for each site's name those that share output channels with it; looked at
            when `shares_outputs` is asked for.
        grouping: returns for each site's name its `SiteChannels`; looked at when `channels` is
            asked for.

    Example:

    >>> Site("a/kernel", "a", "Conv2D", (3, 3, 2, 4), positions=64).operations
    4608
    """

    name: str
    layer: str
    kind: str
    shape: tuple[int, ...]
    index: int = 0
    factorizable: bool = True
    fan_in: int = 1
    inputs: int = 1
    outputs: int = 1
    positions: int | None = None
    calls: int = 1
    sizes: tuple[int, ...] = ()
    sharing: Callable[[], Mapping[str, tuple[str, ...]]] = field(
        default=dict, repr=False, compare=False
    )
    grouping: Callable[[], Mapping[str, SiteChannels]] = field(
        default=dict, repr=False, compare=False
    )

    @property
    def channels(self) -> SiteChannels:
        """Which channels of the model go together with its own; all stay where that is not known.

        Such as in a residual sum, a concatenation, or behind a batch normalisation.
        """
        found = self.grouping().get(self.name)
        if found is not None:
            return found
        return SiteChannels(np.full(self.inputs, -1), np.full(self.outputs, -1))

    @property
    def shares_outputs(self) -> tuple[str, ...]:
        """Names of other sites whose output channels are added to this one's.

        Such as in a residual sum: a channel goes in all of them or in none. Empty too where the
        model's graph is not known.
        """
        return self.sharing().get(self.name, ())

    @property
    def size(self) -> int:
        """Entries of the kernel."""
        size = 1
        for side in self.shape:
            size *= side
        return size

    @property
    def uses(self) -> int | None:
        """How often an entry is multiplied with for one example; None where not known."""
        return None if self.positions is None else self.positions * self.calls

    @property
    def operations(self) -> int | None:
        """Multiply-accumulates of the dense kernel for one example; None where not known."""
        return None if self.uses is None else self.size * self.uses
