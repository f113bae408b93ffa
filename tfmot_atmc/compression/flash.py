# SPDX-License-Identifier: Apache-2.0
"""Planning a compression so that its C code fits in a microcontroller's flash and RAM."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras

from tfmot_atmc.export import TooLargeError
from tfmot_atmc.export.c.prediction import FootprintPredictor
from tfmot_atmc.export.c.sizes import Footprint
from tfmot_atmc.math.sizes import parse_bytes

__all__ = ["FlashPlan", "plan_flash"]

_STEPS = 10
# What the trained kernels may need more than random ones of the same ratio.
_MARGIN = 0.97


@dataclasses.dataclass(frozen=True)
class FlashPlan:
    """A ratio for which the C code is predicted to fit.

    Attributes:
        ratio: nonzeros as a ratio of the kernels' weights.
        flash: bytes of flash predicted, code included.
        ram: bytes of RAM predicted, the stack included.
        level: the compiler's level for which it fits.
        smallest_flash: flash with one weight in each kernel.
        cpu: the core.
    """

    ratio: float
    flash: int
    ram: int
    level: str
    smallest_flash: int
    cpu: str


def plan_flash(
    model: keras.Model,
    representative: Any,
    *,
    max_flash: int | str | None = None,
    max_ram: int | str | None = None,
    cpu: str = "cortex-m4",
    pixel_max: float | None = None,
) -> FlashPlan:
    """Finds the largest ratio of nonzeros whose C code is predicted to fit.

    RAM hardly depends on the ratio: it holds activations. It is checked all the same.

    Args:
        model: a plain model, dense or not.
        representative: some training examples.
        max_flash: most flash, in bytes or as text such as `"16KB"`; None for any.
        max_ram: most RAM, static memory and stack together; None for any.
        cpu: the core; see `export_c`.
        pixel_max: what the byte 255 means to the model where the C function shall take bytes.

    Returns:
        A `FlashPlan`.

    Raises:
        TooLargeError: if it does not fit with one weight in each kernel, with the figures.
        ExportError: if the model has an operator without a kernel.
        ValueError: if an argument is out of range.
    """
    limits = tuple(None if m is None else parse_bytes(m) for m in (max_flash, max_ram))
    predict = FootprintPredictor(model, representative, cpu, pixel_max)

    def fitting(ratio: float, margin: float = _MARGIN) -> Footprint | None:
        for found in predict(ratio):
            flash, ram = limits
            small = flash is None or found.flash <= margin * flash
            if small and (ram is None or found.ram <= ram):
                return found
        return None

    smallest = min(predict(0.0), key=lambda found: found.flash)
    if fitting(0.0, 1.0) is None:
        flash, ram = ("any" if limit is None else f"{limit:,}" for limit in limits)
        raise TooLargeError(
            f"The C code of {model.name!r} needs {smallest.flash:,} bytes of flash and "
            f"{smallest.ram:,} of RAM on {cpu} with one weight in each kernel; allowed are {flash} "
            f"of flash and {ram} of RAM. Use a network with fewer or smaller activations and "
            "channels."
        )
    low, high = 1e-5, 1.0
    best = fitting(high)
    if best is not None:
        return _plan(high, best, smallest)
    best, ratio = smallest, low
    for _ in range(_STEPS):
        middle = math.sqrt(low * high)
        found = fitting(middle)
        if found is None:
            high = middle
        else:
            low, ratio, best = middle, middle, found
    return _plan(ratio, best, smallest)


def _plan(ratio: float, found: Footprint, smallest: Footprint) -> FlashPlan:
    return FlashPlan(ratio, found.flash, found.ram, found.optimize, smallest.flash, found.cpu)
