# SPDX-License-Identifier: Apache-2.0
"""The widest network of a family whose file is within a size, for methods that build their own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras

from tfmot_atmc import methods
from tfmot_atmc.compression.budget import BudgetPlan
from tfmot_atmc.compression.compress import compress, strip_compression
from tfmot_atmc.export import file_bytes, weight_bytes
from tfmot_atmc.math import parse_bytes
from tfmot_atmc.models import widest


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

    def stored(network: keras.Model) -> keras.Model:
        return strip_compression(compress(network, method))

    def fits(network: keras.Model, room: int) -> bool:
        return weight_bytes(stored(network), values=values) <= room

    narrowest = stored(builder(width=1 / 64, **arguments))
    smallest = file_bytes(narrowest, values=values)
    graph = smallest - weight_bytes(narrowest, values=values)
    while True:  # the graph grows a little with the width: alignment, and longer shapes
        found = widest(builder, functools.partial(fits, room=limit - graph), **arguments)
        exact = file_bytes(stored(found), values=values)
        if exact <= limit:
            return found, BudgetPlan(limit, 1.0, exact, smallest)
        graph += max(1, exact - limit)
