# SPDX-License-Identifier: Apache-2.0
"""The form in which each compressed kernel is deployed: composed, or as a product of two."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfmot_atmc.compression.model import CompressedModel
from tfmot_atmc.compression.stripping import plain_copy, tell_what_is_dead
from tfmot_atmc.export import stored_bytes
from tfmot_atmc.kernels import live_channels
from tfmot_atmc.slimming import can_factor, factor_layers, is_graph, kept_channels, layer_costs
from tfmot_atmc.utils.keras_internals import calls_of, flat_layers
from tfmot_atmc.utils.shown import Shown, TablePart

OBJECTIVES = ("size", "latency", "balanced")
# What one more layer costs in a file (measured), and what starting it costs in time, as the
# multiply-accumulates that an idle core does meanwhile.
_LAYER_BYTES = 150
_LAYER_MACS = 5_000


@dataclasses.dataclass(frozen=True)
class FormChoice:
    """How one layer is deployed, and what either form costs once the model is slimmed.

    Attributes:
        layer: name of the layer.
        factored: whether the product was chosen.
        composed_bytes: bytes of the composed kernel as stored in a file.
        factored_bytes: bytes of both kernels of the product, the second layer included.
        composed_macs: multiply-accumulates with the composed kernel.
        factored_macs: multiply-accumulates of the product.
        inner_channels: channels between the two layers of the product.
    """

    layer: str
    factored: bool
    composed_bytes: int
    factored_bytes: int
    composed_macs: int
    factored_macs: int
    inner_channels: int


@dataclasses.dataclass(frozen=True)
class Deployment(Shown):
    """A plain model ready for export, and the forms chosen.

    Attributes:
        model: the plain Keras model.
        forms: one choice for each kernel that is a product of trained factors.
    """

    model: keras.Model
    forms: tuple[FormChoice, ...]

    def _parts(self) -> list[str | TablePart]:
        columns = ("layer", "form", "composed", "factored", "MACs", "factored", "inner")
        rows = [
            (
                form.layer,
                "factored" if form.factored else "composed",
                f"{form.composed_bytes:,} B",
                f"{form.factored_bytes:,} B",
                form.composed_macs,
                form.factored_macs,
                form.inner_channels,
            )
            for form in self.forms
        ]
        return [(columns, rows)]


def deploy(model: CompressedModel, *, optimize: str = "size", values: str = "auto") -> Deployment:
    """Strips a compressed model, leaving those kernels as two layers that are cheaper so.

    Multiplying (U + I)V + C out can cost far more nonzeros than it has factors' nonzeros, or save
    a layer; low-rank products save operations as well. Costs are those after slimming: channels
    that nobody needs count in neither form.

    Args:
        model: a compressed model.
        optimize: `"size"` takes the form of fewer bytes in the file, `"latency"` that of fewer
            multiply-accumulates, `"balanced"` that of the smaller product of the two.
        values: how values will be stored; see `export_tflite`.

    Returns:
        A `Deployment`; pass its `model` to `export_tflite`.

    Raises:
        ValueError: if `optimize` is unknown or the model is not compressed.

    Example:

    >>> import keras, tfmot_atmc as atmc
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, name="only")])
    >>> deployment = deploy(atmc.compress(model, "atmc", ratio=0.25))
    >>> [(form.layer, form.factored) for form in deployment.forms]
    [('only', False)]
    """
    if optimize not in OBJECTIVES:
        raise ValueError(f"`optimize` must be one of {OBJECTIVES}. Received {optimize!r}.")
    if not isinstance(model, CompressedModel):
        raise ValueError(
            f"deploy() takes a model returned by compress(). Received a {type(model).__name__}."
        )
    factors = model.finalized_factors()
    plain = plain_copy(model, factors)
    tell_what_is_dead(plain)
    if not is_graph(plain):
        return Deployment(plain, ())
    products = _products(model, factors, plain)
    kept = kept_channels(plain)
    positions = _positions(plain)
    forms = tuple(
        _choose(name, product, plain.get_layer(name), kept[name], positions[name], optimize, values)
        for name, product in products.items()
    )
    chosen = {form.layer: products[form.layer] for form in forms if form.factored}
    return Deployment(factor_layers(plain, chosen) if chosen else plain, forms)


def _products(
    model: CompressedModel, factors: Sequence[np.ndarray], plain: keras.Model
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The kernels of the plain model's own layers that are products, where a name tells which."""
    names = [layer.name for layer in flat_layers(plain)]
    own = {layer.name for layer in plain.layers if can_factor(layer)}
    own = {name for name in own if names.count(name) == 1}
    found, position = {}, 0
    for kernel in model.kernels:
        mine = dict(zip(kernel.variables, factors[position:], strict=False))
        position += len(kernel.variables)
        product = kernel.kernel.product(mine)
        if product is not None and kernel.layer.name in own:
            found[kernel.layer.name] = product
    return found


def _positions(model: keras.Model) -> dict[str, int]:
    """How often each layer's kernel is applied to one example; 1 where that is open."""
    return {
        cost.name: 1 if cost.macs is None else cost.macs // math.prod(cost.kernel_shape)
        for cost in layer_costs(model)
    }


def _widening(layer: Any, b: np.ndarray) -> float:
    """How often the first layer of a product is applied for each place of the second.

    A vertical filter runs along all columns of the input, of which a horizontal one without padding
    or with strides leaves fewer.
    """
    if b.ndim == 2:
        return 1.0
    axis = 2 if layer.data_format == "channels_last" else 3
    node = calls_of(layer)[0]
    before, after = node.input_tensors[0].shape[axis], node.outputs[0].shape[axis]
    return 1.0 if before is None else before / after


def _choose(
    name: str,
    product: tuple[np.ndarray, np.ndarray],
    layer: Any,
    kept: tuple[np.ndarray, np.ndarray],
    positions: int,
    optimize: str,
    values: str,
) -> FormChoice:
    inputs, outputs = kept
    whole = keras.ops.convert_to_numpy(layer.kernel)[..., inputs, :][..., outputs]
    a, b = product[0][..., inputs, :], product[1][..., outputs]
    live = live_channels(a, b)
    a, b = a[..., live], b[..., live, :]
    composed = stored_bytes(whole, values=values)
    factored = sum(stored_bytes(part, values=values) for part in (a, b) if part.size)
    macs = whole.size * positions
    fewer = round(a.size * positions * _widening(layer, b)) + b.size * positions
    sizes = (composed, factored + _LAYER_BYTES)
    times = (macs + _LAYER_MACS, fewer + 2 * _LAYER_MACS)
    costs = {
        "size": sizes,
        "latency": times,
        "balanced": tuple(size * time for size, time in zip(sizes, times, strict=True)),
    }[optimize]
    return FormChoice(
        name, costs[1] < costs[0], *sizes, macs, fewer, inner_channels=int(live.sum())
    )
