# SPDX-License-Identifier: Apache-2.0
"""The stages of the project's own methods by name; every method knows its own, `Method.stages`."""

from __future__ import annotations

import dataclasses

from tfmot_atmc import methods
from tfmot_atmc.attacks import Attack
from tfmot_atmc.methods.stages import PRESETS, CoupledSGD, Stage, check_optimizer, starting

__all__ = [
    "PRESETS",
    "CoupledSGD",
    "Stage",
    "atmc_stages",
    "baseline_stages",
    "check_optimizer",
    "dense_stage",
    "l0_stages",
    "sloped",
]


def dense_stage(epochs: int, preset: str = "default", name: str = "dense") -> Stage:
    """Returns the dense adversarial start (DA).

    Args:
        epochs: number of epochs.
        preset: `"default"` or `"paper"`, see `PRESETS`.
        name: name of the stage.
    """
    return starting(methods.DA(), epochs, preset, name)


def l0_stages(ratio: float, epochs: int, preset: str = "default") -> list[Stage]:
    """Returns the stage of plain projected training (A-l0), after the dense start.

    Args:
        ratio: nonzeros as a ratio of the dense kernels' parameters.
        epochs: number of epochs.
        preset: `"default"` or `"paper"`.
    """
    return methods.AL0(ratio=ratio).stages(epochs, preset)


def baseline_stages(method: str, ratio: float, epochs: int, preset: str = "default") -> list[Stage]:
    """Returns the stage of a method that ATMC is compared with, after the dense start.

    All have the optimizer, the rates and the number of steps of `l0_stages`.

    Args:
        method: `"al0"`, `"ap"`, `"alr"`, or `"nap"`, whose start should be clean as well.
        ratio: parameters left as a ratio of the dense kernels' parameters.
        epochs: number of epochs.
        preset: `"default"` or `"paper"`.
    """
    return methods.get(method, ratio=ratio).stages(epochs, preset)


def atmc_stages(
    ratio: float, bits: int = 32, epochs: int = 8, preset: str = "default"
) -> list[Stage]:
    """Returns the stages of ATMC after the dense start, see `ATMC.stages`.

    Args:
        ratio: nonzeros as a ratio of the dense kernels' parameters.
        bits: b of the codebooks; 32 for none.
        epochs: epochs of the pruning stage; hardening and polishing take a fourth more each, and a
            codebook a twelfth.
        preset: `"default"` or `"paper"`.
    """
    return methods.ATMC(ratio, bits=bits).stages(epochs, preset)


def sloped(stage: Stage, attack: Attack) -> Stage:
    """Returns a stage whose attack has the slope that its weights learn through, where they do.

    Args:
        stage: a stage; one whose objective has no `backward_slope` stays as it is.
        attack: the attack of the run, which may know no slope.
    """
    slope = getattr(stage.objective, "backward_slope", None)
    if not slope or not type(attack).takes("backward_slope"):
        return stage
    config = {**attack.get_config(), "backward_slope": slope}
    return dataclasses.replace(stage, attack=type(attack).from_config(config))
