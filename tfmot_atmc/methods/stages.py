# SPDX-License-Identifier: Apache-2.0
"""Stages of training, and the sequence of them that a method takes where it has no other."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras

from tfmot_atmc import attacks
from tfmot_atmc.constraints import ConstantBudget, CubicBudget
from tfmot_atmc.methods.objectives import AdversarialLoss

__all__ = [
    "PHASES",
    "PRESETS",
    "CoupledSGD",
    "Stage",
    "check_optimizer",
    "check_preset",
    "from_scratch",
    "phased",
    "starting",
]

PRESETS = ("default", "paper")
PHASES = ("own", "pruning", "all")
# Of three rates of Adam tried on MNIST at ratio 0.05, 0.003 and 0.006 were best (docs/results.md).
_RATES = {"sgd": 1.0, "adam": 0.02}


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes:
        name: short name; also the name of its file.
        method: the `Method` trained in it.
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
    method: Any
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

        >>> Stage("l0", None, 8, 0.15).with_optimizer("adam").learning_rate
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


_PAPER: dict[str, Any] = {"clipnorm": None, "batch_size": 128}
_PAPER_PRUNING = _PAPER | {"learning_rate": 0.01, "decay": (0.15, 0.3, 0.45, 0.6)}
_PAPER_CODEBOOK = _PAPER | {"learning_rate": 0.005, "decay": (0.3, 0.4, 0.6)}


def starting(method: Any, epochs: int, preset: str, name: str) -> Stage:
    """Returns the dense start of a run.

    Args:
        method: dense training.
        epochs: number of epochs.
        preset: one of `PRESETS`.
        name: name of the stage.
    """
    check_preset(preset)
    if preset == "paper":
        return Stage(name, method, epochs, 0.05, decay=(0.4, 0.6, 0.75), **_PAPER)
    warmup = min(1.5, epochs / 4)
    return Stage(name, method, epochs, 1e-3, optimizer="adam", warmup_epochs=warmup)


def phased(
    method: Any, names: tuple[str, str], epochs: int, preset: str, phases: str, finish: bool
) -> list[Stage]:
    """Returns the stages of a method that prunes, as `Method.stages` describes them.

    Args:
        method: the method as it is to be in the end.
        names: names of the first stage and, before the bits, of that of codebooks.
        epochs: epochs of the first stage.
        preset: one of `PRESETS`.
        phases: one of `PHASES`.
        finish: whether to train without codebooks as long as with them.
    """
    check_preset(preset)
    if phases not in PHASES:
        raise ValueError(f"`phases` must be one of {PHASES}. Received {phases!r}.")
    bits = getattr(method, "bits", None) or 32
    paper = preset == "paper"
    if paper and type(method).takes("floors") and method.floors is None:
        method = method.but(floors=0)  # the paper's one budget over all layers
    plain = _settled(method)
    if paper:  # as long as the authors' two stages, where methods are compared
        length = epochs if phases == "own" else 2 * epochs
        stages = [Stage(names[0], plain, length, **_PAPER_PRUNING)]
    else:
        stages = [Stage(names[0], _pruning(method), epochs, **_PRUNING)]
    if phases == "all" and not paper:
        stages.append(Stage("hardened", plain, max(1, epochs // 4), **_HARDENING))
        stages.append(Stage("polished", plain, max(1, epochs // 4), **_POLISHING))
    if bits != 32:
        tied = plain.but(bits=bits, codebook_begin=0)
        length, how = (epochs, _PAPER_CODEBOOK) if paper else (max(1, epochs // 12), _CODEBOOK)
        stages.append(Stage(f"{names[1]}{bits}", tied, length, **how))
    elif finish:
        stages.append(Stage("finished", plain, max(1, epochs // 12), **_CODEBOOK))
    return [_fitting(stage) for stage in stages]


def from_scratch(
    method: Any,
    name: str,
    epochs: int,
    preset: str,
    *,
    finish: bool,
    batch_size: int = 128,
    decay: Any = (0.5, 0.75),
) -> list[Stage]:
    """Returns the one stage of a method that is trained from a random start, at its papers' rates.

    Args:
        method: the method.
        name: name of the stage.
        epochs: its epochs.
        preset: one of `PRESETS`.
        finish: whether it is longer, by as much as other methods take for codebooks.
        batch_size: examples a step in the papers' preset.
        decay: as for `Stage`.
    """
    check_preset(preset)
    epochs += max(1, epochs // 12) if finish else 0
    batch = batch_size if preset == "paper" else 64
    rates: dict[str, Any] = {"weight_decay": 5e-4, "clipnorm": None, "decay": decay}
    return [Stage(name, method, epochs, 0.1, batch_size=batch, **rates)]


def _fitting(stage: Stage) -> Stage:
    """Returns a stage with the objective of its method, on clean inputs where that trains so."""
    if stage.method.objective is not None:
        stage = dataclasses.replace(stage, objective=stage.method.objective)
    return stage if stage.method.adversarial else stage.on_clean_inputs()


def _settled(method: Any) -> Any:
    """Returns a method at its full budget from the first step on, without codebooks."""
    changes: dict[str, Any] = {}
    if method.takes("bits"):
        changes["bits"] = method.default("bits")
    if method.takes("schedule"):
        changes["schedule"] = ConstantBudget()
        if method.schedule.final_ratio is not None:
            changes["ratio"] = method.schedule.final_ratio
    return method.but(**changes)


def _pruning(method: Any) -> Any:
    """Returns a method whose budget falls along the recipe's cubic, or its own schedule."""
    changes: dict[str, Any] = {}
    if method.takes("bits"):
        changes["bits"] = method.default("bits")
    if method.takes("schedule") and repr(method.schedule) == repr(CubicBudget()):
        changes["schedule"] = CubicBudget(end=0.4)
    return method.but(**changes)


def check_optimizer(optimizer: str) -> None:
    """Raises ValueError unless stages know an optimizer of that name."""
    if optimizer not in _RATES:
        raise ValueError(f"`optimizer` must be one of {tuple(_RATES)}. Received {optimizer!r}.")


def check_preset(preset: str) -> None:
    """Raises ValueError unless there is a preset of that name."""
    if preset not in PRESETS:
        raise ValueError(f"`preset` must be one of {PRESETS}. Received {preset!r}.")
