# SPDX-License-Identifier: Apache-2.0
"""How sums become elements: factors in fixed point, ranges of activations, and their bounds."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfmot_atmc.export.c import fixed_point
from tfmot_atmc.export.c.network import Operation, Tensor, UnsupportedError

__all__ = [
    "addition_fields",
    "clamp",
    "constant_fields",
    "scaling_fields",
    "weight_factors",
    "weighted_fields",
]

_MOST_SUM = (1 << 31) - 1
_FLOAT_MAX = 3.4028234663852886e38


def _is_integer(tensor: Tensor) -> bool:
    return tensor.dtype == np.int8


def clamp(activation: str, tensor: Tensor) -> tuple[float, float]:
    """Returns the lowest and highest element that an activation lets through."""
    if _is_integer(tensor):
        return fixed_point.clamp_range(activation, float(tensor.scale[0]), tensor.zero_point)
    lowest = {"none": -_FLOAT_MAX, "relu_n1_to_1": -1.0}.get(activation, 0.0)
    return lowest, {"relu6": 6.0, "relu_n1_to_1": 1.0}.get(activation, _FLOAT_MAX)


def scaling_fields(
    factor: tuple[int, int], activation: str, output: Tensor, largest: int
) -> dict[str, Any]:
    """Returns how sums become elements of `output`.

    Args:
        factor: the multiplier and the shift of int8; what is given for floats does not count.
        activation: the activation.
        output: what the sums become.
        largest: bound of the sums of int8.

    Raises:
        UnsupportedError: if a sum may not fit in 32 bits.
    """
    lowest, highest = clamp(activation, output)
    if not _is_integer(output):
        return {"lowest": lowest, "highest": highest}
    multiplier, shift = factor
    left, right = max(shift, 0), max(-shift, 0)
    half = (1 << right) >> 1
    scaled = largest * (1 << left)
    if right > 30 or scaled > _MOST_SUM or (scaled * multiplier >> 31) + half > _MOST_SUM - 256:
        raise UnsupportedError(
            f"A sum of up to {largest:,} times 2^{shift} may not fit in 32 bits. The layer is "
            "too wide, or its scale is far from that of its output."
        )
    return {
        "multiplier": multiplier,
        "left": left,
        "right": right,
        "zero": output.zero_point,
        "lowest": lowest,
        "highest": highest,
        "wide": 2 * scaled > _MOST_SUM,
    }


def weighted_fields(operation: Operation, rows: np.ndarray, biases: np.ndarray) -> dict[str, Any]:
    """Returns how the sums of a layer with weights become elements.

    Where each channel has a scale, `multipliers` and `shifts` are arrays.
    """
    source, kernel = operation.inputs[:2]
    if not _is_integer(source):
        return scaling_fields((0, 0), operation.activation, operation.output, 0)
    largest = np.abs(rows.astype(np.int64)).sum(1) * 256 + np.abs(biases.astype(np.int64))
    if kernel.scale.size == 1:
        largest = largest.max(initial=0, keepdims=True)
    found = []
    factors = weight_factors(operation)
    for factor, most in zip(factors, largest.tolist(), strict=True):
        found.append(scaling_fields(factor, operation.activation, operation.output, most))
    if len(found) == 1:
        return found[0]
    multipliers, shifts = (np.array(values) for values in zip(*factors, strict=True))
    tables = {"multipliers": multipliers.astype(np.int32), "shifts": shifts.astype(np.int8)}
    return {**found[0], "wide": any(each["wide"] for each in found), **tables}


def weight_factors(operation: Operation) -> list[tuple[int, int]]:
    """Returns the multiplier and the shift of a layer's sums: one, or one for each channel."""
    source, kernel = operation.inputs[:2]
    taken, given = float(source.scale[0]), float(operation.output.scale[0])
    return [fixed_point.quantize_multiplier(taken * float(scale) / given) for scale in kernel.scale]


def addition_fields(add: Operation, a: Tensor, b: Tensor) -> tuple[dict[str, Any], bool]:
    """Returns a sum's fields, and whether its terms are swapped: the larger scale is second."""
    if not _is_integer(a):
        return {"scale": scaling_fields((0, 0), add.activation, add.output, 0)}, False
    swapped = float(a.scale[0]) > float(b.scale[0])
    first, second = (b, a) if swapped else (a, b)
    twice = 2.0 * float(second.scale[0])
    fields = {
        **_term(first, twice),
        "second_zero": -(second.zero_point << 19),
        "swapped": int(swapped),
        "scale": _sum_scaling(add, twice),
    }
    return fields, swapped


def _term(tensor: Tensor, twice: float) -> dict[str, Any]:
    """The fields of a sum's term; `twice` is double the larger of both scales."""
    multiplier, shift = fixed_point.quantize_multiplier(float(tensor.scale[0]) / twice)
    if shift == 0:
        # The larger scale: doubling and halving, so that there is always a shift.
        multiplier, shift = 2 * multiplier, -1
    if shift < -30:
        raise UnsupportedError("A sum of tensors of very different scales has no kernel.")
    high, low = multiplier >> 11, multiplier & 2047
    return {
        "high": high,
        "from_zero": -tensor.zero_point * high,
        "low": low,
        "rounded": (1 << 10) - tensor.zero_point * low,
        "right": -shift,
    }


def _sum_scaling(add: Operation, twice: float) -> dict[str, Any]:
    real = twice / ((1 << 20) * float(add.output.scale[0]))
    factor = fixed_point.quantize_multiplier(real)
    return scaling_fields(factor, add.activation, add.output, 255 << 20)


def constant_fields(operation: Operation, multiplies: bool) -> tuple[dict[str, Any], np.ndarray]:
    """Returns the fields of an int8 sum or product with constants, and the constants' integers."""
    source, constant = operation.inputs
    codes = np.asarray(constant.data, np.int64).reshape(-1) - constant.zero_point
    scales = float(source.scale[0]), float(constant.scale[0])
    if multiplies:
        real = scales[0] * scales[1] / float(operation.output.scale[0])
        factor = fixed_point.quantize_multiplier(real)
        scale = scaling_fields(factor, operation.activation, operation.output, 255 * 255)
        return {"scale": scale}, codes.astype(np.int32)
    twice = 2.0 * max(scales)
    own = fixed_point.quantize_multiplier(scales[1] / twice)
    terms = fixed_point.multiply(codes << 20, *own)
    fields = {**_term(source, twice), "scale": _sum_scaling(operation, twice)}
    return fields, terms.astype(np.int32)
