# SPDX-License-Identifier: Apache-2.0
"""Stages of training, and the sequences of them that make a method's recipe."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from tfmot_atmc import attacks
from tfmot_atmc.constraints import ConstantBudget, CubicBudget
from tfmot_atmc.methods import AL0, ATMC, DA, Method
from tfmot_atmc.methods import get as get_method
from tfmot_atmc.methods.objectives import AdversarialLoss

__all__ = [
    "PRESETS",
    "CoupledSGD",
    "Stage",
    "atmc_stages",
    "baseline_stages",
    "check_optimizer",
    "dense_stage",
    "l0_stages",
]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes:
        name: short name; also the name of its file.
        method: the method trained in it.
        epochs: number of epochs.
        learning_rate: the highest learning rate.
        optimizer: `"sgd"` (momentum 0.9, weight decay added to the gradient) or `"adam"`.
        decay: `"cosine"` to zero, or a tuple of fractions of the stage at which the learning rate
            falls to a tenth.
        weight_decay: L2 coefficient of `"sgd"`.
        clipnorm: global norm to which gradients are clipped, or None.
        warmup_epochs: epochs over which perturbations grow to their full size.
        batch_size: examples a step.
        objective: `"adversarial"`, `"half"` or an `Objective`; None for that of the run.
        attack_factor: the training attack takes this many times the steps of the run's attack;
            0 for training on clean inputs.
        attack: a training attack of its own, in place of the run's.
        first_steps: of an attack that carries perturbations (`ATTA`) and has none of its own: the
            steps at an example's first visit. For stages that start from a model that resists.
    """

    name: str
    method: Method
    epochs: int
    learning_rate: float
    optimizer: str = "sgd"
    decay: Any = "cosine"
    weight_decay: float = 1e-4
    clipnorm: float | None = 1.0
    warmup_epochs: float = 0.0
    batch_size: int = 64
    objective: Any = None
    attack_factor: int = 1
    first_steps: int | None = None
    attack: attacks.Attack | None = None

    def on_clean_inputs(self) -> Stage:
        """Returns the same stage without attacks in training."""
        return dataclasses.replace(self, attack_factor=0, objective=AdversarialLoss(1.0))

    def with_objective_of_the_run(self) -> Stage:
        """Returns the same stage without an objective of its own."""
        return dataclasses.replace(self, objective=None)

    def with_optimizer(self, optimizer: str) -> Stage:
        """Returns the same stage with another optimizer, at a rate that suits it.

        Args:
            optimizer: `"sgd"` or `"adam"`, whose rates are a fiftieth of those of `"sgd"`.

        Raises:
            ValueError: if it is another.

        Example:

        >>> Stage("l0", DA(), 8, 0.15).with_optimizer("adam").learning_rate
        0.003
        """
        check_optimizer(optimizer)
        rate = self.learning_rate
        if optimizer != self.optimizer:
            rate *= _RATES[optimizer] / _RATES[self.optimizer]
        return dataclasses.replace(self, optimizer=optimizer, learning_rate=rate)

    def make_attack(self, attack: Any) -> attacks.Attack | None:
        """Returns the run's attack, or the stage's own, with the number of steps of this stage.

        One that carries something from step to step (`ATTA`) starts each stage without.
        """
        if not self.attack_factor:
            return None
        attack = attacks.get(self.attack or attack)
        config = attack.get_config()
        if isinstance(attack, attacks.ATTA):
            if self.first_steps is not None:
                config = {"first_steps": self.first_steps, **config}
            attack = type(attack).from_config(config)
        if self.attack_factor == 1 or "steps" not in config:
            return attack
        return type(attack).from_config({**config, "steps": self.attack_factor * config["steps"]})

    def make_optimizer(self, steps_per_epoch: int) -> keras.optimizers.Optimizer:
        """Returns the optimizer with its learning-rate schedule."""
        steps = max(1, self.epochs * steps_per_epoch)
        rate: Any
        if self.decay == "cosine":
            rate = keras.optimizers.schedules.CosineDecay(self.learning_rate, steps)
        else:
            rate = keras.optimizers.schedules.PiecewiseConstantDecay(
                [round(fraction * steps) for fraction in self.decay],
                [self.learning_rate * 0.1**i for i in range(len(self.decay) + 1)],
            )
        check_optimizer(self.optimizer)
        if self.optimizer == "adam":
            return keras.optimizers.Adam(rate, global_clipnorm=self.clipnorm)
        return CoupledSGD(rate, momentum=0.9, l2=self.weight_decay, global_clipnorm=self.clipnorm)


@keras.saving.register_keras_serializable(package="tfmot_atmc")
class CoupledSGD(keras.optimizers.SGD):
    """SGD whose weight decay is added to the gradient, as in the papers' code.

    Args:
        l2: coefficient; `l2 * w` is added to the gradient of w before momentum.
        **kwargs: as `keras.optimizers.SGD`.
    """

    def __init__(self, *args: Any, l2: float = 0.0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.l2 = l2

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Applies one update with the decay in the gradient."""
        gradient = keras.ops.add(gradient, keras.ops.multiply(variable, self.l2))
        super().update_step(gradient, variable, learning_rate)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "l2": self.l2}


def dense_stage(epochs: int, preset: str = "default", name: str = "dense") -> Stage:
    """Returns the dense adversarial start (DA).

    Args:
        epochs: number of epochs.
        preset: `"default"` or `"paper"`, see `PRESETS`.
        name: name of the stage.
    """
    _check_preset(preset)
    if preset == "paper":
        return Stage(
            name, DA(), epochs, 0.05, decay=(0.4, 0.6, 0.75), clipnorm=None, batch_size=128
        )
    return Stage(name, DA(), epochs, 1e-3, optimizer="adam", warmup_epochs=min(1.5, epochs / 4))


# What was best on MNIST (docs/results.md): a high rate, clipped, and a share of clean inputs.
_PRUNING: dict[str, Any] = {
    "learning_rate": 0.15,
    "clipnorm": 5.0,
    "objective": AdversarialLoss(clean_weight=0.2),
    "first_steps": 3,
}
_HARDENING: dict[str, Any] = _PRUNING | {
    "learning_rate": 0.05,
    "attack_factor": 3,
    "objective": AdversarialLoss(clean_weight=0.3),
}
_POLISHING: dict[str, Any] = _HARDENING | {
    "learning_rate": 0.02,
    "objective": AdversarialLoss(clean_weight=0.4),
}
_CODEBOOK = _POLISHING | {"learning_rate": 0.01}


def l0_stages(ratio: float, epochs: int, preset: str = "default") -> list[Stage]:
    """Returns the stage of plain projected training (A-l0), after the dense start.

    Args:
        ratio: nonzeros as a ratio of the dense kernels' parameters.
        epochs: number of epochs.
        preset: `"default"` or `"paper"`.
    """
    _check_preset(preset)
    if preset == "paper":
        method = AL0(ratio=ratio, schedule=ConstantBudget())
        decay = (0.15, 0.3, 0.45, 0.6)
        return [Stage("l0", method, epochs, 0.01, decay=decay, clipnorm=None, batch_size=128)]
    return [Stage("l0", AL0(ratio=ratio, schedule=CubicBudget(end=0.4)), epochs, **_PRUNING)]


def baseline_stages(method: str, ratio: float, epochs: int, preset: str = "default") -> list[Stage]:
    """Returns the stage of a method that ATMC is compared with, after the dense start.

    All have the optimizer, the rates and the number of steps of `l0_stages`.

    Args:
        method: `"al0"`, `"ap"`, `"alr"`, or `"nap"`, whose start should be clean as well.
        ratio: parameters left as a ratio of the dense kernels' parameters.
        epochs: number of epochs.
        preset: `"default"` or `"paper"`.
    """
    stages = l0_stages(ratio, epochs, preset)
    if method == "al0":
        return stages
    made = get_method(method, ratio=ratio)
    stage = dataclasses.replace(stages[0], name=method, method=made)
    return [stage if made.adversarial else stage.on_clean_inputs()]


def atmc_stages(
    ratio: float, bits: int = 32, epochs: int = 8, preset: str = "default"
) -> list[Stage]:
    """Returns the stages of ATMC after the dense start.

    The default prunes along a cubic, then hardens the few weights that are left under an attack of
    three times the steps (they learn to fool a short attack), polishes them with a larger share
    of clean inputs, and with `bits` below 32 ties them to codebooks. It does not grow
    by gradient, which lost in paired runs. The preset `"paper"` is l0 projection of plain kernels,
    then ATMC-32, then ATMC-b by ADMM, with the learning rates of the authors' code.

    Args:
        ratio: nonzeros as a ratio of the dense kernels' parameters.
        bits: b of the codebooks; 32 for none.
        epochs: epochs of the pruning stage; hardening and polishing take a fourth more each, and a
            codebook a twelfth.
        preset: `"default"` or `"paper"`.

    Source of the paper's: Gui et al., NeurIPS 2019, section 4.1, and the authors' code.
    """
    _check_preset(preset)
    if preset == "paper":
        constant = ConstantBudget()
        common: dict[str, Any] = {"clipnorm": None, "batch_size": 128}
        decay = (0.3, 0.4, 0.6)
        stages = l0_stages(ratio, epochs, "paper")
        stages.append(
            Stage("atmc32", ATMC(ratio, schedule=constant), epochs, 0.005, decay=decay, **common)
        )
        if bits != 32:
            method = ATMC(ratio, bits=bits, schedule=constant, algorithm="admm", codebook_begin=0)
            stages.append(Stage(f"atmc{bits}", method, epochs, 0.005, decay=decay, **common))
        return stages
    method = ATMC(ratio, schedule=CubicBudget(end=0.4))
    stages = [Stage("atmc32", method, epochs, **_PRUNING)]
    method = ATMC(ratio, schedule=ConstantBudget())
    stages.append(Stage("hardened", method, max(1, epochs // 4), **_HARDENING))
    stages.append(Stage("polished", method, max(1, epochs // 4), **_POLISHING))
    if bits != 32:
        method = ATMC(ratio, bits=bits, schedule=ConstantBudget(), codebook_begin=0)
        stages.append(Stage(f"atmc{bits}", method, max(1, epochs // 12), **_CODEBOOK))
    return stages


PRESETS = ("default", "paper")
# Of three rates of Adam tried on MNIST at ratio 0.05, 0.003 and 0.006 were best (docs/results.md).
_RATES = {"sgd": 1.0, "adam": 0.02}


def check_optimizer(optimizer: str) -> None:
    """Raises ValueError unless stages know an optimizer of that name."""
    if optimizer not in _RATES:
        raise ValueError(f"`optimizer` must be one of {tuple(_RATES)}. Received {optimizer!r}.")


def _check_preset(preset: str) -> None:
    if preset not in PRESETS:
        raise ValueError(f"`preset` must be one of {PRESETS}. Received {preset!r}.")
