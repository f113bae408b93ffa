# SPDX-License-Identifier: Apache-2.0
"""What plans compression at the start of `fit` and finishes it at the end."""

from __future__ import annotations

import math
import os
import warnings
from typing import Any

import keras

from tfmot_atmc.compression.finish import (
    refresh_statistics,
    tell_losses,
    tell_remarks,
    tell_what_died,
)
from tfmot_atmc.constraints import Constraint
from tfmot_atmc.utils import distribution

__all__ = ["CompressionCallback", "EpochWatch", "UpdateCompression", "with_planning"]


class CompressionCallback(keras.callbacks.Callback):
    """A callback that only a compressed model can have."""

    def _compressed(self) -> Any:
        if not hasattr(self.model, "finalized_factors"):
            raise ValueError(
                f"{type(self).__name__} needs a model returned by tfmot_atmc.compress(). "
                f"Received an object of type {type(self.model)}."
            )
        return self.model


class UpdateCompression(CompressionCallback):
    """Plans compression at the start of `fit`, watches over it, and finishes it at the end.

    `fit` of a compressed model adds one by itself; list it to give it arguments.

    At the start it tells schedules that are given as fractions how many optimizer steps are
    planned: those of this `fit`, after the steps taken before. A plan is kept where this `fit` goes
    on with a run that `BackupAndRestore` brings back, and where it was made with `plan`. When the
    loss or its gradient is not finite, the update is left out by the train step and this callback
    stops training, so the model keeps its last good weights. At the end it makes all constraints
    hold exactly. Before each validation and at the end it re-estimates the statistics of batch
    normalisation (`reestimate_batch_norm`) on some batches of training data, for the kernels as
    they would be deployed. It warns of layers that hold nothing any more, of an output that is the
    same for every input, and of a loss that is much worse in inference than in training. Its place
    among the callbacks does not matter.

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
        self._training = self._planned = False

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Checks that the steps can be planned."""
        model = self._compressed()
        self._first_loss = self._refreshed_at = None
        self._training = True
        self._planned = False
        model._diverged.assign(False)  # what is trained anew may go well
        if model.horizon > model.step or self.params.get("steps"):
            return
        if any(c.needs_horizon for c in model.constraints):
            raise ValueError(
                "The number of steps of an epoch is not known, so a schedule given as a "
                "fraction of the planned steps cannot be followed. Pass `steps_per_epoch` to "
                "fit(), or give the schedule in steps."
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Plans the steps of the epochs to come, once, when all callbacks have begun."""
        model, steps = self._compressed(), self.params.get("steps")
        if self._planned or not steps:
            return
        self._planned = True
        if not model.keeps_its_plan():
            to_come = int(steps) * (int(self.params["epochs"]) - epoch)
            model._horizon.assign(model.step + to_come)

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
        tell_remarks(model)

    def _refresh(self) -> None:
        model = self._compressed()
        if not model.diverged and refresh_statistics(model, self.params.get("steps")):
            self._refreshed_at = model.step


class EpochWatch(CompressionCallback):
    """Tells the constraints of an epoch that has ended.

    It stands first, so that callbacks that save the model see what the constraints made of it.
    """

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Passes what Keras reports on."""
        for constraint in self._compressed().constraints:
            constraint.epoch_ended(dict(logs or {}))


def with_planning(model: keras.Model, callbacks: Any) -> Any:
    """Returns what is given to `fit` as callbacks, with an `UpdateCompression` at its end.

    Args:
        model: the compressed model.
        callbacks: None, a callback, a list of them or a `CallbackList`, with or without an
            `UpdateCompression`.
    """
    inside = getattr(callbacks, "callbacks", callbacks) or []
    inside = list(inside) if isinstance(inside, (list, tuple)) else [inside]
    planned = any(getattr(callback, "plans_compression", False) for callback in inside)
    watched = any(type(c).epoch_ended is not Constraint.epoch_ended for c in model.constraints)
    first = [EpochWatch()] if watched else []
    last = [] if planned else [UpdateCompression()]
    if not isinstance(callbacks, keras.callbacks.CallbackList):
        return [*first, *inside, *last]
    for added in (*first, *last):
        added.set_model(model)
        added.set_params(callbacks.params)
    callbacks.callbacks[:0] = first
    callbacks.callbacks.extend(last)
    return callbacks
