# SPDX-License-Identifier: Apache-2.0
"""The network that a run starts from: by name or from a file, as wide as the budget allows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tfmot_atmc import attacks, methods, models
from tfmot_atmc.compression.budget import BudgetPlan, plan_budget
from tfmot_atmc.compression.compress import strip_compression
from tfmot_atmc.compression.model import CompressedModel
from tfmot_atmc.compression.operations import MacsPlan, plan_macs
from tfmot_atmc.compression.widths import plan_channels, plan_width
from tfmot_atmc.datasets.splits import Dataset
from tfmot_atmc.recipes.aims import builder_arguments, check_outputs
from tfmot_atmc.recipes.measures import attacker
from tfmot_atmc.recipes.settings import CompressionSettings
from tfmot_atmc.recipes.sources import check_units, load_data, radius_of

__all__ = ["load_keras", "network_and_data", "plan_operations", "planned"]

# Training images, and as many attacked ones, that tell which channels matter.
_EXAMPLES = 256


def load_keras(path: str | Path) -> keras.Model:
    """Loads a `.keras` file, compressed or plain, without its optimizer.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is not a Keras model.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    if Path(path).suffix != ".keras":
        raise ValueError(f"Expected a .keras file. Received {str(path)!r}.")
    return keras.saving.load_model(path, compile=False)


def network_and_data(settings: CompressionSettings) -> tuple[keras.Model, Dataset]:
    """Returns the network that a run starts from, and its data.

    Args:
        settings: resolved settings.

    Raises:
        FileNotFoundError: if `model` names a file that is not there.
        ValueError: if the model does not take the data.
    """
    name = str(settings.model)
    if name not in models.names() and not Path(name).is_file():
        raise FileNotFoundError(
            f"{name!r} is neither a .keras file nor one of {', '.join(models.names())}."
        )
    loaded = load_keras(name) if name not in models.names() else None
    data = load_data(
        settings.dataset,
        settings.data,
        bounds=settings.bounds,
        image_size=settings.image_size,
        data_dir=settings.data_dir,
        seed=settings.seed,
        limit=settings.limit,
    )
    check_units(radius_of(settings.epsilon, data), data.bounds)
    if settings.objective == "trades" and data.task != "classes":
        raise ValueError(
            f"The objective 'trades' compares probabilities of classes, and {data.name!r} holds "
            f"{data.task}. Use 'adversarial' or 'half'."
        )
    if loaded is None:
        return models.get(name, seed=settings.seed, **builder_arguments(name, data)), data
    if isinstance(loaded, CompressedModel):
        loaded = strip_compression(loaded)
    check_outputs(name, loaded, data)
    return loaded, data


def planned(
    settings: CompressionSettings, start: keras.Model, data: Dataset, say: Callable[[str], None]
) -> tuple[keras.Model, BudgetPlan | None]:
    """Returns the network to train, narrower where the method asks for it, and the plan.

    Args:
        settings: resolved settings.
        start: the network that they name.
        data: the data, whose shapes a narrower network takes.
        say: called with a line on the plan.

    Raises:
        ValueError: if no network fits.
    """
    if methods.class_of(settings.method).narrows:
        return _narrowed(settings, start, data, say)
    if settings.max_bytes is None:
        return start, None
    plan = plan_budget(start, settings.max_bytes)
    say(
        f"Planned for at most {plan.max_bytes:,} bytes: a ratio of {plan.ratio:.4f}, predicted to "
        f"give {plan.predicted_bytes:,} (the smallest possible file: {plan.smallest_bytes:,})"
    )
    return start, plan


def plan_operations(
    settings: CompressionSettings, start: keras.Model, say: Callable[[str], None]
) -> MacsPlan | None:
    """Returns the plan for a limit on multiply-accumulates; None where there is none.

    Args:
        settings: resolved settings.
        start: the network to train.
        say: called with a line on the plan.

    Raises:
        ValueError: if it cannot be held.
    """
    if settings.max_macs is None:
        return None
    plan = plan_macs(start, settings.max_macs)
    say(
        f"Planned for at most {plan.max_macs:,} of {plan.dense_macs:,} multiply-accumulates: a "
        f"ratio of {plan.ratio:.4f}"
    )
    return plan


def _narrowed(
    settings: CompressionSettings, start: keras.Model, data: Dataset, say: Callable[[str], None]
) -> tuple[keras.Model, BudgetPlan | None]:
    if settings.model not in models.names():
        return _trimmed(settings, start, data, say)
    builder, weights = models.builder(str(settings.model)), models.count_kernel_weights
    arguments = builder_arguments(str(settings.model), data)
    if settings.max_bytes is None:
        most = float(settings.ratio or 1) * weights(start)
        found = models.widest(
            builder, lambda network: weights(network) <= most, seed=settings.seed, **arguments
        )
        plan = None
    else:
        arguments |= {"method": settings.method_of(1.0), "seed": settings.seed}
        found, plan = plan_width(builder, settings.max_bytes, **arguments)
    predicted = "" if plan is None else f", predicted to give {plan.predicted_bytes:,} bytes"
    say(f"The widest {settings.model} that fits: {weights(found):,} weights{predicted}")
    return found, plan


def _trimmed(
    settings: CompressionSettings, start: keras.Model, data: Dataset, say: Callable[[str], None]
) -> tuple[keras.Model, BudgetPlan]:
    """The most influential channels of a trained network, as many as fit."""
    if settings.max_bytes is None:
        raise ValueError(
            f"The method {settings.method!r} builds its network: give a name of "
            "`tfmot_atmc.models`, or `max_bytes` to take the channels of a trained one that fit. "
            f"Received model={settings.model!r}."
        )
    epsilon = radius_of(settings.epsilon, data)
    attack = attacks.PGD(epsilon=epsilon, steps=10, step_size=epsilon / 6, bounds=data.bounds)
    x, y = data.x_train[:_EXAMPLES], data.y_train[:_EXAMPLES]
    seed = tf.constant([settings.seed, attack.seed], tf.int64)
    examples = np.concatenate([x, attacker(start, attack, data)(x, y, seed)])
    method = settings.method_of(1.0)
    found, plan = plan_channels(start, settings.max_bytes, examples, method=method)
    say(
        f"{models.count_kernel_weights(found):,} of {models.count_kernel_weights(start):,} weights "
        f"fit, predicted to give {plan.predicted_bytes:,} bytes"
    )
    return found, plan
