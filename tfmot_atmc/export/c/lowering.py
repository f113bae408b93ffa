# SPDX-License-Identifier: Apache-2.0
"""From steps to what the kernels read: encoded weights, scales, strides, and calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tfmot_atmc.export.c import fixed_point
from tfmot_atmc.export.c.encoding import Form, Rows, encode_rows
from tfmot_atmc.export.c.layout import View
from tfmot_atmc.export.c.network import Operation, Tensor, UnsupportedError
from tfmot_atmc.export.c.program import Call, Layer, Program
from tfmot_atmc.export.c.reference import function_table
from tfmot_atmc.export.c.scales import (
    addition_fields,
    clamp,
    constant_fields,
    scaling_fields,
    weighted_fields,
)
from tfmot_atmc.export.c.steps import Plan, Step

__all__ = ["lower"]

_BLOCKS = (8, 4)
# Outputs for which a weight is read once, from where packed bits cost little time (measured).
_MANY_USES = 32
_NEVER = 1 << 30
# Of a softmax in int8: more exponentials may not fit in their sum.
_MOST_CLASSES = 511
# What the code that reads packed bits takes in flash (measured on Cortex-M4 and M0+).
_READER_BYTES = 350
# The same for gaps and codes that share bytes, beside another layout.
_SHARED_READER_BYTES = 100


def lower(plan: Plan, *, optimize: str = "balanced") -> Program:
    """Encodes the weights and settles all parameters of the kernels.

    Args:
        plan: what `plan_network` returned.
        optimize: `"speed"` stores weights in whole bytes, `"size"` in as few bits as it can, and
            `"balanced"` does the latter where a weight is used for many outputs, so that reading
            it hardly counts, and where it saves more than half of the bytes.

    Returns:
        The `Program`.

    Raises:
        UnsupportedError: if a sum may not fit in 32 bits, or a kernel is too large.
    """
    uses = {"speed": _NEVER, "balanced": _MANY_USES, "size": 0}[optimize]
    ways = [(_NEVER, False), (uses, False), (_NEVER, True), (uses, True)]
    return min((_lower(plan, *way) for way in ways), key=_weight_bytes)


def _weight_bytes(program: Program) -> int:
    """Bytes of flash for weights, and for the code that reads more than one layout."""
    forms = {layer.rows.form for layer in program.layers}
    reader = _READER_BYTES if Form.BITS in forms else 0
    if Form.SHARED in forms and len(forms) > 1:
        reader += _SHARED_READER_BYTES
    return reader + sum(layer.rows.nbytes for layer in program.layers)


def _lower(plan: Plan, packed_from: int, shared: bool) -> Program:
    lowering = _Lowering(Program(plan, [], [], {}), packed_from, shared)
    for step in plan.steps:
        if step.border is not None and step.border.is_padded:
            lowering.border(step)
        _LOWERED[step.kind](lowering, step)
    return lowering.program


def _strides(prefix: str, view: View) -> dict[str, int]:
    plane, row, _ = view.steps
    return {f"{prefix}_row": row, f"{prefix}_plane": plane}


def _elements(view: View) -> dict[str, int]:
    return {"channels": view.channels, "rows": view.height, "pixels": view.width}


class _Lowering:
    def __init__(self, program: Program, packed_from: int, shared: bool) -> None:
        self.program, self._packed_from, self._shared = program, packed_from, shared
        self._integer = program.network.is_integer

    def _call(self, function: str, kind: str, fields: dict[str, Any], *arguments: Any) -> None:
        scale = fields.get("scale", {})
        for key in [k for k, v in scale.items() if isinstance(v, np.ndarray)]:
            scale[key] = self._table(scale[key])
        self.program.calls.append(Call(function, kind, fields, arguments))

    def _table(self, values: np.ndarray) -> str:
        for name, known in self.program.tables.items():
            if known.dtype == values.dtype and np.array_equal(known, values):
                return name
        name = f"table_{len(self.program.tables)}"
        self.program.tables[name] = values
        return name

    def border(self, step: Step) -> None:
        storage = step.writes.storage
        whole = View(storage, 1, 1, 1, top=-storage.top, left=-storage.left)
        self._call(
            "border", "", {}, whole, storage.origin, storage.channels, storage.height,
            storage.width, storage.row, storage.between * storage.row, storage.zero_point,
        )  # fmt: skip

    # Layers with weights.

    def _layer(
        self, kind: str, rows: np.ndarray, operation: Operation, positions: int, dense: int
    ) -> tuple[int, np.ndarray]:
        bias = operation.inputs[2].data if len(operation.inputs) > 2 else None
        dtype = np.int32 if self._integer else np.float32
        biases = np.zeros(len(rows), dtype) if bias is None else np.asarray(bias, dtype)
        if not self._integer and not np.isfinite(rows).all():
            raise UnsupportedError("The model has weights that are not finite.")
        encoded = self._encode(rows, positions)
        done = encoded.nonzeros if encoded.form != Form.DENSE or kind != "dense" else rows.size
        self.program.layers.append(Layer(kind, encoded, biases, done * positions, dense))
        return len(self.program.layers) - 1, biases

    def _encode(self, rows: np.ndarray, positions: int) -> Rows:
        packed = encode_rows(rows, shared=self._shared)
        if positions >= self._packed_from:
            return packed
        whole = encode_rows(rows, fast=True, shared=self._shared)
        # Where bits save most of the bytes, as those of binary weights do, they are worth the time.
        worth = self._packed_from < _NEVER and 2 * packed.nbytes < whole.nbytes
        return packed if worth else whole

    def dense(self, step: Step) -> None:
        operation, view = _operation(step), step.reads[0]
        kernel = _constant(operation.inputs[1])
        outputs = kernel.shape[0]
        offsets = view.offsets()
        start = 0
        if operation.kind == "conv":
            # A window over all of the input, its border included.
            top, _, left, _ = operation.padding
            plane, row, pixel = view.steps
            rows_, pixels_, channels_ = (np.arange(n) for n in kernel.shape[1:])
            offsets = (
                rows_[:, None, None] * row
                + pixels_[None, :, None] * pixel
                + channels_[None, None, :] * plane
            )
            start = -(top * row + left * pixel)
        flat = offsets.reshape(-1)
        columns = int(flat.max()) + 1
        rows = np.zeros((outputs, columns), kernel.dtype)
        rows[:, flat] = kernel.reshape(outputs, -1)
        number, biases = self._layer("dense", rows, operation, 1, _weights(kernel, operation))
        fields = {
            "kernel": number,
            "biases": number,
            "scale": weighted_fields(operation, rows, biases),
            "columns": columns,
            "outputs": outputs,
            "y_plane": step.writes.steps[0],
        }
        if self._integer:
            fields["x_zero"] = operation.inputs[0].zero_point
        self._call("connect", "connection", fields, (view, start), step.writes)

    def convolution(self, step: Step) -> None:
        operation, view, output = _operation(step), step.reads[0], step.writes
        kernel = _constant(operation.inputs[1])
        if operation.kind == "dense":
            kernel = kernel.reshape(kernel.shape[0], 1, 1, -1)
        shared = 0
        if step.kind == "depthwise":
            shared = kernel.shape[3] // view.channels
            kernel = kernel.transpose(3, 1, 2, 0)
        filters, height, width, channels = kernel.shape
        rows = np.ascontiguousarray(kernel.transpose(0, 3, 1, 2).reshape(filters, -1))
        out_height, out_width, _ = operation.output.extents
        positions = out_height * out_width
        dense = _weights(kernel, operation) * positions
        number, biases = self._layer(step.kind, rows, operation, positions, dense)
        top, _, left, _ = operation.padding
        plane, row, _ = view.steps
        pool = step.pool
        fields: dict[str, Any] = {
            "kernel": number,
            "biases": number,
            "scale": weighted_fields(operation, rows, biases),
            **_divisions(rows.shape[1], channels, height, width),
            "plane_skip": plane - height * width,
            "row_skip": row - width,
            "filters": filters,
            "x_row": operation.stride[0] * row,
            "x_plane": plane,
            **_strides("y", output),
            "rows": out_height // pool[0],
            "pixels": out_width,
            "pool_rows": pool[0],
            "pool_pixels": pool[1],
            "stride": operation.stride[1],
            "shared": shared,
        }
        if self._integer:
            fields["x_zero"] = operation.inputs[0].zero_point
        second: View | None = None
        if step.add is not None:
            second = step.reads[1]
            terms = step.add.inputs
            other = terms[1] if terms[0] is operation.output else terms[0]
            fields["add"] = addition_fields(step.add, operation.output, other)[0]
            fields["add"] |= _strides("b", second)
        self._note_taps(rows, out_width)
        start = (view, -(top * row + left))
        self._call("convolve", "convolution", fields, start, second, output, step.scratch)

    def _note_taps(self, rows: np.ndarray, width: int) -> None:
        most = int(np.count_nonzero(rows, axis=1).max(initial=0))
        self.program.taps = max(self.program.taps, most, 1)
        fitting = next((block for block in _BLOCKS if block <= width), 1)
        self.program.block = max(self.program.block, fitting)

    # Other kernels.

    def add(self, step: Step) -> None:
        operation, views, y = _operation(step), step.reads, step.writes
        fields, swapped = addition_fields(operation, *operation.inputs)
        a, b = reversed(views) if swapped else views
        fields |= {**_elements(y), **_strides("a", a), **_strides("b", b), **_strides("y", y)}
        self._call("add_planes", "addition", fields, a, b, y)

    def channelwise(self, step: Step) -> None:
        operation, x, y = _operation(step), step.reads[0], step.writes
        source, constant = operation.inputs
        multiplies = operation.kind == "multiply_constant"
        places = {**_elements(x), **_strides("x", x), **_strides("y", y)}
        if self._integer:
            fields, values = constant_fields(operation, multiplies)
        else:
            lowest, highest = clamp(operation.activation, operation.output)
            fields = {"scale": {"lowest": lowest, "highest": highest}}
            values = np.asarray(constant.data, np.float32)
        values = np.broadcast_to(values.reshape(-1), (x.channels,))
        fields |= {"constants": self._table(values), "multiplies": int(multiplies), **places}
        if self._integer:
            fields["x_zero"] = source.zero_point
        self._call("combine", "channelwise", fields, x, y)

    def pool(self, step: Step) -> None:
        operation, x, y = _operation(step), step.reads[0], step.writes
        lowest, highest = clamp(operation.activation, operation.output)
        same = (
            np.array_equal(operation.inputs[0].scale, operation.output.scale)
            and operation.inputs[0].zero_point == operation.output.zero_point
        )
        if not same:
            raise UnsupportedError("A pool that changes the scale has no kernel.")
        fields = {
            **_elements(y),
            "x_rows": x.height,
            "x_pixels": x.width,
            **_strides("x", x),
            **_strides("y", y),
            "window_rows": operation.window[0],
            "window_pixels": operation.window[1],
            "stride_rows": operation.stride[0],
            "stride_pixels": operation.stride[1],
            "top": operation.padding[0],
            "left": operation.padding[2],
            "lowest": lowest,
            "highest": highest,
        }
        kind = "pool_max" if operation.kind == "max_pool" else "pool_average"
        self._call(kind, "pooling", fields, x, y)

    def mean(self, step: Step) -> None:
        operation, x, y = _operation(step), step.reads[0], step.writes
        if not self._integer:
            self.pool(step)
            return
        source, output = operation.inputs[0], operation.output
        count = x.height * x.width
        real = float(source.scale[0]) / float(output.scale[0])
        multiplier, shift = fixed_point.quantize_multiplier(real)
        # The division by the count is part of the factor.
        bits = min(count.bit_length() - 1, 32, 31 + shift)
        factor = ((multiplier << bits) // count, shift - bits)
        fields = {
            "scale": scaling_fields(factor, "none", output, 255 * count),
            "x_zero": source.zero_point * count,
            **_elements(x),
            **_strides("x", x),
            "y_plane": y.steps[0],
        }
        self._call("mean", "averaging", fields, x, y)

    def elementwise(self, step: Step) -> None:
        operation, x, y = _operation(step), step.reads[0], step.writes
        places = {**_elements(x), **_strides("x", x), **_strides("y", y)}
        if self._integer:
            if operation.kind == "sigmoid" and operation.output.zero_point != -128:
                raise UnsupportedError("A sigmoid whose zero point is not -128 has no kernel.")
            codes = function_table(operation.kind, operation.inputs[0], operation.output)
            table = self._table(codes.astype(np.int8))
            self._call("look_up", "lookup", {"table": table, **places}, x, y)
            return
        lowest, highest = clamp(operation.kind, operation.output)
        scale = {"lowest": lowest, "highest": highest}
        fields = {"scale": scale, "sigmoid": int(operation.kind == "sigmoid"), **places}
        self._call("apply", "applying", fields, x, y)

    def softmax(self, step: Step) -> None:
        operation, x, y = _operation(step), step.reads[0], step.writes
        fields: dict[str, Any] = {"count": x.channels}
        if self._integer:
            if x.channels > _MOST_CLASSES:
                raise UnsupportedError(
                    f"An int8 softmax of {x.channels} classes has no kernel, {_MOST_CLASSES} are "
                    "the most; return the logits."
                )
            table = fixed_point.exponential_table(
                float(operation.inputs[0].scale[0]), operation.beta
            )
            counted = int(np.flatnonzero(table >= 1 << 11).max()) + 1
            fields |= {"table": self._table(table[:counted].astype(np.int32)), "distances": counted}
        else:
            fields["beta"] = operation.beta
        self._call("softmax", "normalizing", fields, x, y)

    def copy(self, step: Step) -> None:
        x, y = step.reads[0], step.writes
        fields: dict[str, Any] = _elements(x)
        for name, view in (("x", x), ("y", y)):
            fields |= _strides(name, view) | {f"{name}_pixel": view.steps[2]}
        self._call(step.kind, "copying", fields, x, y)


def _operation(step: Step) -> Operation:
    if step.operation is None:
        raise ValueError(f"A step {step.kind!r} must have an operation.")
    return step.operation


def _constant(tensor: Tensor) -> np.ndarray:
    if tensor.data is None:
        raise UnsupportedError("Computed weights have no kernel.")
    return tensor.data


def _weights(kernel: np.ndarray, operation: Operation) -> int:
    """Weights of a kernel, without the zeros of a dilation."""
    if operation.dilation == (1, 1):
        return int(kernel.size)
    within = [-(-n // d) for n, d in zip(operation.window, operation.dilation, strict=True)]
    return int(kernel.size // (operation.window[0] * operation.window[1]) * within[0] * within[1])


def _divisions(columns: int, channels: int, height: int, width: int) -> dict[str, int]:
    """Factors that divide an index by the kernel's area, and the rest by its width."""
    area = height * width
    shift = 31 - max(channels, height).bit_length()
    by_area, by_width = -(-(1 << shift) // area), -(-(1 << shift) // width)
    index = np.arange(columns, dtype=np.int64)
    rest = np.arange(area, dtype=np.int64)
    exact = np.array_equal((index * by_area) >> shift, index // area) and np.array_equal(
        (rest * by_width) >> shift, rest // width
    )
    if not exact or (columns - 1) * by_area >= 1 << 32 or (area - 1) * by_width >= 1 << 32:
        raise UnsupportedError(f"A convolution with {columns:,} weights a filter has no kernel.")
    return {
        "columns": columns,
        "area": area,
        "by_area": by_area,
        "by_width": by_width,
        "shift": shift,
    }


_LOWERED: dict[str, Callable[[_Lowering, Step], None]] = {
    "conv": _Lowering.convolution,
    "depthwise": _Lowering.convolution,
    "dense": _Lowering.dense,
    "max_pool": _Lowering.pool,
    "average_pool": _Lowering.pool,
    "mean": _Lowering.mean,
    "add": _Lowering.add,
    "add_constant": _Lowering.channelwise,
    "multiply_constant": _Lowering.channelwise,
    "relu": _Lowering.elementwise,
    "relu6": _Lowering.elementwise,
    "sigmoid": _Lowering.elementwise,
    "quantize": _Lowering.elementwise,
    "softmax": _Lowering.softmax,
    "copy": _Lowering.copy,
    "load": _Lowering.copy,
}
