# SPDX-License-Identifier: Apache-2.0
"""What a run is measured by under attack: right answers of classifiers, the loss of all others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfmot_atmc import tasks
from tfmot_atmc.attacks import Attack, fold_in
from tfmot_atmc.datasets.splits import Dataset
from tfmot_atmc.evaluation import evaluate_robustness
from tfmot_atmc.evaluation.targets import as_target
from tfmot_atmc.recipes.aims import loss_for

__all__ = ["MEASURES", "attacker", "is_share", "measured"]

MEASURES = {
    "classes": "accuracy",
    "answers": "all answers right",
    "numbers": "mean square error",
}
"""What is measured, by the kind of targets (`Dataset.task`)."""

_BATCH = 250


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
        The measure under `"clean"` and under each attack's name, and a `"report"` with the number
        of examples `n`, `warnings`, and what else there is to say.
    """
    pair = data.x_test, data.y_test
    if data.task == "classes":
        report = evaluate_robustness(
            target,
            pair,
            attacks=attacks,
            source=source,
            drop_broken=False,
            seed=seed,
            verbose=verbose,
        )
        found = zip(attacks, report.attacks, strict=True)
        shares = {name: result.accuracy for name, result in found}
        return {"clean": report.clean_accuracy, **shares, "report": report.to_dict()}
    model = target if source is None else source
    rows: dict[str, list[np.ndarray]] = {"clean": list(_values(target, model, data, *pair))}
    for number, (name, attack) in enumerate(attacks.items()):
        run = attacker(model, attack, data)
        parts = []
        for start in range(0, len(pair[1]), _BATCH):
            x, y = (part[start : start + _BATCH] for part in pair)
            own = fold_in(fold_in(tf.constant([seed, attack.seed], tf.int64), number), start)
            parts.append(_values(target, model, data, run(x, y, own), y))
        rows[name] = [np.concatenate(values) for values in zip(*parts, strict=True)]
    return _summary(rows, data)


def _values(
    target: Any, model: keras.Model, data: Dataset, x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the loss of each example, and whether its answer is right (of numbers never)."""
    outputs = tf.constant(as_target(target).predict(x))
    loss = loss_for(model, data)
    if isinstance(loss, keras.losses.BinaryCrossentropy) and loss.from_logits:
        outputs = tf.cast(outputs, tf.float32)
    losses = tasks.example_losses(loss, tf.constant(y), outputs).numpy()
    right = tasks.task_of(loss, outputs, y).correct(y, outputs)
    return losses, np.zeros(len(y)) if right is None else right.numpy()


def _summary(rows: dict[str, list[np.ndarray]], data: Dataset) -> dict[str, Any]:
    losses = {name: float(np.mean(loss)) for name, (loss, _) in rows.items()}
    right = {name: float(np.mean(answers)) for name, (_, answers) in rows.items()}
    warnings = []
    weak = [name for name, value in losses.items() if value < 0.999 * losses["clean"]]
    if weak:
        warnings.append(
            f"{', '.join(weak)} left a smaller loss than the clean inputs have: the attack fails, "
            "and its figure says nothing of what a better one would do."
        )
    values = losses if data.task == "numbers" else right
    return {**values, "report": {"n": len(data.y_test), "loss": losses, "warnings": warnings}}
