# SPDX-License-Identifier: Apache-2.0
"""Flying Bird: sparse adversarial training whose connections move."""

from __future__ import annotations

from tfmot_atmc.constraints import Constraint, MovingSupport
from tfmot_atmc.methods.base import Method
from tfmot_atmc.methods.stages import Stage, from_scratch


class FlyingBird(Method, name="flying_bird"):
    """Sparse from the start: small weights are dropped, others opened (`MovingSupport`).

    Args:
        ratio: open weights as a ratio of the dense kernels' parameters, in (0, 1].
        k: their number; give `ratio` or `k`.
        interval: as for `MovingSupport`.
        support_seed: seed of the places.

    Raises:
        ValueError: if a value is out of range; by `compress`, if the budget leaves a layer without
            weights.

    Source: Chen et al., "Sparsity Winning Twice: Better Robust Generalization from More Efficient
    Training", ICLR 2022, section 3.

    Example:

    >>> FlyingBird(ratio=0.05).stages(8)[0].decay
    (0.5, 0.75)
    """

    starts_dense = False
    adaptive = False

    def __init__(
        self,
        ratio: float | None = None,
        k: int | None = None,
        interval: int | float | None = None,
        support_seed: int = 0,
    ):
        self.ratio, self.k, self.interval, self.support_seed = ratio, k, interval, support_seed
        self.constraints()  # refuses values out of range now

    def constraints(self) -> list[Constraint]:
        return [MovingSupport(self.ratio, self.k, self.interval, self.adaptive, self.support_seed)]

    def stages(
        self, epochs: int, preset: str = "default", *, phases: str = "own", finish: bool = False
    ) -> list[Stage]:
        """Returns one stage, with the rates of the paper.

        `finish` makes it longer, by as much as other methods take for codebooks.
        """
        return from_scratch(self, "sparse", epochs, preset, finish=finish)


class FlyingBirdPlus(FlyingBird, name="flying_bird_plus"):
    """Flying Bird whose number of weights follows overfitting, `MovingSupport(adaptive=True)`.

    It needs validation under attack. Never more weights are open than `ratio` or `k` allows.

    Source: as `FlyingBird`.
    """

    adaptive = True
