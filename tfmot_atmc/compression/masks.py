# SPDX-License-Identifier: Apache-2.0
"""Where the weights sit that a model keeps, in numbers and as a picture."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tfmot_atmc.compression.model import CompressedModel
from tfmot_atmc.compression.sites import find_slots
from tfmot_atmc.compression.stripping import plain_copy
from tfmot_atmc.math import MaskStats, aligned_channels, kernel_stats, random_channels
from tfmot_atmc.utils.keras_internals import flat_layers

__all__ = ["mask_figure", "mask_stats"]


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
    return tuple(stats for stats, _ in _kernels(model))


def mask_figure(model: keras.Model, layers: tuple[str, str] | None = None) -> Any:
    """Draws which weights of two kernels are kept, and how many each channel has.

    Above, for both kernels: weights of each output and input channel, most first, beside pruning as
    many at random. Below the mask of the first kernel: one window for each input (across) and each
    output (down), with input channels that nothing reads shaded.

    Args:
        model: as for `mask_stats`.
        layers: names of two kernels, as `mask_stats` gives them, or parts of names; None for the
            pair that follow each other, the second reading what the first has, with most weights.

    Returns:
        A `matplotlib.figure.Figure`; its `savefig(path)` keeps it.

    Raises:
        ValueError: if there are no such kernels.

    Source: Liu et al., "Robust Binary Models by Pruning Randomly-initialized Networks", NeurIPS
    2022, figures 1 and 5.
    """
    from matplotlib.figure import Figure

    found = _kernels(model)
    first, second = _pair(found) if layers is None else (_named(found, name) for name in layers)
    figure = Figure(figsize=(9.5, 8.5), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=(2, 3))
    sides = ((first[0], "outputs"), (second[0], "inputs"))
    for column, (stats, axis) in enumerate(sides):
        _draw_channels(figure.add_subplot(grid[0, column]), stats, axis)
    _draw_mask(figure.add_subplot(grid[1, :]), *first)
    title = f"{first[0].kept:,} of {first[0].size:,} weights of {first[0].name}"
    if first[0].per_output.size == second[0].per_input.size:
        both, chance = aligned_channels(first[0], second[0])
        title += f"; {both} channels empty on both sides, {chance:.1f} by chance"
    figure.suptitle(title, fontsize=10)
    return figure


def _draw_channels(axes: Any, stats: MaskStats, axis: str) -> None:
    counts = stats.per_input if axis == "inputs" else stats.per_output
    axes.plot(-np.sort(-counts), color="#b5442e", label="kept")
    axes.plot(random_channels(stats, axis), color="#5b7f95", linestyle="--", label="at random")
    axes.set_title(f"{axis} of {stats.name}", fontsize=9)
    axes.set_xlabel("channel, most weights first")
    axes.set_ylabel("weights")
    axes.legend(frameon=False)


def _draw_mask(axes: Any, stats: MaskStats, kernel: np.ndarray) -> None:
    inputs, outputs = kernel.shape[-2:]
    window = (kernel != 0).reshape(*_window(kernel.shape), inputs, outputs)
    height, width = window.shape[:2]
    across = window.transpose(3, 0, 2, 1).reshape(outputs * height, inputs * width)
    axes.imshow(~across, cmap="gray", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    unread = stats.per_input[:inputs] == 0
    for channel in np.flatnonzero(unread):
        axes.axvspan(channel * width - 0.5, (channel + 1) * width - 0.5, color="#d98c5f", alpha=0.4)
    axes.set_xlabel(f"{inputs} inputs, {int(unread.sum())} of them empty (shaded)")
    axes.set_ylabel(f"{outputs} outputs, {stats.empty_outputs} empty")
    axes.set_xticks([])
    axes.set_yticks([])


def _window(shape: tuple[int, ...]) -> tuple[int, int]:
    sides = shape[:-2]
    return (sides[0] if len(sides) > 1 else 1), (sides[-1] if sides else 1)


def _pair(found: list[tuple[MaskStats, np.ndarray]]) -> tuple[Any, Any]:
    fitting = [
        (a, b)
        for a, b in zip(found, found[1:], strict=False)
        if a[0].per_output.size == b[0].per_input.size
    ]
    if not fitting:
        raise ValueError(
            "No kernel has as many inputs as the one before it has outputs. Give two `layers` of "
            f"{[stats.name for stats, _ in found]}."
        )
    return max(fitting, key=lambda pair: pair[0][0].size + pair[1][0].size)


def _named(found: list[tuple[MaskStats, np.ndarray]], name: str) -> tuple[MaskStats, np.ndarray]:
    named = [pair for pair in found if name in pair[0].name]
    if not named:
        raise ValueError(
            f"No kernel has this name. Received {name!r}, there are {[s.name for s, _ in found]}."
        )
    return next((pair for pair in named if pair[0].name == name), named[0])


def _kernels(model: keras.Model) -> list[tuple[MaskStats, np.ndarray]]:
    """Returns the statistics and the value of each kernel of two dimensions or more."""
    plain: Any = plain_copy(model) if isinstance(model, CompressedModel) else model
    found = []
    for layer in flat_layers(plain):
        slots = find_slots(layer)
        for slot in [] if isinstance(slots, str) else slots:
            if len(slot.variable.shape) < 2:
                continue
            path = layer.path or layer.name
            kernel = keras.ops.convert_to_numpy(slot.variable)
            stats = kernel_stats(
                kernel,
                f"{path}/{slot.attribute.lstrip('_')}",
                groups=int(getattr(layer, "groups", 1) or 1),
                depthwise=hasattr(layer, "depth_multiplier"),
            )
            found.append((stats, kernel))
    return found
