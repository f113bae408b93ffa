# SPDX-License-Identifier: Apache-2.0
"""The settings of a whole compression, and the stages that follow from them."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from tfmot_atmc import attacks, methods, models
from tfmot_atmc.math import parse_bytes
from tfmot_atmc.recipes.defaults import defaults
from tfmot_atmc.recipes.stages import (
    Stage,
    atmc_stages,
    baseline_stages,
    check_optimizer,
    dense_stage,
)

__all__ = ["METHODS", "CompressionSettings"]

METHODS = ("atmc", "al0", "alr", "ap", "nap", "da")


@dataclasses.dataclass(frozen=True)
class CompressionSettings:
    """What to compress, how, and where to. None means the dataset's default (`presets`).

    Attributes:
        model: name of a network of `tfmot_atmc.models`, or path of a `.keras` file.
        dataset: digits, mnist, cifar10, or another of tensorflow-datasets.
        method: `"atmc"`; one that it is compared with, `"al0"`, `"ap"`, `"nap"` or `"alr"`; or
            `"da"` for the dense start alone.
        ratio: nonzeros as a ratio of the dense kernels' parameters, in (0, 1].
        max_bytes: in place of a ratio, the largest size of the .tflite file, in bytes or as text
            such as `"24KB"`. `run_compression` finds the ratio, which stays None here.
        bits: b of ATMC's codebooks, or 32 for none.
        layer_exponent: None for one budget over all layers; p in [0, 1] for budgets of layers in
            proportion to their sizes to the power p; `"alr"` and `"da"` have no budget of nonzeros.
        epsilon: radius of the attacks, in input units.
        attack: name of the training attack. `"wrm"` has no epsilon: it is then that of the tests
            alone. `"atta"` takes one step by default, and carries perturbations within each stage.
        steps: steps of the training attack, where it takes steps.
        objective: the loss is that on attacked inputs; on half attacked and half clean ones; or
            that of TRADES, which goes with the attack of that name.
        preset: stages of training; paper for those of the authors' code.
        dense_epochs: epochs of the dense start; by default 0 for a `.keras` file.
        epochs: epochs of the pruning stage.
        learning_rate: factor on the learning rates of all stages after the dense start.
        optimizer: `"sgd"` or `"adam"` in those stages, at rates that suit it; None for their own.
        batch_size: examples in each step; None for the stage's own.
        seed: seed of weights, batches and attacks.
        limit: at most so many examples in each split; None for all.
        out: folder for all files; by default `atmc_out/DATASET`.
        data_dir: folder of tensorflow-datasets.
    """

    model: str | None = None
    dataset: str = "digits"
    method: str = "atmc"
    ratio: float | None = None
    max_bytes: int | str | None = None
    bits: int | None = None
    layer_exponent: float | None = None
    epsilon: float | None = None
    attack: str = "pgd"
    steps: int | None = None
    objective: Literal["adversarial", "half", "trades"] = "adversarial"
    preset: Literal["default", "paper"] = "default"
    dense_epochs: int | None = None
    epochs: int | None = None
    learning_rate: float | None = None
    optimizer: str | None = None
    batch_size: int | None = None
    seed: int = 0
    limit: int | None = None
    out: str | None = None
    data_dir: str | None = None

    def resolved(self) -> CompressionSettings:
        """Returns the settings with all defaults filled in.

        Raises:
            ValueError: if a value is out of range or does not fit the others.
        """
        known = defaults(self.dataset)
        model = self.model or known.model
        filled: dict[str, Any] = {
            "model": model,
            "ratio": known.ratio if self.max_bytes is None else None,
            "bits": known.bits if self.method == "atmc" else 32,
            "epsilon": known.epsilon,
            "steps": 1 if self.attack.lower() == "atta" else known.steps,
            "dense_epochs": 0 if model not in models.names() else known.dense_epochs,
            "epochs": known.epochs,
            "learning_rate": 1.0,
            "out": f"atmc_out/{self.dataset}",
        }
        missing = {name: value for name, value in filled.items() if getattr(self, name) is None}
        found = dataclasses.replace(self, **missing)
        found._check()
        return found

    def _check(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"`method` must be one of {METHODS}. Received {self.method!r}.")
        if self.method != "atmc" and self.bits != 32:
            raise ValueError(f"`bits` is for the method 'atmc'. Received {self.method!r}.")
        attacks.class_of(self.attack)  # refuses unknown names
        ratio = 1.0 if self.ratio is None else self.ratio
        # Refuses values out of range.
        methods.ATMC(ratio=ratio, bits=self.bits or 32, layer_exponent=self.layer_exponent)
        if self.layer_exponent is not None and self.method in ("alr", "da"):
            raise ValueError(
                "`layer_exponent` is for methods with a budget of nonzeros: 'atmc', 'al0', 'ap', "
                f"'nap'. Received {self.method!r}."
            )
        if self.learning_rate is not None and self.learning_rate <= 0:
            raise ValueError(f"`learning_rate` is a factor above 0. Received {self.learning_rate}.")
        if self.optimizer is not None:
            check_optimizer(self.optimizer)
        least = dict.fromkeys(("bits", "steps", "epochs", "batch_size", "limit"), 1)
        for name, bound in (least | {"dense_epochs": 0}).items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ValueError(f"`{name}` must be at least {bound}. Received {value}.")
        if self.method == "da" and not self.dense_epochs:
            raise ValueError("The method 'da' only trains: give `dense_epochs` of at least 1.")
        if self.max_bytes is not None:
            self._check_budget(self.max_bytes)

    def _check_budget(self, max_bytes: int | str) -> None:
        parse_bytes(max_bytes)  # refuses what is no size
        if self.ratio is not None:
            raise ValueError(
                "Give `ratio` or `max_bytes`, not both: the ratio follows from the size. "
                f"Received {self.ratio} and {max_bytes!r}."
            )
        if self.method == "da":
            raise ValueError("The method 'da' prunes nothing, so `max_bytes` needs another method.")

    def stages(self) -> list[Stage]:
        """Returns the stages of training; the settings must be resolved, and have a ratio.

        Raises:
            ValueError: if there is none, since it has yet to be found for `max_bytes`.
        """
        if self.ratio is None and self.method != "da":
            raise ValueError(
                "There is no `ratio` yet. Call `resolved()`; and with `max_bytes`, replace it by "
                "that of `plan_budget`."
            )
        ratio, epochs = float(self.ratio or 0), int(self.epochs or 0)
        found = []
        if self.dense_epochs:
            start = dense_stage(self.dense_epochs, self.preset)
            found.append(start.on_clean_inputs() if self.method == "nap" else start)
        if self.method == "atmc":
            later = atmc_stages(ratio, int(self.bits or 32), epochs, self.preset)
            found += map(self._adapted, later)
        elif self.method != "da":
            later = baseline_stages(self.method, ratio, epochs, self.preset)
            found += map(self._adapted, later)
        if self.objective == "trades":
            found = [s.with_objective_of_the_run() if s.attack_factor else s for s in found]
        if self.batch_size is not None:
            found = [dataclasses.replace(stage, batch_size=self.batch_size) for stage in found]
        return found

    def _adapted(self, stage: Stage) -> Stage:
        """Returns a stage after the dense start with its rate and its kind of budget."""
        stage = stage.with_optimizer(self.optimizer or stage.optimizer)
        method = stage.method
        if self.layer_exponent is not None:
            config = method.get_config() | {"layer_exponent": self.layer_exponent}
            method = type(method).from_config(config)
        factor = 1.0 if self.learning_rate is None else self.learning_rate
        return dataclasses.replace(stage, method=method, learning_rate=factor * stage.learning_rate)
