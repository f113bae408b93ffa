# SPDX-License-Identifier: Apache-2.0
"""Random subnetworks: which of many fixed random weights are used is all that is trained."""

from __future__ import annotations

from typing import Any

from tfmot_atmc.kernels import Kernel, SeededKernel, Site
from tfmot_atmc.methods.masks import MaskMethod
from tfmot_atmc.methods.stages import Stage, from_scratch

_WEIGHTS = ("binary", "constant")


class RandomSubnetwork(MaskMethod, name="random_subnetwork"):
    """A robust subnetwork of fixed random weights, found by training scores.

    The weights are +1 and -1, or of one magnitude a layer, and come from the seed: no file holds
    them. Biases and normalisation stay as they are in the model given; put a batch normalisation
    after its logits (`models.add_last_batch_norm`), which steadies the scale of binary weights. Use
    `objective="trades"` or `attack="atta"` for the variants of the paper.

    Args:
        ratio: weights that are used as a ratio of the dense kernels' parameters, in (0, 1].
        k: their number; give `ratio` or `k`.
        layer_exponent: p in [0, 1] of the budgets of the layers, as for `MaskMethod`; None for 0.1.
        weights: `"binary"`, or `"constant"` for +-sqrt(2 / (fan_in * ratio)).
        width: scores start uniform in [-width, width]; None for 0.01 with binary weights and
            1/sqrt(fan_in) with constant ones.
        weights_seed: seed of the weights and of the start of the scores.

    Raises:
        ValueError: if a value is out of range, or the budget leaves a layer without weights.

    Source: Liu et al., "Robust Binary Models by Pruning Randomly-initialized Networks", NeurIPS
    2022, sections 3 and 4; the scale of constant weights is that of their code.

    Example:

    >>> RandomSubnetwork(ratio=0.01).kept(Site("a/kernel", "a", "Dense", (100, 30)))
    30
    """

    starts_dense = False

    def __init__(
        self,
        ratio: float | None = None,
        k: int | None = None,
        layer_exponent: float | None = None,
        weights: str = "binary",
        width: float | None = None,
        weights_seed: int = 0,
    ):
        super().__init__(ratio, k, layer_exponent)
        if weights not in _WEIGHTS:
            raise ValueError(f"`weights` must be one of {_WEIGHTS}. Received {weights!r}.")
        self.weights, self.width, self.weights_seed = weights, width, weights_seed
        SeededKernel(
            1, width=1.0 if width is None else width, seed=weights_seed
        )  # refuses them now

    def kernel_for(self, site: Site) -> Kernel:
        scale, width = self.draws(site)
        width = width if self.width is None else self.width
        return SeededKernel(self.kept(site), scale, width, self.weights_seed, site.index)

    def draws(self, site: Site) -> tuple[float, float]:
        """Returns magnitude of a site's weights, and how wide its scores start."""
        if self.weights == "binary":
            return 1.0, 0.01
        return (2 / (site.fan_in * self.share(site))) ** 0.5, site.fan_in**-0.5

    def trains(self, name: str) -> bool:
        return False

    def stages(
        self, epochs: int, preset: str = "default", *, phases: str = "own", finish: bool = False
    ) -> list[Stage]:
        """Returns one stage in which scores are trained, with the rates of the paper.

        `finish` makes it longer, by as much as other methods take for codebooks.
        """
        rates: dict[str, Any] = {"batch_size": 256, "decay": "cosine"}
        return from_scratch(self, "scores", epochs, preset, finish=finish, **rates)
