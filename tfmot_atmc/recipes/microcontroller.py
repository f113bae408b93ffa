# SPDX-License-Identifier: Apache-2.0
"""What a run does for microcontrollers: it finds a ratio that fits, and writes the C code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from tfmot_atmc.compression.flash import FlashPlan, plan_flash
from tfmot_atmc.datasets.splits import Dataset
from tfmot_atmc.export import CReport, export_c
from tfmot_atmc.recipes.settings import CompressionSettings

__all__ = ["plan_code", "write_code"]

_CALIBRATED, _COMPARED = 300, 256


def plan_code(
    settings: CompressionSettings, start: keras.Model, data: Dataset, say: Callable[[str], None]
) -> FlashPlan | None:
    """Finds the ratio for which C code of a model fits; None where no limit is asked for.

    Args:
        settings: with `max_flash`, `max_ram` and `cpu`.
        start: the model before training.
        data: its training images settle the scales.
        say: called with what was found.

    Raises:
        TooLargeError: if the code does not fit with one weight in each kernel.
        ValueError: if it shall take bytes and the inputs do not begin at 0.
    """
    if settings.max_flash is None and settings.max_ram is None:
        return None
    plan = plan_flash(
        start,
        data.x_train[:_CALIBRATED],
        max_flash=settings.max_flash,
        max_ram=settings.max_ram,
        cpu=settings.cpu,
        pixel_max=_pixel_max(settings, data),
    )
    say(
        f"C code for {plan.cpu}: a ratio of {plan.ratio:.4f} is predicted to need {plan.flash:,} "
        f"bytes of flash and {plan.ram:,} of RAM at {plan.level} (one weight in each kernel: "
        f"{plan.smallest_flash:,} of flash)"
    )
    return plan


def write_code(
    settings: CompressionSettings, model: keras.Model, data: Dataset, path: Path
) -> CReport | None:
    """Writes the C code of a model within the limits; None where no limit is asked for.

    Raises:
        TooLargeError: if it does not fit.
    """
    if settings.max_flash is None and settings.max_ram is None:
        return None
    return export_c(
        model,
        path,
        representative=data.x_train[:_CALIBRATED],
        inputs=data.x_test[:_COMPARED],
        pixel_max=_pixel_max(settings, data),
        max_flash=settings.max_flash,
        max_ram=settings.max_ram,
        cpu=settings.cpu,
    )


def _pixel_max(settings: CompressionSettings, data: Dataset) -> float | None:
    """What the byte 255 means to the model; None where the C function takes no bytes."""
    if settings.input_type != "uint8":
        return None
    low, high = (np.unique(bound) for bound in data.bounds)
    if low.size != 1 or high.size != 1 or low[0] != 0.0:
        raise ValueError(
            "C code takes bytes for inputs from 0 to one largest value, the same for all. Received "
            f"bounds from {low.tolist()} to {high.tolist()}; give `bounds` such as 0,255 and a "
            "model that begins with a Rescaling, or leave `input_type` out."
        )
    return float(high[0])
