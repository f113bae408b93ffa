# SPDX-License-Identifier: Apache-2.0
"""What is known of each channel of each tensor: which go together, and which are constant."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Signal:
    """The channels (last axis) of a tensor of the graph.

    Attributes:
        atoms: int64 `[channels]`. Channels with the same atom can only be removed together; a
            flattened image holds each atom once per position.
        constants: float64 `[channels]`: the value of a channel that is the same for every input
            and at every position, NaN for all others.
    """

    atoms: np.ndarray
    constants: np.ndarray

    @property
    def known(self) -> np.ndarray:
        """Which channels are constant: bool `[channels]`."""
        return ~np.isnan(self.constants)

    def __len__(self) -> int:
        return len(self.atoms)


def join(signals: list[Signal]) -> Signal:
    """Returns signals side by side, as concatenation along the channels makes them."""
    atoms = np.concatenate([signal.atoms for signal in signals])
    return Signal(atoms, np.concatenate([signal.constants for signal in signals]))


@dataclass
class Weighted:
    """A layer that mixes channels by a kernel, over all of its calls.

    Attributes:
        source: atoms of its inputs.
        result: atoms of its outputs.
        reach: bool `[inputs, outputs]`: whether a kernel entry between the two is not zero.
        effect: float64 `[inputs, outputs]`: sum of the kernel over its positions.
        constants: float64 `[inputs]`: what may go into the bias instead; NaN elsewhere.
    """

    source: np.ndarray
    result: np.ndarray
    reach: np.ndarray
    effect: np.ndarray
    constants: np.ndarray

    def agree(self, constants: np.ndarray) -> None:
        """Keeps as constants only those that this call has too."""
        self.constants = np.where(self.constants == constants, self.constants, np.nan)


@dataclass
class Channels:
    """All atoms of a model, and what is known to tie them or to need them."""

    count: int = 0
    ties: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    protected: list[np.ndarray] = field(default_factory=list)
    weighted: dict[int, Weighted] = field(default_factory=dict)
    scaled: dict[int, np.ndarray] = field(default_factory=dict)
    widened: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=dict)
    """Of layers that only add zero channels: the atoms in front, of the input, and behind."""

    def fresh(self, number: int, *, protect: bool = False) -> Signal:
        """Returns a signal of new atoms of which no value is known."""
        atoms = np.arange(self.count, self.count + number)
        self.count += number
        if protect:
            self.protected.append(atoms)
        return Signal(atoms, np.full(number, np.nan))

    def tie(self, first: np.ndarray, second: np.ndarray) -> None:
        """Notes that channels can only be removed together, position by position."""
        self.ties.append((first, second))

    def scale(self, layer: object, atoms: np.ndarray) -> None:
        """Notes a layer with one weight per channel; all its calls lose the same channels."""
        if id(layer) in self.scaled:
            self.tie(self.scaled[id(layer)], atoms)
        self.scaled.setdefault(id(layer), atoms)

    def roots(self) -> np.ndarray:
        """One atom that stands for all those tied to each: int64 `[atoms]`."""
        parent = list(range(self.count))

        def find(atom: int) -> int:
            while parent[atom] != atom:
                parent[atom] = parent[parent[atom]]
                atom = parent[atom]
            return atom

        for first, second in self.ties:
            for one, other in zip(first.tolist(), second.tolist(), strict=True):
                parent[find(one)] = find(other)
        return np.array([find(atom) for atom in range(self.count)], np.int64)

    def needed(self) -> np.ndarray:
        """The fewest channels that leave every output as it is: bool `[atoms]`.

        Starts from the outputs and walks back through the kernels. A layer whose channels are all
        unneeded keeps one, as layers of Keras have at least one.
        """
        roots = self.roots()
        marked = np.zeros(self.count, bool)
        for atoms in self.protected:
            marked[roots[atoms]] = True
        layers = list(self.weighted.values())[::-1]
        while True:
            before = int(marked.sum())
            for layer in layers:
                outputs = marked[roots[layer.result]]
                read = layer.reach[:, outputs].any(axis=1) & np.isnan(layer.constants)
                marked[roots[layer.source[read]]] = True
            if int(marked.sum()) == before:
                empty = [w for w in layers if not marked[roots[w.result]].any()]
                if not empty:
                    return marked[roots]
                marked[roots[empty[0].result[0]]] = True
