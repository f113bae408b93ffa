# SPDX-License-Identifier: Apache-2.0
"""ALR: low-rank kernels, their ranks chosen over all layers together."""

from __future__ import annotations

from collections.abc import Sequence

from tfmot_atmc.constraints import Constraint, GlobalRank
from tfmot_atmc.kernels import Kernel, LowRankKernel, PlainKernel, Site
from tfmot_atmc.methods.base import CodebookMethod


class ALR(CodebookMethod):
    """Adversarial low rank: every kernel a product of two factors, trained further.

    Start from a model trained adversarially (`DA`) and give `compress` an attack.

    Args:
        ratio: parameters of the factors as a ratio of the dense kernels' parameters, in (0, 1].
        bits: None, or b for a codebook of 2^b values a factor.
        codebook_begin: step (int) or fraction of the planned steps (float) at which the codebook
            starts to act.
        relative: compare singular values as parts of their kernel's largest, and not as they are,
            as the paper does.
        ranks: the rank of each kernel in the order of the layers, within `ratio`, instead of a
            choice by singular values; None to choose.
        separable: make the components of two-dimensional convolutions a vertical filter followed by
            a horizontal one, where these take fewer parameters.

    Raises:
        ValueError: if `ratio`, `bits` or a rank is out of range.

    Source: "ALR" in Gui et al., NeurIPS 2019, section 4.1; `separable` is the decomposition of Tai
        et al., 2015, which it cites.
    """

    def __init__(
        self,
        ratio: float,
        bits: int | None = None,
        codebook_begin: int | float = 0.75,
        relative: bool = False,
        ranks: Sequence[int] | None = None,
        separable: bool = False,
    ):
        self.ranks = None if ranks is None else list(ranks)
        self.relative, self.separable = relative, separable
        super().__init__(ratio, bits=bits, codebook_begin=codebook_begin)

    def kernel_for(self, site: Site) -> Kernel:
        return LowRankKernel(self.separable) if site.factorizable else PlainKernel()

    def budget(self) -> Constraint:
        return GlobalRank(self.ratio or 0.0, self.relative, self.ranks)
