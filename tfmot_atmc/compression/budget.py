# SPDX-License-Identifier: Apache-2.0
"""One knob for an engineer with a flash memory: the bytes of the .tflite file.

`plan_budget` says before training how sparse a model must become, or what the smallest possible
file is. `fit_to_bytes` makes a trained model fit: as it is, or with its least influential channels
removed.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Collection
from typing import Any

import keras
import numpy as np

from tfmot_atmc.compression.model import CompressedModel
from tfmot_atmc.compression.selection import selected_indices
from tfmot_atmc.compression.sites import find_slots
from tfmot_atmc.compression.stripping import plain_copy
from tfmot_atmc.export import (
    ROUNDED,
    ExportReport,
    TooLargeError,
    export_tflite,
    graph_bytes,
    weight_bytes,
)
from tfmot_atmc.math import parse_bytes
from tfmot_atmc.slimming import is_graph, measure_influence, slim_model, trim_channels
from tfmot_atmc.utils.cloning import copy_model
from tfmot_atmc.utils.keras_internals import flat_layers

_STEPS = 12
# Distinct values of the model that predicts sizes: as many as int8 has.
_CODES = 127
# A value, its index of one or two bytes, and its share of the segments, at most.
_NONZERO_BYTES, _FLOAT_NONZERO_BYTES = dict.fromkeys(ROUNDED, 4), 7


@dataclasses.dataclass(frozen=True)
class BudgetPlan:
    """How to reach a size.

    Attributes:
        max_bytes: the size asked for.
        ratio: ratio of nonzeros at which the file is predicted to fit.
        predicted_bytes: predicted size of the file at that ratio.
        smallest_bytes: predicted size with one nonzero in each kernel.
    """

    max_bytes: int
    ratio: float
    predicted_bytes: int
    smallest_bytes: int


def _kernels(model: keras.Model, selected: Collection[int] | None) -> list[Any]:
    """The variables that `compress` would compress of the layers at some indices, or of all."""
    found = []
    for index, layer in enumerate(flat_layers(model)):
        if selected is not None and index not in selected:
            continue
        slots = find_slots(layer) if layer.variables else "no weights"
        found += [] if isinstance(slots, str) else [slot.variable for slot in slots]
    return found


def plan_budget(
    model: keras.Model,
    max_bytes: int | str,
    *,
    values: str = "int8",
    batch_size: int | None = 1,
    layers: Any = None,
) -> BudgetPlan:
    """Finds the largest ratio of nonzeros at which a model's file is predicted to fit.

    The prediction gives a copy of the model nonzeros at random places, the same share in every
    kernel, and counts the bytes of the smallest storage of each weight, without writing a file.
    Channels that this makes dead are counted, for training leaves far fewer of them; where they
    would decide, a bound for the bytes of one nonzero takes their place. It is a cautious
    prediction: trained files have been 5% to 15% smaller (docs/results.md).

    Args:
        model: a built plain model, trained or not; or a compressed one, for its plain model.
        max_bytes: bytes, or text such as `"24KB"` (1 KB is 1,024 bytes).
        values: how values will be stored, see `export_tflite`.
        batch_size: batch of the file, see `export_tflite`.
        layers: which layers will be compressed, as `compress` takes it, or their indices in the
            model's flat order; the kernels of all others are counted as they are.

    Returns:
        A `BudgetPlan`.

    Raises:
        ValueError: if not even one nonzero in each kernel fits (the message gives the smallest
            possible size), if nothing can be pruned, or an argument is out of range.

    Example:

    >>> import tfmot_atmc as atmc
    >>> plan = plan_budget(atmc.models.lenet(seed=0), "16KB")
    >>> 0.005 < plan.ratio < 0.02 and plan.predicted_bytes <= 16384
    True
    """
    limit = parse_bytes(max_bytes)
    plain = plain_copy(model) if isinstance(model, CompressedModel) else model
    work = copy_model(plain)
    kernels = _kernels(work, _indices(model, plain, layers))
    whole = len(kernels) == len(_kernels(work, None))
    if not kernels:
        raise ValueError(f"The model {plain.name!r} has no kernel that can be compressed.")
    total = sum(math.prod(kernel.shape) for kernel in kernels)
    ranks = _random_ranks([tuple(kernel.shape) for kernel in kernels])
    graph = graph_bytes(plain, batch_size=batch_size)

    def assign(ratio: float) -> int:
        nonzeros = 0
        for kernel, rank in zip(kernels, ranks, strict=True):
            kept, codes = max(1, round(ratio * rank.size)), 1 + rank % _CODES
            kernel.assign(np.where(rank < kept, codes / _CODES, 0.0))
            nonzeros += kept
        return nonzeros

    assign(0.0)
    # A nonzero may need a channel of a layer that is left as it is: then none is seen as dead.
    bare = slim_model(work) if is_graph(work) and whole else work
    smallest = graph + weight_bytes(bare, values=values)

    def predict(ratio: float) -> int:
        each = _NONZERO_BYTES.get(values, _FLOAT_NONZERO_BYTES)
        most = smallest + assign(ratio) * each
        found = graph + weight_bytes(work, values=values)
        return min(most, found) if whole else found

    if smallest > limit:
        raise ValueError(
            f"`max_bytes` is {limit:,}, but the smallest possible file of {plain.name!r} has about "
            f"{smallest:,} bytes (one nonzero in each kernel); use a smaller model."
        )
    low, high = len(kernels) / total, 1.0
    if predict(high) <= limit:
        return BudgetPlan(limit, high, predict(high), smallest)
    for _ in range(_STEPS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if predict(middle) <= limit else (low, middle)
    return BudgetPlan(limit, low, predict(low), smallest)


def _indices(model: keras.Model, plain: keras.Model, layers: Any) -> Collection[int] | None:
    if layers is None and isinstance(model, CompressedModel):
        return model.selected
    if isinstance(layers, (list, tuple)) and all(isinstance(index, int) for index in layers):
        return layers
    return selected_indices(plain, layers)


def _random_ranks(shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    """A random order of the entries of each kernel, the same at each call."""
    rng = np.random.default_rng(0)
    return [rng.permutation(math.prod(shape)).reshape(shape) for shape in shapes]


@dataclasses.dataclass(frozen=True)
class FittedModel:
    """A model whose file is within a size.

    Attributes:
        model: the plain model that was exported.
        report: the report of its export.
        channels: output channels kept by layer, where channels were removed that had an influence.
        removed: how many were removed there.
    """

    model: keras.Model
    report: ExportReport
    channels: dict[str, int]
    removed: dict[str, int]


def fit_to_bytes(
    model: keras.Model,
    path: str | os.PathLike[str],
    max_bytes: int | str,
    inputs: Any,
    *,
    values: str = "int8",
    **options: Any,
) -> FittedModel:
    """Exports a model to a file within a size, removing its least influential channels if needed.

    Channels go in the order of their influence relative to that of their layer, as few as
    possible, and are replaced by their means (`trim_channels`). Nothing is trained, so measure the
    model that is returned.

    Args:
        model: a plain model, such as that of `deploy`.
        path: file to write; its name ends in `.tflite`.
        max_bytes: bytes, or text such as `"24KB"`.
        inputs: examples to measure influence on and to compare on; attacked ones too where the
            model has to withstand attacks.
        values: how values are stored, see `export_tflite`.
        **options: further options of `export_tflite`.

    Returns:
        A `FittedModel`.

    Raises:
        TooLargeError: if the file fits with no number of channels.
        ExportError: if it does not run or does not match.
        ValueError: if an argument is out of range.
    """
    limit = parse_bytes(max_bytes)
    slimmed = slim_model(model) if is_graph(model) else model
    arguments = {"values": values, "inputs": inputs, **options}
    try:
        report = export_tflite(slimmed, path, max_bytes=limit, **arguments)
        return FittedModel(slimmed, report, {}, {})
    except TooLargeError:
        if not is_graph(model):
            raise
    influence = measure_influence(slimmed, inputs)
    order = removal_order(influence)
    graph = graph_bytes(slimmed, batch_size=options.get("batch_size", 1))
    low, high = 0, len(order)
    while high - low > 1:
        middle = (low + high) // 2
        trial = trim_channels(
            slimmed, inputs, kept_of(influence, order[:middle]), influence=influence
        )
        if graph + weight_bytes(trial, values=values) > limit:
            low = middle
        else:
            high = middle
    # The prediction is off by the alignment of some vectors.
    for removed in range(high, len(order) + 1):
        kept = kept_of(influence, order[:removed])
        trial = trim_channels(slimmed, inputs, kept, influence=influence)
        try:
            report = export_tflite(trial, path, max_bytes=limit, **arguments)
            counts = {name: order[:removed].count(name) for name in kept}
            return FittedModel(trial, report, kept, counts)
        except TooLargeError:
            continue
    raise TooLargeError(
        f"{model.name!r} does not fit in {limit:,} bytes with any number of channels; compress it "
        "further, or use a smaller model."
    )


def removal_order(influence: dict[str, Any]) -> list[str]:
    """Returns the layer that loses a channel, again and again, down to one channel each.

    Args:
        influence: what `measure_influence` returned.
    """
    shares = []
    for name, measured in influence.items():
        ascending = np.sort(measured.influence)[:-1]
        scale = np.sqrt(np.square(measured.influence).sum()) or 1.0
        shares += [(share, name) for share in ascending / scale]
    return [name for _, name in sorted(shares, key=lambda entry: entry[0])]


def kept_of(influence: dict[str, Any], removed: list[str]) -> dict[str, int]:
    """Returns how many channels the layers keep that lose some, by name.

    Args:
        influence: what `measure_influence` returned.
        removed: the first entries of `removal_order`.
    """
    kept = {name: len(influence[name].influence) - removed.count(name) for name in set(removed)}
    return dict(sorted(kept.items()))
