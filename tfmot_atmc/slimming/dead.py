# SPDX-License-Identifier: Apache-2.0
"""Layers through which nothing of the input passes any more, and outputs that are always the same.

A network that was pruned too far, or not evenly, may answer the same to every input. Agreement with
another copy of it is then perfect, and says nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

from tfmot_atmc.slimming.analysis import Walk, graph_of, is_graph, nodes_of
from tfmot_atmc.utils.keras_internals import inner_layers

__all__ = [
    "ADVICE",
    "DeadLayer",
    "constant_output",
    "dead_layers",
    "dead_message",
    "depends_on_input",
    "what_is_dead",
]

ADVICE = (
    "Give a higher `ratio`, the default budget with floors for each layer, or leave these layers "
    "out of compression (`layers=`)."
)
# Outputs that differ by less, as a part of the largest, are the same.
_SAME = 1e-6
_FEWEST = 2
_NAMED = 5


@dataclasses.dataclass(frozen=True)
class DeadLayer:
    """A layer whose output says nothing of the input, though what it reads does.

    Attributes:
        layer: the layer's name.
        reason: why, in words.
    """

    layer: str
    reason: str


def dead_layers(model: keras.Model) -> list[DeadLayer]:
    """Returns the layers at which what the input says ends.

    Where the graph is known, channels are followed: a layer is dead if each of its output channels
    has one value for every input. Of other models, layers with kernels of zeros alone are found.

    Args:
        model: a built plain Keras model.

    Example:

    >>> inputs = keras.Input((4,))
    >>> model = keras.Model(inputs, keras.layers.Dense(2, name="last")(inputs))
    >>> model.layers[-1].kernel.assign(np.zeros((4, 2)))  # doctest: +SKIP
    >>> dead_layers(model)  # doctest: +SKIP
    [DeadLayer(layer='last', reason='all its weights are zero')]
    """
    if not is_graph(model):
        layers = inner_layers(model)
        return [DeadLayer(layer.name, _ZEROS) for layer in layers if _is_empty(layer)]
    walk = Walk(model)
    found: dict[str, DeadLayer] = {}
    for node in _all_nodes(graph_of(model), walk):
        layer = node.operation
        before = [walk.tensors.get(id(tensor)) for tensor in node.input_tensors]
        after = [walk.tensors.get(id(tensor)) for tensor in node.outputs]
        if not getattr(layer, "weights", ()) or not after or not all(map(_is_constant, after)):
            continue
        if not all(map(_is_constant, before)):
            reason = _ZEROS if _is_empty(layer) else _NO_PATH
            found.setdefault(layer.name, DeadLayer(layer.name, reason))
    return list(found.values())


_ZEROS = "all its weights are zero"
_NO_PATH = "what is left of its weights reads only channels that are the same for every input"


def depends_on_input(model: keras.Model) -> bool:
    """Tells whether an output may depend on an input; True where the graph is not known.

    Args:
        model: a built plain Keras model.
    """
    if not is_graph(model):
        return True
    walk = Walk(model)
    graph = graph_of(model)
    alive = {id(tensor) for tensor in graph.inputs}
    for node in nodes_of(graph):
        signals = [walk.tensors.get(id(tensor)) for tensor in node.outputs]
        if any(id(t) in alive for t in node.input_tensors) and not all(map(_is_constant, signals)):
            alive |= {id(tensor) for tensor in node.outputs}
    return any(id(tensor) in alive for tensor in graph.outputs)


def constant_output(outputs: Sequence[Any]) -> bool:
    """Tells whether outputs for different inputs are all the same.

    Args:
        outputs: arrays `[examples, ...]`, one for each output of the model; all outputs of at least
            two examples must be the same.

    Example:

    >>> constant_output([np.ones((5, 3))]), constant_output([np.eye(3)])
    (True, False)
    """
    return bool(outputs) and all(map(_is_same, outputs))


def _is_same(output: Any) -> bool:
    values = np.asarray(output, np.float64)
    if len(values) < _FEWEST or not np.isfinite(values).all():
        return False
    spread = np.ptp(values, axis=0).max(initial=0.0)
    return bool(spread <= _SAME * np.abs(values).max(initial=0.0))


def dead_message(dead: Iterable[DeadLayer], constant: bool) -> str | None:
    """Returns what is wrong and what to do, in one line; None where nothing is.

    Args:
        dead: layers at which the input ends.
        constant: whether the output is the same for every input.
    """
    listed = [f"'{layer.layer}' ({layer.reason})" for layer in dead]
    if not listed and not constant:
        return None
    said = []
    if listed:
        more = f" and {len(listed) - _NAMED} more" if len(listed) > _NAMED else ""
        said.append(f"Nothing passes through {', '.join(listed[:_NAMED])}{more} any more.")
    if constant:
        said.append("The output is constant, the same for every input: the model is of no use.")
    return " ".join([*said, ADVICE])


def what_is_dead(model: keras.Model) -> str | None:
    """Returns what `dead_message` says of a plain model.

    Args:
        model: a built plain Keras model.
    """
    dead = dead_layers(model)
    return dead_message(dead, bool(dead) and not depends_on_input(model))


def _all_nodes(graph: Any, walk: Walk) -> Iterable[Any]:
    for node in nodes_of(graph):
        if id(node.operation) in walk.nested:
            yield from _all_nodes(graph_of(node.operation), walk)
        else:
            yield node


def _is_constant(signal: Any) -> bool:
    return signal is not None and bool(signal.known.all())


def _is_empty(layer: Any) -> bool:
    kernel = getattr(layer, "kernel", None)
    if kernel is None or not layer.built:
        return False
    return not keras.ops.convert_to_numpy(kernel).any()
