# SPDX-License-Identifier: Apache-2.0
"""Replaces the channels that matter least by constants, so that they can be removed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np

from tfmot_atmc.slimming.analysis import Walk, is_graph
from tfmot_atmc.slimming.channels import Weighted
from tfmot_atmc.slimming.factoring import FIRST
from tfmot_atmc.slimming.removal import slim_model
from tfmot_atmc.slimming.rules import is_elementwise
from tfmot_atmc.utils.cloning import copy_model
from tfmot_atmc.utils.keras_internals import calls_of

_BATCH = 128


@dataclasses.dataclass(frozen=True)
class ChannelInfluence:
    """How much each output channel of a layer moves what the layers after it compute.

    Attributes:
        influence: float64 `[channels]`: standard deviation of the channel where it is read, times
            the norm of the kernel that reads it, added in quadrature over all readers.
        constants: float64 `[channels]`: the bias that makes the channel its mean.
    """

    influence: np.ndarray
    constants: np.ndarray


def measure_influence(model: keras.Model, inputs: Any) -> dict[str, ChannelInfluence]:
    """Measures the influence of channels on examples.

    Args:
        model: a plain functional or sequential model.
        inputs: examples as the model takes them, a few hundred; include attacked ones where the
            model has to withstand attacks.

    Returns:
        By name, the layers of the model itself whose channels may be trimmed: those with a kernel
        and a bias, called once, whose channels are read by such layers only.

    Raises:
        ValueError: if the graph of the model is not known.
    """
    if not is_graph(model):
        raise ValueError(f"The graph of {model.name!r}, a {type(model).__name__}, is not known.")
    walk = Walk(model)
    roots = walk.channels.roots()
    own = {id(layer): layer for layer in model.layers if len(calls_of(layer)) == 1}
    readers = {key: w for key, w in walk.channels.weighted.items() if key in own}
    if not readers:
        return {}
    tensors = [tensor for key in readers for tensor in (own[key].input, own[key].output)]
    features = keras.Model(model.inputs, tensors)
    values = features.predict(inputs, batch_size=_BATCH, verbose=0)
    influence = np.zeros(walk.channels.count)
    for (key, weighted), read in zip(readers.items(), values[::2], strict=True):
        spread = read.std(axis=tuple(range(read.ndim - 1)), dtype=np.float64)
        norms = _gains(own[key], weighted, readers.values())
        np.add.at(influence, roots[weighted.source], np.square(spread * norms))
    fixed = _fixed(walk, roots, readers)
    found = {}
    for (key, weighted), written, read in zip(
        readers.items(), values[1::2], values[::2], strict=True
    ):
        layer, atoms = own[key], roots[weighted.result]
        if layer.use_bias and len(set(atoms)) == len(atoms) and not fixed[atoms].any():
            constants = _means(layer, read, written, weighted.effect)
            found[layer.name] = ChannelInfluence(np.sqrt(influence[atoms]), constants)
    return found


def _gains(layer: Any, weighted: Weighted, others: Iterable[Weighted]) -> np.ndarray:
    """Norm with which each input channel of a layer reaches the next nonlinearity."""
    kernel = keras.ops.convert_to_numpy(layer.kernel).astype(np.float64)
    kernel = kernel.reshape(-1, *kernel.shape[-2:])
    if layer.activation is keras.activations.linear:
        # The first of two layers that share a kernel: only their product says what matters.
        after = [w for w in others if np.array_equal(w.source, weighted.result)]
        if len(after) == 1 and layer.name.endswith(FIRST):
            kernel = kernel @ after[0].effect
    return np.sqrt(np.square(kernel).sum(axis=(0, 2)))


def _fixed(walk: Walk, roots: np.ndarray, readers: Mapping[int, Any]) -> np.ndarray:
    """Atoms that stay whatever their value: protected, read elsewhere, or of several layers."""
    fixed = np.zeros(walk.channels.count, bool)
    others = [w for key, w in walk.channels.weighted.items() if key not in readers]
    for atoms in (*walk.channels.protected, *(w.source for w in others)):
        fixed[roots[atoms]] = True
    writers = np.zeros(walk.channels.count, np.int64)
    for weighted in walk.channels.weighted.values():
        np.add.at(writers, roots[weighted.result], 1)
    return fixed | (writers > 1)


def _means(layer: Any, read: np.ndarray, written: np.ndarray, effect: np.ndarray) -> np.ndarray:
    """Biases that make each channel constant at its mean, or at the mean before the activation."""
    places = tuple(range(written.ndim - 1))
    mean = written.mean(axis=places, dtype=np.float64)
    after = keras.ops.convert_to_numpy(layer.activation(keras.ops.convert_to_tensor(mean)))
    before = read.mean(axis=tuple(range(read.ndim - 1)), dtype=np.float64) @ effect
    before = before + keras.ops.convert_to_numpy(layer.bias)
    exact = is_elementwise(layer.activation) & np.isclose(after, mean, rtol=1e-6, atol=0)
    return np.where(exact, mean, before)


def trim_channels(
    model: keras.Model,
    inputs: Any,
    keep: Mapping[str, int],
    *,
    influence: Mapping[str, ChannelInfluence] | None = None,
) -> keras.Model:
    """Returns a model with fewer channels, the least influential ones replaced by their means.

    Unlike `slim_model` this changes the outputs: measure the result, and train on if needed.

    Args:
        model: a plain functional or sequential model. It stays as it is.
        inputs: examples as the model takes them, to measure influence and means on.
        keep: by layer name, how many output channels to keep, at least one.
        influence: what `measure_influence` returned for the model, if it is known already.

    Returns:
        A slimmed model.

    Raises:
        ValueError: if a layer cannot be trimmed, or is to keep no channel.

    Example:

    >>> import keras, numpy as np
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, name="wide"),
    ...                           keras.layers.Dense(2)])
    >>> trim_channels(model, np.eye(4), {"wide": 3}).layers[0].units
    3
    """
    measured = measure_influence(model, inputs) if influence is None else influence
    changed = copy_model(model)
    for name, number in keep.items():
        if name not in measured or number < 1:
            raise ValueError(
                f"`keep` names layers that can be trimmed, {sorted(measured)}, each with at least "
                f"one channel. Received {name!r}: {number}."
            )
        order = np.argsort(-measured[name].influence, kind="stable")
        layer, trimmed = changed.get_layer(name), order[number:]
        kernel, bias = (keras.ops.convert_to_numpy(v).copy() for v in (layer.kernel, layer.bias))
        kernel[..., trimmed] = 0.0
        bias[trimmed] = measured[name].constants[trimmed]
        layer.set_weights([kernel, bias])
    return slim_model(changed)
