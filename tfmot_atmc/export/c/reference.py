# SPDX-License-Identifier: Apache-2.0
"""A network computed by NumPy, in the same integers or in float32: what the C code must compute."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tfmot_atmc.export.c import fixed_point
from tfmot_atmc.export.c.network import Network, Operation, Tensor
from tfmot_atmc.export.c.scales import weight_factors

__all__ = ["function_table", "run_network"]


def run_network(network: Network, inputs: np.ndarray) -> np.ndarray:
    """Runs a network on a batch.

    Args:
        network: what `read_network` returned.
        inputs: array `[batch, ...]`: int8 codes of the input, or float32.

    Returns:
        Array `[batch, outputs]` of the network's type.
    """
    batch = len(inputs)
    values = {network.input: inputs.reshape(batch, *network.input.extents)}
    for operation in network.operations:
        given = [values[t] for t in operation.inputs if t.data is None]
        result = _RUN[operation.kind](operation, *given)
        dtype = operation.output.dtype
        values[operation.output] = result.reshape(batch, *operation.output.extents).astype(dtype)
    return values[network.output].reshape(batch, -1)


def _wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.int64 if x.dtype == np.int8 else np.float64)


def _finish(
    operation: Operation, sums: np.ndarray, factor: float, multiplier: tuple[int, int] | None = None
) -> np.ndarray:
    one = multiplier or fixed_point.quantize_multiplier(factor)
    return _finish_each(operation, sums, [one])


def _finish_each(
    operation: Operation, sums: np.ndarray, factors: list[tuple[int, int]]
) -> np.ndarray:
    """Turns sums into elements by one factor, or by one for each channel."""
    output = operation.output
    if output.dtype != np.int8:
        if operation.activation == "none":
            return sums
        lowest = -1.0 if operation.activation == "relu_n1_to_1" else 0.0
        highest = {"relu6": 6.0, "relu_n1_to_1": 1.0}.get(operation.activation, np.inf)
        return np.clip(sums, lowest, highest)
    if len(factors) == 1:
        scaled = fixed_point.multiply(sums, *factors[0])
    else:
        parts = np.moveaxis(sums, -1, 0)
        scaled = np.stack(
            [fixed_point.multiply(part, *f) for part, f in zip(parts, factors, strict=True)], -1
        )
    lowest, highest = fixed_point.clamp_range(
        operation.activation, float(output.scale[0]), output.zero_point
    )
    return np.clip(scaled + output.zero_point, lowest, highest)


def _windows(operation: Operation, x: np.ndarray, fill: float) -> np.ndarray:
    """All windows `[batch, rows, columns, height, width, channels]`."""
    top, bottom, left, right = operation.padding
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=fill)
    seen = np.lib.stride_tricks.sliding_window_view(padded, operation.window, axis=(1, 2))
    rows, columns = operation.stride
    height, width, _ = operation.output.extents
    return np.moveaxis(seen[:, ::rows, ::columns][:, :height, :width], 3, -1)


def _factors(operation: Operation) -> list[tuple[int, int]]:
    return weight_factors(operation) if operation.output.dtype == np.int8 else []


def _parameters(operation: Operation) -> tuple[np.ndarray, np.ndarray]:
    kernel = np.asarray(operation.inputs[1].data)
    bias = operation.inputs[2].data if len(operation.inputs) > 2 else None
    return _wide(kernel), np.zeros(1) if bias is None else np.asarray(bias, np.float64)


def _conv(operation: Operation, x: np.ndarray) -> np.ndarray:
    kernel, bias = _parameters(operation)
    centered = _wide(x) - operation.inputs[0].zero_point
    seen = _windows(operation, centered, 0)
    if operation.kind == "depthwise":
        repeated = np.repeat(seen, kernel.shape[3] // seen.shape[-1], axis=-1)
        sums = (repeated * kernel[0]).sum((3, 4))
    else:
        sums = np.tensordot(seen, kernel, ((3, 4, 5), (1, 2, 3)))
    return _finish_each(operation, _with_bias(sums, bias), _factors(operation))


def _with_bias(sums: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return sums + bias.astype(sums.dtype)


def _dense(operation: Operation, x: np.ndarray) -> np.ndarray:
    kernel, bias = _parameters(operation)
    flat = (_wide(x) - operation.inputs[0].zero_point).reshape(-1, kernel.shape[1])
    return _finish_each(operation, _with_bias(flat @ kernel.T, bias), _factors(operation))


def _max_pool(operation: Operation, x: np.ndarray) -> np.ndarray:
    lowest = -128 if x.dtype == np.int8 else -np.inf
    return _clamp(operation, _windows(operation, _wide(x), lowest).max((3, 4)))


def _clamp(operation: Operation, x: np.ndarray) -> np.ndarray:
    if operation.output.dtype != np.int8:
        return _finish(operation, x, 1.0)
    output = operation.output
    return np.clip(
        x,
        *fixed_point.clamp_range(operation.activation, float(output.scale[0]), output.zero_point),
    )


def _average_pool(operation: Operation, x: np.ndarray) -> np.ndarray:
    sums = _windows(operation, _wide(x), 0).sum((3, 4))
    count = _windows(operation, np.ones((1, *x.shape[1:]), np.int64), 0).sum((3, 4))
    if x.dtype != np.int8:
        return _clamp(operation, sums / count)
    rounded = (np.abs(sums) + count // 2) // count * np.sign(sums)
    return _clamp(operation, rounded)


def _mean(operation: Operation, x: np.ndarray) -> np.ndarray:
    source, output = operation.inputs[0], operation.output
    if x.dtype != np.int8:
        return x.astype(np.float64).mean((1, 2))
    count = x.shape[1] * x.shape[2]
    sums = _wide(x).sum((1, 2)) - source.zero_point * count
    multiplier, shift = fixed_point.quantize_multiplier(
        float(source.scale[0]) / float(output.scale[0])
    )
    bits = min(count.bit_length() - 1, 32, 31 + shift)
    return _finish(operation, sums, 1.0, ((multiplier << bits) // count, shift - bits))


def _add(operation: Operation, a: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
    b = a if b is None else b
    if a.dtype != np.int8:
        return _finish(operation, _wide(a) + _wide(b), 1.0)
    scales = [float(t.scale[0]) for t in operation.inputs]
    twice = 2.0 * max(scales)
    total = np.zeros(1, np.int64)
    for tensor, scale, x in zip(operation.inputs, scales, (a, b), strict=True):
        factor = fixed_point.quantize_multiplier(scale / twice)
        total = total + fixed_point.multiply((_wide(x) - tensor.zero_point) << 20, *factor)
    return _finish(operation, total, twice / ((1 << 20) * float(operation.output.scale[0])))


def _add_constant(operation: Operation, x: np.ndarray) -> np.ndarray:
    constant = np.asarray(operation.inputs[1].data).reshape(-1)
    return _add(operation, x, np.broadcast_to(constant, x.shape))


def _multiply_constant(operation: Operation, x: np.ndarray) -> np.ndarray:
    source, constant = operation.inputs
    factors = _wide(np.asarray(constant.data).reshape(-1)) - constant.zero_point
    product = (_wide(x) - source.zero_point) * factors
    if x.dtype != np.int8:
        return _finish(operation, product, 1.0)
    real = float(source.scale[0]) * float(constant.scale[0]) / float(operation.output.scale[0])
    return _finish(operation, product, real)


def _concat(operation: Operation, *parts: np.ndarray) -> np.ndarray:
    return np.concatenate(parts, axis=operation.axis + 1)


def _pad(operation: Operation, x: np.ndarray) -> np.ndarray:
    top, bottom, left, right = operation.padding
    zero = operation.inputs[0].zero_point
    return np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=zero)


def _elementwise(operation: Operation, x: np.ndarray) -> np.ndarray:
    source, output = operation.inputs[0], operation.output
    if x.dtype != np.int8:
        wide = x.astype(np.float64)
        if operation.kind == "sigmoid":
            return 1.0 / (1.0 + np.exp(-wide))
        return np.clip(wide, 0.0, 6.0 if operation.kind == "relu6" else np.inf)
    return function_table(operation.kind, source, output)[x.astype(np.int64) + 128]


def function_table(kind: str, source: Tensor, output: Tensor) -> np.ndarray:
    """Returns the codes of a function for the codes -128 to 127."""
    scales = float(source.scale[0]), float(output.scale[0])
    zeros = source.zero_point, output.zero_point
    if kind == "sigmoid":
        return fixed_point.sigmoid_table(scales[0], zeros[0])
    if kind == "quantize":
        return fixed_point.requantize_table(scales[0] / scales[1], *zeros)
    lowest, highest = fixed_point.clamp_range(kind, scales[1], zeros[1])
    # The runtime divides these two scales as float32.
    ratio = float(np.float32(scales[0]) / np.float32(scales[1]))
    return fixed_point.requantize_table(ratio, *zeros, lowest, highest)


def _softmax(operation: Operation, x: np.ndarray) -> np.ndarray:
    flat = x.reshape(len(x), -1)
    if x.dtype != np.int8:
        powers = np.exp((flat - flat.max(1, keepdims=True)).astype(np.float64) * operation.beta)
        return powers / powers.sum(1, keepdims=True)
    return fixed_point.softmax(
        flat.astype(np.int64), float(operation.inputs[0].scale[0]), operation.beta
    )


def _same(operation: Operation, x: np.ndarray) -> np.ndarray:
    return x


_RUN: dict[str, Callable[..., np.ndarray]] = {
    "conv": _conv,
    "depthwise": _conv,
    "dense": _dense,
    "max_pool": _max_pool,
    "average_pool": _average_pool,
    "mean": _mean,
    "add": _add,
    "add_constant": _add_constant,
    "multiply_constant": _multiply_constant,
    "concat": _concat,
    "pad": _pad,
    "relu": _elementwise,
    "relu6": _elementwise,
    "sigmoid": _elementwise,
    "quantize": _elementwise,
    "softmax": _softmax,
    "reshape": _same,
}
