# SPDX-License-Identifier: Apache-2.0
"""What slimming saved: weights and operations layer by layer, and measured latency."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras

from tfmot_atmc.slimming.analysis import graph_of, is_graph, nodes_of
from tfmot_atmc.utils.shown import Shown, TablePart

_KERNEL_ATTRIBUTES = ("kernel", "depthwise_kernel")


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """A layer with a kernel.

    Attributes:
        name: name of the layer.
        kernel_shape: shape of its kernel.
        parameters: entries of all its weights.
        macs: multiply-accumulates for one example, over all calls of the layer; None where a
            position count is open.
    """

    name: str
    kernel_shape: tuple[int, ...]
    parameters: int
    macs: int | None


def layer_costs(model: keras.Model) -> list[LayerCost]:
    """Returns the layers of a functional or sequential model that have kernels, inner ones too.

    Args:
        model: a built plain model.

    Returns:
        One `LayerCost` per layer, in the order of the graph.

    Example:

    >>> import keras
    >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(2, 3)])
    >>> layer_costs(model)[0].kernel_shape, layer_costs(model)[0].macs
    ((3, 3, 1, 2), 648)
    """
    found: dict[int, LayerCost] = {}
    for node in nodes_of(graph_of(model)):
        layer = node.operation
        if is_graph(layer):
            found.update({id(cost): cost for cost in layer_costs(layer)})
            continue
        kernel = next((getattr(layer, a) for a in _KERNEL_ATTRIBUTES if hasattr(layer, a)), None)
        if kernel is None:
            continue
        positions = node.outputs[0].shape[1:-1]
        macs = None if None in positions else math.prod(kernel.shape) * math.prod(positions)
        if id(layer) in found:
            known = found[id(layer)].macs
            macs = None if macs is None or known is None else known + macs
        found[id(layer)] = LayerCost(layer.name, tuple(kernel.shape), layer.count_params(), macs)
    return list(found.values())


@dataclasses.dataclass(frozen=True)
class SlimmingReport(Shown):
    """A model before and after `slim_model`.

    Attributes:
        before: layers of the model given.
        after: layers of the slimmed model.
        parameters: entries of all weights, before and after.
        latency_ms: milliseconds for one example in the stock interpreter, one thread, before and
            after, measured in turns; None where not measured.
    """

    before: tuple[LayerCost, ...]
    after: tuple[LayerCost, ...]
    parameters: tuple[int, int]
    latency_ms: tuple[float, float] | None = None

    @property
    def macs(self) -> tuple[int, int]:
        """Multiply-accumulates for one example, before and after, without open layers."""
        first, second = (sum(c.macs or 0 for c in costs) for costs in (self.before, self.after))
        return first, second

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as plain Python objects."""
        return {**dataclasses.asdict(self), "macs": self.macs}

    def _parts(self) -> list[str | TablePart]:
        after = {cost.name: cost for cost in self.after}
        columns = ("layer", "kernel", "slimmed", "parameters", "slimmed", "MACs", "slimmed")
        rows: list[tuple[Any, ...]] = []
        for old in self.before:
            new = after[old.name]
            rows.append(
                (
                    old.name,
                    "x".join(map(str, old.kernel_shape)),
                    "x".join(map(str, new.kernel_shape)),
                    old.parameters,
                    new.parameters,
                    "?" if old.macs is None else old.macs,
                    "?" if new.macs is None else new.macs,
                )
            )
        (weights, fewer), (macs, less) = self.parameters, self.macs
        rows.append(("total", "", "", weights, fewer, macs, less))
        parts: list[str | TablePart] = [(columns, rows)]
        if self.latency_ms is not None:
            before, now = self.latency_ms
            parts.append(
                f"latency {now:.3f} ms, before {before:.3f} ms ({before / now:.2f}x faster), "
                "dense files, one thread"
            )
        return parts


def compare_models(
    before: keras.Model, after: keras.Model, *, latency_ms: tuple[float, float] | None = None
) -> SlimmingReport:
    """Sets a model beside its slimmed form.

    Args:
        before: the model given to `slim_model`.
        after: what it returned.
        latency_ms: their latencies, where they were measured (`export.measure_latency`).

    Returns:
        A `SlimmingReport`; print it for a table.
    """
    return SlimmingReport(
        before=tuple(layer_costs(before)),
        after=tuple(layer_costs(after)),
        parameters=(before.count_params(), after.count_params()),
        latency_ms=latency_ms,
    )
