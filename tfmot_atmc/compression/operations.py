# SPDX-License-Identifier: Apache-2.0
"""Budgets in multiply-accumulates: what a model takes, and what ratio is within a limit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from typing import Any

import keras

from tfmot_atmc.compression.model import CompressedModel
from tfmot_atmc.compression.selection import selected_indices
from tfmot_atmc.compression.sites import find_slots, site_of, sites_in_model
from tfmot_atmc.compression.stripping import plain_copy
from tfmot_atmc.kernels import Site
from tfmot_atmc.math import parse_count
from tfmot_atmc.slimming import is_graph, layer_costs
from tfmot_atmc.utils.keras_internals import flat_layers

__all__ = ["MacsPlan", "layers_with_sites", "plan_macs"]

_DIGITS = 10**9  # of a ratio, as budgets round it


@dataclasses.dataclass(frozen=True)
class MacsPlan:
    """How to hold to a number of multiply-accumulates for one example.

    Attributes:
        max_macs: the number asked for.
        dense_macs: those of the whole dense model.
        untouched_macs: those of layers that are not compressed.
        ratio: what the compressed layers may keep, as a ratio of what they take now.
    """

    max_macs: int
    dense_macs: int
    untouched_macs: int
    ratio: float


def plan_macs(model: keras.Model, max_macs: int | str, *, layers: Any = None) -> MacsPlan:
    """Finds the ratio of multiply-accumulates that is within a limit.

    Args:
        model: a built functional or sequential model for a fixed size of its inputs; or a
            compressed one, for its plain model.
        max_macs: the most multiply-accumulates for one example, or text such as `"12M"`.
        layers: which layers will be compressed, as `compress` takes it, or their indices in the
            model's flat order; all others are counted as they are.

    Returns:
        A `MacsPlan`.

    Raises:
        ValueError: if the layers that are not compressed take more by themselves, or operations
            cannot be counted.

    Example:

    >>> import tfmot_atmc as atmc
    >>> plan = plan_macs(atmc.models.resnet20(seed=0), "10M")
    >>> plan.dense_macs, round(plan.ratio, 4)
    (40551040, 0.2466)
    """
    limit = parse_count(max_macs)
    plain = plain_copy(model) if isinstance(model, CompressedModel) else model
    if layers is None and isinstance(model, CompressedModel):
        layers = model.selected
    dense = _dense_macs(plain)
    acting = sum(_operations(site) for _, site in layers_with_sites(plain, layers))
    rest = dense - acting
    if limit <= rest:
        raise ValueError(
            f"`max_macs` is {limit:,}, but the layers of {plain.name!r} that are not compressed "
            f"take {rest:,} by themselves."
        )
    ratio = min(1.0, math.floor((limit - rest) / acting * _DIGITS) / _DIGITS)
    if not ratio:
        raise ValueError(
            f"`max_macs` of {limit:,} leaves nothing of the {dense:,} multiply-accumulates of "
            f"{plain.name!r}. Allow more."
        )
    return MacsPlan(limit, dense, rest, ratio)


def _dense_macs(model: keras.Model) -> int:
    if not is_graph(model):
        raise ValueError(
            f"The graph of {model.name!r}, a {type(model).__name__}, is not known, so its "
            "operations cannot be counted. Give a `ratio`."
        )
    costs = layer_costs(model)
    for cost in costs:
        if cost.macs is None:
            raise ValueError(
                f"The output shape of layer {cost.name!r} is not fixed, so its operations cannot "
                "be counted. Build the model for a fixed size of its inputs."
            )
    return sum(cost.macs or 0 for cost in costs)


def _operations(site: Site) -> int:
    if site.operations is None:
        raise ValueError(
            f"The number of output positions of {site.name!r} is not known, so its operations "
            "cannot be counted. Build the model for a fixed size of its inputs."
        )
    return site.operations


def _indices(model: keras.Model, layers: Any) -> Collection[int] | None:
    if isinstance(layers, (list, tuple)) and all(isinstance(index, int) for index in layers):
        return layers
    return selected_indices(model, layers)


def layers_with_sites(
    model: keras.Model, layers: Any = None
) -> list[tuple[keras.layers.Layer, Site]]:
    """Returns the kernels that `compress` would find: the layer and the site of each.

    Args:
        model: a built plain model.
        layers: as `compress` takes it, or indices in the model's flat order; None for all.
    """
    selected = _indices(model, layers)
    found = []
    for index, layer in enumerate(flat_layers(model)):
        if (selected is None or index in selected) and layer.variables:
            slots = find_slots(layer)
            found += [] if isinstance(slots, str) else slots
    sites = [site_of(s.layer, s.attribute, s.variable.shape, s.factorizable) for s in found]
    owners = [slot.layer for slot in found]
    return list(zip(owners, sites_in_model(model, owners, sites), strict=True))
