# SPDX-License-Identifier: Apache-2.0
"""Follows channels through the graph of a Keras model."""

from __future__ import annotations

from collections import Counter
from typing import Any

import keras
import numpy as np

from tfmot_atmc.slimming.channels import Channels, Signal
from tfmot_atmc.slimming.rules import rule_for
from tfmot_atmc.utils.keras_internals import (
    computes_as_its_class,
    flat_layers,
    has_graph,
    nodes_by_depth,
)


def is_graph(model: Any) -> bool:
    """Tells whether a model is a plain functional or sequential one, whose graph is known."""
    plain = type(model).__module__.partition(".")[0] == "keras"
    return plain and (isinstance(model, keras.Sequential) or has_graph(model))


def graph_of(model: Any) -> Any:
    """Returns the functional model behind a functional or sequential one."""
    if isinstance(model, keras.Sequential):
        return keras.Model(model.inputs, model.outputs)
    return model


def nodes_of(model: Any) -> list[Any]:
    """Returns the calls of a functional model in an order in which they can run."""
    by_depth = nodes_by_depth(model)
    ordered = [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]
    return [node for node in ordered if not node.is_input]


def kept_channels(model: keras.Model) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Tells which channels of each layer with a kernel slimming would keep.

    Args:
        model: a model for which `is_graph` holds.

    Returns:
        By layer name: bool `[inputs]` and bool `[outputs]`. Layers that are opaque are missing.
    """
    walk = Walk(model)
    needed = walk.channels.needed()
    layers = {id(layer): layer.name for layer in flat_layers(model)}
    return {
        layers[key]: (needed[weighted.source], needed[weighted.result])
        for key, weighted in walk.channels.weighted.items()
    }


class Walk:
    """One pass over a model and the functional models in it.

    Attributes:
        channels: the `Channels` found.
        tensors: atoms by id of the Keras tensor; None where the last axis is open.
        nested: ids of the inner models that were entered; all others are opaque.
    """

    def __init__(self, model: keras.Model):
        self.channels = Channels()
        self.tensors: dict[int, Signal | None] = {}
        self.nested: set[int] = set()
        graph = graph_of(model)
        for tensor in graph.inputs:
            self.tensors[id(tensor)] = self._unknown(tensor)
        self._follow(graph)
        self._protect([self.tensors[id(tensor)] for tensor in graph.outputs])

    def _unknown(self, tensor: Any) -> Signal | None:
        size = tensor.shape[-1] if len(tensor.shape) > 1 else None
        return None if size is None else self.channels.fresh(size, protect=True)

    def _protect(self, signals: list[Signal | None]) -> None:
        self.channels.protected += [signal.atoms for signal in signals if signal is not None]

    def _follow(self, graph: Any) -> None:
        nodes = nodes_of(graph)
        calls = Counter(id(node.operation) for node in nodes)
        for node in nodes:
            signals = [self.tensors.get(id(tensor)) for tensor in node.input_tensors]
            for tensor, signal in zip(node.outputs, self._apply(node, signals, calls), strict=True):
                self.tensors[id(tensor)] = signal

    def _apply(self, node: Any, signals: list[Any], calls: Counter[int]) -> list[Signal | None]:
        operation = node.operation
        if None not in signals and _is_plain(node) and computes_as_its_class(operation):
            if is_graph(operation) and calls[id(operation)] == 1:
                return self._enter(operation, signals)
            rule = rule_for(operation)
            found = rule(self.channels, node, signals) if rule is not None else None
            if found is not None:
                return [found]
        self._protect(signals)
        return [self._unknown(tensor) for tensor in node.outputs]

    def _enter(self, model: Any, signals: list[Signal | None]) -> list[Signal | None]:
        inner = graph_of(model)
        self.nested.add(id(model))
        for tensor, signal in zip(inner.inputs, signals, strict=True):
            self.tensors[id(tensor)] = signal
        self._follow(inner)
        return [self.tensors[id(tensor)] for tensor in inner.outputs]


def _is_plain(node: Any) -> bool:
    """Whether a layer got all its tensors as its first argument, and no other orders."""
    arguments = node.arguments
    if len(arguments.args) != 1 or any(_says_something(v) for v in arguments.kwargs.values()):
        return False
    return len(keras.tree.flatten(arguments.args[0])) == len(node.input_tensors)


def _says_something(value: Any) -> bool:
    """Whether a keyword is a tensor, such as a mask or a state, or another order than the usual."""
    return any(
        isinstance(leaf, keras.KerasTensor) or bool(leaf) for leaf in keras.tree.flatten(value)
    )
