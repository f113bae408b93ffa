# SPDX-License-Identifier: Apache-2.0
"""Staged training: dense adversarial start, pruning, codebook, in one resumable call."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfmot_atmc import attacks
from tfmot_atmc.compression import callbacks
from tfmot_atmc.compression.compress import compress
from tfmot_atmc.compression.model import CompressedModel
from tfmot_atmc.datasets.augmentation import KeyedBatches
from tfmot_atmc.datasets.loading import PADDING, EpochBatches
from tfmot_atmc.datasets.splits import Dataset
from tfmot_atmc.recipes.aims import loss_for, metrics_for
from tfmot_atmc.recipes.stages import (
    PRESETS,
    CoupledSGD,
    Stage,
    atmc_stages,
    baseline_stages,
    dense_stage,
    l0_stages,
)
from tfmot_atmc.utils.files import write_json, written_whole

__all__ = [
    "PRESETS",
    "CoupledSGD",
    "Stage",
    "atmc_stages",
    "dense_stage",
    "baseline_stages",
    "l0_stages",
    "run_stages",
]


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

    Every stage leaves `<name>.keras` and `<name>.json` (its history, and under which attack its
    `val_robust_accuracy` was measured) in `out_dir`. A stage whose
    files are there, with the same settings, is not run again; one that was interrupted goes on
    after its last finished epoch, to the same weights as an unbroken run.

    Args:
        model: a built Keras model with one output: logits or probabilities of classes (of two
            also one), of answers of yes or no, or numbers, as `data` has them.
        stages: the stages, in order.
        data: training and validation data, inputs in the attack's bounds.
        attack: the attack used in training. An `ATTA` without data is sized for `data` and what
            `augment` pads; one with data must fit them. Each stage begins perturbations anew.
        out_dir: folder for the stages' files.
        validation_attack: the attack used in validation; None for that of training, or for PGD-10
            on its ball where that is ATTA.
        objective: `"adversarial"`, `"half"` or an `Objective`.
        augment: augmentation of `EpochBatches`, or None.
        seed: seed of batches and attacks.
        verbose: as in `keras.Model.fit`.
        extra_callbacks: callbacks for every stage.

    Returns:
        The `CompressedModel` of the last stage; `strip_compression` makes it plain.

    Raises:
        FloatingPointError: if a stage diverges; its last good model is saved beside.
        ValueError: if `out_dir` holds a stage of the same name with other settings or other data:
            all training and validation data are part of what a stage is known by.
    """
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    current: Any = model
    history, content = "", _content(data)
    for number, stage in enumerate(stages):
        wanted = _objective(stage, objective)
        known = [data.name, len(data.x_train), content]
        settings = _settings(stage, attack, wanted, augment, seed, history, model, known)
        history = settings["digest"]
        done = _finished(out / f"{stage.name}.json", settings)
        if done:
            current = keras.saving.load_model(out / f"{stage.name}.keras", compile=False)
            continue
        trained = _sized(stage.make_attack(attack), data, augment)
        current = compress(
            current,
            stage.method,
            attack=trained,
            validation_attack=validation_attack or _measuring(trained or attack),
            objective=wanted,
            attack_warmup=round(stage.warmup_epochs * _steps(stage, data)),
            seed=seed + 1000 * number,
        )
        batches = _batches(current, stage, data, augment, seed + number)
        log = _run_stage(current, stage, data, batches, out, verbose, extra_callbacks)
        validated = {"validation_attack": repr(current.validation_attack)}
        write_json(out / f"{stage.name}.json", {**settings, **validated, "history": log.history})
        log.remove()
    return current


def _sized(attack: attacks.Attack | None, data: Dataset, augment: str | None) -> Any:
    """Returns an attack that carries perturbations with room for those of the training data."""
    if not isinstance(attack, attacks.ATTA) or attack.num_examples is not None:
        return attack
    padding = 0 if augment is None else PADDING
    return attack.sized(len(data.x_train), data.input_shape, padding)


def _measuring(attack: Any) -> attacks.Attack | None:
    return None if attack is None else attacks.get(attack).for_validation()


def _steps(stage: Stage, data: Dataset) -> int:
    return max(1, len(data.x_train) // stage.batch_size)


def _batches(
    model: CompressedModel, stage: Stage, data: Dataset, augment: str | None, seed: int
) -> EpochBatches:
    common: dict[str, Any] = {
        "batch_size": stage.batch_size,
        "seed": seed,
        "epoch": _EpochOf(model, _steps(stage, data)),
    }
    attack = model.attack
    if not isinstance(attack, attacks.ATTA):
        return EpochBatches(data.x_train, data.y_train, augment=augment, **common)
    if augment is not None and attack.padding != PADDING:
        raise ValueError(
            f"`augment={augment!r}` pads images by {PADDING} pixels. Make the attack with "
            f"`padding={PADDING}`. Received padding={attack.padding}."
        )
    return KeyedBatches(
        data.x_train,
        data.y_train,
        attack=attack,
        flip=augment == "crop_flip",
        fill=None if augment == "reflect_crop" else 0.0,
        **common,
    )


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
) -> _Progress:
    loss = loss_for(model.model, data)
    model.compile(stage.make_optimizer(_steps(stage, data)), loss, metrics=metrics_for(loss))
    diverged = out / f"{stage.name}.diverged.keras"
    log = _Progress(out, stage.name)
    model.fit(
        batches,
        initial_epoch=log.resume(model) // len(batches),
        epochs=stage.epochs,
        validation_data=(data.x_validation, data.y_validation) if len(data.x_validation) else None,
        validation_batch_size=250,
        callbacks=[
            callbacks.UpdateCompression(divergence_path=diverged),
            *log.before(model),
            log,
            *extra_callbacks,
        ],
        verbose=verbose,
    )
    if model.diverged:
        log.remove()
        raise FloatingPointError(
            f"Stage '{stage.name}' diverged. Its last good model is saved at {diverged}. Lower the "
            f"learning rate ({stage.learning_rate}) or the batch size, and run again."
        )
    with written_whole(out / f"{stage.name}.keras") as partial:
        model.save(partial)
    return log


class _Progress(keras.callbacks.Callback):
    """What an interrupted stage needs to go on: its history, and its state after the last epoch.

    The state, with the number of steps in it, is one file that is written whole: a process killed
    at any moment leaves no weights of one epoch beside the number of another.
    """

    def __init__(self, out: Path, name: str):
        super().__init__()
        self._state = out / f"{name}.backup.weights.h5"
        self._log = out / f"{name}.progress.json"
        self._perturbations = out / f"{name}.perturbations"
        self.history: dict[str, list[float]] = {}

    def resume(self, model: CompressedModel) -> int:
        """Takes up what is there; returns the number of steps taken."""
        if not self._state.exists():
            return 0
        self.history = json.loads(self._log.read_text())
        model.optimizer.build(model.trainable_variables)
        model.load_weights(self._state)
        return model.step

    def before(self, model: CompressedModel) -> list[keras.callbacks.Callback]:
        """Returns the callbacks that write what the state is incomplete without."""
        if not isinstance(model.attack, attacks.ATTA):
            return []
        return [callbacks.KeepPerturbations(self._perturbations)]

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        for name, value in (logs or {}).items():
            self.history[name] = [*self.history.get(name, [])[:epoch], float(value)]
        write_json(self._log, self.history)  # before the state: never shorter than that says
        partial = self._state.with_name(f"partial.{self._state.name}")
        self.model.save_weights(partial, overwrite=True)
        partial.replace(self._state)

    def remove(self) -> None:
        """Removes its files, when the stage's own are there."""
        for path in (self._state, self._log):
            path.unlink(missing_ok=True)
        if self._perturbations.exists():
            shutil.rmtree(self._perturbations)


def _objective(stage: Stage, objective: Any) -> Any:
    """Returns what a stage minimises: its own objective, its method's own, or the run's."""
    if stage.objective is not None:
        return stage.objective
    return objective if stage.method.objective is None else stage.method.objective


def _content(data: Dataset) -> str:
    """Returns the SHA-256 of all that is trained and validated on, at about a second a gigabyte."""
    digest = hashlib.sha256()
    for array in (data.x_train, data.y_train, data.x_validation, data.y_validation):
        values = np.ascontiguousarray(array)
        digest.update(f"{values.dtype.str}{values.shape}".encode())
        digest.update(values.data)
    return digest.hexdigest()


def _settings(stage: Stage, attack: Any, objective: Any, *others: Any) -> dict[str, Any]:
    """Returns what the result of a stage depends on, and its digest."""
    augment, seed, history, model, known = others
    weights = hashlib.sha256()
    for value in model.get_weights():
        weights.update(value.tobytes())
    trained = stage.make_attack(attack)
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
        "attack": trained and attacks.serialize(trained),
        "objective": repr(objective),
        "augment": augment,
        "seed": seed,
        "data": known,
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
