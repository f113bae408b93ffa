# SPDX-License-Identifier: Apache-2.0
"""Where kernels sit: which of a model may be compressed, and what a method is told of each."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfmot_atmc.kernels import Site, SiteChannels
from tfmot_atmc.slimming.analysis import Walk, graph_of, is_graph, nodes_of
from tfmot_atmc.slimming.channels import Channels
from tfmot_atmc.utils.keras_internals import build_shapes, plain_kernel

__all__ = [
    "Slot",
    "attribute_of",
    "find_slots",
    "site_of",
    "sites_in_model",
]

_UNTOUCHED = (
    keras.layers.Embedding,
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
    keras.layers.UnitNormalization,
    keras.layers.Normalization,
)


@dataclasses.dataclass(frozen=True)
class Slot:
    """A kernel that may be compressed: where it sits, and whether it may be factorised."""

    layer: keras.layers.Layer
    attribute: str
    variable: keras.Variable
    factorizable: bool


def find_slots(layer: keras.layers.Layer) -> list[Slot] | str:
    """Returns the compressible kernels of one layer, or the reason why there are none.

    Args:
        layer: a layer; layers inside it are not looked at.

    Returns:
        A list of slots, or a reason. A layer with `get_compressible_weights` decides itself; of
        the others Dense, Conv1D and Conv2D are factorizable unless grouped or with a
        `kernel_constraint`, and grouped and depthwise convolutions compressible.
    """
    if not layer.built:
        return "not built"
    if not layer.trainable:
        return "frozen (trainable=False)"
    if getattr(layer, "quantization_mode", None):
        return f"already quantized ({layer.quantization_mode})"
    if getattr(layer, "lora_enabled", False):
        return "LoRA is enabled; merge it first"
    if hasattr(layer, "get_compressible_weights"):
        return [
            Slot(layer, attribute_of(layer, variable), variable, False)
            for variable in layer.get_compressible_weights()
        ]
    if isinstance(layer, _UNTOUCHED):
        return "normalisation or embedding"
    if isinstance(layer, (keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D)):
        variable = plain_kernel(layer)
        whole = getattr(layer, "groups", 1) == 1 and variable.constraint is None
        return [Slot(layer, "kernel", variable, whole)]
    if isinstance(layer, (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)):
        return [Slot(layer, "kernel", layer.kernel, False)]
    return "no rule for this layer; give it get_compressible_weights()"


def attribute_of(layer: keras.layers.Layer, variable: keras.Variable) -> str:
    """Returns the name of the attribute under which a layer reads one of its variables."""
    for name, value in vars(layer).items():
        if value is variable:
            public = name.lstrip("_")
            return public if isinstance(getattr(type(layer), public, None), property) else name
    raise ValueError(
        f"get_compressible_weights() of layer '{layer.name}' returned a variable that is not an "
        "attribute of the layer itself. Return variables that the layer holds, such as "
        f"self.kernel. Received {variable!r}."
    )


def site_of(
    layer: keras.layers.Layer, attribute: str, shape: Sequence[int], factorizable: bool
) -> Site:
    """Returns the site of a layer's kernel, as far as the layer itself knows it.

    Args:
        layer: a built layer.
        attribute: name of the kernel's attribute.
        shape: shape of the kernel.
        factorizable: whether the kernel is one matrix of inputs and outputs.
    """
    path, shape = layer.path or layer.name, tuple(int(side) for side in shape)
    depthwise = hasattr(layer, "depth_multiplier")
    inputs = (shape[-2] if len(shape) > 1 else 1) * int(getattr(layer, "groups", 1) or 1)
    outputs = math.prod(shape[-2:]) if depthwise else shape[-1]
    fan_in = math.prod(shape[:-2]) if depthwise else math.prod(shape[:-1])
    return Site(
        name=f"{path}/{attribute.lstrip('_')}",
        layer=path,
        kind=type(layer).__name__,
        shape=shape,
        factorizable=factorizable,
        fan_in=fan_in,
        inputs=inputs,
        outputs=outputs,
        positions=_positions(layer),
    )


def sites_in_model(
    model: keras.Model, layers: Sequence[keras.layers.Layer], sites: Sequence[Site]
) -> list[Site]:
    """Returns sites with what only the model tells: number, unique name, calls, shared channels.

    Args:
        model: the model; one without a graph of layers tells nothing of calls and channels.
        layers: the layer of each site.
        sites: the sites, in order.
    """
    calls = _calls(model)
    classes = [type(layer) for layer in layers]
    seen: dict[str, int] = {}
    names = []
    for site in sites:
        seen[site.name] = seen.get(site.name, 0) + 1
        names.append(f"{site.name}_{seen[site.name] - 1}" if seen[site.name] > 1 else site.name)

    @functools.cache
    def known() -> tuple[dict[str, tuple[str, ...]], dict[str, SiteChannels]]:
        exchanged = [type(layer) for layer in layers]
        try:  # the rules of channels go by the layers' own classes
            _become(layers, classes)
            channels = Walk(model).channels if is_graph(model) else Channels()
            return _shared(channels, layers, names), _grouped(channels, layers, names)
        finally:
            _become(layers, exchanged)

    return [
        dataclasses.replace(
            site,
            name=name,
            index=index,
            calls=calls.get(id(layer), 1),
            sizes=tuple(other.size for other in sites),
            sharing=lambda: known()[0],
            grouping=lambda: known()[1],
        )
        for index, (site, name, layer) in enumerate(zip(sites, names, layers, strict=True))
    ]


def _become(layers: Sequence[keras.layers.Layer], classes: Sequence[type]) -> None:
    for layer, cls in zip(layers, classes, strict=True):
        layer.__class__ = cls


def _positions(layer: Any) -> int | None:
    """Returns the number of output positions for one example, where the shapes say."""
    built = build_shapes(layer)
    shape = built.get("input_shape")
    if shape is None:
        return None
    try:
        shape = layer.compute_output_shape(tuple(shape))
    except (ValueError, TypeError, NotImplementedError):
        return None
    first = getattr(layer, "data_format", None) == "channels_first"
    sides = shape[2:] if first else shape[1:-1]
    return None if None in sides else math.prod(sides)


def _calls(model: keras.Model) -> dict[int, int]:
    """Returns by a layer's identity how often a run of the model calls it."""
    calls: dict[int, int] = {}
    if not is_graph(model):
        return calls
    for node in nodes_of(graph_of(model)):
        operation = node.operation
        inner = _calls(operation) if isinstance(operation, keras.Model) else {}
        for key, count in (inner or {id(operation): 1}).items():
            calls[key] = calls.get(key, 0) + count
    return calls


def _grouped(
    channels: Channels, layers: Sequence[keras.layers.Layer], names: Sequence[str]
) -> dict[str, SiteChannels]:
    """Returns by name of a site the numbers of its channels, as `SiteChannels` has them."""
    roots = channels.roots()
    number = np.zeros(channels.count, np.int64)
    mine = {id(layer) for layer in layers}
    # What another layer reads stays: nothing would tell that layer that it has gone.
    read = [w.source for key, w in channels.weighted.items() if key not in mine]
    for atoms in (*channels.protected, *read):
        number[roots[atoms]] = -1
    free = np.flatnonzero((roots == np.arange(channels.count)) & (number == 0))
    number[free] = np.arange(len(free))
    number = number[roots]
    found = {}
    for layer, name in zip(layers, names, strict=True):
        weighted, each = channels.weighted.get(id(layer)), channels.scaled.get(id(layer))
        if weighted is not None:
            found[name] = SiteChannels(number[weighted.source], number[weighted.result])
        elif each is not None:
            multiplier = int(getattr(layer, "depth_multiplier", 1))
            ours = number[each]
            found[name] = SiteChannels(ours, np.repeat(ours, multiplier), mixes=False)
    return found


def _shared(
    channels: Channels, layers: Sequence[keras.layers.Layer], names: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Returns by name of a site the others whose output channels go with its own."""
    roots = channels.roots()
    groups: dict[int, list[int]] = {}
    mine: dict[int, np.ndarray] = {}
    for index, layer in enumerate(layers):
        weighted = channels.weighted.get(id(layer))
        atoms = channels.scaled.get(id(layer)) if weighted is None else weighted.result
        if atoms is not None:
            mine[index] = np.unique(roots[atoms])
            for root in mine[index]:
                groups.setdefault(int(root), []).append(index)
    return {
        names[index]: tuple(
            names[other]
            for other in sorted({i for root in found for i in groups[int(root)]} - {index})
        )
        for index, found in mine.items()
    }
