# SPDX-License-Identifier: Apache-2.0
"""What a run is measured by under attack: right answers of classifiers, the loss of all others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmot_atmc import tasks
from tfmot_atmc.attacks import Attack
from tfmot_atmc.datasets.splits import Dataset
from tfmot_atmc.evaluation import evaluate_robustness
from tfmot_atmc.recipes.aims import loss_for

__all__ = ["MEASURES", "attacker", "is_share", "measured"]

MEASURES = {
    "classes": "accuracy",
    "answers": "all answers right",
    "numbers": "mean square error",
}
"""What is measured, by the kind of targets (`Dataset.task`)."""


def is_share(measure: str) -> bool:
    """Whether a measure is a share of the examples, which an attack makes smaller.

    Args:
        measure: one of `MEASURES`' values.
    """
    return measure != MEASURES["numbers"]


def attacker(model: keras.Model, attack: Attack, data: Dataset) -> Callable[..., np.ndarray]:
    """Returns a function from inputs, targets and a seed to adversarial inputs, for any targets.

    Args:
        model: a plain Keras model with one output.
        attack: the attack; where there are no classes one that raises any loss.
        data: what the model was trained on.

    Raises:
        ValueError: by the function, if the attack looks at classes and there are none.
    """
    loss = loss_for(model, data)

    def predict(inputs: Any) -> Any:
        return model(inputs, training=False)

    @tf.function(
        autograph=False,
        input_signature=[
            tf.TensorSpec([None, *data.input_shape], tf.float32),
            tf.TensorSpec([None, *data.y_train.shape[1:]], data.y_train.dtype),
            tf.TensorSpec([2], tf.int64),
        ],
    )
    def run(x: tf.Tensor, y: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        task = tasks.task_of(loss, model.outputs[0], y)
        chosen, target, labels = task.under(attack, predict, y)
        return chosen(target, x, labels, seed=seed)

    return lambda x, y, seed: run(x, y, tf.cast(seed, tf.int64)).numpy()


def measured(
    target: Any,
    data: Dataset,
    attacks: dict[str, Attack],
    *,
    source: keras.Model | None = None,
    seed: int = 0,
    verbose: int = 0,
) -> dict[str, Any]:
    """Measures a model or a file on test data, clean and under each attack by itself.

    Args:
        target: Keras model, or path of a file.
        data: the data.
        attacks: attacks by name.
        source: for a file, the model on which adversarial inputs are made.
        seed: seed of the attacks.
        verbose: whether to show progress.

    Returns:
        The measure under `"clean"` and under each attack's name, and the `"report"` of
        `evaluate_robustness` as plain values.
    """
    report = evaluate_robustness(
        target,
        (data.x_test, data.y_test),
        attacks=attacks,
        source=source,
        loss=None
        if data.task == "classes"
        else loss_for(target if source is None else source, data),
        drop_broken=False,
        seed=seed,
        verbose=verbose,
    )
    found = list(zip(attacks, report.attacks, strict=True))
    if data.task != "numbers":
        shares = {name: result.accuracy for name, result in found}
        return {"clean": report.clean_accuracy, **shares, "report": report.to_dict()}
    losses = {"clean": report.clean_loss, **{name: result.loss for name, result in found}}
    return {**losses, "report": report.to_dict()}
