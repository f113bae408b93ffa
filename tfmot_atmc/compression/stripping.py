# SPDX-License-Identifier: Apache-2.0
"""The plain model behind a compressed one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfmot_atmc.compression.wrapping import composed_kernels, plain_model
from tfmot_atmc.slimming.dead import what_is_dead
from tfmot_atmc.utils.cloning import copy_model
from tfmot_atmc.utils.comparison import probe

__all__ = ["plain_copy", "tell_what_is_dead"]


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


def tell_what_is_dead(model: keras.Model) -> None:
    """Warns, in the caller's caller, where nothing passes through a layer of a plain model."""
    said = what_is_dead(model)
    if said is not None:
        warnings.warn(said, stacklevel=3)
