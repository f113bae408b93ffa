# SPDX-License-Identifier: Apache-2.0
"""Ranks of all layers chosen together, from all their singular values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tfmot_atmc.constraints.base import AddWeight, Constraint, Factor
from tfmot_atmc.constraints.sparsity import exact_budget
from tfmot_atmc.math import kernel_matrix, matrix_kernel, matrix_shape


class GlobalRank(Constraint):
    """Keeps the components of low-rank kernels with the largest singular values of all layers.

    The ranks are chosen when the model is wrapped: the singular values of all kernels stand in one
    list, and the largest are kept, at least one a kernel, as many as the budget of parameters
    allows. A component of a kernel with f inputs and o outputs costs f + o parameters, one of a
    separable kernel height * inputs + width * outputs. What was taken away has no gradient and
    stays zero; no projection is needed. Kernels that are not factorised are left whole and not
    counted.

    Args:
        ratio: parameters of the factors as a ratio of the dense kernels' parameters, in (0, 1].
        relative: compare singular values as parts of their kernel's largest. The paper's rule does
            not, and leaves small kernels at rank 1 where one large kernel has the larger values.
        fixed_ranks: the rank of each factorised kernel in the order of the layers, within the
            budget, instead of a choice; None to choose.

    Raises:
        ValueError: if `ratio` or a rank is out of range; and, when the model is wrapped, if `ratio`
            is too small for one component a kernel or for the fixed ranks, or if these are not as
            many as kernels or above what a kernel can have.

    Source: "ALR" in Gui et al., NeurIPS 2019, section 4.1, with the size given instead of the share
        of singular values.
    """

    holds_from_the_start = True

    def __init__(
        self, ratio: float, relative: bool = False, fixed_ranks: Sequence[int] | None = None
    ):
        if not 0 < ratio <= 1:
            raise ValueError(f"`ratio` must lie in (0, 1]. Received {ratio!r}.")
        if not all(isinstance(rank, int) and rank > 0 for rank in fixed_ranks or ()):
            raise ValueError(f"Ranks must be integers of at least 1. Received {fixed_ranks!r}.")
        self.ratio, self.relative = ratio, relative
        self.fixed_ranks = None if fixed_ranks is None else list(fixed_ranks)

    def build(self, factors: Sequence[Factor], dense_size: int, add_weight: AddWeight) -> None:
        self.budget = exact_budget(round(self.ratio, 9), dense_size)
        pairs = _pairs(factors)
        self._pairs = [(factors.index(a), factors.index(b), a.separable) for a, b in pairs]
        values = [_singular_values(a, b) for a, b in pairs]
        if self.relative:
            values = [column / max(column[0], np.finfo(np.float64).tiny) for column in values]
        costs = [sum(matrix_shape(a.variable.shape, a.separable)) for a, _ in pairs]
        if self.fixed_ranks is None:
            ranks = self._choose(values, costs)
        else:
            ranks = self._checked(self.fixed_ranks, [len(column) for column in values], costs)
        self._ranks = [
            add_weight(name=f"rank_{i}", shape=(), dtype="int32", initializer="zeros")
            for i in range(len(pairs))
        ]
        for variable, rank in zip(self._ranks, ranks, strict=True):
            variable.assign(rank)
        kept = self.finalized([factor.variable.numpy() for factor in factors])
        for factor, value in zip(factors, kept, strict=True):
            factor.variable.assign(value)

    @property
    def ranks(self) -> list[int]:
        """The rank of every factorised kernel."""
        return [int(rank.numpy()) for rank in self._ranks]

    def _choose(self, values: Sequence[np.ndarray], costs: Sequence[int]) -> list[int]:
        if sum(costs) > self.budget:
            raise ValueError(
                f"`ratio` {self.ratio} allows {self.budget} parameters, but one component a kernel "
                f"already takes {sum(costs)}. Raise the ratio."
            )
        ranks, left = [1] * len(costs), self.budget - sum(costs)
        rest = [(-v, i) for i, column in enumerate(values) for v in column[1:] if v > 0]
        for _, layer in sorted(rest):
            if costs[layer] > left:
                break
            ranks[layer] += 1
            left -= costs[layer]
        return ranks

    def _checked(self, ranks: list[int], most: list[int], costs: Sequence[int]) -> list[int]:
        if len(ranks) != len(most) or any(r > m for r, m in zip(ranks, most, strict=True)):
            raise ValueError(
                f"Ranks must be {len(most)} integers, of at most {most}: one for each kernel "
                f"that is factorised. Received {ranks}."
            )
        size = sum(rank * cost for rank, cost in zip(ranks, costs, strict=True))
        if size > self.budget:
            raise ValueError(
                f"Ranks {ranks} take {size} parameters, and `ratio` {self.ratio} allows "
                f"{self.budget}. Raise the ratio or lower the ranks."
            )
        return ranks

    def finalized(self, values: Sequence[np.ndarray]) -> list[np.ndarray]:
        kept = list(values)
        for (a, b, separable), rank in zip(self._pairs, self.ranks, strict=True):
            matrix, square = kernel_matrix(values[a], separable).copy(), values[b].copy()
            wide = matrix.shape[1] > matrix.shape[0]
            (matrix if wide else square)[rank:] = 0
            (square if wide else matrix)[:, rank:] = 0
            kept[a], kept[b] = matrix_kernel(matrix, values[a].shape, separable), square
        return kept

    def violation(self, values: Sequence[np.ndarray]) -> str | None:
        for value, kept in zip(values, self.finalized(values), strict=True):
            if not np.array_equal(value, kept):
                return f"a kernel has components beyond its rank; the ranks are {self.ranks}"
        return None


def _pairs(factors: Sequence[Factor]) -> list[tuple[Factor, Factor]]:
    """Returns the two factors of every low-rank kernel."""
    by_name = {factor.name: factor for factor in factors}
    return [
        (factor, by_name[factor.name.removesuffix(":A") + ":B"])
        for factor in factors
        if factor.part == "A"
    ]


def _singular_values(a: Factor, b: Factor) -> np.ndarray:
    matrix = kernel_matrix(a.variable.numpy(), a.separable).astype(np.float64)
    square = b.variable.numpy().astype(np.float64)
    if matrix.shape[1] > matrix.shape[0]:
        matrix, square = square, matrix
    return np.linalg.norm(matrix, axis=0) * np.linalg.norm(square, axis=1)
