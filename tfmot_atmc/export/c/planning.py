# SPDX-License-Identifier: Apache-2.0
"""From operations to steps: what is fused, which tensors share memory, and where each one lies."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable

from tfmot_atmc.export.c.layout import Storage, View, place
from tfmot_atmc.export.c.network import Network, Operation, Tensor, UnsupportedError
from tfmot_atmc.export.c.steps import Plan, Step

__all__ = ["plan_network"]


def plan_network(network: Network, *, convert_input: bool = False) -> Plan:
    """Plans the C code of a network.

    A max-pool without overlap is fused into the convolution before it, a sum into the convolution
    that computes one of its terms; the sum replaces its other term where nobody needs that any
    more. Padding, reshapes and concatenations are views where they can be.

    Args:
        network: what `read_network` returned.
        convert_input: whether the caller gives bytes that are converted first.

    Returns:
        The `Plan`.

    Raises:
        UnsupportedError: if a layout is not there.
    """
    planner = _Planner(network)
    planner.run(convert_input)
    itemsize = network.input.dtype.itemsize
    storages = {id(s): s for s in planner.used if s.role == "arena"}
    arena = place(list(storages.values()), itemsize)
    largest = max((s.size for s in planner.used), default=0)
    return Plan(network, planner.steps, arena, largest)


class _Planner:
    def __init__(self, network: Network) -> None:
        self.network = network
        self.steps: list[Step] = []
        self.used: list[Storage] = []
        self._views: dict[Tensor, View] = {}
        self._reserved: dict[Tensor, View] = {}
        self._root: dict[Tensor, Tensor] = {}
        operations = network.operations
        for operation in operations:
            if operation.kind in ("reshape", "pad"):
                self._root[operation.output] = self._origin(operation.inputs[0])
        self._uses: Counter[Tensor] = Counter(
            t for o in operations for t in o.inputs if t.data is None
        )
        self._uses[network.output] += 1
        self._last = {self._origin(t): n for n, o in enumerate(operations) for t in o.inputs} | {
            self._origin(network.output): len(operations)
        }

    def _origin(self, tensor: Tensor) -> Tensor:
        return self._root.get(tensor, tensor)

    def _reserve(self) -> None:
        """Lets steps write straight into the concatenation that alone reads what they compute."""
        written = {
            o.output for o in self.network.operations if o.kind not in ("reshape", "pad", "concat")
        }
        for operation in self.network.operations:
            if operation.kind == "concat":
                parts = _parts(operation, self._joined(operation))
                for tensor, part in zip(operation.inputs, parts, strict=True):
                    if tensor in written and self._uses[tensor] == 1:
                        self._reserved[tensor] = part

    def run(self, convert_input: bool) -> None:
        source = self.network.input
        view = self._new_array(source, "input")
        self._views[source] = view
        if convert_input:
            storage = Storage(view.channels, view.height, view.width, source.zero_point)
            loaded = View(storage, view.height, view.width, view.channels)
            self._add_step(Step("load", [view], loaded))
            self._views[source] = loaded
        self._reserve()
        pending = list(enumerate(self.network.operations))
        while pending:
            number, operation = pending.pop(0)
            if operation.kind in ("conv", "depthwise", "dense"):
                fused = self._fusable(operation, [o for _, o in pending[:1]])
                if fused is not None:
                    pending.pop(0)
                    number += 1
                self._weighted(number, operation, fused)
            else:
                _PLANNED.get(operation.kind, _Planner._elementwise)(self, number, operation)
        self._finish_output()

    # Views and memory.

    def _touch(self, view: View) -> None:
        storage, number = view.storage, len(self.steps)
        storage.first, storage.last = min(storage.first, number), max(storage.last, number)
        self.used.append(storage)

    def _add_step(self, step: Step) -> None:
        for view in (*step.reads, step.writes):
            self._touch(view)
        if step.scratch is not None:
            self._touch(View(step.scratch, 1, 1, 1))
        if step.writes.storage.first == len(self.steps) and step.writes.storage.role == "arena":
            step.border = step.writes.storage
        self.steps.append(step)

    def _planes(self, tensor: Tensor, pads: tuple[int, int, int, int] = (0, 0, 0, 0)) -> View:
        """The tensor as planes with at least these borders; copied where it is not."""
        view = self._views[tensor]
        flat = view.height * view.width == 1 or view.channels == 1
        if view.source is None and not view.interleaved and view.storage.role == "arena":
            if any(pads):
                self._pad(view, pads)
            return view
        if view.source is None and flat and not any(pads):
            return view
        height, width, channels = tensor.extents
        storage = Storage(channels, height, width, tensor.zero_point)
        storage.pad(*pads)
        copied = View(storage, height, width, channels)
        self._copy(view, copied)
        self._views[tensor] = copied
        return copied

    def _pad(self, view: View, pads: tuple[int, int, int, int]) -> None:
        storage = view.storage
        storage.pad(
            pads[0] - view.top,
            pads[1] + view.top + view.height - storage.height,
            pads[2] - view.left,
            pads[3] + view.left + view.width - storage.width,
        )

    def _array(self, tensor: Tensor) -> View:
        """The tensor as one plain array, channels innermost; copied where it is not."""
        view = self._views[tensor]
        single = view.height * view.width == 1 and not view.storage.is_padded
        if view.source is None and (view.interleaved or single):
            return view
        copied = self._new_array(tensor, "arena")
        self._copy(view, copied)
        return copied

    def _new_array(self, tensor: Tensor, role: str) -> View:
        height, width, channels = tensor.extents
        storage = Storage(height * width * channels, 1, 1, tensor.zero_point, role)
        return View(storage, height, width, channels, interleaved=True)

    def _copy(self, source: View, target: View) -> None:
        if source.source is not None:
            # What is seen as one row is copied as what it is, into a plain array.
            source = source.source
            shape = (source.height, source.width, source.channels)
            if target.storage.is_padded:
                raise UnsupportedError("Padding of a flattened tensor has no kernel.")
            target = View(target.storage, *shape, channel=target.channel, interleaved=True)
        self._add_step(Step("copy", [source], target))

    def _new(self, tensor: Tensor) -> View:
        """Memory for what a step computes."""
        if tensor in self._reserved:
            view = self._reserved[tensor]
        else:
            height, width, channels = tensor.extents
            plain = height * width == 1 or channels == 1
            role = "arena"
            if tensor is self.network.output and plain and self._uses[tensor] == 1:
                role = "output"
            view = View(
                Storage(channels, height, width, tensor.zero_point, role), height, width, channels
            )
        self._views[tensor] = view
        return view

    def _may_replace(self, tensor: Tensor, number: int, output: Tensor) -> bool:
        """Whether what operation `number` computes may take the place of this input of it."""
        view = self._views[tensor]
        return (
            self._last[self._origin(tensor)] <= number
            and view.storage.role == "arena"
            and not view.interleaved
            and view.source is None
            and output not in self._reserved
            and self._reserved.get(self._origin(tensor)) is None
            and tensor.zero_point == output.zero_point
            and (view.channels, view.height, view.width)
            == (view.storage.channels, view.storage.height, view.storage.width)
            and output is not self.network.output
        )

    # Operations.

    def _fusable(self, operation: Operation, following: list[Operation]) -> Operation | None:
        """The operation that can be computed together with a convolution, or None."""
        if not following or operation.kind == "dense" or self._uses[operation.output] != 1:
            return None
        after = following[0]
        if operation.output not in after.inputs:
            return None
        if after.kind == "max_pool" and after.activation == "none":
            disjoint = after.window == after.stride and not any(after.padding)
            return after if disjoint and after.window != (1, 1) else None
        if after.kind == "add" and after.inputs[0] is not after.inputs[1]:
            return after
        return None

    def _weighted(self, number: int, operation: Operation, fused: Operation | None) -> None:
        source = operation.inputs[0]
        if operation.kind == "dense" and self._is_flat(operation):
            view = self._views[source]
            self._add_step(Step("dense", [view], self._new(operation.output), operation))
            return
        view = self._planes(source, operation.padding)
        alone = operation.output.extents[:2] == (1, 1) and operation.kind == "conv"
        if alone and fused is None:
            self._add_step(Step("dense", [view], self._new(operation.output), operation))
            return
        kind = "depthwise" if operation.kind == "depthwise" else "conv"
        step = Step(kind, [view], view, operation)
        result = operation.output if fused is None else fused.output
        if fused is not None and fused.kind == "add":
            (other,) = (t for t in fused.inputs if t is not operation.output)
            step.add = fused
            step.reads.append(self._planes(other))
            free = self._may_replace(other, number, fused.output) and (
                self._views[other].storage is not view.storage
            )
            step.writes = self._replace(other, fused.output) if free else self._new(fused.output)
        else:
            step.pool = (1, 1) if fused is None else fused.window
            step.writes = self._new(result)
        count = step.pool[0] * operation.output.extents[1]
        itemsize = self.network.input.dtype.itemsize
        step.scratch = Storage(1, 1, count * (4 // itemsize))
        self._add_step(step)

    def _replace(self, tensor: Tensor, output: Tensor) -> View:
        view = self._views[tensor]
        self._views[output] = view
        return view

    def _is_flat(self, operation: Operation) -> bool:
        """Whether a dense layer sees all of its input; otherwise it is applied to each pixel."""
        source, kernel = operation.inputs[:2]
        if kernel.shape[1] == source.size and operation.output.size == kernel.shape[0]:
            return True
        if kernel.shape[1] != source.extents[2]:
            raise UnsupportedError(
                f"A dense layer of {kernel.shape[1]} inputs on shape {source.shape} has no kernel."
            )
        return False

    def _windowed(self, number: int, operation: Operation) -> None:
        view = self._planes(operation.inputs[0])
        self._add_step(Step(operation.kind, [view], self._new(operation.output), operation))

    def _elementwise(self, number: int, operation: Operation) -> None:
        source, output = operation.inputs[0], operation.output
        view = self._planes(source)
        free = self._may_replace(source, number, output)
        writes = self._replace(source, output) if free else self._new(output)
        self._add_step(Step(operation.kind, [view], writes, operation))

    def _sum(self, number: int, operation: Operation) -> None:
        views = [self._planes(t) for t in operation.inputs]
        for tensor in operation.inputs:
            if self._may_replace(tensor, number, operation.output):
                writes = self._replace(tensor, operation.output)
                break
        else:
            writes = self._new(operation.output)
        self._add_step(Step("add", views, writes, operation))

    def _softmax(self, number: int, operation: Operation) -> None:
        if operation.output.extents[:2] != (1, 1):
            raise UnsupportedError("A softmax for each pixel has no kernel; return the logits.")
        view = self._planes(operation.inputs[0])
        self._add_step(Step("softmax", [view], self._new(operation.output), operation))

    def _reshape(self, number: int, operation: Operation) -> None:
        source, output = operation.inputs[0], operation.output
        view, extents = self._views[source], output.extents
        height, width, channels = extents
        if extents == (view.height, view.width, view.channels):
            self._views[output] = view
        elif (height, width) == (1, 1) and not view.interleaved and view.source is None:
            self._views[output] = View(view.storage, 1, 1, channels, source=view)
        else:
            array = self._array(source)
            self._views[output] = View(
                array.storage, height, width, channels, channel=array.channel, interleaved=True
            )

    def _padded(self, number: int, operation: Operation) -> None:
        top, bottom, left, right = operation.padding
        view = self._planes(operation.inputs[0], operation.padding)
        self._views[operation.output] = dataclasses.replace(
            view,
            top=view.top - top,
            left=view.left - left,
            height=view.height + top + bottom,
            width=view.width + left + right,
        )

    def _concatenate(self, number: int, operation: Operation) -> None:
        target = self._joined(operation)
        places = _parts(operation, target)
        for tensor, part in zip(operation.inputs, places, strict=True):
            if self._views[tensor] != part:
                self._copy(self._views[tensor], part)

    def _joined(self, operation: Operation) -> View:
        output = operation.output
        if output not in self._views:
            height, width, channels = output.extents
            storage = Storage(channels, height, width, output.zero_point)
            self._views[output] = View(storage, height, width, channels)
        return self._views[output]

    def _finish_output(self) -> None:
        tensor = self.network.output
        view = self._views[tensor]
        if view.storage.role == "output":
            return
        self._copy(view, self._new_array(tensor, "output"))


def _parts(operation: Operation, target: View) -> list[View]:
    parts, at = [], 0
    for tensor in operation.inputs:
        height, width, channels = tensor.extents
        shift = [0, 0, 0]
        shift[operation.axis] = at
        at += tensor.extents[operation.axis]
        parts.append(
            dataclasses.replace(
                target,
                height=height,
                width=width,
                channels=channels,
                top=target.top + shift[0],
                left=target.left + shift[1],
                channel=target.channel + shift[2],
            )
        )
    return parts


_PLANNED: dict[str, Callable[[_Planner, int, Operation], None]] = {
    "max_pool": _Planner._windowed,
    "average_pool": _Planner._windowed,
    "mean": _Planner._windowed,
    "add": _Planner._sum,
    "softmax": _Planner._softmax,
    "reshape": _Planner._reshape,
    "pad": _Planner._padded,
    "concat": _Planner._concatenate,
}
