# SPDX-License-Identifier: Apache-2.0
"""How a budget of nonzeros shrinks during training."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfmot_atmc.constraints.base import Moment
from tfmot_atmc.utils.configurable import Configurable, get_configured
from tfmot_atmc.utils.registry import check_arguments


class BudgetSchedule(Configurable, kind="schedule"):
    """The number of nonzeros allowed at a moment of training.

    Subclasses override `budget`. Points in time are given as optimizer steps (int) or as a
    fraction of the planned steps (float in [0, 1]).
    """

    needs_horizon: bool = False

    final_ratio: float | None = None
    """The ratio the schedule itself ends in; None when the constraint decides."""

    def budget(self, moment: Moment, k: int, total: int, current: tf.Tensor) -> tf.Tensor:
        """Returns the budget, a scalar int32 tensor.

        Args:
            moment: when.
            k: the final budget.
            total: number of parameters of the dense kernels.
            current: scalar int32 tensor, the budget of the previous step.
        """
        raise NotImplementedError


def _check_point(name: str, value: int | float) -> int | float:
    if isinstance(value, bool) or value < 0 or (isinstance(value, float) and value > 1):
        raise ValueError(
            f"`{name}` must be a step (int >= 0) or a fraction of the planned steps (float in "
            f"[0, 1]). Received {value!r}."
        )
    return value


class ConstantBudget(BudgetSchedule, name="constant"):
    """The final budget from `begin` on; no limit before.

    Args:
        begin: step (int) or fraction of the planned steps (float).
    """

    def __init__(self, begin: int | float = 0):
        self.begin = _check_point("begin", begin)
        self.needs_horizon = isinstance(begin, float)

    def budget(self, moment: Moment, k: int, total: int, current: tf.Tensor) -> tf.Tensor:
        return tf.where(moment.step >= moment.at(self.begin), k, tf.maximum(total, k))


class CubicBudget(BudgetSchedule, name="cubic"):
    """A budget that falls from `initial_ratio` to the final one along a cubic.

    With q the progress from `begin` to `end`, the budget is k + (k_0 - k)(1 - q)^3. Pruning
    gradually at a high learning rate lets training choose which weights stay; pruning at once
    freezes the choice.

    Args:
        initial_ratio: budget at `begin`, as a ratio of the dense parameters, in (0, 1].
        begin: step (int) or fraction of the planned steps (float); before it nothing is pruned.
        end: step or fraction at which the final budget is reached.

    Source: Zhu and Gupta, "To prune, or not to prune", 2017, equation 1, with a first value below
    the dense size.
    """

    def __init__(self, initial_ratio: float = 0.25, begin: int | float = 0, end: int | float = 0.5):
        if not 0 < initial_ratio <= 1:
            raise ValueError(f"`initial_ratio` must lie in (0, 1]. Received {initial_ratio!r}.")
        self.initial_ratio = initial_ratio
        self.begin = _check_point("begin", begin)
        self.end = _check_point("end", end)
        if isinstance(begin, type(end)) and end < begin:
            raise ValueError(f"`end` must not lie before `begin`. Received {begin!r}, {end!r}.")
        self.needs_horizon = isinstance(begin, float) or isinstance(end, float)

    def budget(self, moment: Moment, k: int, total: int, current: tf.Tensor) -> tf.Tensor:
        begin, end = moment.at(self.begin), moment.at(self.end)
        length = tf.cast(tf.maximum(end - begin, 1), tf.float32)
        progress = tf.clip_by_value(tf.cast(moment.step - begin, tf.float32) / length, 0.0, 1.0)
        start = max(int(self.initial_ratio * total), k)
        falling = k + tf.cast(tf.cast(start - k, tf.float32) * (1 - progress) ** 3, tf.int32)
        falling = tf.where(moment.step >= end, k, falling)
        return tf.where(moment.step >= begin, falling, tf.maximum(total, k))


class PruningScheduleBudget(BudgetSchedule):
    """A TFMOT `PruningSchedule` read as a budget.

    The schedule's sparsity s becomes a budget of (1 - s) times the dense parameters; between the
    schedule's own pruning steps the last budget stays in force.

    Args:
        schedule: a `tfmot.sparsity.keras.PruningSchedule`, such as `ConstantSparsity` or
            `PolynomialDecay`: any callable from a step to `(should_prune, sparsity)`, with a
            `target_sparsity` or `final_sparsity` attribute.
    """

    def __init__(self, schedule: Any):
        final = getattr(schedule, "final_sparsity", getattr(schedule, "target_sparsity", None))
        if not callable(schedule) or final is None:
            raise TypeError(
                "A pruning schedule must be callable with a step and have `final_sparsity` or "
                f"`target_sparsity`. Received {schedule!r}."
            )
        self.schedule = schedule
        self.final_ratio = 1.0 - float(final)

    def budget(self, moment: Moment, k: int, total: int, current: tf.Tensor) -> tf.Tensor:
        should_prune, sparsity = self.schedule(moment.step)
        kept = tf.cast(tf.round((1.0 - tf.cast(sparsity, tf.float32)) * total), tf.int32)
        return tf.where(should_prune, tf.maximum(kept, k), current)

    def get_config(self) -> dict[str, Any]:
        return {"schedule": self.schedule.get_config()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PruningScheduleBudget:
        """Rebuilds the TFMOT schedule; needs TFMOT installed."""
        try:
            from tensorflow_model_optimization.sparsity import keras as sparsity
        except ImportError as error:
            raise ImportError(
                "This model was compressed with a TFMOT pruning schedule. "
                "Install it with `pip install tfmot_atmc[tfmot]`."
            ) from error
        schedule = config["schedule"]
        return cls(getattr(sparsity, schedule["class_name"]).from_config(schedule["config"]))


def get_schedule(identifier: Any, **arguments: Any) -> BudgetSchedule:
    """Returns a budget schedule.

    Args:
        identifier: a `BudgetSchedule`; `"cubic"` or `"constant"`; a TFMOT `PruningSchedule`; or
            the config of a serialised schedule.
        **arguments: arguments of a schedule given by name.

    Returns:
        A `BudgetSchedule`.

    Raises:
        ValueError: for an unknown name.
        TypeError: for an object that is none of these, or for unknown arguments.
    """
    if isinstance(identifier, (BudgetSchedule, dict, str)):
        return get_configured(BudgetSchedule, identifier, arguments)
    check_arguments(type(identifier).__name__, arguments, [])
    return PruningScheduleBudget(identifier)
