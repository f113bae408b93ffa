# SPDX-License-Identifier: Apache-2.0
"""The integer arithmetic of TensorFlow Lite Micro's kernels, on arrays of int64.

A real factor is a multiplier in [2^30, 2^31) and a power of two. Products are rounded twice: to the
doubled high half, then by the shift to the right; halves are rounded away from zero.
"""

from __future__ import annotations

import math

import numpy as np

__all__ = [
    "clamp_range",
    "exponential_table",
    "multiply",
    "quantize_multiplier",
    "reciprocal",
    "requantize_table",
    "sigmoid_table",
    "softmax",
]

_ONE = (1 << 31) - 1
_LOWEST, _HIGHEST = -128, 127
_CODES = np.arange(-128, 128, dtype=np.int64)


def quantize_multiplier(factor: float) -> tuple[int, int]:
    """Returns a multiplier and a shift such that factor = multiplier / 2^31 * 2^shift."""
    if factor == 0.0:
        return 0, 0
    fraction, shift = math.frexp(factor)
    multiplier = int(math.floor(fraction * (1 << 31) + 0.5))
    if multiplier == 1 << 31:
        multiplier, shift = multiplier // 2, shift + 1
    return (0, 0) if shift < -31 else (multiplier, shift)


def _high_half(a: np.ndarray, b: np.ndarray | int) -> np.ndarray:
    """Twice the high half of a product of 32-bit integers, rounded."""
    return (np.asarray(a, np.int64) * b + (1 << 30)) >> 31


def _divide(value: np.ndarray, bits: int) -> np.ndarray:
    """Divides by a power of two; halves go away from zero."""
    if bits == 0:
        return value
    return (value + (1 << (bits - 1)) - (value < 0)) >> bits


def multiply(value: np.ndarray | int, multiplier: int, shift: int) -> np.ndarray:
    """Multiplies integers by a quantized factor, with both roundings."""
    shifted = np.asarray(value, np.int64) << max(shift, 0)
    return _divide(_high_half(shifted, multiplier), max(-shift, 0))


def _round(value: float) -> int:
    return int(math.floor(abs(value) + 0.5)) * (1 if value >= 0 else -1)


def clamp_range(activation: str, scale: float, zero_point: int) -> tuple[int, int]:
    """Returns the lowest and highest code that an activation lets through."""

    def code(real: float) -> int:
        return zero_point + _round(float(np.float32(real) / np.float32(scale)))

    lowest, highest = _LOWEST, _HIGHEST
    if activation in ("relu", "relu6"):
        lowest = max(lowest, code(0.0))
    if activation == "relu6":
        highest = min(highest, code(6.0))
    if activation == "relu_n1_to_1":
        lowest, highest = max(lowest, code(-1.0)), min(highest, code(1.0))
    return lowest, highest


def requantize_table(
    factor: float, zero_in: int, zero_out: int, lowest: int = _LOWEST, highest: int = _HIGHEST
) -> np.ndarray:
    """Returns the 256 codes that change of scale gives for the codes -128 to 127."""
    multiplier, shift = quantize_multiplier(factor)
    return np.clip(multiply(_CODES - zero_in, multiplier, shift) + zero_out, lowest, highest)


def _power_of_two(value: np.ndarray, exponent: int) -> np.ndarray:
    """Multiplies by 2^exponent, saturating at 32 bits."""
    if exponent <= 0:
        return _divide(value, -exponent)
    return np.clip(value << exponent, -(1 << 31), _ONE)


def _exponential_of_fraction(a: np.ndarray) -> np.ndarray:
    """exp(a) for a in [-1/4, 0) with 31 fraction bits: a polynomial of degree four at -1/8."""
    middle, third = 1895147668, 715827883
    x = a + (1 << 28)
    x2 = _high_half(x, x)
    x3 = _high_half(x2, x)
    x4 = _high_half(x2, x2)
    x4_over_4 = _power_of_two(x4, -2)
    tail = _power_of_two(_high_half(x4_over_4 + x3, third) + x2, -1)
    return middle + _high_half(x + tail, middle)


def _exponential(a: np.ndarray, integer_bits: int) -> np.ndarray:
    """exp(a) with 31 fraction bits for a <= 0 with `integer_bits` integer bits."""
    fraction_bits = 31 - integer_bits
    quarter = 1 << (fraction_bits - 2)
    remainder = (a & (quarter - 1)) - quarter
    result = _exponential_of_fraction(_power_of_two(remainder, integer_bits))
    # exp(-2^k) with 31 fraction bits, for k from -2.
    factors = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)
    rest = remainder - a
    for exponent, factor in zip(range(-2, 5), factors, strict=True):
        if integer_bits > exponent:
            bit = 1 << (fraction_bits + exponent)
            result = np.where(rest & bit, _high_half(result, factor), result)
    if integer_bits > 5:
        result = np.where(a < -(1 << (fraction_bits + 5)), 0, result)
    return np.where(a == 0, _ONE, result)


def reciprocal(a: np.ndarray) -> np.ndarray:
    """1 / (1 + a) with 31 fraction bits, for a in [0, 1): three steps of Newton."""
    half_denominator = (a + _ONE + 1) >> 1
    x = 1515870810 + _high_half(half_denominator, -1010580540)
    for _ in range(3):
        rest = (1 << 29) - _high_half(half_denominator, x)
        x = x + _power_of_two(_high_half(x, rest), 2)
    return _power_of_two(x, 1)


def sigmoid_table(scale: float, zero_point: int) -> np.ndarray:
    """Returns the sigmoid's codes (scale 1/256, zero point -128) for the codes -128 to 127."""
    fraction, shift = math.frexp(float(np.float32(scale)) * (1 << 27))
    multiplier = int(math.floor(fraction * (1 << 31) + 0.5))
    radius = math.floor(15.0 * (1 << 27) / 2.0**shift)
    centered = _CODES - zero_point
    inside = np.clip(centered, -radius + 1, radius - 1)
    value = multiply(inside, multiplier, shift)
    positive = reciprocal(_exponential(-np.abs(value), 4))
    value = np.where(value < 0, _ONE - positive, np.where(value == 0, 1 << 30, positive))
    codes = np.clip(_divide(value, 23) - 128, _LOWEST, _HIGHEST)
    codes = np.where(centered >= radius, _HIGHEST, codes)
    return np.where(centered <= -radius, _LOWEST, codes)


def exponential_table(scale: float, beta: float) -> np.ndarray:
    """Returns exp(-beta * scale * d) with 31 fraction bits for d = 0, 1, ..., while it counts."""
    factor = min(beta * float(np.float32(scale)) * (1 << 26), float((1 << 31) - 1))
    multiplier, shift = quantize_multiplier(factor)
    most = math.floor(31.0 * (1 << 26) / 2.0**shift)
    distances = np.arange(0, min(most, 255) + 1, dtype=np.int64)
    return _exponential(multiply(-distances, multiplier, shift), 5)


def softmax(codes: np.ndarray, scale: float, beta: float) -> np.ndarray:
    """Returns the softmax's codes (scale 1/256, zero point -128) of rows of codes."""
    table = exponential_table(scale, beta)
    distances = codes.max(1, keepdims=True) - codes
    counted = distances < table.size
    powers = np.where(counted, table[np.minimum(distances, table.size - 1)], 0)
    total = _divide(powers, 12).sum(1, keepdims=True)
    unit = 31 - np.floor(np.log2(total)).astype(np.int64)
    scale_of_row = reciprocal((total << unit) - (1 << 31))
    shift = 12 - unit + 23
    value = _high_half(powers, scale_of_row)
    rounded = (value + ((np.int64(1) << shift) >> 1)) >> shift
    return np.where(counted, np.clip(rounded - 128, _LOWEST, _HIGHEST), _LOWEST)
