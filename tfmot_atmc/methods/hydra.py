# SPDX-License-Identifier: Apache-2.0
"""HYDRA: scores choose among the weights of a robust network, which are then trained further."""

from __future__ import annotations

from tfmot_atmc.kernels import Kernel, MaskedKernel, Site
from tfmot_atmc.methods.masks import MaskMethod
from tfmot_atmc.methods.stages import Stage, check_preset


class HYDRA(MaskMethod):
    """Pruning that is learnt under attack: pretrain, train scores of frozen weights, fine-tune.

    Start from a model trained adversarially (`DA`). Scores start in proportion to its weights, so
    that the mask starts as magnitude pruning of each layer. `stages` has both phases that follow;
    `compress` takes one of them, `phase`.

    Args:
        ratio: weights that are used as a ratio of the dense kernels' parameters, in (0, 1].
        k: their number; give `ratio` or `k`.
        layer_exponent: p in [0, 1] of the budgets of the layers, as for `MaskMethod`; None for 0.1,
            1 for the same ratio in each, as in the paper.
        learn: whether scores are trained; without, the largest weights are kept (LWM), the paper's
            ablation.
        phase: `"scores"`, in which weights and biases stay bit for bit, or `"weights"`, in which
            the mask does; None for the first of the two that there is.

    Raises:
        ValueError: if a value is out of range, or the budget leaves a layer without weights.

    Source: Sehwag et al., "HYDRA: Pruning Adversarially Robust Neural Networks", NeurIPS 2020,
    section 3; the default exponent is the one that was best for it in Liu et al., NeurIPS 2022.

    Example:

    >>> [stage.name for stage in HYDRA(ratio=0.1).stages(10)]
    ['scores', 'weights']
    """

    def __init__(
        self,
        ratio: float | None = None,
        k: int | None = None,
        layer_exponent: float | None = None,
        learn: bool = True,
        phase: str | None = None,
    ):
        super().__init__(ratio, k, layer_exponent)
        if phase not in (None, "scores", "weights"):
            raise ValueError(f"`phase` must be 'scores' or 'weights'. Received {phase!r}.")
        if phase == "scores" and not learn:
            raise ValueError("With learn=False no scores are trained. Leave out phase='scores'.")
        self.learn, self.phase = learn, phase

    def kernel_for(self, site: Site) -> Kernel:
        return MaskedKernel(self.kept(site), self._trained(), site.fan_in)

    def trains(self, name: str) -> bool:
        return self._trained() == "weights" or name != "bias"

    def _trained(self) -> str:
        return self.phase or ("scores" if self.learn else "weights")

    def stages(
        self, epochs: int, preset: str = "default", *, phases: str = "own", finish: bool = False
    ) -> list[Stage]:
        """Returns the training of scores, a fifth as long as the fine-tuning that follows.

        Fine-tuning takes `epochs`; where methods are compared, both together do.
        """
        check_preset(preset)
        batch = 128 if preset == "paper" else 64
        scoring = max(1, epochs // (5 if phases == "own" else 6)) if self.learn else 0
        tuning = epochs if phases == "own" else max(1, epochs - scoring)
        tuning += max(1, epochs // 12) if finish else 0

        def stage(phase: str, length: int, rate: float) -> Stage:
            method = self.but(phase=phase)
            return Stage(phase, method, length, rate, clipnorm=None, batch_size=batch)

        scores = [stage("scores", scoring, 0.1)] if self.learn else []
        return [*scores, stage("weights", tuning, 0.01)]
