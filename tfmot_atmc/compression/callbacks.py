# SPDX-License-Identifier: Apache-2.0
"""Callbacks: planning and finishing compression, and summaries for TensorBoard."""

from __future__ import annotations

import importlib.util
import math
import os
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmot_atmc.compression.adversarial_callbacks import CatastrophicOverfitting, KeepPerturbations
from tfmot_atmc.compression.finish import refresh_statistics, tell_losses, tell_what_died
from tfmot_atmc.compression.model import CompressedModel
from tfmot_atmc.constraints.codebook import Codebook
from tfmot_atmc.utils import distribution

__all__ = [
    "CatastrophicOverfitting",
    "CompressionSummaries",
    "KeepPerturbations",
    "UpdateCompression",
]


def __dir__() -> list[str]:
    return __all__


class _CompressionCallback(keras.callbacks.Callback):
    def _compressed(self) -> CompressedModel:
        if not isinstance(self.model, CompressedModel):
            raise ValueError(
                f"{type(self).__name__} needs a model returned by tfmot_atmc.compress(). "
                f"Received an object of type {type(self.model)}."
            )
        return self.model


class UpdateCompression(_CompressionCallback):
    """Plans compression at the start of `fit`, watches over it, and finishes it at the end.

    At the start it tells schedules that are given as fractions how many optimizer steps are
    planned. When the loss or its gradient is not finite, the update is left out by the train step
    and this callback stops training, so the model keeps its last good weights. At the end it makes
    all constraints hold exactly. Before each validation and at the end it re-estimates the
    statistics of batch normalisation (`reestimate_batch_norm`) on some batches of training data,
    for the kernels as they would be deployed. It warns of layers that hold nothing any more, of an
    output that is the same for every input, and of a loss that is much worse in inference than in
    training. Its place among the callbacks does not matter.

    Args:
        divergence_path: None, or a `.keras` path to which the last good model is saved when
            training diverges; with several workers the chief saves it.
    """

    plans_compression = True

    def __init__(self, divergence_path: str | os.PathLike[str] | None = None):
        super().__init__()
        self.divergence_path = divergence_path
        self._first_loss: float | None = None
        self._refreshed_at: int | None = None
        self._training = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Checks that the steps can be planned."""
        model = self._compressed()
        self._first_loss = self._refreshed_at = None
        self._training = True
        model._diverged.assign(False)  # what is trained anew may go well
        if model.horizon or self.params.get("steps"):
            return
        if any(c.needs_horizon for c in model.constraints):
            raise ValueError(
                "The number of steps of an epoch is not known, so a schedule given as a "
                "fraction of the planned steps cannot be followed. Pass `steps_per_epoch` to "
                "fit(), or give the schedule in steps."
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Plans the steps of the epochs to come, unless that has been done before."""
        model, steps = self._compressed(), self.params.get("steps")
        if steps and not model.horizon:
            model.plan(model.step + int(steps) * (int(self.params["epochs"]) - epoch))

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Stops training when it has diverged."""
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(float(loss)):
            self._stop()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Stops training when a gradient was not finite though the loss was."""
        if self._first_loss is None:
            self._first_loss = (logs or {}).get("loss")
        if self._compressed().diverged and not self.model.stop_training:
            self._stop()

    def _stop(self) -> None:
        model = self._compressed()
        model.stop_training = True
        saved = ""
        if self.divergence_path is not None and distribution.is_chief(model.distribute_strategy):
            model.save(self.divergence_path)
            saved = f" It is saved at {self.divergence_path}."
        warnings.warn(
            f"Training diverged at step {model.step}: the loss or its gradient is not finite. The "
            f"model holds its last good weights.{saved} Lower the learning rate, or clip "
            "gradients with `global_clipnorm=1.0` in the optimizer.",
            stacklevel=2,
        )

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Within `fit`, lets validation see the statistics that would be deployed."""
        if self._training:
            self._refresh()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Makes all constraints hold exactly, and looks at what is left."""
        self._training = False
        model = self._compressed()
        model.finalize()
        if model.diverged or not model.step:
            return
        if self._refreshed_at != model.step:
            self._refresh()
        tell_losses(model, self._first_loss)
        tell_what_died(model)

    def _refresh(self) -> None:
        model = self._compressed()
        if not model.diverged and refresh_statistics(model, self.params.get("steps")):
            self._refreshed_at = model.step


class CompressionSummaries(_CompressionCallback):
    """Writes nonzeros, sparsity, codebooks, ADMM residuals and robust accuracy for TensorBoard.

    Args:
        log_dir: folder for the event files.
        update_freq: `"epoch"`, or a number of batches between two summaries.
    """

    def __init__(self, log_dir: str | os.PathLike[str] = "logs", update_freq: str | int = "epoch"):
        super().__init__()
        if update_freq != "epoch" and (not isinstance(update_freq, int) or update_freq < 1):
            raise ValueError(
                f"`update_freq` must be 'epoch' or a number of batches. Received {update_freq!r}."
            )
        self.log_dir, self.update_freq = os.fspath(log_dir), update_freq
        self._writer: Any = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Opens the event file."""
        self._compressed()
        if importlib.util.find_spec("tensorboard") is None:
            raise ImportError(
                "CompressionSummaries needs TensorBoard. Install it with "
                "`pip install tfmot-atmc[tensorboard]`, or leave the callback out."
            )
        self._writer = tf.summary.create_file_writer(self.log_dir)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes a summary every `update_freq` batches."""
        if self.update_freq != "epoch" and (batch + 1) % int(self.update_freq) == 0:
            self._write(logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes a summary, with the epoch's metrics."""
        self._write(logs)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Closes the event file."""
        self._writer.close()

    def _write(self, logs: dict[str, Any] | None) -> None:
        model = self._compressed()
        report = model.compression_report()
        with self._writer.as_default(step=model.step):
            tf.summary.scalar("compression/nonzeros", report.nonzeros)
            tf.summary.scalar("compression/paper_ratio", report.paper_ratio)
            for factor in report.factors:
                size = int(np.prod(factor.shape))
                tf.summary.scalar(f"nonzeros/{factor.name}", factor.nonzeros)
                tf.summary.scalar(f"sparsity/{factor.name}", 1 - factor.nonzeros / max(size, 1))
                tf.summary.scalar(f"distinct/{factor.name}", factor.distinct)
            for constraint in model.constraints:
                for name, value in constraint.scalars().items():
                    tf.summary.scalar(f"constraint/{name}", value)
                if isinstance(constraint, Codebook):
                    for name, values in constraint.codebooks().items():
                        tf.summary.histogram(f"codebook/{name}", values)
            for name, value in (logs or {}).items():
                if "robust" in name:
                    tf.summary.scalar(f"robustness/{name}", float(value))
        self._writer.flush()
