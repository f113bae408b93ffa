# SPDX-License-Identifier: Apache-2.0
"""Where the weights sit that a model keeps."""

from __future__ import annotations

from typing import Any

import keras

from tfmot_atmc.compression.model import CompressedModel
from tfmot_atmc.compression.sites import find_slots
from tfmot_atmc.compression.stripping import plain_copy
from tfmot_atmc.math import MaskStats, kernel_stats
from tfmot_atmc.utils.keras_internals import flat_layers

__all__ = ["mask_stats"]


def mask_stats(model: keras.Model) -> tuple[MaskStats, ...]:
    """Returns for each kernel how many weights are kept, by filter and by channel.

    Args:
        model: a compressed model, of which the final kernels count, or a plain one. Layers that
            could not be compressed, such as frozen ones, are left out.

    Returns:
        One `MaskStats` a kernel of two dimensions or more, in the order of the layers.

    Source: Liu et al., "Robust Binary Models by Pruning Randomly-initialized Networks", NeurIPS
    2022, appendix on the structure of masks.

    Example:

    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    >>> mask_stats(model)[0].kept
    6
    """
    plain: Any = plain_copy(model) if isinstance(model, CompressedModel) else model
    found = []
    for layer in flat_layers(plain):
        slots = find_slots(layer)
        for slot in [] if isinstance(slots, str) else slots:
            if len(slot.variable.shape) < 2:
                continue
            path = layer.path or layer.name
            found.append(
                kernel_stats(
                    keras.ops.convert_to_numpy(slot.variable),
                    f"{path}/{slot.attribute.lstrip('_')}",
                    groups=int(getattr(layer, "groups", 1) or 1),
                    depthwise=hasattr(layer, "depth_multiplier"),
                )
            )
    return tuple(found)
