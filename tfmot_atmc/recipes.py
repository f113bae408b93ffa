# SPDX-License-Identifier: Apache-2.0
"""Staged training: dense adversarial start, pruning, codebook, in one resumable call."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from tfmot_atmc import attacks, callbacks
from tfmot_atmc.compression import compress
from tfmot_atmc.constraints import ConstantBudget, CubicBudget, GradientGrowth
from tfmot_atmc.datasets import Dataset, EpochBatches
from tfmot_atmc.files import write_json
from tfmot_atmc.methods import AL0, ATMC, DA, Method
from tfmot_atmc.objectives import AdversarialLoss
from tfmot_atmc.training import CompressedModel

__all__ = [
    "PRESETS",
    "CoupledSGD",
    "Stage",
    "atmc_stages",
    "dense_stage",
    "l0_stages",
    "run_stages",
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
        if self.optimizer == "adam":
            return keras.optimizers.Adam(rate, global_clipnorm=self.clipnorm)
        if self.optimizer != "sgd":
            raise ValueError(f"`optimizer` must be 'sgd' or 'adam'. Received {self.optimizer!r}.")
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
}


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


def atmc_stages(
    ratio: float, bits: int = 32, epochs: int = 8, preset: str = "default"
) -> list[Stage]:
    """Returns the stages of ATMC after the dense start.

    The default prunes along a cubic under ATMC, then grows by gradient, and with `bits` below 32
    ties the weights to codebooks. The preset `"paper"` is l0 projection of plain kernels, then
    ATMC-32, then ATMC-b by ADMM, with the learning rates of the authors' code.

    Args:
        ratio: nonzeros as a ratio of the dense kernels' parameters.
        bits: b of the codebooks; 32 for none.
        epochs: epochs of the pruning stage; a codebook stage takes an eighth more.
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
    method = ATMC(ratio, schedule=CubicBudget(end=0.4), growth=GradientGrowth())
    stages = [Stage("atmc32", method, epochs, **_PRUNING)]
    if bits != 32:
        method = ATMC(ratio, bits=bits, schedule=ConstantBudget(), codebook_begin=0)
        stages.append(
            Stage(f"atmc{bits}", method, max(1, epochs // 8), **{**_PRUNING, "learning_rate": 0.02})
        )
    return stages


PRESETS = ("default", "paper")


def _check_preset(preset: str) -> None:
    if preset not in PRESETS:
        raise ValueError(f"`preset` must be one of {PRESETS}. Received {preset!r}.")


def run_stages(
    model: keras.Model,
    stages: Sequence[Stage],
    data: Dataset,
    *,
    attack: Any,
    out_dir: str | os.PathLike[str],
    validation_attack: Any = None,
    objective: Any = "adversarial",
    augment: str | None = None,
    seed: int = 0,
    verbose: Any = "auto",
    extra_callbacks: Sequence[keras.callbacks.Callback] = (),
) -> keras.Model:
    """Trains a model through stages; a run that was interrupted goes on where it stopped.

    Every stage leaves `<name>.keras` and `<name>.json` (its history) in `out_dir`. A stage whose
    files are there, with the same settings, is not run again; one that was interrupted goes on
    after its last finished epoch, to the same weights as an unbroken run.

    Args:
        model: a built Keras model with logits as outputs.
        stages: the stages, in order.
        data: training and validation data, inputs in the attack's bounds.
        attack: the attack used in training.
        out_dir: folder for the stages' files.
        validation_attack: the attack used in validation; None for `attack`.
        objective: `"adversarial"`, `"half"` or an `Objective`.
        augment: augmentation of `EpochBatches`, or None.
        seed: seed of batches and attacks.
        verbose: as in `keras.Model.fit`.
        extra_callbacks: callbacks for every stage.

    Returns:
        The `CompressedModel` of the last stage; `strip_compression` makes it plain.

    Raises:
        FloatingPointError: if a stage diverges; its last good model is saved beside.
        ValueError: if `out_dir` holds a stage of the same name with other settings.
    """
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    current: Any = model
    history = ""
    for number, stage in enumerate(stages):
        settings = _settings(stage, attack, objective, augment, seed, history, model, data)
        history = settings["digest"]
        done = _finished(out / f"{stage.name}.json", settings)
        if done:
            current = keras.saving.load_model(out / f"{stage.name}.keras", compile=False)
            continue
        current = compress(
            current,
            stage.method,
            attack=attack,
            validation_attack=validation_attack,
            objective=objective if stage.objective is None else stage.objective,
            attack_warmup=round(stage.warmup_epochs * _steps(stage, data)),
            seed=seed + 1000 * number,
        )
        batches = EpochBatches(
            data.x_train,
            data.y_train,
            batch_size=stage.batch_size,
            seed=seed + number,
            epoch=_EpochOf(current, _steps(stage, data)),
            augment=augment,
        )
        log = _run_stage(current, stage, data, batches, out, verbose, extra_callbacks)
        write_json(out / f"{stage.name}.json", {**settings, "history": log})
    return current


def _steps(stage: Stage, data: Dataset) -> int:
    return max(1, len(data.x_train) // stage.batch_size)


class _EpochOf:
    """The epoch that a model is in, told from its own count of steps."""

    def __init__(self, model: CompressedModel, steps: int):
        self.model, self.steps = model, steps

    def __call__(self) -> int:
        return self.model.step // self.steps


def _run_stage(
    model: CompressedModel,
    stage: Stage,
    data: Dataset,
    batches: EpochBatches,
    out: Path,
    verbose: Any,
    extra_callbacks: Sequence[keras.callbacks.Callback],
) -> dict[str, list[float]]:
    model.compile(
        stage.make_optimizer(_steps(stage, data)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    diverged = out / f"{stage.name}.diverged.keras"
    log = _HistoryFile(out / f"{stage.name}.progress.json")
    model.fit(
        batches,
        epochs=stage.epochs,
        validation_data=(data.x_validation, data.y_validation) if len(data.x_validation) else None,
        validation_batch_size=250,
        callbacks=[
            callbacks.UpdateCompression(divergence_path=diverged),
            keras.callbacks.BackupAndRestore(out / f"{stage.name}.backup"),
            log,
            *extra_callbacks,
        ],
        verbose=verbose,
    )
    if model.diverged:
        raise FloatingPointError(
            f"Stage '{stage.name}' diverged. Its last good model is saved at {diverged}. Lower the "
            f"learning rate ({stage.learning_rate}) or the batch size, and run again."
        )
    partial = out / f"{stage.name}.partial.keras"
    model.save(partial)
    os.replace(partial, out / f"{stage.name}.keras")
    history = log.history
    log.path.unlink(missing_ok=True)
    return history


class _HistoryFile(keras.callbacks.Callback):
    """The history of a stage, kept on disk so that a resumed run has all of it."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self.history: dict[str, list[float]] = {}

    def on_train_begin(self, logs: Any = None) -> None:
        if self.path.exists():
            self.history = json.loads(self.path.read_text())

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        for name, value in (logs or {}).items():
            self.history[name] = [*self.history.get(name, [])[:epoch], float(value)]
        write_json(self.path, self.history)


def _settings(stage: Stage, attack: Any, objective: Any, *others: Any) -> dict[str, Any]:
    """Returns what the result of a stage depends on, and its digest."""
    augment, seed, history, model, data = others
    weights = hashlib.sha256()
    for value in model.get_weights():
        weights.update(value.tobytes())
    settings = {
        "stage": stage.name,
        "method": keras.saving.serialize_keras_object(stage.method),
        "epochs": stage.epochs,
        "learning_rate": stage.learning_rate,
        "optimizer": stage.optimizer,
        "decay": stage.decay,
        "weight_decay": stage.weight_decay,
        "clipnorm": stage.clipnorm,
        "warmup_epochs": stage.warmup_epochs,
        "batch_size": stage.batch_size,
        "attack": attacks.serialize(attacks.get(attack)),
        "objective": repr(objective if stage.objective is None else stage.objective),
        "augment": augment,
        "seed": seed,
        "data": [data.name, len(data.x_train)],
        "start": history or weights.hexdigest(),
    }
    text = json.dumps(settings, sort_keys=True, default=str)
    return {**json.loads(text), "digest": hashlib.sha256(text.encode()).hexdigest()}


def _finished(path: Path, settings: dict[str, Any]) -> bool:
    if not path.exists():
        return False
    found = json.loads(path.read_text())
    if found.get("digest") == settings["digest"]:
        return True
    different = [k for k in settings if k != "digest" and found.get(k) != settings[k]]
    raise ValueError(
        f"{path} is of a stage with other settings ({', '.join(different)}). Choose another output "
        "folder, or remove its files to train anew."
    )
