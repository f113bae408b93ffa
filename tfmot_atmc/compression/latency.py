# SPDX-License-Identifier: Apache-2.0
"""A budget in milliseconds: what operators take on a device, and how many channels may stay."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfmot_atmc.compression.model import CompressedModel
from tfmot_atmc.compression.operations import layers_with_sites
from tfmot_atmc.compression.stripping import plain_copy
from tfmot_atmc.export import measure_latency
from tfmot_atmc.export.tflite.conversion import convert, describe_inputs
from tfmot_atmc.kernels import Site
from tfmot_atmc.math import parse_milliseconds
from tfmot_atmc.utils.files import write_json
from tfmot_atmc.utils.keras_internals import build_shapes

__all__ = ["LatencyPlan", "OperatorTable", "OperatorTime", "measure_operators", "plan_latency"]

_SHARES = (1.0, 0.5, 0.25)
_STEPS = 20
_EMPTY, _WHOLE = "empty", "whole"


@dataclasses.dataclass(frozen=True)
class OperatorTime:
    """What one operator takes, by itself, without the overhead of a call of the interpreter.

    Attributes:
        kind: class name of the layer, such as `"Conv2D"`.
        kernel: sides of its window; empty for Dense.
        strides: its strides; empty for Dense.
        positions: positions of its output.
        macs: multiply-accumulates.
        ms: milliseconds.
    """

    kind: str
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    positions: int
    macs: int
    ms: float


@dataclasses.dataclass(frozen=True)
class OperatorTable:
    """Measured operators of one device, from which the latency of a network is predicted.

    Attributes:
        device: what was measured, in words.
        times: the operators.
        overhead_ms: milliseconds of a call that computes next to nothing.
    """

    device: str
    times: tuple[OperatorTime, ...]
    overhead_ms: float = 0.0

    def predict(
        self, kind: str, kernel: Sequence[int], strides: Sequence[int], positions: int, macs: float
    ) -> float:
        """Returns the milliseconds of an operator.

        Between operators of its kind, window and strides, those of the nearest number of positions,
        it is interpolated in multiply-accumulates, and beyond them in proportion.

        Raises:
            ValueError: if the table has no such operator.
        """
        like = (kind, tuple(kernel), tuple(strides))
        known = [t for t in self.times if (t.kind, t.kernel, t.strides) == like]
        if not known:
            raise ValueError(
                f"The table of {self.device!r} has no {kind} with window {tuple(kernel)} and "
                f"strides {tuple(strides)}. Measure one: `measure_operators`."
            )
        nearest = min(known, key=lambda t: abs(math.log(t.positions / positions))).positions
        points = sorted((t.macs, t.ms) for t in known if t.positions == nearest)
        places, times = np.array([(0.0, 0.0), *points]).T
        if macs > places[-1]:
            return float(times[-1] * macs / places[-1])
        return float(np.interp(macs, places, times))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the table to a JSON file."""
        write_json(path, dataclasses.asdict(self))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> OperatorTable:
        """Reads a table that `save` wrote.

        Raises:
            ValueError: if the file holds none.
        """
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        try:
            times = tuple(
                OperatorTime(t["kind"], tuple(t["kernel"]), tuple(t["strides"]), *_rest_of(t))
                for t in found["times"]
            )
            return cls(str(found["device"]), times, float(found["overhead_ms"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{str(path)!r} holds no table of operators: {error!r}.") from error


def _rest_of(time: dict[str, Any]) -> tuple[int, int, float]:
    return int(time["positions"]), int(time["macs"]), float(time["ms"])


@dataclasses.dataclass(frozen=True)
class LatencyPlan:
    """How to hold to a latency.

    Attributes:
        max_ms: milliseconds asked for, for one example.
        dense_ms: milliseconds of the dense network.
        predicted_ms: milliseconds predicted at the ratio, for channels dropped evenly.
        ratio: multiply-accumulates that are left, as a ratio of those of the compressed layers.
        device: where that is.
    """

    max_ms: float
    dense_ms: float
    predicted_ms: float
    ratio: float
    device: str


def measure_operators(
    model: keras.Model, *, shares: Sequence[float] = _SHARES, rounds: int | None = None
) -> OperatorTable:
    """Measures the layers of a model with kernels on this machine, with fewer channels too.

    Each runs as a float32 .tflite file of its own in the stock interpreter, on one thread, all of
    them in turns.

    Args:
        model: a built model for a fixed size of its inputs.
        shares: shares of the channels with which each is measured.
        rounds: as for `export.measure_latency`.

    Raises:
        ValueError: if the shapes of a layer are not known.
    """
    return _measured(model, shares, rounds)[0]


def _measured(
    model: keras.Model, shares: Sequence[float], rounds: int | None
) -> tuple[OperatorTable, float]:
    """Measures operators and the whole dense network, all of them in turns."""
    times: dict[str, OperatorTime] = {}
    tiny = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    models = {_EMPTY: tiny, _WHOLE: model}
    for layer, site in layers_with_sites(model):
        for share in shares:
            inputs, outputs = _left(site, share)
            macs = round(_macs(site, inputs, outputs))
            key = f"{_like(layer, site)} {site.positions} {macs}"
            if key not in times:
                models[key] = _alone(layer, inputs, outputs)
                times[key] = OperatorTime(*_like(layer, site), site.positions or 1, macs, 0.0)
    files = {key: convert(one, describe_inputs(one, None, 1)) for key, one in models.items()}
    examples = {key: _example(one) for key, one in models.items()}
    found = measure_latency(files, examples, rounds=rounds)
    overhead = found[_EMPTY]
    table = OperatorTable(
        f"{platform.machine()} {platform.system()}, one thread",
        tuple(
            dataclasses.replace(time, ms=max(found[key] - overhead, 0.0))
            for key, time in times.items()
        ),
        overhead,
    )
    return table, found[_WHOLE]


def _example(model: keras.Model) -> list[np.ndarray]:
    """Returns made-up inputs of one example."""
    rng = np.random.default_rng(0)
    return [rng.random((1, *tuple(tensor.shape)[1:]), np.float32) for tensor in model.inputs]


def plan_latency(
    model: keras.Model,
    max_latency: float | str,
    *,
    table: OperatorTable | str | os.PathLike[str] | None = None,
    layers: Any = None,
) -> LatencyPlan:
    """Finds the ratio of operations at which a network is predicted to be fast enough.

    The prediction drops channels evenly from all layers that may lose some, and adds up what the
    operators take. Without a table those are measured on this machine (`measure_operators`), and so
    is the dense network: the sum is then scaled to be right for it. Training may drop channels
    elsewhere; measure the exported file.

    Args:
        model: a built functional or sequential model for a fixed size of its inputs; or a
            compressed one, for its plain model.
        max_latency: milliseconds for one example, or text such as `"2ms"`.
        table: measured operators of another device, or the path of a file that holds them.
        layers: which layers will be compressed, as `compress` takes it.

    Returns:
        A `LatencyPlan`.

    Raises:
        ValueError: if one channel a layer is still too slow, or the table lacks an operator.
    """
    limit = parse_milliseconds(max_latency)
    plain = plain_copy(model) if isinstance(model, CompressedModel) else model
    everything = layers_with_sites(plain)
    names = {site.name for _, site in layers_with_sites(plain, layers)}
    whole = None
    if table is None:
        known, whole = _measured(plain, _SHARES, None)
    else:
        known = table if isinstance(table, OperatorTable) else OperatorTable.load(table)

    def at(share: float) -> tuple[float, float]:
        ms, left, total = known.overhead_ms, 0.0, 0.0
        for layer, site in everything:
            inputs, outputs = (
                _kept(n, share) for n in (site.channels.inputs, site.channels.outputs)
            )
            macs = _macs(site, inputs, outputs)
            ms += known.predict(*_like(layer, site), site.positions or 1, macs)
            if site.name in names:
                left, total = left + macs, total + (site.operations or 0)
        return ms, left / total

    factor = 1.0 if whole is None else whole / at(1.0)[0]
    dense = at(1.0)[0] * factor
    if at(0.0)[0] * factor > limit:
        raise ValueError(
            f"`max_latency` is {limit:g} ms, but with one channel a layer {plain.name!r} is "
            f"predicted to take {at(0.0)[0] * factor:.3g} ms; dense {dense:.3g} ms."
        )
    low, high = (1.0, 1.0) if dense <= limit else (0.0, 1.0)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle)[0] * factor <= limit else (low, middle)
    predicted, ratio = at(low)
    return LatencyPlan(limit, dense, predicted * factor, min(1.0, ratio), known.device)


def _kept(numbers: np.ndarray, share: float) -> int:
    """Returns how many channels are left when a share of those that may go stays."""
    free = int((numbers >= 0).sum())
    return len(numbers) - free + (max(1, round(share * free)) if free else 0)


def _left(site: Site, share: float) -> tuple[int, int]:
    return _kept(site.channels.inputs, share), _kept(site.channels.outputs, share)


def _macs(site: Site, inputs: int, outputs: int) -> float:
    dense = float(site.operations or 0)
    share = outputs / site.outputs
    return dense * share * (inputs / len(site.channels.inputs) if site.channels.mixes else 1.0)


def _like(layer: Any, site: Site) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    """Returns kind, window and strides of a layer."""
    strides = getattr(layer, "strides", ())
    strides = (strides,) if isinstance(strides, int) else tuple(strides)
    return site.kind, tuple(int(side) for side in getattr(layer, "kernel_size", ())), strides


def _alone(layer: Any, inputs: int, outputs: int) -> keras.Model:
    """Returns a model of one layer with fewer channels."""
    shape = build_shapes(layer).get("input_shape")
    if shape is None or None in shape[1:]:
        raise ValueError(
            f"The input shape of layer {layer.name!r} is not fixed. Build the model for a fixed "
            "size of its inputs."
        )
    config = layer.get_config()
    for name in ("filters", "units"):
        if name in config:
            config[name] = outputs
    whole = getattr(layer, "groups", 1) != 1
    sides = (*shape[1:-1], shape[-1] if whole else inputs)
    return keras.Sequential([keras.Input(sides), type(layer).from_config(config)])
