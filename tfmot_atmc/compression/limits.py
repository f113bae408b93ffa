# SPDX-License-Identifier: Apache-2.0
"""Limits in a user's own currency, and the arguments of a method with which they hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras

from tfmot_atmc import methods
from tfmot_atmc.compression.budget import plan_budget
from tfmot_atmc.compression.latency import plan_latency
from tfmot_atmc.compression.operations import plan_macs

__all__ = ["Limits", "within_limits"]


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits as `compress` takes them; None where there is none.

    Attributes:
        max_bytes: the size of the .tflite file.
        max_macs: multiply-accumulates for one example.
        max_latency: milliseconds for one example.
        table: measured operators of another device.
    """

    max_bytes: int | str | None = None
    max_macs: int | str | None = None
    max_latency: float | str | None = None
    table: Any = None


def within_limits(
    model: keras.Model,
    limits: Limits,
    method: Any,
    arguments: dict[str, Any],
    selected: Sequence[int] | None,
) -> dict[str, Any]:
    """Returns the arguments of a method, with the ratios at which limits are predicted to hold.

    Args:
        model: the model to compress.
        limits: the limits.
        method: the method, by its name where there is a limit.
        arguments: its arguments.
        selected: indices of the layers to compress; None for all.

    Raises:
        ValueError: if a limit cannot be held, or not by this method.
    """
    if limits.max_bytes is not None and limits.max_macs is not None:
        raise ValueError("Give `max_bytes` or `max_macs`, not both: each finds the ratio.")
    if limits.max_bytes is not None:
        arguments = _within_bytes(model, limits.max_bytes, method, arguments, selected)
    if limits.max_macs is not None:
        arguments = _within_macs(model, limits.max_macs, method, arguments, selected)
    if limits.max_latency is not None:
        arguments = _within_latency(model, limits, method, arguments, selected)
    return arguments


def _within_bytes(
    model: keras.Model,
    max_bytes: int | str,
    method: Any,
    arguments: dict[str, Any],
    selected: Sequence[int] | None,
) -> dict[str, Any]:
    """The arguments of a method with which a model's file is predicted to fit."""
    cls = _without_budget("max_bytes", method, arguments, {"ratio", "k", "schedule", "ratio_of"})
    if not _counts_weights(cls):
        able = [name for name in methods.names() if _counts_weights(methods.class_of(name))]
        raise ValueError(
            f"The method {method!r} has no `ratio` of weights, so `max_bytes` cannot make its file "
            f"smaller. Those that have one: {', '.join(able)}."
        )
    bits = {"bits": 8} if cls.codebooks else {}
    return {**bits, **arguments, "ratio": plan_budget(model, max_bytes, layers=selected).ratio}


def _within_macs(
    model: keras.Model,
    max_macs: int | str,
    method: Any,
    arguments: dict[str, Any],
    selected: Sequence[int] | None,
) -> dict[str, Any]:
    """The arguments of a method with which it holds to a number of multiply-accumulates."""
    cls = _without_budget("max_macs", method, arguments, {"ratio", "k", "ratio_of"})
    currency = methods.arguments_in_macs(cls)
    layers = None if selected is None else list(selected)
    return {**arguments, **currency, "ratio": plan_macs(model, max_macs, layers=layers).ratio}


def _within_latency(
    model: keras.Model,
    limits: Limits,
    method: Any,
    arguments: dict[str, Any],
    selected: Sequence[int] | None,
) -> dict[str, Any]:
    """The arguments of a method with which its network is predicted to be fast enough."""
    cls = _without_budget("max_latency", method, arguments, {"channels"})
    name = next(iter(methods.arguments_in_channels(cls, 0.5)))
    if name in arguments:
        raise ValueError(f"Give `max_latency` or `{name}`, not both.")
    layers = None if selected is None else list(selected)
    ratio = plan_latency(model, limits.max_latency or 0, table=limits.table, layers=layers).ratio
    return {**arguments, name: ratio}


def _without_budget(
    limit: str, method: Any, arguments: dict[str, Any], budgets: set[str]
) -> type[methods.Method]:
    """Returns the class of a method that is named without a budget of its own."""
    if not isinstance(method, str) or budgets & set(arguments):
        named = " or ".join(f"`{name}`" for name in sorted(budgets))
        raise ValueError(
            f"`{limit}` finds the ratio by itself: name the method, such as {methods.DEFAULT!r}, "
            f"and give no {named}. Received {method!r} with {sorted(arguments)}."
        )
    return methods.class_of(method)


def _counts_weights(cls: type[methods.Method]) -> bool:
    return cls.takes("ratio") and cls.ratio_of == "weights"
