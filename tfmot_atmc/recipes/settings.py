# SPDX-License-Identifier: Apache-2.0
"""The settings of a whole compression, and the stages that follow from them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from tfmot_atmc import attacks, methods, models
from tfmot_atmc.math import parse_bytes, parse_count
from tfmot_atmc.methods import AdversarialLoss, Method
from tfmot_atmc.recipes.defaults import OWN, defaults
from tfmot_atmc.recipes.sources import default_epsilon, parse_values
from tfmot_atmc.recipes.stages import Stage, check_optimizer, dense_stage

__all__ = ["CompressionSettings"]


@dataclasses.dataclass(frozen=True)
class CompressionSettings:
    """What to compress, how, and where to. None means the dataset's default (`presets`).

    Attributes:
        model: name of a network of `tfmot_atmc.models`, or path of a `.keras` file.
        dataset: digits, mnist, cifar10, or another of tensorflow-datasets.
        method: name of a method: `"atmc"`; one that it is compared with, `"al0"`, `"ap"`, `"nap"`
            or `"alr"`; `"da"` for the dense start alone; or one of your own.
        ratio: nonzeros as a ratio of the dense kernels' parameters, in (0, 1].
        max_bytes: in place of a ratio, the largest size of the .tflite file, in bytes or as text
            such as `"24KB"`. `run_compression` finds the ratio, which stays None here.
        ratio_of: what the ratio counts: weights, macs (multiply-accumulates) or energy.
        channels: ratio in (0, 1] of the multiply-accumulates to which whole channels are dropped
            before the budget acts in what is left; with a ratio of 1 only channels go.
        max_macs: in place of a ratio, the most multiply-accumulates of the nonzeros for one
            example, such as `"12M"`. The ratio is found, of macs.
        max_flash: most flash of the C code that is written then, such as `"16KB"`, code included.
            Without `ratio` the largest ratio that fits is found.
        max_ram: most RAM of it, the stack included.
        cpu: the core that flash and stack are measured for.
        bits: b of the codebooks, or 32 for none, as is the default but for ATMC; bits a weight of
            `"few_bits"`.
        layer_exponent: None for one budget over all layers; p in [0, 1] for budgets of layers in
            proportion to their sizes to the power p, where the method has a budget of nonzeros.
        floors: share in [0, 1] of the one budget that is assured to layers, so that small ones are
            not emptied; 0 for the paper's global budget; by default the method's own.
        epsilon: radius of the attacks, in input units, such as 8/255; of vectors one for each
            feature, 0.1,0.2, or by column, age=1,income=50: columns not named are left alone.
        attack: name of the training attack. `"wrm"` has no epsilon: it is then that of the tests
            alone. `"atta"` takes one step by default, and carries perturbations within each stage.
        steps: steps of the training attack, where it takes steps.
        objective: the loss is that on attacked inputs; on half attacked and half clean ones; or
            that of TRADES, which goes with the attack of that name.
        backward_slope: slope in (0, 1], in the backward pass alone, of activations that are off, in
            the stages after the dense start: of the training attack and of the weights' gradients;
            0 for none. On MNIST `"al0"` has 0.05.
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
        data: data of your own in place of a dataset: a folder with one folder of images a class, an
            .npz file with x and y, or a directory that tf.data saved.
        bounds: lowest and highest value of its inputs, such as 0,255; by default 0,1 for images. Of
            vectors a range for each feature, 0:1,0:50, or by column, age=0:120,income=0:1e6.
        image_size: height and width to bring images of a folder to, such as 96,96.
        input_type: type of the .tflite file's inputs; with uint8 or int8 it computes in integers,
            and its outputs have that type too. With uint8 the C code takes bytes too.
    """

    model: str | None = None
    dataset: str = "digits"
    method: str = "atmc"
    ratio: float | None = None
    max_bytes: int | str | None = None
    ratio_of: str | None = None
    channels: float | None = None
    max_macs: int | str | None = None
    max_flash: int | str | None = None
    max_ram: int | str | None = None
    cpu: Literal["cortex-m4", "cortex-m0plus"] = "cortex-m4"
    bits: int | None = None
    layer_exponent: float | None = None
    floors: float | None = None
    epsilon: float | str | None = None
    attack: str = "pgd"
    steps: int | None = None
    objective: Literal["adversarial", "half", "trades"] = "adversarial"
    backward_slope: float | None = None
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
    data: str | None = None
    bounds: str | None = None
    image_size: str | None = None
    input_type: Literal["float32", "uint8", "int8"] = "float32"

    def resolved(self) -> CompressionSettings:
        """Returns the settings with all defaults filled in.

        Raises:
            ValueError: if a value is out of range or does not fit the others.
        """
        known = defaults(self.dataset if self.data is None else OWN)
        kind = methods.class_of(self.method)
        model = self.model or (known.family if kind.narrows else known.model)
        filled: dict[str, Any] = {
            "model": model,
            "ratio": None if self._finds_ratio() else known.ratio,
            "bits": known.bits if kind.codebooks else _own_bits(kind),
            "epsilon": default_epsilon(known.epsilon, self.bounds),
            "steps": 1 if self.attack.lower() == "atta" else known.steps,
            "dense_epochs": known.dense_epochs
            if model in models.names() and kind.starts_dense
            else 0,
            "epochs": known.epochs,
            "backward_slope": known.backward_slope if self._learns_through(kind) else 0.0,
            "out": f"atmc_out/{self.dataset if self.data is None else Path(self.data).stem}",
        }
        missing = {name: value for name, value in filled.items() if getattr(self, name) is None}
        found = dataclasses.replace(self, **missing)
        if found.learning_rate is None:
            sloped = found.backward_slope and kind.takes("ratio")
            found = dataclasses.replace(found, learning_rate=known.sloped_rate if sloped else 1.0)
        epsilon = parse_values(found.epsilon)
        if isinstance(epsilon, float):
            found = dataclasses.replace(found, epsilon=epsilon)
        found._check()
        return found

    def _finds_ratio(self) -> bool:
        """Whether the ratio follows from a limit on the file, the flash or the operations."""
        limits = (self.max_bytes, self.max_flash, self.max_macs)
        return any(limit is not None for limit in limits)

    def _check(self) -> None:
        attacks.class_of(self.attack)  # refuses unknown names
        self._check_arguments()
        if self.backward_slope:
            AdversarialLoss(backward_slope=self.backward_slope)  # refuses values out of range
            if self.objective == "trades":
                raise ValueError("`backward_slope` does not go with the objective 'trades'.")
        ratio = 1.0 if self.ratio is None else self.ratio
        if not 0 < ratio <= 1:
            raise ValueError(f"`ratio` must lie in (0, 1]. Received {ratio!r}.")
        self.method_of(ratio)  # refuses values out of range
        if self.learning_rate is not None and self.learning_rate <= 0:
            raise ValueError(f"`learning_rate` is a factor above 0. Received {self.learning_rate}.")
        if self.optimizer is not None:
            check_optimizer(self.optimizer)
        least = dict.fromkeys(("bits", "steps", "epochs", "batch_size", "limit"), 1)
        for name, bound in (least | {"dense_epochs": 0}).items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ValueError(f"`{name}` must be at least {bound}. Received {value}.")
        if not self._stages(ratio):
            raise ValueError(
                f"The method {self.method!r} only trains: give `dense_epochs` of at least 1."
            )
        self._check_limits()

    def _check_limits(self) -> None:
        """Refuses limits that are none, or that do not go with the other settings."""
        for limit in (self.max_flash, self.max_ram):
            if limit is not None:
                parse_bytes(limit)  # refuses what is no size
        if self.max_macs is not None:
            self._check_macs(self.max_macs)
        if self.max_bytes is not None:
            self._check_budget(self.max_bytes)

    def _check_arguments(self) -> None:
        """Refuses settings that the method has no use for."""
        self._check_taken("bits", self.bits != 32)
        for name in ("layer_exponent", "floors", "ratio_of", "channels"):
            self._check_taken(name, getattr(self, name) is not None)
        for name in ("max_bytes", "max_flash"):
            self._check_taken("ratio", getattr(self, name) is not None, name)

    def _check_budget(self, max_bytes: int | str) -> None:
        parse_bytes(max_bytes)  # refuses what is no size
        if self.ratio is not None:
            raise ValueError(
                "Give `ratio` or `max_bytes`, not both: the ratio follows from the size. "
                f"Received {self.ratio} and {max_bytes!r}."
            )

    def _check_macs(self, max_macs: int | str) -> None:
        parse_count(max_macs)  # refuses what is no number
        methods.arguments_in_macs(methods.class_of(self.method))  # refuses methods without
        others = {n: getattr(self, n) for n in ("ratio", "ratio_of", "max_bytes", "max_flash")}
        given = {name: value for name, value in others.items() if value is not None}
        if given:
            raise ValueError(
                "`max_macs` finds the ratio, and of what it is, by itself. Leave out "
                f"{', '.join(f'`{name}`' for name in given)}."
            )

    def _check_taken(self, argument: str, given: bool, setting: str = "") -> None:
        """Refuses a setting for which the method has no argument; names the methods that do."""
        if given and not methods.class_of(self.method).takes(argument):
            able = [name for name in methods.names() if methods.class_of(name).takes(argument)]
            raise ValueError(
                f"`{setting or argument}` is for methods that have `{argument}`: "
                f"{', '.join(able)}. Received {self.method!r}."
            )

    def method_of(self, ratio: float) -> Method:
        """Returns the method with those of the settings that it has arguments for."""
        kind = methods.class_of(self.method)
        settings = {
            "ratio": ratio,
            "bits": self.bits or 32,
            "layer_exponent": self.layer_exponent,
            "floors": self.floors,
            "channels": self.channels,
            "ratio_of": "weights" if self.ratio_of is None else self.ratio_of,
        }
        if self.max_macs is not None:
            settings |= methods.arguments_in_macs(kind)
        return methods.get(self.method, **{k: v for k, v in settings.items() if kind.takes(k)})

    def file_values(self) -> str:
        """Returns how a file within a size stores the weights; the settings must be resolved."""
        return self.method_of(1.0).file_values

    def _learns_through(self, kind: type[Method]) -> bool:
        """Whether weights learn through a slope by default: where that was measured."""
        able = attacks.class_of(self.attack).takes("backward_slope")
        return (
            kind is methods.AL0 and able and self.preset == "default" and self.objective != "trades"
        )

    def stages(self) -> list[Stage]:
        """Returns the stages of training; the settings must be resolved, and have a ratio.

        Raises:
            ValueError: if there is none, since it has yet to be found for `max_bytes`.
        """
        if self.ratio is None and methods.class_of(self.method).takes("ratio"):
            raise ValueError(
                "There is no `ratio` yet. Call `resolved()`; and with `max_bytes`, `max_macs` or "
                "`max_flash`, replace it by that of `plan_budget`, `plan_macs` or `plan_flash`."
            )
        return self._stages(1.0 if self.ratio is None else self.ratio)

    def _stages(self, ratio: float) -> list[Stage]:
        method, found = self.method_of(ratio), []
        if self.dense_epochs:
            start = dense_stage(self.dense_epochs, self.preset)
            found.append(start if method.adversarial else start.on_clean_inputs())
        found += map(self._adapted, method.stages(int(self.epochs or 0), self.preset))
        if self.objective == "trades":
            found = [s.with_objective_of_the_run() if s.attack_factor else s for s in found]
        if self.batch_size is not None:
            found = [dataclasses.replace(stage, batch_size=self.batch_size) for stage in found]
        return found

    def _adapted(self, stage: Stage) -> Stage:
        """Returns a stage after the dense start at the settings' rate and with their optimizer."""
        stage = stage.with_optimizer(self.optimizer or stage.optimizer)
        if self.backward_slope and isinstance(stage.objective, AdversarialLoss):
            loss = stage.objective.but(backward_slope=self.backward_slope)
            stage = dataclasses.replace(stage, objective=loss)
        factor = 1.0 if self.learning_rate is None else self.learning_rate
        return dataclasses.replace(stage, learning_rate=factor * stage.learning_rate)


def _own_bits(kind: type[Method]) -> int:
    """The bits that a method has by itself; 32 for none."""
    return (kind.default("bits") if kind.takes("bits") else None) or 32
