# SPDX-License-Identifier: Apache-2.0
"""A model around another that answers for it: names, losses, saving and export."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfmot_atmc.compression.attacked import bounds_message, choose_monitor_modes
from tfmot_atmc.compression.finish import remembered_data
from tfmot_atmc.compression.planning import with_planning
from tfmot_atmc.compression.stripping import plain_copy
from tfmot_atmc.compression.wrapping import WrappedKernel
from tfmot_atmc.utils.keras_internals import overrides, own_loss

__all__ = ["BoundsError", "ModelWrapper", "dropped_methods", "shortened"]

_HDF5 = (".h5", ".hdf5")
# Methods of a model that adversarial training has in a form of its own.
_DROPPED = ("train_step", "test_step", "predict_step", "compute_metrics", "fit", "evaluate")


class BoundsError(ValueError):
    """Inputs lie outside the bounds of the attack."""


def shortened(message: str) -> str:
    """Returns a message with four digits of each number that has more.

    Example:

    >>> shortened("between -2.1179039478 and 2.64")
    'between -2.118 and 2.64'
    """
    return re.sub(r"-?\d+\.\d{4,}(e[-+]?\d+)?", lambda found: f"{float(found[0]):.4g}", message)


def dropped_methods(model: keras.Model) -> str | None:
    """Returns which methods of a model are not called once it is wrapped, in words; or None.

    Args:
        model: the model inside.
    """
    dropped = [name for name in _DROPPED if overrides(model, name)]
    if not dropped:
        return None
    named = ", ".join(f"{name}()" for name in dropped)
    return (
        f"{named} of '{model.name}' ({type(model).__name__}) {'is' if len(dropped) == 1 else 'are'}"
        " not called: training under attack and constraints has steps of its own. The model's "
        "call() and compute_loss() are used. Put the rest into those, or into a loop of your own "
        "that ends each step with apply_constraints()."
    )


class ModelWrapper(keras.Model):
    """A Keras model around another one, `self.model`, in whose place it is used.

    Losses and metrics are compiled by the inner model's output names and reported under them;
    `get_layer` finds the inner layers; a `compute_loss` of the inner model's own is used;
    regularisers of a wrapped kernel see the kernel as it is composed.
    """

    model: keras.Model
    _kernels: tuple[WrappedKernel, ...]

    @property
    def kernels(self) -> tuple[WrappedKernel, ...]:
        """The wrapped kernels."""
        return self._kernels

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs, by which losses and metrics are given."""
        return self.model.output_names

    @property
    def input_names(self) -> list[str]:
        """Names of the inputs."""
        return self.model.input_names

    def get_layer(self, name: str | None = None, index: int | None = None) -> keras.layers.Layer:
        """Returns a layer of the wrapped model, as its own `get_layer` does."""
        if index is None and name == self.model.name:
            return self.model
        return self.model.get_layer(name=name, index=index)

    @property
    def losses(self) -> list[Any]:
        """Scalar losses of layers and regularisers, those of wrapped kernels included."""
        return [*super().losses, *self._kernel_penalties()]

    def _kernel_penalties(self) -> list[tf.Tensor]:
        return [
            kernel.regularizer(kernel.whole())
            for kernel in self.kernels
            if kernel.regularizer is not None and kernel.layer.trainable
        ]

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Returns the compiled loss with all penalties; the inner model's, where it has its own."""
        if not overrides(self.model, "compute_loss"):
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        loss = own_loss(self.model, self, x, y, y_pred, sample_weight, training)
        return loss + sum(self._kernel_penalties())

    def save(self, filepath: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Saves the model with its factors and the state of its training, to a `.keras` file.

        Raises:
            ValueError: for an HDF5 file, which cannot hold them.
        """
        if str(filepath).endswith(_HDF5):
            raise ValueError(
                "A compressed model keeps its factors beside its layers' weights, which an HDF5 "
                f"file cannot hold. Received {str(filepath)!r}. Save it to a file that ends in "
                "'.keras', or save the plain model: strip_compression(model).save(...)."
            )
        super().save(filepath, *args, **kwargs)

    def load_weights(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Loads factors and the state of training, as `keras.Model.load_weights`.

        Raises:
            ValueError: if the file's factors cannot be those of this model's kernels, such as
                scores of the fixed weights of another seed.
        """
        super().load_weights(filepath, *args, **kwargs)
        for kernel in self.kernels:
            kernel.kernel.check(kernel.variables)

    def export(self, filepath: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Exports the plain model, constraints held, as `keras.Model.export`.

        For `.tflite` files `tfmot_atmc.export_tflite` stores sparse weights sparsely.
        """
        plain_copy(self).export(filepath, *args, **kwargs)

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """Trains, as `keras.Model.fit`; plans compression before, and makes it hold exactly after.

        Raises:
            ValueError: if a schedule refers to the planned steps and the number of steps of an
                epoch is not known; or if inputs lie outside the attack's bounds.
        """
        names = list(inspect.signature(keras.Model.fit).parameters)[1:]
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        given["callbacks"] = with_planning(self, given.get("callbacks"))
        inside = given["callbacks"]
        choose_monitor_modes(getattr(inside, "callbacks", inside))
        self.__dict__["_before_fit"] = self._progress()
        self.__dict__["_fitting"] = True
        step, horizon = self._progress()
        try:
            with remembered_data(self, (), given):
                history = self._guarded(super().fit, **given)
        finally:
            self.__dict__["_fitting"] = False
            if self.step == step:
                self._horizon.assign(horizon)  # refused: nothing has changed
        self.finalize()  # a callback may have brought back weights from before the end
        return history

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluates on clean and attacked inputs, as `keras.Model.evaluate`."""
        try:
            return self._guarded(super().evaluate, *args, **kwargs)
        except BoundsError as error:
            if not self.__dict__.get("_fitting", False):
                raise
            raise BoundsError(f"In the validation data: {error}") from error

    def _guarded(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except tf.errors.InvalidArgumentError as error:
            message = bounds_message(error)
            if message is None:
                raise
            raise BoundsError(shortened(message)) from error
