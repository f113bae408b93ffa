# SPDX-License-Identifier: Apache-2.0
"""How one compressed model goes on from another, factor by factor."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import keras
import numpy as np

from tfmot_atmc.compression.model import CompressedModel
from tfmot_atmc.compression.wrapping import counted
from tfmot_atmc.kernels import PlainKernel

__all__ = ["Before", "continue_from", "factors_of"]

Before = Mapping[str, tuple[bool, Mapping[str, np.ndarray]]]
"""By name of a kernel: whether it was its own only factor, and the values of its factors."""


def factors_of(model: CompressedModel) -> Before:
    """Returns the values of all factors of a model, kernel by kernel."""
    return {
        kernel.name: (
            isinstance(kernel.kernel, PlainKernel),
            {part: keras.ops.convert_to_numpy(v) for part, v in kernel.variables.items()},
        )
        for kernel in model.kernels
    }


def continue_from(model: CompressedModel, before: Before) -> None:
    """Takes over the values of factors that have the same names and shapes.

    A kernel whose factors differ goes on from the kernel that they composed; so do all where a
    constraint that holds from the start would not hold, such as a lower rank.

    Args:
        model: made from the plain model of the earlier one.
        before: `factors_of` the earlier model.

    Raises:
        ValueError: where factors go with other fixed weights than those of the new method's seed.

    Warns:
        UserWarning: where a kernel of several factors, now others, goes on from what they composed.
    """
    shapes = {k.name: {p: tuple(v.shape) for p, v in k.variables.items()} for k in model.kernels}
    same = {
        name: values
        for name, (_, values) in before.items()
        if shapes.get(name) == {part: value.shape for part, value in values.items()}
    }
    other = {
        f"{name} ({', '.join(values)})"
        for name, (plain, values) in before.items()
        if name not in same and not plain
    }
    if other:
        warnings.warn(
            f"Factors of {', '.join(sorted(other))} are not those of the new kernels under "
            f"{type(model.method).__name__}, which go on from the kernels that they composed.",
            stacklevel=3,
        )
    variables = [(k.name, part, v) for k in model.kernels for part, v in k.variables.items()]
    made = _values(model)
    for name, part, variable in variables:
        if name in same:
            variable.assign(same[name][part])
    for kernel in model.kernels:
        kernel.kernel.check(kernel.variables)
    values = _values(model)
    if any(
        c.holds_from_the_start and c.violation(counted(model.kernels, values, c.role))
        for c in model.constraints
    ):
        for value, (_, _, variable) in zip(made, variables, strict=True):
            variable.assign(value)


def _values(model: CompressedModel) -> list[np.ndarray]:
    """Returns the value of every factor of a model, in order."""
    return [keras.ops.convert_to_numpy(v) for k in model.kernels for v in k.variables.values()]
