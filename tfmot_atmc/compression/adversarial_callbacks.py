# SPDX-License-Identifier: Apache-2.0
"""Callbacks of adversarial training: a watch for overfitting to the attack, ATTA's store."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmot_atmc.attacks import ATTA, PGD, Attack

__all__ = ["CatastrophicOverfitting", "KeepPerturbations"]

_WATCH_STEPS = 5


class CatastrophicOverfitting(keras.callbacks.Callback):
    """Watches fast adversarial training, which may suddenly learn to fool its own attack only.

    A training that attacks with one step can lose all robustness against longer attacks within a
    few hundred steps, while its own robust accuracy rises. This callback measures accuracy under a
    short PGD on a few fixed examples, which training should not contain. When it falls by more
    than `drop` below the highest so far, it warns, stops training and brings back the weights of
    that highest measurement. The rule is that of Wong et al., "Fast is better than free", 2020.

    It adds to the logs `watched_accuracy` and `catastrophic_overfitting` (0 or 1), for callbacks
    after it in the list and for the history.

    Args:
        x: inputs, some hundreds.
        y: their labels.
        attack: the attack to measure by; None is PGD with 5 steps of `epsilon / 4` and the
            epsilon and bounds of the model's own attack.
        drop: fall in accuracy, in (0, 1).
        every: measure also after every so many steps, not only at the end of an epoch.
        stop: whether to stop training; else it only warns, once for each fall.
        restore: whether to bring back the weights when it stops. It keeps a copy of them.
        batch_size: examples attacked at once.

    Attributes:
        measured: list of `(epoch, batch, accuracy)`, batches counted from 1.
        found: whether a fall was seen.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        x: Any,
        y: Any,
        *,
        attack: Attack | None = None,
        drop: float = 0.2,
        every: int | None = None,
        stop: bool = True,
        restore: bool = True,
        batch_size: int = 256,
    ):
        super().__init__()
        self.x, self.y = np.asarray(x), np.asarray(y)
        if len(self.x) != len(self.y) or not len(self.x):
            raise ValueError(
                "`x` and `y` must have the same length, at least 1. Received: "
                f"{len(self.x)} and {len(self.y)}."
            )
        if not 0 < drop < 1 or batch_size < 1 or (every is not None and every < 1):
            raise ValueError(
                "`drop` must lie in (0, 1), `every` and `batch_size` be at least 1. Received: "
                f"{drop!r}, {every!r} and {batch_size!r}."
            )
        self.attack: Any = attack
        self.drop, self.every = float(drop), every
        self.stop, self.restore = stop, restore
        self.batch_size = int(batch_size)
        self.measured: list[tuple[int, int, float]] = []
        self.found = False
        self._epoch = self._batch = 0
        self._highest = -np.inf
        self._weights: list[np.ndarray] | None = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Chooses the attack and forgets earlier trainings."""
        if self.attack is None:
            own = getattr(self.model, "attack", None)
            if own is None or not np.isfinite(own.epsilon).all():
                raise ValueError(
                    "The model has no attack with an epsilon to measure by. Pass `attack`, such as "
                    "PGD(epsilon=..., steps=5)."
                )
            self.attack = PGD(
                epsilon=own.epsilon, bounds=own.bounds, steps=_WATCH_STEPS, rule="quarter"
            )
        self.measured, self.found = [], False
        self._highest, self._weights = -np.inf, None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Notes the epoch."""
        self._epoch, self._batch = epoch, 0

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Measures every so many steps."""
        self._batch = batch + 1
        if self.every is not None and self._batch % self.every == 0:
            self._measure()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Measures, unless that has just been done, and logs it."""
        if not self.measured or self.measured[-1][:2] != (self._epoch, self._batch):
            self._measure()
        if logs is not None:
            logs["watched_accuracy"] = self.measured[-1][2]
            logs["catastrophic_overfitting"] = float(self.found)

    def accuracy(self) -> float:
        """Returns the model's accuracy under the attack, now."""
        right = 0
        for start in range(0, len(self.x), self.batch_size):
            x, y = (part[start : start + self.batch_size] for part in (self.x, self.y))
            attacked = self.attack(self.model, tf.convert_to_tensor(x), y, seed=start)
            predicted = np.argmax(self.model(attacked, training=False), axis=-1)
            hard = np.argmax(y, axis=-1) if y.ndim == 2 and y.shape[1] > 1 else y.reshape(-1)
            right += int(np.sum(predicted == hard))
        return right / len(self.x)

    def _measure(self) -> None:
        if self.stop and self.found:
            return
        value = self.accuracy()
        self.measured.append((self._epoch, self._batch, value))
        if value < self._highest - self.drop:
            self._tell(value)
            self._highest = value
        elif value >= self._highest:
            self._highest = value
            if self.stop and self.restore:
                self._weights = [variable.numpy() for variable in self._variables()]

    def _tell(self, value: float) -> None:
        self.found = True
        done = "Training goes on."
        if self.stop:
            self.model.stop_training = True
            done = "Training stops."
            if self._weights is not None:
                for variable, kept in zip(self._variables(), self._weights, strict=True):
                    variable.assign(kept)
                done = "Training stops; the model has the weights from before the fall again."
        warnings.warn(
            f"Catastrophic overfitting: accuracy under {type(self.attack).__name__} fell from "
            f"{self._highest:.3f} to {value:.3f} by step {self._batch} of epoch {self._epoch + 1}. "
            f"{done} Train with a smaller step or epsilon, or with PGD.",
            stacklevel=2,
        )

    def _variables(self) -> list[Any]:
        optimizer = getattr(self.model, "optimizer", None)
        return [*self.model.variables, *(optimizer.variables if optimizer is not None else [])]


class KeepPerturbations(keras.callbacks.Callback):
    """Saves the perturbations of `ATTA`, so that an interrupted run resumes to the same result.

    To be listed before `keras.callbacks.BackupAndRestore`, whose files hold the weights. At the end
    of each epoch it writes the store beside them, named after the step; when training is resumed
    it reads the one that belongs to the weights. It keeps the last two, because training may be
    killed between the two callbacks. When training is completed they are deleted.

    Args:
        directory: folder for the files.
        delete: whether they are deleted at the end.
    """

    def __init__(self, directory: str | os.PathLike[str], *, delete: bool = True):
        super().__init__()
        self.directory = Path(directory)
        self.delete = delete
        self._ready = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Checks that there are perturbations to keep."""
        if not isinstance(getattr(self.model, "attack", None), ATTA):
            raise ValueError(
                "KeepPerturbations needs a model returned by tfmot_atmc.compress(..., "
                f"attack=ATTA(...)). Received an object of type {type(self.model)}."
            )
        self.directory.mkdir(parents=True, exist_ok=True)
        self._ready = False

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Reads the store of the weights that training starts from."""
        if self._ready:  # only by now have all callbacks restored what they restore
            return
        self._ready = True
        saved, step = self._saved(), self.model.step
        if step in saved:
            self.model.attack.load(saved[step])
        elif saved and epoch > 0:
            raise ValueError(
                f"{self.directory} has the perturbations of steps {sorted(saved)}, but the model "
                f"is at step {step}. List KeepPerturbations before BackupAndRestore, or empty "
                "both folders to begin anew."
            )

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the store."""
        step = self.model.step
        self.model.attack.save(self.directory / f"perturbations-{step}.npz")
        for other in sorted(self._saved().items())[:-2]:
            other[1].unlink()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Deletes the files."""
        if self.delete:
            for path in self._saved().values():
                path.unlink()

    def _saved(self) -> dict[int, Path]:
        """Returns the files by step."""
        found = {}
        for path in self.directory.glob("perturbations-*.npz"):
            match = re.fullmatch(r"perturbations-(\d+)\.npz", path.name)
            if match:
                found[int(match[1])] = path
        return found
