# SPDX-License-Identifier: Apache-2.0
"""Accuracy under attack, with the checks that keep the figure honest."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tfmot_atmc.evaluation.data import batches, progress
from tfmot_atmc.evaluation.goals import settled
from tfmot_atmc.evaluation.named import named_attacks
from tfmot_atmc.evaluation.report import RobustnessReport
from tfmot_atmc.evaluation.running import Evaluation
from tfmot_atmc.evaluation.targets import as_target

__all__ = ["evaluate_robustness"]


def evaluate_robustness(
    target: Any,
    data: Any,
    *,
    attacks: Any = None,
    epsilon: Any = None,
    batch_size: int = 250,
    source: Any = None,
    loss: Any = None,
    max_examples: int | None = None,
    drop_broken: bool = True,
    seed: int = 0,
    checks: bool = True,
    second_opinion: bool = True,
    state: str | os.PathLike[str] | None = None,
    verbose: int = 1,
) -> RobustnessReport:
    """Measures the accuracy of a model on clean data and under attacks.

    An example is robust when right on the clean input and under every attack. The result is an
    upper bound of the true robustness: a stronger attack may find more.

    Of a model with several yes-or-no labels an example (binary cross-entropy of several outputs)
    all must be right. Any other model that has a loss for each example, such as regression,
    segmentation or an autoencoder, has no right answers: attacks raise that loss, and the report is
    of mean losses.

    Args:
        target: Keras model, callable from a batch to logits, or path of a .tflite or C file.
        data: pair `(x, y)` of arrays (`x` may be a nest), or a batched `tf.data.Dataset` of such
            pairs. Labels are class indices or rows (one-hot, smoothed, mixed); of a single output
            they are 0 and 1, or probabilities of 1; for other models, what `fit` takes.
        attacks: `Attack`, name, list of these, or dict from a name of your choice to one. None is
            a 16-step `PGD`. Earlier ones should be cheaper. An ensemble, such as `"autoattack"`,
            is run part by part.
        epsilon: radius in input units for the default attack and for those given by name.
        batch_size: examples attacked at once; a dataset keeps its own batches.
        source: model that stands in for a target without gradients: attacks by gradients are made
            on it and transferred, a weaker attack, and the result says so. Attacks that need no
            gradients, such as Square, always run on the target itself.
        loss: what the model was made for, as given to `compile`; None for the loss that the target
            or else its source is compiled with. Without any, the model tells classes.
        max_examples: use only the first ones; needed where a dataset has no end.
        drop_broken: give an attack only what is still right, so that the accuracy after it is
            after all so far. False gives each all that is right when clean.
        seed: seed of all attacks, together with each one's own and the batch's number.
        checks: look for signs that the robustness is not real, on examples from everywhere in the
            data; the report names them.
        second_opinion: with the checks, and unless AutoAttack or its like is among the attacks:
            run APGD on two losses and some Square queries on what is left of a sample of 128, and
            warn where they break clearly more.
        state: file to which counts are written after every batch. The same call with the same
            file goes on there, to the same result; the file is removed at the end.
        verbose: 0 for silence, 1 for a progress bar.

    Returns:
        `RobustnessReport`; `print` shows a table, `save` writes JSON.

    Raises:
        ValueError: no data or no end of them, bad labels, inputs outside an attack's bounds, an
            attack towards the true labels, neither `attacks` nor `epsilon`, a target without
            gradients and no `source`, or a `state` of another evaluation.
        RuntimeError: an attack left its ball or bounds.

    Example:
    >>> import numpy as np
    >>> import tensorflow as tf
    >>> model = lambda x: tf.stack([x[:, 0], 1.0 - x[:, 0]], axis=-1)
    >>> x = np.array([[0.9], [0.55], [0.1], [0.2]], "float32")
    >>> report = evaluate_robustness(model, (x, [0, 0, 1, 0]), epsilon=0.1, verbose=0)
    >>> report.clean_accuracy, report.robust_accuracy
    (0.75, 0.5)
    """
    named = named_attacks(attacks, epsilon)
    victim = as_target(target)
    origin = victim if source is None else as_target(source)
    if origin.model is None and any(attack.needs_gradients for attack in named.values()):
        raise ValueError(
            f"{origin.name} gives no gradients. Pass `source=` the Keras model it was made from: "
            "adversarial examples are then made on that and transferred. Or give attacks that need "
            "no gradients, such as Square."
        )
    settings = {"batch_size": batch_size, "max_examples": max_examples, "checks": checks}
    settings["second_opinion"] = second_opinion
    run = None
    with progress(verbose, data, batch_size, max_examples) as advance:
        for x, given in batches(data, batch_size, max_examples):
            if run is None:
                run = Evaluation(
                    *settled(victim, origin, loss, x, given), named, drop_broken, seed, settings
                )
                run.keep_in(None if state is None else Path(state))
            advance(run.add(x, given))
    if run is None:
        raise ValueError("There is no data to evaluate on: received no examples.")
    report = run.report()
    if state is not None:
        Path(state).unlink(missing_ok=True)
    return report
