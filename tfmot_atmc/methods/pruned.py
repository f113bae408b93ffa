# SPDX-License-Identifier: Apache-2.0
"""AP and NAP: magnitude pruning in one shot, then training of what is left."""

from __future__ import annotations

from tfmot_atmc.constraints import Constraint, FixedSupport
from tfmot_atmc.methods.base import CodebookMethod


class AP(CodebookMethod):
    """Adversarial pruning: the k largest weights of a dense robust network, trained further.

    Start from a model trained adversarially (`DA`) and give `compress` an attack.

    Args:
        ratio: nonzeros as a ratio of the dense kernels' parameters, in (0, 1].
        k: number of nonzeros; give `ratio` or `k`.
        bits: None, or b for a codebook of 2^b values a kernel.
        codebook_begin: step (int) or fraction of the planned steps (float) at which the codebook
            starts to act.
        layer_exponent: None for one budget over all layers; p in [0, 1] for a budget of its own in
            each layer, in proportion to the p-th power of its size.
        floors: share of the one budget that is assured to layers, as for `AL0`.
        ratio_of: what the budget counts: `"weights"`, `"macs"`, `"energy"` or a `Cost`.

    Source: "AP" in Gui et al., NeurIPS 2019, section 4.1.
    """

    def budget(self) -> Constraint:
        return FixedSupport(self.ratio, self.k, self.layer_exponent, self.floors)


class NAP(AP):
    """Non-adversarial pruning: as `AP`, from a cleanly trained network and without attacks.

    Source: "NAP" in Gui et al., NeurIPS 2019, section 4.1.
    """

    adversarial = False
