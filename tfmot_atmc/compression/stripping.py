# SPDX-License-Identifier: Apache-2.0
"""The plain model behind a compressed one."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmot_atmc.compression.wrapping import WrappedKernel, composed_kernels, plain_layers
from tfmot_atmc.slimming.dead import what_is_dead
from tfmot_atmc.utils.cloning import copy_model
from tfmot_atmc.utils.comparison import probe

__all__ = ["plain_copy", "plain_model", "tell_what_is_dead"]


def plain_copy(model: Any, values: Sequence[np.ndarray] | None = None) -> keras.Model:
    """Returns the plain model of a compressed one, with variables of its own.

    Args:
        model: a `CompressedModel`; it stays as it is.
        values: one array for every factor; None for feasible ones (`finalized_factors`).

    Raises:
        ValueError: if the model cannot be copied, or the copy gives other outputs than the
            compressed model with these values.
    """
    values = model.finalized_factors() if values is None else values

    def wrapped(inputs: Any) -> Any:
        with composed_kernels(model.kernels, values):
            return model.model(inputs, training=False)

    expected = probe(model.model, wrapped)
    with plain_model(model.kernels, values):
        return copy_model(model.model, expected=expected, check=expected is not None)


@contextlib.contextmanager
def plain_model(
    kernels: Sequence[WrappedKernel], values: Sequence[tf.Tensor | np.ndarray]
) -> Iterator[None]:
    """Makes a wrapped model a plain one inside the context, with kernels composed from values.

    Args:
        kernels: the wrapped kernels of the model.
        values: one tensor or array for every factor of every kernel.
    """
    position, kept = 0, []
    for kernel in kernels:
        mine = dict(zip(kernel.variables, values[position:], strict=False))
        position += len(kernel.variables)
        variable = kernel.variables[kernel.kernel.main]
        kept.append((variable, keras.ops.convert_to_numpy(variable)))
        variable.assign(kernel.compose(mine))
    try:
        with plain_layers([kernel.layer for kernel in kernels]):
            yield
    finally:
        for variable, value in kept:
            variable.assign(value)


def tell_what_is_dead(model: keras.Model) -> None:
    """Warns, in the caller's caller, where nothing passes through a layer of a plain model."""
    said = what_is_dead(model)
    if said is not None:
        warnings.warn(said, stacklevel=3)
