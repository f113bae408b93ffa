# SPDX-License-Identifier: Apache-2.0
"""What methods share that keep an exact number of weights in each layer."""

from __future__ import annotations

from collections.abc import Sequence

from tfmot_atmc.constraints.sparsity import check_budget, exact_budget
from tfmot_atmc.kernels import Site
from tfmot_atmc.math import allocate_budget
from tfmot_atmc.methods.base import Method

__all__ = ["MaskMethod"]

_EXPONENT = 0.1


class MaskMethod(Method, abstract=True):
    """A method with an exact number of weights that are used in each layer.

    Args:
        ratio: weights that are used as a ratio of the dense kernels' parameters, in (0, 1].
        k: their number; give `ratio` or `k`.
        layer_exponent: p in [0, 1]: each layer's number is in proportion to the p-th power of its
            size; with 1 every layer keeps the same ratio, with 0 the same number. Layers that are
            smaller than their share are kept whole. None for 0.1, which Liu et al., NeurIPS 2022,
            found best.

    Raises:
        ValueError: if not exactly one of `ratio` and `k` is given, or a value is out of range; and
            by `compress`, if the budget leaves a layer without weights.
    """

    def __init__(
        self, ratio: float | None = None, k: int | None = None, layer_exponent: float | None = None
    ):
        check_budget(ratio, k)
        self.ratio, self.k, self.layer_exponent = ratio, k, layer_exponent
        self._budgets([1], 1)  # refuses an exponent out of range now

    def share(self, site: Site) -> float:
        """Returns which part of all weights of the model is used, in (0, 1]."""
        total = sum(site.sizes or (site.size,))
        return self._budget(total) / total

    def kept(self, site: Site) -> int:
        """Returns how many weights of a site are used.

        Raises:
            ValueError: if the budget is smaller than the number of layers.
        """
        sizes = site.sizes or (site.size,)
        budget = self._budget(sum(sizes))
        if budget < len(sizes):
            raise ValueError(
                f"A budget of {budget} weights leaves some of the {len(sizes)} layers without "
                f"any, and nothing passes through them. Received ratio={self.ratio}, k={self.k}; "
                f"allow at least {len(sizes)} of the {sum(sizes)} weights."
            )
        return self._budgets(sizes, budget)[site.index if site.sizes else 0]

    def _budgets(self, sizes: Sequence[int], budget: int) -> list[int]:
        exponent = _EXPONENT if self.layer_exponent is None else self.layer_exponent
        return allocate_budget(sizes, budget, exponent)

    def _budget(self, total: int) -> int:
        if self.k is not None:
            return min(self.k, total)
        return exact_budget(round(self.ratio or 0, 9), total)
