# SPDX-License-Identifier: Apache-2.0
"""BinaryConnect: any method of plain kernels, with the signs of its weights in their place."""

from __future__ import annotations

import dataclasses
from typing import Any

from tfmot_atmc.attacks import Attack
from tfmot_atmc.constraints import Box, Constraint, FixedSupport
from tfmot_atmc.kernels import BinaryKernel, Kernel, PlainKernel, Site
from tfmot_atmc.methods.base import Method, get
from tfmot_atmc.methods.dense import DA
from tfmot_atmc.methods.stages import Stage, starting


class BinaryConnect(Method, name="binary_connect"):
    """Weights are used by their signs; the real weights behind them are trained.

    The real weights stay in [-1, 1], and the gradient of a sign is that of the weight. Those that
    the other method's constraints set to zero are zero in the kernel too.

    Args:
        method: the method whose weights become binary, or its name; None for dense training. It
            must have plain kernels, such as `AL0`.

    Raises:
        ValueError: for a method with codebooks, which binary weights have already, or with a
            support that is chosen by real weights before training; and by `compress`, for one whose
            kernels are composed.

    Source: Courbariaux et al., "BinaryConnect: Training Deep Neural Networks with binary weights
    during propagations", NeurIPS 2015; rates of Liu et al., NeurIPS 2022, for `preset="paper"`.

    Example:

    >>> BinaryConnect().stages(4)[0].name
    'binary'
    """

    starts_dense = False

    def __init__(self, method: Any = None):
        self.method = DA() if method is None else get(method)
        if (getattr(self.method, "bits", None) or 32) != 32:
            raise ValueError(f"Binary weights have no codebooks. Leave out `bits`: {self.method}.")
        if any(isinstance(c, FixedSupport) for c in self.method.constraints()):
            raise ValueError(
                f"{type(self.method).__name__} keeps the largest weights of a trained model, and "
                "signs are all as large. Use a method that prunes while it trains, such as AL0."
            )
        self.adversarial, self.objective = self.method.adversarial, self.method.objective
        self.ratio_of = self.method.ratio_of

    def kernel_for(self, site: Site) -> Kernel:
        kernel = self.method.kernel_for(site)
        if not isinstance(kernel, PlainKernel):
            raise ValueError(
                f"BinaryConnect takes methods of plain kernels, such as DA and AL0. "
                f"{type(self.method).__name__} has {type(kernel).__name__} in {site.name}."
            )
        return BinaryKernel(kernel, zeros=bool(self.method.constraints()))

    def cost_of(self, site: Site, part: str) -> float:
        return self.method.cost_of(site, part)

    def constraints(self) -> list[Constraint]:
        return [Box(1.0), *self.method.constraints()]

    def attack_policy(self, attack: Attack | None) -> Attack | None:
        return self.method.attack_policy(attack)

    def trains(self, name: str) -> bool:
        return self.method.trains(name)

    def stages(
        self, epochs: int, preset: str = "default", *, phases: str = "own", finish: bool = False
    ) -> list[Stage]:
        """Returns dense training of binary weights, then the other method's stages with them.

        By Adam; in the paper's preset at 0.0001 throughout.
        """
        first = starting(BinaryConnect(), epochs, preset, "binary").with_optimizer("adam")
        later = self.method.stages(epochs, preset, phases=phases, finish=finish)
        stages = [first, *(self._binary(stage) for stage in later)]
        if preset == "paper":
            rates: dict[str, Any] = {"learning_rate": 1e-4, "decay": "cosine"}
            stages = [dataclasses.replace(stage, **rates) for stage in stages]
        return stages if self.adversarial else [stage.on_clean_inputs() for stage in stages]

    def _binary(self, stage: Stage) -> Stage:
        return dataclasses.replace(stage, method=self.but(method=stage.method)).with_optimizer(
            "adam"
        )
