# SPDX-License-Identifier: Apache-2.0
"""The widest network whose file is within a size, of a family or of a trained one's channels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras

from tfmot_atmc import methods
from tfmot_atmc.compression.budget import BudgetPlan, kept_of, removal_order
from tfmot_atmc.compression.compress import compress, strip_compression
from tfmot_atmc.export import file_bytes, weight_bytes
from tfmot_atmc.math import parse_bytes
from tfmot_atmc.models import widest
from tfmot_atmc.slimming import measure_influence, slim_model, trim_channels


def plan_width(
    builder: Callable[..., keras.Model],
    max_bytes: int | str,
    *,
    method: Any = "small_dense",
    **arguments: Any,
) -> tuple[keras.Model, BudgetPlan]:
    """Finds the widest network of a family whose file fits.

    Args:
        builder: builder of the family, which takes `width`, such as `models.compact_cnn`.
        max_bytes: bytes, or text such as `"8KB"`.
        method: the method that will train it, which says how the file stores weights: in 8 bits, or
            for `FewBits` in fewer.
        **arguments: further arguments of the builder.

    Returns:
        The network, and a `BudgetPlan` whose ratio is 1.

    Raises:
        ValueError: if not even the narrowest network fits, or an argument is out of range.

    Example:

    >>> import tfmot_atmc as atmc
    >>> network, plan = plan_width(atmc.models.compact_cnn, "8KB", seed=0)
    >>> 7000 < plan.predicted_bytes <= 8192
    True
    """
    limit, method = parse_bytes(max_bytes), methods.get(method)
    values = method.file_values

    def fits(network: keras.Model, room: int) -> bool:
        return weight_bytes(_stored(network, method), values=values) <= room

    narrowest = _stored(builder(width=1 / 64, **arguments), method)
    smallest = file_bytes(narrowest, values=values)
    graph = smallest - weight_bytes(narrowest, values=values)
    while True:  # the graph grows a little with the width: alignment, and longer shapes
        found = widest(builder, functools.partial(fits, room=limit - graph), **arguments)
        exact = file_bytes(_stored(found, method), values=values)
        if exact <= limit:
            return found, BudgetPlan(limit, 1.0, exact, smallest)
        graph += max(1, exact - limit)


def plan_channels(
    model: keras.Model, max_bytes: int | str, inputs: Any, *, method: Any = "small_dense"
) -> tuple[keras.Model, BudgetPlan]:
    """Takes the least influential channels from a trained network until its dense file fits.

    Args:
        model: a plain functional or sequential model, trained. It stays as it is.
        max_bytes: bytes, or text such as `"8KB"`.
        inputs: examples to measure influence on; attacked ones too where the model has to withstand
            attacks.
        method: the method that will train it on, as in `plan_width`.

    Returns:
        The network with fewer channels, to be trained on, and a `BudgetPlan` whose ratio is 1.

    Raises:
        ValueError: if it does not fit with one channel in each layer, or cannot be trimmed.
    """
    limit, method = parse_bytes(max_bytes), methods.get(method)
    slimmed = slim_model(model)
    influence = measure_influence(slimmed, inputs)
    order = removal_order(influence)

    def without(removed: int) -> tuple[keras.Model, int]:
        kept = kept_of(influence, order[:removed])
        trial = trim_channels(slimmed, inputs, kept, influence=influence) if kept else slimmed
        return trial, file_bytes(_stored(trial, method), values=method.file_values)

    smallest = without(len(order))[1]
    if smallest > limit:
        raise ValueError(
            f"`max_bytes` is {limit:,}, but {model.name!r} has {smallest:,} bytes with one channel "
            "in each layer that can lose some. Use a smaller model."
        )
    low, high = -1, len(order)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if without(middle)[1] <= limit else (middle, high)
    found, exact = without(high)
    return found, BudgetPlan(limit, 1.0, exact, smallest)


def _stored(network: keras.Model, method: methods.Method) -> keras.Model:
    """The network with weights as the method leaves them, before training."""
    return strip_compression(compress(network, method))
